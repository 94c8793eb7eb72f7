"""Whoever can write to a volume in the clear can put any JSON in the place of its documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, list_checkpoints, verify
from deepseek_trainer.checkpoints.ledger import Ledger
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.digests import ContentDigest
from support.builders.vault import a_state, a_store

VALUES = (None, True, -1, 3, 10**30, 10**400, 1.5, "", "x", "../x", "x" * 5000, [], [1], {}, {"a": 1})


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places_in(each, (*place, key))


def spoiled(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = json.loads(json.dumps(value))
    node = copy
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = new
    return copy


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    store = a_store(work, sealed=False)
    for step in (1, 2):
        store.save(step, a_state(step), {"loss": 1.5})
    return work


def use(work: Path) -> None:
    """As commands and runs do."""
    store = a_store(work, sealed=False)
    for info in list_checkpoints(work / "checkpoints", store.vault):
        if isinstance(info, CheckpointInfo):
            verify(info, store.vault)
            assert info.size_bytes >= 0
            assert info.created.isprintable()
    Ledger(work / "checkpoints", store.vault)
    if info := store.latest():
        store.load(info)


def use_or_refuse(work: Path) -> None:
    try:
        use(work)
    except IntegrityError as error:
        assert len(str(error)) < 5000  # noqa: PT017


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), new=st.sampled_from(VALUES))
def test_any_value_in_the_record_of_checkpoints_is_used_or_refused(volume: Path, data: st.DataObject, new: Any) -> None:
    file = volume / "checkpoints" / "HEAD.json"
    raw = file.read_bytes()
    head = json.loads(raw)
    try:
        place = data.draw(st.sampled_from([*places_in(head)]))
        file.write_text(json.dumps(spoiled(head, place, new)))
        use_or_refuse(volume)
    finally:
        file.write_bytes(raw)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), new=st.sampled_from(VALUES))
def test_any_value_in_a_manifest_that_is_recorded_is_used_or_refused(
    volume: Path, data: st.DataObject, new: Any
) -> None:
    checkpoints = volume / "checkpoints"
    file, record = checkpoints / "step-00000002" / "manifest.json", checkpoints / "HEAD.json"
    before = {path: path.read_bytes() for path in (file, record)}
    manifest, head = (json.loads(raw) for raw in before.values())
    try:
        place = data.draw(st.sampled_from([*places_in(manifest)]))
        file.write_text(json.dumps(spoiled(manifest, place, new)))
        digest = ContentDigest()
        digest.update(file.read_bytes())
        head["commits"][-1]["digest"] = str(digest)
        record.write_text(json.dumps(head))
        use_or_refuse(volume)
    finally:
        for path, raw in before.items():
            path.write_bytes(raw)
