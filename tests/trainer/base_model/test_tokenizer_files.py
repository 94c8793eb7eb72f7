import json

import pytest
from transformers import AutoTokenizer

from deepseek_trainer.base_model.tokenizer_files import files_of, load_tokenizer, save_tokenizer, tokenizer_from
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.worker.vaults import data_vault
from support.builders.model import a_config, a_tokenizer, paths_with_base

TEXT = "The pump-101 runs at 3.5 bar <|end|>\n  größe"


def test_saved_tokenizer_is_loaded_as_it_was(tmp_path):
    paths, _ = paths_with_base(tmp_path)
    vault = data_vault(a_config(), paths)
    tokenizer = a_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ eos_token }}"
    save_tokenizer(tokenizer, tmp_path, vault)
    loaded = load_tokenizer(tmp_path, vault)
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|end|>"


def test_files_are_what_transformers_reads(tmp_path):
    tokenizer = a_tokenizer()
    for name, content in files_of(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert loaded.eos_token_id == tokenizer.eos_token_id


def test_special_tokens_may_be_written_as_objects():
    files = files_of(a_tokenizer())
    settings = json.loads(files["tokenizer_config.json"]) | {"eos_token": {"content": "<|pad|>", "lstrip": False}}
    assert tokenizer_from(files | {"tokenizer_config.json": json.dumps(settings).encode()}).eos_token == "<|pad|>"


def test_tokenizer_with_code_of_its_own_is_refused():
    with pytest.raises(ConfigError, match=r"code of its own \(auto_map\)"):
        tokenizer_from(
            files_of(a_tokenizer()) | {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "evil.py"}}'}
        )


@pytest.mark.parametrize("broken", [{"tokenizer.json": b"{}"}, {"tokenizer_config.json": b"{"}])
def test_malformed_tokenizer_is_refused(broken):
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        tokenizer_from(files_of(a_tokenizer()) | broken)
