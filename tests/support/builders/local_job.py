"""Jobs through `dstj run`: real files, real processes, two ranks over gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
STEPS = 40  # of a longer job
Change = Callable[[dict[str, Any]], None]


class Job:
    """One of the shipped examples, with a change of its spec, in a directory of its own."""

    def __init__(self, directory: Path, change: Change, example: str = "pretrain-tiny", **volumes: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.file = directory / "job.yaml"
        self.place = self.home / example
        self.volumes = volumes or {"texts": EXAMPLES / "texts"}
        manifest = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
        change(manifest["spec"])
        directory.mkdir(exist_ok=True)
        self.file.write_text(yaml.safe_dump(manifest))

    def copy(self, directory: Path) -> "Job":
        """The same job as it stands now, in another directory, where it can go on."""
        job = Job(directory, short, self.place.name, **self.volumes)
        shutil.copytree(self.directory, directory, dirs_exist_ok=True, symlinks=True)
        return job

    def dstj(self, *arguments: str, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`by`: the command that runs it, such as setpriv."""
        command = [*by, *self._command(*arguments)]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)

    def run(self, *options: str, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return self.dstj("run", *self._what_to_run, *options, by=by)

    def start(self) -> subprocess.Popen[str]:
        command = self._command("run", *self._what_to_run)
        return subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def export(self) -> Path:
        return self.place / "work" / "export" / self.place.name

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

    @property
    def _what_to_run(self) -> tuple[str, ...]:
        claims = (f"--volume={name.replace('_', '-')}={place}" for name, place in self.volumes.items())
        return (str(self.file), "--plain", *claims)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dstj.cli", *arguments]

    @property
    def _env(self) -> dict[str, str]:
        return os.environ | {"DSTJ_HOME": str(self.home)}


def short(spec: dict[str, Any]) -> None:
    """Of pretrain-tiny: a dozen steps, three checkpoints."""
    spec["optimization"] |= {"maxSteps": 12, "globalBatchSize": 4}
    spec["checkpoint"]["interval"] = {"steps": 4}
    spec["evaluation"] = {"intervalSteps": 6, "maxRows": 8, "generations": 0}


def longer(spec: dict[str, Any]) -> None:
    """Of pretrain-tiny: enough steps to be disturbed in."""
    short(spec)
    spec["optimization"]["maxSteps"] = STEPS
    spec["checkpoint"]["interval"] = {"steps": 10}
    spec["evaluation"]["intervalSteps"] = STEPS // 2


def sealed(spec: dict[str, Any]) -> None:
    """Adds the name of a key to what another change made."""
    spec["checkpoint"]["encryption"] = {"keyRef": {"secretName": "key"}}
