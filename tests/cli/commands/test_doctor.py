"""`dstj doctor`: a line for each check, with the way out where it is not ok."""

import errno
import hashlib
import json

import pytest

import dstj.commands.doctor
from dstj.commands.doctor import Warned
from dstj.local.home import Home
from dstj.local.machine import cores, free_bytes, free_ports, gpus, memory_bytes
from support.builders.cli import job_file

NO_TORCH = ("torch", "gloo")  # seconds of import; the checks that need it run in the slower tiers


TEXTS = [{"text": f"The pump of hall {i} runs at {i} bar."} for i in range(30)]


def lay(place, name, records):
    (place / "corpus").mkdir(exist_ok=True)
    (place / "corpus" / name).write_text("".join(json.dumps(each) + "\n" for each in records))


@pytest.fixture
def check(run_dstj, monkeypatch, capsys):
    """Doctor without the checks that import torch; its code, and {check: [level, text]}."""
    everything = dstj.commands.doctor._machine_checks
    monkeypatch.setattr(
        dstj.commands.doctor, "_machine_checks", lambda home: [(n, c) for n, c in everything(home) if n not in NO_TORCH]
    )

    def run(*arguments):
        code = run_dstj("doctor", *arguments)
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
        return code, {name: (level, text) for level, name, text in (line.split(maxsplit=2) for line in lines)}

    return run


def test_machine_that_runs_these_tests_is_fit(check):
    code, found = check()
    assert code == 0
    assert found.keys() == {"python", "cores", "gpu", "memory", "disk", "shm", "network"}
    assert found["network"][0] == "ok"


def test_job_is_checked_down_to_the_rows_that_its_data_fill(check, place):
    file = job_file(place)
    lay(place, "train.jsonl", TEXTS)
    code, found = check(file)
    assert (code, found["job"]) == (0, ("ok", f"{file}: tiny"))
    assert found["data"] == ("ok", "train 1 file; format Text")
    assert found["records"] == ("ok", "train 30")
    assert found["tokenizer"][0] == found["rows"][0] == "ok"
    assert "`dstj plan" in found["fit"][1]


def test_missing_claim_stops_before_the_inputs(check, place):
    file = job_file(place)
    (place / "corpus").rmdir()
    code, found = check(file)
    assert (code, found["claims"][0]) == (64, "fail")
    assert "data" not in found


def test_missing_input_names_what_lies_beside_it(run_dstj, check, place, monkeypatch, capsys):
    file = job_file(place, data__train={"claimName": "corpus", "path": "trian.jsonl"})
    (place / "corpus/train.jsonl").touch()
    assert run_dstj("doctor", file) == 65
    said = capsys.readouterr().out
    assert f"no 'trian.jsonl' in volume 'corpus' ({place}/corpus/trian.jsonl)" in said
    assert "did you mean 'train.jsonl'" in said


def test_bad_job_file_is_one_failed_line_each(check, place):
    code, found = check(job_file(place, trainer__numNodes=0))
    assert (code, found["job"][0]) == (64, "fail")


def test_key_that_others_can_read_fails(run_dstj, check, place):
    run_dstj("keys", "generate", "--secret", "s")
    (place / ".dstj/secrets/s/kek").chmod(0o644)
    code, found = check()
    assert (code, found["key"][0]) == (77, "fail")


def test_more_ranks_than_cores_is_a_warning_and_no_failure(check, place):
    nodes = 2 * cores()
    lay(place, "train.jsonl", TEXTS)
    code, found = check(job_file(place, trainer__numNodes=nodes, optimization__globalBatchSize=nodes))
    assert (code, found["machine"][0]) == (0, "warn" if len(gpus()) < nodes else "ok")


def test_digest_is_printed_alone(run_dstj, place, capsys):
    (place / "m.gguf").write_bytes(b"weights")
    assert run_dstj("doctor", "--digest", place / "m.gguf") == 0
    assert capsys.readouterr().out == f"{hashlib.sha256(b'weights').hexdigest()}\n"


def test_digest_of_nothing_is_refused(run_dstj, place):
    assert run_dstj("doctor", "--digest", place / "none") == 64


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_the_machine_does_while_inputs_are_read_is_a_failure_to_try_again(error, capsys):
    def check():
        raise error

    assert dstj.commands.doctor._run("base", check) == 75
    assert capsys.readouterr().out.startswith("fail  base")


def test_too_little_is_a_warning_with_both_numbers():
    found = dstj.commands.doctor._at_least(1 << 30, 4 << 30, "free", "buy more")
    assert found == Warned("1.0 GiB free, less than 4.0", "buy more")


def test_machine_is_measured():
    assert cores() >= 1
    assert memory_bytes() > 0
    assert free_bytes(Home.from_env({}).directory / "not/yet/there") > 0


@pytest.mark.parametrize(("visible", "found"), [("0,2", ["0", "2"]), ("", []), ("-1", [])])
def test_gpus_are_those_that_this_process_may_use(visible, found):
    assert list(gpus({"CUDA_VISIBLE_DEVICES": visible})) == found


def test_free_ports_are_different():
    assert len(set(free_ports(20))) == 20
