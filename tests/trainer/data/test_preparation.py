import json
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deepseek_trainer.contract.errors import DataError, IntegrityError, TryAgainError
from deepseek_trainer.contract.names import ENV_NODE_INDEX, ENV_ROOT
from deepseek_trainer.data import shards
from deepseek_trainer.data.inputs import Inputs
from deepseek_trainer.data.pointer import point, pointed_to, wait
from deepseek_trainer.run import preparing
from deepseek_trainer.tasks.language import preparation as language
from deepseek_trainer.tasks.language.packing import IGNORED
from deepseek_trainer.tasks.language.prompts import PROMPTS
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.tokenizer import documents
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    CLAIM,
    RUN,
    RUN_ID,
    a_config,
    open_prepared,
    pairs,
    prepare,
    questions,
    some_paths,
    texts,
    write_jsonl,
    write_text,
)
from support.faults.crashes import fill

KEK = bytes(range(32))


@pytest.fixture
def paths(tmp_path):
    paths = some_paths(tmp_path)
    paths.key_dir.mkdir(parents=True)
    (paths.key_dir / "kek").write_bytes(KEK)
    (paths.key_dir / "kek").chmod(0o600)
    return paths


def at(path):
    return {"claimName": CLAIM, "path": path}


def prepared(paths, config, run_id=RUN_ID):
    return prepare(config, paths, data_vault(config, paths), run_id)


def opened(paths, config, **environ):
    return open_prepared(config, paths, data_vault(config, paths), RUN | environ)


def refusal(paths, **data):
    with pytest.raises(DataError) as error:
        prepared(paths, a_config(**data))
    assert list(paths.prepared.glob("*")) == [], "nothing is left behind"
    return str(error.value)


def decoded_rows(split, tokenizer):
    """The documents of all rows as text, without the padding."""
    batch = split.batch(range(len(split)))
    for tokens_T, ids_T in zip(batch.tokens_BT, batch.document_ids_BT, strict=True):
        for document in range(int(ids_T.max()) + 1):
            text = tokenizer.decode(tokens_T[ids_T == document].tolist())
            if not text.startswith("<|pad|>"):
                yield text


def files_below(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seal", [False, True])
def test_instruction_records_come_back_whole_and_on_one_side_each(paths, seal):
    records = questions(60)
    write_jsonl(paths, "a.jsonl", records)
    config = a_config(format="Instruction", sequenceLength=64, seal=seal, validationFraction=0.2)
    prepared(paths, config)
    data = opened(paths, config)
    sides = [list(decoded_rows(split, data.tokenizer)) for split in (data.train, data.validation)]
    template = "<|begin|>### Question\n{prompt}\n\n### Answer\n{response}<|end|>"
    assert sorted(sides[0] + sides[1]) == sorted(template.format(**record) for record in records)
    assert [data.counts[name].records for name in ("train", "validation")] == [len(side) for side in sides]
    assert 0 < len(sides[1]) < len(sides[0])


@pytest.mark.parametrize("seal", [False, True])
def test_a_pair_comes_back_as_one_row_of_two_answers_to_one_prompt(paths, seal):
    records = pairs(30)
    write_jsonl(paths, "a.jsonl", records)
    config = a_config(format="Preference", sequenceLength=160, seal=seal, validationFraction=0.2)
    prepared(paths, config)
    data = opened(paths, config)
    template = "<|begin|>### Question\n{prompt}\n\n### Answer\n{}<|end|>"
    expected = [template.format(record[side], **record) for record in records for side in ("chosen", "rejected")]
    found = [list(decoded_rows(split, data.tokenizer)) for split in (data.train, data.validation)]
    assert [len(side) for side in found] == [2 * len(data.train), 2 * len(data.validation)]
    assert sorted(zip(found[0][::2] + found[1][::2], found[0][1::2] + found[1][1::2], strict=True)) == sorted(
        zip(expected[::2], expected[1::2], strict=True)
    )
    assert {(prompt.prompt, prompt.response) for prompt in data.prompts} < {(r["prompt"], r["chosen"]) for r in records}


def test_of_a_pair_only_the_last_answers_are_learned(paths):
    talk = [{"role": role, "content": f"{role} speaks"} for role in ("system", "user", "assistant", "user")]
    record = {"messages": talk, "chosen": "yes", "rejected": "never"}
    write_jsonl(paths, "a.jsonl", [record])
    write_jsonl(paths, "held.jsonl", pairs(1))
    config = a_config(format="Preference", sequenceLength=200, train=at("a.jsonl"), validation=at("held.jsonl"))
    prepared(paths, config)
    data = opened(paths, config)
    batch = data.train.batch([0])
    for document, answer in enumerate(("yes", "never")):
        is_learned = (batch.targets_BT != IGNORED) & (batch.document_ids_BT == document)
        assert data.tokenizer.decode(batch.targets_BT[is_learned].tolist()) == f"{answer}<|end|>"
    assert data.counts["train"].amounts["learned_tokens"] == batch.num_targets


def test_a_pair_that_a_row_cannot_hold_is_left_out_whole_and_counted(paths):
    long = {"prompt": "short?", "chosen": "short", "rejected": "word " * 500}
    write_jsonl(paths, "train.jsonl", [long, *pairs(5), long | {"chosen": "shorter"}])
    write_jsonl(paths, "held.jsonl", pairs(2))
    config = a_config(format="Preference", sequenceLength=160, train=at("train.jsonl"), validation=at("held.jsonl"))
    prepared(paths, config)
    data = opened(paths, config)
    counts = data.counts["train"]
    assert (counts.records, counts.rows, counts.amounts["cut"], counts.dropped) == (7, 5, 0, 2)
    batch = data.train.batch(range(5))
    assert counts.amounts["tokens"] == int((batch.tokens_BT != data.tokenizer.pad_token_id).sum())


def test_text_comes_back_in_order(paths):
    write_text(paths, "a.txt", "one fine day " * 30)
    write_text(paths, "b.txt", "another day " * 10)
    write_text(paths, "held.jsonl", '{"text": "held out"}')
    config = a_config(validation=at("held.jsonl"))
    prepared(paths, config)
    data = opened(paths, config)
    batch = data.train.batch(range(len(data.train)))
    learned = batch.targets_BT[batch.targets_BT != IGNORED].tolist()
    expected = "one fine day " * 30 + "<|end|>" + "another day " * 10 + "<|end|>" + "held out<|end|>"
    assert data.tokenizer.decode(learned) == expected
    assert batch.num_targets == len(learned) == data.counts["train"].amounts["learned_tokens"]


def test_counts_say_what_became_of_the_records(paths):
    long = {"prompt": "short?", "response": "word " * 500}
    hopeless = {"prompt": "word " * 500, "response": "short"}
    write_jsonl(paths, "train.jsonl", [*questions(20), long, hopeless])
    write_jsonl(paths, "held.jsonl", questions(2))
    config = a_config(format="Instruction", sequenceLength=64, train=at("train.jsonl"), validation=at("held.jsonl"))
    prepared(paths, config)
    data = opened(paths, config)
    counts = data.counts["train"]
    assert (counts.records, counts.amounts["cut"], counts.dropped) == (22, 1, 1)
    assert counts.rows == len(data.train)
    batch = data.train.batch(range(counts.rows))
    assert counts.amounts["learned_tokens"] == batch.num_targets
    assert counts.amounts["tokens"] == int((batch.tokens_BT != data.tokenizer.pad_token_id).sum())


def test_bad_records_are_skipped_counted_and_named_once(paths, caplog):
    bad = [{"txt": "top secret"}, {"text": ["top secret"]}]
    write_jsonl(paths, "a.jsonl", [*texts(40), *bad])
    write_text(paths, "b.parquet", "top secret")
    config = a_config(onBadRecord="Skip", validationFraction=0.2)
    with caplog.at_level("INFO"):
        prepared(paths, config)
        prepared(paths, config, "uid-2")
    counts = opened(paths, config, DSTJ_RUN_ID="uid-2").counts
    assert [counts[split].skipped for split in ("train", "validation")] == [3, 0]
    assert sum(counts[split].records for split in counts) == 40
    assert [message for message in caplog.messages if message.startswith("skipped")] == [
        "skipped a.jsonl:41: no field 'text', did you mean 'txt'; it has: txt "
        "(hint: set data.textField to the field's name)",
        "skipped a.jsonl:42: field 'text' must be a string, this is a list",
        "skipped b.parquet: damaged, or not a Parquet file (hint: copy or write the file again)",
    ]
    assert "dropped=0 skipped=3 in" in caplog.text
    assert f"train {counts['train'].records} records, 3 skipped, " in caplog.text


def test_only_the_first_bad_records_are_named(paths, caplog):
    write_jsonl(paths, "a.jsonl", [*texts(9), *[{}] * 100])
    write_jsonl(paths, "v/b.jsonl", [*texts(1), {}])
    config = a_config(onBadRecord="Skip", train=at("a.jsonl"), validation=at("v"))
    prepared(paths, config)
    assert sum(message.startswith("skipped") for message in caplog.messages) == 10 + 1
    counts = opened(paths, config).counts
    assert [counts[split].skipped for split in ("train", "validation")] == [100, 1]


def test_counts_of_earlier_versions_are_read(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    manifest = prepared(paths, a_config()) / shards.MANIFEST
    content = json.loads(manifest.read_text())
    for counts in content["counts"].values():
        del counts["skipped"]
    manifest.write_text(json.dumps(content))
    assert opened(paths, a_config()).counts["train"].skipped == 0


def test_prompts_are_the_held_out_records(paths):
    held = [record | {"mustContain": ["kind"]} for record in questions(3)]
    write_jsonl(paths, "train.jsonl", questions(9)[3:])
    write_jsonl(paths, "held.jsonl", held)
    config = a_config(format="Instruction", sequenceLength=64, train=at("train.jsonl"), validation=at("held.jsonl"))
    prepared(paths, config)
    prompts = opened(paths, config).prompts
    assert [(p.prompt, p.response, p.must_contain) for p in prompts] == [
        (record["prompt"], record["response"], ("kind",)) for record in held
    ]


def test_preparing_twice_gives_the_same_bytes(paths, tmp_path):
    write_jsonl(paths, "a.jsonl", texts(50))
    other = some_paths(tmp_path / "other")
    write_jsonl(other, "a.jsonl", texts(50))
    one, two = prepared(paths, a_config()), prepared(other, a_config())
    assert one.name == two.name
    assert files_below(one) == files_below(two)


def test_what_is_there_is_not_made_again(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    first = prepared(paths, a_config())
    before = {path: path.stat().st_ino for path in first.rglob("*")}
    assert prepared(paths, a_config(), "uid-2") == first
    assert {path: path.stat().st_ino for path in first.rglob("*")} == before


@pytest.mark.parametrize(
    "change",
    [
        {"sequenceLength": 48},
        {"seal": True},
        {"validationFraction": 0.3},
        {"textField": "body"},
        {"onBadRecord": "Skip"},
        {"messagesField": "turns"},
        {"chosenField": "better"},
        {"rejectedField": "worse"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_makes_another_directory(paths, change):
    write_jsonl(paths, "a.jsonl", [record | {"body": record["text"]} for record in texts(50)])
    assert prepared(paths, a_config()) != prepared(paths, a_config(**change), "uid-2")


def test_the_name_of_a_directory_is_that_of_earlier_versions(paths):
    """A job that goes on under a newer trainer finds its data, and its checkpoints fit them."""
    write_jsonl(paths, "a.jsonl", texts(50))
    assert prepared(paths, a_config()).name == "c55bd160dce635cf3c2b30f26eec8715d89392679ba8828858ac1fa324c016a3"


def test_other_data_make_another_directory(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    first = prepared(paths, a_config())
    write_jsonl(paths, "a.jsonl", texts(51))
    assert prepared(paths, a_config(), "uid-2") != first


def test_data_that_change_during_a_run_end_the_attempt(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    first = prepared(paths, a_config())
    write_jsonl(paths, "a.jsonl", texts(51))
    with pytest.raises(TryAgainError, match="changed while run uid-1 used them"):
        prepared(paths, a_config())
    assert pointed_to(paths, RUN_ID, data_vault(a_config(), paths)) == first.name


def test_sealed_data_are_nowhere_in_the_clear(paths):
    write_jsonl(paths, "a.jsonl", questions(40))
    config = a_config(format="Instruction", sequenceLength=64, seal=True)
    prepared(paths, config)
    written = files_below(paths.prepared)
    assert all(path.suffix == ".sealed" for path in written)
    assert not any(b"rule" in content.lower() for content in written.values())


def test_clear_data_are_mapped_not_read(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    prepared(paths, a_config())
    (shard,) = opened(paths, a_config()).train._shards
    assert isinstance(shard.base, np.memmap)


def test_many_shards_read_like_one(paths, monkeypatch):
    write_jsonl(paths, "a.jsonl", texts(60))
    one = prepared(paths, a_config())
    whole = opened(paths, a_config()).train
    everything = whole.batch(range(len(whole)))
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    for path in sorted(one.rglob("*"), reverse=True):
        path.unlink()
    one.rmdir()
    prepared(paths, a_config())
    pieces = opened(paths, a_config()).train
    assert len(pieces._shards) > 3
    assert len(pieces) == len(whole)
    order = np.random.default_rng(0).permutation(len(whole))
    batch = pieces.batch(order)
    for name in ("tokens_BT", "targets_BT", "position_ids_BT", "document_ids_BT"):
        assert getattr(batch, name).equal(getattr(everything, name)[order]), name


def test_a_failure_leaves_nothing_behind(paths, monkeypatch):
    write_jsonl(paths, "a.jsonl", texts(50))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(language, "write_prompts", full)
    with pytest.raises(OSError, match="No space left"):
        prepared(paths, a_config())
    assert list(paths.prepared.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "data", "words"),
    [
        ({"a.jsonl": "\n\n"}, {}, "data.train has no record"),
        ({"a.txt": " "}, {}, "data.train has no record"),
        ({"a.txt": "one"}, {}, "only one record"),
        (
            {"a.txt": "one", "v/b.txt": " "},
            {"validation": at("v")},
            "data.validation has no record",
        ),
        (
            {"a.jsonl": '{"prompt": "%s", "response": "x"}\n{"prompt": "%s?", "response": "x"}' % (("why " * 90,) * 2)},
            {"format": "Instruction"},
            "fills data.sequenceLength=32",
        ),
        (
            {"a.jsonl": "".join(f"{json.dumps(pair | {'chosen': 'word ' * 40})}\n" for pair in pairs(2))},
            {"format": "Preference"},
            "pairs were dropped: each prompt with both answers is longer than data.sequenceLength=32",
        ),
        (
            {"a.jsonl": '{"txt": "x"}'},
            {"onBadRecord": "Skip"},
            "no record is left: 1 were bad and skipped",
        ),
        (
            {"a.jsonl": '{"text": "fine"}', "v/b.jsonl": "no"},
            {"onBadRecord": "Skip", "train": at("a.jsonl"), "validation": at("v")},
            "no record is left: 1 were bad and skipped, the first: b.jsonl:1:1: not JSON",
        ),
        ({"a.jsonl": '{"text": "fine"}\n{"txt": "x"}'}, {}, "a.jsonl:2: no field 'text', did you mean 'txt'"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(paths, files, data, words):
    for name, content in files.items():
        write_text(paths, name, content)
    assert words in refusal(paths, **data)


def test_held_out_responses_that_are_no_labels_are_refused_by_their_number(paths):
    write_jsonl(paths, "train.jsonl", questions(9))
    write_jsonl(paths, "held.jsonl", [{"prompt": f"{i}?", "response": ("yes", "no", "yes ")[i % 3]} for i in range(9)])
    config = a_config(format="Instruction", sequenceLength=64, train=at("train.jsonl"), validation=at("held.jsonl"))
    for max_rows, words in ((1000, "3 of 9 held-out responses"), (4, "1 of 4 held-out responses")):
        with pytest.raises(DataError, match=f"^{words} are none of evaluation.labels"):
            prepared(paths, labelled(config, max_rows))
    assert prepared(paths, labelled(config, 2)).exists()


def labelled(config, max_rows):
    evaluation = config.evaluation.model_copy(update={"labels": ("yes", "no"), "max_rows": max_rows})
    return config.model_copy(update={"evaluation": evaluation})


def test_nodes_wait_for_node_0_and_agree_on_its_directory(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    vault = data_vault(a_config(), paths)
    agreed = []
    nodes = [threading.Thread(target=lambda: agreed.append(wait(paths, RUN_ID, vault, 30))) for _ in range(2)]
    for node in nodes:
        node.start()
    directory = prepared(paths, a_config())
    for node in nodes:
        node.join()
    assert agreed == [directory.name] * 2


def test_a_node_never_follows_the_pointer_of_an_earlier_attempt(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    prepared(paths, a_config(), "uid-1")
    with pytest.raises(TryAgainError, match="node 0 prepared nothing for run uid-2"):
        wait(paths, "uid-2", data_vault(a_config(), paths), deadline_s=0)


def test_a_pointer_of_another_run_is_refused(paths):
    vault = data_vault(a_config(), paths)
    point(paths, "uid-1", "ab" * 32, vault)
    runs = paths.prepared / "runs"
    (runs / "uid-1").rename(runs / "uid-2")
    with pytest.raises(IntegrityError, match="belongs to run 'uid-1', not to uid-2"):
        pointed_to(paths, "uid-2", vault)


def test_main_prepares_on_node_0_and_waits_elsewhere(paths, monkeypatch):
    write_jsonl(paths, "a.jsonl", texts(50))
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text(json.dumps(a_config().model_dump(mode="json", by_alias=True, exclude_none=True)))
    for name, value in {ENV_ROOT: str(paths.root), **RUN}.items():
        monkeypatch.setenv(name, value)
    for node in ("0", "1"):
        monkeypatch.setenv(ENV_NODE_INDEX, node)
        preparing.prepare_node()
    assert len(opened(paths, a_config()).train) > 0


def test_a_disk_that_a_killed_save_has_filled_has_room_for_the_pointer_of_the_next_run(small_disk, monkeypatch):
    paths = some_paths(small_disk)
    write_jsonl(paths, "a.jsonl", texts(50))
    prepared(paths, a_config())
    paths.checkpoints.mkdir()
    fill(paths.checkpoints / "step-00000002.partial-1-abc")
    monkeypatch.setattr(preparing, "load_config", lambda _: a_config())
    for name, value in {ENV_ROOT: paths.root, ENV_NODE_INDEX: "0", **RUN, "DSTJ_RUN_ID": "uid-2"}.items():
        monkeypatch.setenv(name, str(value))
    preparing.prepare_node()
    assert not list(paths.checkpoints.iterdir())
    assert len(opened(paths, a_config(), DSTJ_RUN_ID="uid-2").train) > 0


def test_opening_without_a_preparation_says_so(paths):
    with pytest.raises(TryAgainError, match="run uid-1 has no prepared data"):
        opened(paths, a_config())


def test_a_moved_directory_is_refused(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    directory = prepared(paths, a_config())
    write_jsonl(paths, "a.jsonl", texts(51))
    newer = prepared(paths, a_config(), "uid-2")
    for path in sorted(newer.iterdir()):
        path.unlink()
    newer.rmdir()
    directory.rename(newer)
    with pytest.raises(IntegrityError, match=f"holds prepared data {directory.name}"):
        opened(paths, a_config(), DSTJ_RUN_ID="uid-2")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "dstj-data/9"}', b'{"format": "dstj-data/1"}'])
def test_a_manifest_that_cannot_be_read_is_refused(paths, content):
    write_jsonl(paths, "a.jsonl", texts(50))
    directory = prepared(paths, a_config())
    (directory / shards.MANIFEST).write_bytes(content)
    with pytest.raises(IntegrityError, match="not a dstj-data/1 manifest"):
        opened(paths, a_config())


def test_a_truncated_shard_is_refused(paths):
    write_jsonl(paths, "a.jsonl", texts(50))
    shard = prepared(paths, a_config()) / "train-00000.rows"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(IntegrityError, match="its manifest says"):
        opened(paths, a_config())


@pytest.mark.parametrize("name", [shards.MANIFEST, PROMPTS, "train-00000.rows"])
def test_sealed_files_of_earlier_data_are_refused_in_the_place_of_newer_ones(paths, name):
    config = a_config(format="Instruction", sequenceLength=64, seal=True)
    write_jsonl(paths, "a.jsonl", questions(40))
    earlier = prepared(paths, config)
    write_jsonl(paths, "a.jsonl", questions(41))
    newer = prepared(paths, config, "uid-2")
    (earlier / f"{name}.sealed").replace(newer / f"{name}.sealed")
    with pytest.raises(IntegrityError):
        opened(paths, config, DSTJ_RUN_ID="uid-2")


def test_a_secret_without_the_entry_that_the_job_names_ends_the_preparation(paths, monkeypatch):
    (paths.key_dir / "kek").rename(paths.key_dir / "other")
    monkeypatch.setattr(preparing, "load_config", lambda _: a_config(seal=True))
    for name, value in {ENV_ROOT: paths.root, ENV_NODE_INDEX: "0", **RUN}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(IntegrityError, match=r"keys/kek: No such file.*the entry that keyRef\.key names") as error:
        preparing.prepare_node()
    assert error.value.code == 77


def test_preparation_reports_records_tokens_rows_and_speed(paths, caplog):
    write_jsonl(paths, "a.jsonl", texts(50))
    with caplog.at_level("INFO"):
        prepared(paths, a_config())
        prepared(paths, a_config(), "uid-2")
    lines = "\n".join(caplog.messages)
    assert "prepared train: records=" in lines
    assert "MB/s" in lines
    assert "are there already: train" in lines


def test_tokens_on_disk_are_those_of_the_tokenizer(paths):
    write_text(paths, "a.txt", "to be or not to be")
    write_text(paths, "b.txt", "that is the question")
    write_text(paths, "v/c.txt", "hm")
    config = a_config(validation=at("v"), sequenceLength=64)
    prepared(paths, config)
    data = opened(paths, config)
    source = Inputs.find(config, paths, reading).records("validation")
    (document,) = documents(data.tokenizer, source)
    tokens = data.validation.batch([0]).tokens_BT[0, : len(document)].tolist()
    assert tokens == document.tokens.tolist()
    assert Path(data.digest).name == data.digest


@pytest.mark.parametrize("new", [None, True, -1, 10**30, 1.5, "x", "../x", "x" * 5000, [], {}, {"a": 1}], ids=str)
def test_any_value_in_the_manifest_of_rows_in_the_clear_is_used_or_refused(paths, new):
    write_jsonl(paths, "train/a.jsonl", texts(8))
    directory = prepared(paths, config := a_config())
    file = directory / "manifest.json"
    content = json.loads(file.read_bytes())
    shard = content["shards"]["train"][0]
    for part, key in [(content, key) for key in content] + [(shard, key) for key in shard]:
        old, part[key] = part[key], new
        file.write_text(json.dumps(content))
        with suppress(IntegrityError):
            opened(paths, config)
        part[key] = old
