"""Documents of prepared data that somebody changed: what the job does not seal is refused, and never a crash."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_trainer.base_model.source import SOURCE, read_source
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import file_name
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.pointer import POINTER, pointed_to
from deepseek_trainer.data.shards import MANIFEST, read_manifest
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.images.normalisation import PREPROCESSOR, Normalisation
from deepseek_trainer.tasks.images.preparation import CLASSES, read_classes
from deepseek_trainer.tasks.language.prompts import PROMPTS, read_prompts

VAULT = Vault("lab/demo", Purpose.DATA)
KEYS = ("runId", "data", "prompt", "response", "must_contain", "sha256", "claimName", "path", "weights", "format")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=8,
)
READERS: dict[str, Callable[[Path], Any]] = {
    CLASSES: lambda home: read_classes(home, VAULT),
    PROMPTS: lambda home: read_prompts(home, VAULT),
    SOURCE: lambda home: read_source(home, VAULT),
    MANIFEST: lambda home: read_manifest(home, VAULT),
    PREPROCESSOR: lambda home: Normalisation.of_base(home, VAULT, 3),
    POINTER: lambda home: pointed_to(Paths(home), "uid-1", VAULT),
}


def written(root: Path, name: str, content: bytes) -> None:
    place = Paths(root).prepared / "runs" / "uid-1" if name == POINTER else root
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)


@pytest.mark.parametrize("name", READERS)
@given(value=values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_json_is_read_or_refused(tmp_path: Path, name: str, value: Any) -> None:
    written(tmp_path, name, json.dumps(value).encode())
    with suppress(IntegrityError, ConfigError):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{", b"NaN"])
def test_what_is_no_json_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    written(tmp_path, name, content)
    with pytest.raises(IntegrityError):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", ["..", "", "../other", "/etc/passwd", "a/b", "a/", "nul\0", None, 7, ["x"]])
def test_a_name_in_a_document_leads_nowhere_else(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"no (name of a file|string)"):
        file_name(name)
    written(tmp_path, POINTER, json.dumps({"runId": "uid-1", "data": name}).encode())
    with pytest.raises(IntegrityError):
        pointed_to(Paths(tmp_path), "uid-1", VAULT)
