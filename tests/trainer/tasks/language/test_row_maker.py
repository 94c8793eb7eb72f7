import pytest

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.row_maker import RowMaker, losses
from deepseek_trainer.worker.vaults import data_vault
from support.builders.chat import of_family, talk
from support.builders.data import CLAIM, RUN_ID, a_config, a_data_spec, prepare, some_paths, write_jsonl

WORDS = "word " * 20  # 100 tokens: the tokenizers of these tests have bytes
SHORT = Record("who?", "me", "a.jsonl", 1)
LONG = Record("who?", WORDS, "a.jsonl", 2)
HOPELESS = Record(WORDS, "me", "a.jsonl", 3)


def made(records, name="chatml", **data):
    """Rows as text, the counts, and what people are told of losses."""
    spec, tokenizer = a_data_spec(sequenceLength=64, **data), of_family(name)
    maker = RowMaker("train", spec, tokenizer)
    rows = list(maker.rows(records))
    counts = maker.tally.counts()
    return [tokenizer.decode(row["tokens"][0].tolist()) for row in rows], counts, list(losses(counts, spec))


def test_an_answer_is_cut_where_its_row_ends_unless_the_job_says_otherwise():
    rows, counts, told = made([SHORT, LONG, HOPELESS], format="Instruction")
    assert (counts.records, counts.dropped, counts.amounts["cut"]) == (3, 1, 1)
    assert "word word" in "".join(rows)
    assert told == [
        (
            "1 of 3 records were dropped: each prompt alone fills data.sequenceLength=64",
            "raise it, or shorten them",
        ),
        ("1 of 3 records lost their end at data.sequenceLength=64", "raise it, or set data.longRecords: Drop"),
    ]


@pytest.mark.parametrize("data_format", ["Instruction", "Text"])
def test_long_records_are_dropped_whole(data_format):
    records = [SHORT, LONG, HOPELESS]
    if data_format == "Text":
        records = [Record(None, record.text, "a", 1) for record in [SHORT, LONG, LONG]]
    rows, counts, told = made(records, format=data_format, longRecords="Drop")
    assert (counts.records, counts.dropped, counts.amounts["cut"]) == (3, 2, 0)
    assert "word" not in "".join(rows)
    assert told == [
        (
            "2 of 3 records were dropped: each is longer than data.sequenceLength=64",
            "raise it, or set data.longRecords",
        )
    ]


def test_a_text_is_split_over_rows_or_cut():
    text = Record(None, WORDS, "a", 1)
    rows, counts, told = made([text], format="Text")
    assert (len(rows), counts.dropped, counts.amounts["split"], told) == (2, 0, 1, [])
    rows, counts, told = made([text], format="Text", longRecords="Cut")
    assert (len(rows), counts.amounts["cut"]) == (1, 1)
    assert told[0][0] == "1 of 1 records lost their end at data.sequenceLength=64"


def test_a_conversation_whose_answers_are_rows_of_their_own_counts_once():
    turns = talk(("user", "a?"), ("assistant", "b"), ("user", WORDS), ("assistant", "c"), ("user", "d?"))
    rows, counts, _ = made([Record(turns, "e", "a", 1), SHORT], "qwen3", format="Instruction")
    assert (counts.records, counts.dropped, counts.amounts["cut"]) == (2, 0, 1)
    assert "me<|im_end|>" in rows[0]
    _, counts, told = made([Record(turns, "e", "a", 1)], "qwen3", format="Instruction", longRecords="Drop")
    assert (counts.dropped, told) == (
        0,
        [("1 of 1 records lost answers that end beyond data.sequenceLength=64", "raise it, or shorten them")],
    )


def test_losses_are_told_at_the_end_of_preparation(tmp_path, caplog):
    paths = some_paths(tmp_path)
    long = [{"prompt": f"{i}?", "response": WORDS} for i in range(2)]
    write_jsonl(paths, "a.jsonl", [{"prompt": f"{i}?", "response": "me"} for i in range(8)] + long)
    places = {"train": {"claimName": CLAIM, "path": "a.jsonl"}, "validation": {"claimName": CLAIM, "path": "a.jsonl"}}
    config = a_config(format="Instruction", sequenceLength=48, longRecords="Drop", **places)
    for _ in range(2):  # also where the data are there already
        caplog.clear()
        prepare(config, paths, data_vault(config, paths), RUN_ID)
        assert "train: 2 of 10 records were dropped: each is longer than data.sequenceLength=48" in caplog.text
        assert "validation: 2 of 10" in caplog.text


def test_data_of_which_nothing_is_left_are_refused_with_the_reason(tmp_path):
    paths = some_paths(tmp_path)
    write_jsonl(paths, "a.jsonl", [{"prompt": f"{i}?", "response": WORDS} for i in range(9)])
    config = a_config(format="Instruction", sequenceLength=16, longRecords="Drop", validationFraction=0.5)
    with pytest.raises(DataError) as error:
        prepare(config, paths, data_vault(config, paths), RUN_ID)
    assert str(error.value).startswith("data.train has nothing to learn: ")
    assert "each is longer than data.sequenceLength=16 (hint: raise it, or set data.longRecords)" in str(error.value)
