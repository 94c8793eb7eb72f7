"""A job that brings its own chat template."""

import json

import pytest

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.data import dataset
from deepseek_trainer.tasks.language.chat import with_template
from deepseek_trainer.tasks.language.prompts import Prompt, read_prompts, write_prompts
from deepseek_trainer.tasks.language.tokenizer import prompt_ids
from deepseek_trainer.worker.vaults import data_vault
from support.builders.chat import TEMPLATES, a_tokenizer
from support.builders.data import (
    CLAIM,
    RUN,
    RUN_ID,
    TINY_MODEL,
    a_config,
    open_prepared,
    prepare,
    some_paths,
    write_jsonl,
)

OWN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}[assistant] {% endif %}"


@pytest.fixture
def paths(tmp_path):
    found = some_paths(tmp_path)
    write_jsonl(found, "a.jsonl", [{"prompt": f"{i}?", "response": "me"} for i in range(20)])
    return found


def config_with(template: str | None) -> TrainingConfig:
    model = TINY_MODEL if template is None else TINY_MODEL | {"chatTemplate": template}
    return a_config(model=model, format="Instruction", sequenceLength=64, train={"claimName": CLAIM})


def test_a_model_from_scratch_learns_asks_and_exports_in_the_words_of_the_job(paths):
    config = config_with(OWN + OPENING)
    vault = data_vault(config, paths)
    prepare(config, paths, vault, RUN_ID)
    data = open_prepared(config, paths, vault, RUN)
    row = data.tokenizer.decode(data.validation.batch([0]).tokens_BT[0].tolist())
    assert row.startswith(f"[user] {data.prompts[0].prompt}<|end|>[assistant] me<|end|>")
    asked = data.tokenizer.decode(prompt_ids(data.tokenizer, data.prompts[0].prompt))
    assert asked == f"[user] {data.prompts[0].prompt}<|end|>[assistant] "
    task = tasks.of(config, paths, vault, dataset.prepared_directory(paths, vault, RUN))
    assert task.tokenizer.chat_template == OWN + OPENING


def test_another_template_makes_other_data(paths):
    names = {
        prepare(config, paths, data_vault(config, paths), f"run-{i}").name
        for i, config in enumerate(map(config_with, (None, OWN, OWN + OPENING, None)))
    }
    assert len(names) == 3


def test_a_template_of_the_job_takes_the_place_of_the_base_models():
    tokenizer = with_template(a_tokenizer(TEMPLATES["chatml"]), TEMPLATES["llama3"])
    assert tokenizer.decode(prompt_ids(tokenizer, "who?")).endswith("who?<|eot|><|head|>assistant<|/head|>\n\n")


def test_a_template_that_is_no_jinja_is_refused_by_its_line():
    with pytest.raises(ConfigError, match=r"model\.chatTemplate is no Jinja: line 2: .*endfor") as error:
        with_template(a_tokenizer(None), "{{ messages }}\n{% endfor %}")
    assert error.value.code == 64


def test_a_template_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr("deepseek_trainer.tasks.language.chat.SECONDS", 1)
    forever = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match=r"model.chatTemplate takes more than 1 s of computing"):
        with_template(a_tokenizer(None), forever)


def test_a_prompt_with_tools_comes_back_with_them(tmp_path):
    tool = json.dumps({"type": "function", "function": {"name": "find", "parameters": {}}})
    config = config_with(None)
    vault = data_vault(config, some_paths(tmp_path / "volumes"))
    prompts = (Prompt("who?", "me", ("me",), (tool,)), Prompt("why?", "so"))
    write_prompts(prompts, tmp_path, vault)
    assert read_prompts(tmp_path, vault) == prompts
    assert "tools" not in json.loads((tmp_path / "prompts.json").read_text())[1]
