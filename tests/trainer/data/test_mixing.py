"""Data of several sources, or in order of difficulty: from records to the rows that a run reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data import shards
from deepseek_trainer.data.curriculum import by_difficulty
from deepseek_trainer.data.dataset import Prepared
from deepseek_trainer.data.shards import read_manifest
from deepseek_trainer.tasks.language.packing import Document, document_length, packed_row, row_dtype
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    CLAIM,
    RUN,
    a_config,
    open_prepared,
    prepare,
    put_key,
    questions,
    some_paths,
    texts,
    write_jsonl,
)

NAMES = ("private", "general")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = some_paths(tmp_path)
    put_key(paths)
    write_jsonl(paths, "private/a.jsonl", [{"text": f"private {record['text']}"} for record in texts(40)])
    write_jsonl(paths, "general/a.jsonl", [{"text": f"general {record['text']}"} for record in texts(90)])
    write_jsonl(paths, "held.jsonl", [{"text": "held out"}])
    return paths


def a_mix(private: dict[str, float] | None = None, general: dict[str, float] | None = None, **data: object):
    sources = [
        {"name": name, "claimName": CLAIM, "path": name} | (share or {})
        for name, share in zip(NAMES, (private, general), strict=True)
    ]
    return a_config(**{"train": None, "sources": sources} | data)


def prepared(paths: Paths, config: TrainingConfig, run_id: str = "uid-1") -> Path:
    return prepare(config, paths, data_vault(config, paths), run_id)


def opened(paths: Paths, config: TrainingConfig) -> Prepared:
    prepared(paths, config)
    return open_prepared(config, paths, data_vault(config, paths), RUN)


def words_of(data: Prepared, index: int) -> str:
    return data.tokenizer.decode(data.train.batch([index]).tokens_BT[0].tolist())


def a_row(*lengths: int, padding: int = 0):
    documents = [Document(np.arange(n, dtype=np.uint32), np.ones(n, np.bool_)) for n in lengths]
    return packed_row(documents, row_dtype(sum(lengths) + padding, 300), 0)


def test_data_that_earlier_versions_prepared_keep_their_name(tmp_path: Path):
    paths = some_paths(tmp_path)
    write_jsonl(paths, "a.jsonl", texts(50))
    held = {"claimName": CLAIM, "path": "a.jsonl"}
    assert [prepared(paths, a_config()).name, prepared(paths, a_config(validation=held), "uid-2").name] == [
        "c55bd160dce635cf3c2b30f26eec8715d89392679ba8828858ac1fa324c016a3",
        "fe08568c2f143091c9f44f8563b80c1fecd345e788288365ec2f0aba5ce2a375",
    ]


@pytest.mark.parametrize("seal", [False, True])
def test_rows_of_a_mix_hold_records_of_one_source_and_the_manifest_says_of_which(paths: Paths, seal: bool):
    data = opened(paths, a_mix(seal=seal, curriculum={}))
    assert [source.name for source in data.sources] == list(NAMES)
    for source in data.sources:
        for index in range(source.first, source.first + source.counts.rows):
            other = next(name for name in NAMES if name != source.name)
            assert other not in words_of(data, index)
    assert sum(source.counts.rows for source in data.sources) == len(data.train) == data.counts["train"].rows
    assert sum(source.counts.records for source in data.sources) == data.counts["train"].records


def test_records_held_out_come_from_all_sources(paths: Paths):
    data = opened(paths, a_mix(validationFraction=0.3))
    held = data.tokenizer.decode(data.validation.batch(range(len(data.validation))).tokens_BT.flatten().tolist())
    assert all(name in held for name in NAMES)
    assert data.counts["train"].records + data.counts["validation"].records == 130


def test_a_minimum_share_is_kept_by_the_rows_that_are_read(paths: Paths):
    data = opened(paths, a_mix({"weight": 1, "minimumShare": 0.6}, {"weight": 9}))
    rows = data.order.indices(0, 0, 2000)
    assert sum(index < data.sources[1].first for index in rows.tolist()) == 1200


def test_without_weights_sources_have_equal_shares(paths: Paths):
    assert opened(paths, a_mix()).order.slots == (500, 500)


def test_other_weights_or_buckets_prepare_nothing_anew(paths: Paths):
    config = a_mix({"weight": 2}, curriculum={"buckets": 3})
    first = prepared(paths, config)
    other = a_mix({"weight": 3}, {"minimumShare": 0.9}, curriculum={"buckets": 4})
    assert prepared(paths, other, "uid-2") == first
    orders = [open_prepared(each, paths, data_vault(each, paths), RUN).order for each in (config, other)]
    assert len({order.digest(first.name) for order in orders}) == 2


@pytest.mark.parametrize("other", [{"curriculum": {}}, {"sequenceLength": 48}, {"validationFraction": 0.4}])
def test_what_shapes_rows_of_a_mix_makes_another_directory(paths: Paths, other: dict[str, object]):
    assert prepared(paths, a_mix()) != prepared(paths, a_mix(**other), "uid-2")


def test_a_source_of_which_nothing_is_left_is_named(paths: Paths):
    write_jsonl(paths, "general/a.jsonl", [])
    with pytest.raises(DataError, match=r"data.sources\[general\] has no record: its files are empty, or all") as error:
        prepared(paths, a_mix())
    assert error.value.code == 65
    assert list(paths.prepared.glob("*")) == []


def test_a_source_that_is_not_there_is_named(paths: Paths):
    (paths.claim(CLAIM, "general/a.jsonl")).unlink()
    with pytest.raises(DataError, match=r"no .jsonl, .json, .csv, .tsv, .parquet or .txt file .*general, it is empty"):
        prepared(paths, a_mix())


@pytest.mark.parametrize(
    ("row", "mean"),
    [
        (a_row(32), 32),
        (a_row(20, 4), 12),
        (a_row(20, 4, padding=1), 12),
        (a_row(8, padding=24), 8),
        (a_row(2, 3, 4, padding=9), 3),
    ],
)
def test_difficulty_of_a_row_is_the_mean_length_of_its_documents_without_padding(row: shards.RowArray, mean: float):
    assert document_length(row) == mean


def test_order_of_difficulty_stays_inside_a_source_and_keeps_equals_in_order():
    assert by_difficulty([3, 1, 3, 2, 9, 1, 5], [4, 3]).tolist() == [1, 3, 0, 2, 5, 6, 4]


def test_a_curriculum_reads_short_records_first_and_all_rows_once(paths: Paths):
    write_jsonl(paths, "train.jsonl", questions(80))
    config = a_config(
        format="Instruction",
        sequenceLength=64,
        curriculum={"buckets": 4},
        train={"claimName": CLAIM, "path": "train.jsonl"},
    )
    data = opened(paths, config)
    read = data.order.indices(5, 0, len(data.train))
    assert sorted(read) == list(range(len(data.train)))
    (shard,) = data.train._shards
    lengths = [document_length(shard[index : index + 1]) for index in read]
    quarter = len(read) // 4
    assert max(lengths[:quarter]) <= min(lengths[-quarter:])
    assert len(set(lengths)) > 1


def test_an_order_of_other_rows_is_refused(paths: Paths):
    config = a_mix(curriculum={})
    directory = prepared(paths, config)
    (directory / shards.ORDER).write_bytes(bytes(8))
    with pytest.raises(IntegrityError, match=r"train\.order has 8 bytes: it must have"):
        open_prepared(config, paths, data_vault(config, paths), RUN)


def test_a_manifest_of_one_source_is_as_older_trainers_know_it(paths: Paths):
    config = a_config(train={"claimName": CLAIM, "path": "general"})
    directory = prepared(paths, config)
    assert "sources" not in json.loads((directory / shards.MANIFEST).read_text())
    assert read_manifest(directory, data_vault(config, paths)).sources == ()
