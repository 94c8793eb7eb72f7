"""Sealed jobs through `dstj run`, and their keys."""

import shutil
from pathlib import Path
from typing import Any

from support.builders.local_job import EXAMPLES, Job, longer, sealed, short
from support.judges.names import digests_in, names_and_clear_texts


def test_a_sealed_job_writes_no_word_of_its_data_or_model_in_the_clear(tmp_path: Path):
    job = Job(tmp_path / "job", lambda spec: (short(spec), sealed(spec)))
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    work = job.place / "work"
    in_the_clear = [path for path in work.rglob("*") if path.is_file() and path.suffix != ".sealed"]
    assert {path.name for path in in_the_clear if "tfevents" not in path.name} <= {"keyring.json", "events.jsonl"}
    words = (b"embed_tokens", b"Reflexion", b"refrangible", b"q_proj")
    assert not [path for path in work.rglob("*") if path.is_file() for word in words if word in path.read_bytes()]
    assert job.dstj("checkpoint", "verify", "pretrain-tiny").returncode == 0
    assert job.dstj("result", "pretrain-tiny", "--to", str(tmp_path / "result")).returncode == 0
    assert (tmp_path / "result" / "model.safetensors").exists()


def test_two_sealed_jobs_with_equal_data_share_no_name_and_no_digest(tmp_path: Path):
    found = []
    for name in ("one", "other"):
        job = Job(tmp_path / name, lambda spec: (short(spec), sealed(spec)))
        assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
        done = job.run()
        assert done.returncode == 0, done.stdout + done.stderr
        logs = "".join(path.read_text() for path in (job.place / "logs").rglob("*.log"))
        assert "prepared train: records=" in logs, "the logs of the containers are among what is compared"
        found.append(digests_in(names_and_clear_texts(job.place, done.stdout, done.stderr)))
    assert min(map(len, found)) > 5
    assert not found[0] & found[1]


def test_doctor_finds_no_leak_of_a_sealed_job_and_each_that_is_planted(tmp_path: Path):
    canary = "the canary sings in room 4711"
    texts = shutil.copytree(EXAMPLES / "texts", tmp_path / "texts")
    for part in ("train", "validation"):
        (texts / part / "canary.txt").write_text(f"Here {canary}, and nobody else may hear it.\n" * 40)
    (tmp_path / "words").write_text(f"{canary}\nReflexion\nrefrangible\ncanary.txt\nembed_tokens\n")
    job = Job(tmp_path / "job", lambda spec: (short(spec), sealed(spec), answering(spec)), texts=texts)
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    look = ("doctor", "--sealed", "pretrain-tiny", "--words", str(tmp_path / "words"))
    clean = job.dstj(*look)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    assert "no leak was found" in clean.stdout
    (log,) = job.place.glob("logs/*-0/trainer.log")
    with log.open("a") as file:
        file.write(f"INFO: a bad record: {canary}\n")
    (job.place / "work" / "prepared" / "rows.jsonl").write_text('{"text": "words"}\n')
    planted = job.dstj(*look)
    assert planted.returncode == 77, planted.stdout + planted.stderr
    assert canary not in planted.stdout
    leaks = planted.stdout.partition("\nLEAK ")[2]
    assert f"{log} " in leaks
    assert "prepared/rows.jsonl " in leaks


def answering(spec: dict[str, Any]) -> None:
    """The report repeats what the model says to prompts from the data."""
    spec["evaluation"] |= {"generations": 2, "maxNewTokens": 8}


def test_a_key_is_rotated_and_the_old_one_destroyed_while_the_job_runs(tmp_path: Path, whole: Job):
    job = Job(tmp_path / "job", lambda spec: (longer(spec), sealed(spec)))
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    run = job.start()
    job.wait_for_step(15, run)
    rotated = job.dstj("keys", "rotate", "pretrain-tiny")
    assert rotated.returncode == 0, rotated.stderr
    (old,) = (job.home / "secrets" / "key").glob("kek-*")
    old.unlink()
    job.kill_rank(0)  # its successor opens the keyring anew
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert job.dstj("checkpoint", "verify", "pretrain-tiny").returncode == 0
    assert job.losses == whole.losses


def test_a_job_with_another_key_than_the_one_that_sealed_it_ends_with_code_77(tmp_path: Path):
    job = Job(tmp_path / "job", lambda spec: (short(spec), sealed(spec)))
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    assert job.run().returncode == 0
    (job.home / "secrets" / "key" / "kek").unlink()
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    again = job.run("--recreate")
    assert again.returncode == 77, again.stdout + again.stderr
    assert "keyring" in again.stdout + again.stderr
