"""Fields of which nothing was made: counted in the manifest, and named in the log where nothing is sealed."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepseek_trainer.contract.foreign import MAX_SHOWN
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.shards import SplitCounts, read_manifest, total
from deepseek_trainer.data.tally import MAX_UNUSED, OTHERS
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import CLAIM, RUN_ID, a_config, prepare, some_paths, write_jsonl, write_text

PLACES = {name: {"claimName": CLAIM, "path": name} for name in ("train", "validation")}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return some_paths(tmp_path)


def counted(paths: Paths, rows: list[dict[str, Any]], *, seal: bool = False, **data: Any) -> dict[str, SplitCounts]:
    if rows:
        write_jsonl(paths, "train/a.jsonl", rows)
    write_jsonl(paths, "validation/a.jsonl", [{"text": "held out", "prompt": "a?", "response": "b"}])
    config = a_config(seal=seal, **PLACES, **data)
    vault = data_vault(config, paths)
    return read_manifest(prepare(config, paths, vault, RUN_ID), vault).counts


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "unused fields" in each.getMessage()]


def test_unused_fields_are_counted_and_named(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "one", "id": 1, "note": None}, {"text": "two", "id": 2, "note": "x"}, {"text": " ", "id": 3}]
    with caplog.at_level(logging.WARNING):
        counts = counted(paths, rows)
    assert counts["train"].unused == {"id": 2, "note": 1}
    assert counts["validation"].unused == {"prompt": 1, "response": 1}
    assert told(caplog) == [
        "train: unused fields of its records: id (2 records), note (1 records)",
        "validation: unused fields of its records: prompt (1 records), response (1 records)",
    ]


def test_a_log_of_a_sealed_job_says_only_how_many(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    paths.key_dir.mkdir(parents=True)
    (paths.key_dir / "kek").write_bytes(bytes(range(32)))
    (paths.key_dir / "kek").chmod(0o600)
    with caplog.at_level(logging.INFO):
        counts = counted(paths, [{"text": "one", "p4ss phrase": 1}], seal=True)
    assert counts["train"].unused == {"p4ss phrase": 1}
    assert told(caplog)[0] == "train: unused fields of its records: 1"
    assert "p4ss" not in caplog.text


def test_columns_of_tables_count_though_they_are_not_read(paths: Paths) -> None:
    write_text(paths, "train/b.csv", "text,id\none,1\ntwo,\n")
    pq.write_table(pa.table({"text": ["three"], "id": [3], "junk": [None]}), write_text(paths, "train/c.parquet", ""))
    assert counted(paths, [])["train"].unused == {"id": 3, "junk": 1}


def test_any_number_of_names_of_any_length_takes_little_room(paths: Paths) -> None:
    rows = [{"text": "one", "x" * 10_000: 1} | {f"{i}-{j}": 1 for j in range(50)} for i in range(5)]
    unused = counted(paths, rows)["train"].unused
    assert len(unused) == MAX_UNUSED + 1
    assert max(map(len, unused)) == MAX_SHOWN
    assert unused[OTHERS] == 4, "records, not fields"


def test_counts_without_unused_fields_are_those_of_earlier_versions() -> None:
    counts = SplitCounts(3, 2, unused={})
    assert counts.in_full() == counts.to_json() == {"records": 3, "rows": 2, "dropped": 0, "skipped": 0}


def test_unused_fields_of_sources_add_up() -> None:
    both = SplitCounts(3, 2, unused={"id": 3}), SplitCounts(1, 1, unused={"id": 1, "note": 1})
    assert total(both) == SplitCounts(4, 3, unused={"id": 4, "note": 1})
    assert SplitCounts.from_json(total(both).in_full()) == total(both)
