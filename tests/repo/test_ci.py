""".ci/run with a `make` that only notes what it is asked for."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"
QUICK = ["test", "lint types layers verify", "chart"]
# Each target does what the variable of its name says.
MAKE = """#!/bin/bash
echo "$*" >> calls
action="${1//-/_}"
eval "${!action:-true}"
"""
# Notes the number of a process that a make of its own would have started.
LASTS = "sleep 60 & echo $! > build.pid; wait"


class Run:
    """One run of the script in a directory of its own."""

    def __init__(self, directory: Path, **actions: str) -> None:
        self.directory = directory
        for name in (".ci", "bin", "tmp"):
            (directory / name).mkdir()
        shutil.copy(SCRIPT, directory / ".ci" / "run")
        (directory / "bin" / "make").write_text(MAKE)
        (directory / "bin" / "make").chmod(0o755)
        environ = os.environ | {"PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(directory / "tmp")}
        self.process = subprocess.Popen(
            # Whoever started the tests may ignore signals, as nohup does, and the script would inherit that.
            ["env", "--default-signal", directory / ".ci" / "run"],
            env=environ | actions,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ended(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30)
        assert list((self.directory / "tmp").iterdir()) == [], "it tidies up"
        return self.process.returncode, output

    @property
    def calls(self) -> list[str]:
        """In their order, without the build, which goes on beside them."""
        calls = (self.directory / "calls").read_text().splitlines()
        return [call for call in calls if call != "cluster-build"]

    def build(self) -> Path:
        """Directory in /proc of a process of the build that goes on."""
        return Path("/proc", self.noted("build.pid"))

    def noted(self, name: str) -> str:
        """What a target writes into a file, as soon as it has."""
        file = self.directory / name
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        return file.read_text().strip()

    def is_gone(self, process: Path) -> bool:
        end = time.monotonic() + 10
        while process.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return not process.exists()


def test_all_tiers_run_in_order_and_the_cluster_goes_down(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.ended() == (0, "")
    assert run.calls == [*QUICK, "e2e", "cluster-down"]


def test_the_slower_tests_wait_for_the_build(tmp_path: Path) -> None:
    run = Run(tmp_path, cluster_build="sleep 0.5; touch built", e2e="test -e built")
    assert run.ended()[0] == 0


@pytest.mark.parametrize("target", ["test", "lint", "chart", "e2e"])
def test_a_target_that_fails_ends_the_run_with_its_failure(tmp_path: Path, target: str) -> None:
    run = Run(tmp_path, **{target: "exit 3"})
    assert run.ended()[0] == 3
    *done, last = run.calls
    assert done[-1].startswith(target)
    assert last == "cluster-down"


def test_a_build_that_fails_ends_the_run_before_the_slower_tests_with_what_it_said(tmp_path: Path) -> None:
    run = Run(tmp_path, cluster_build="echo no Go today; exit 2")
    code, output = run.ended()
    assert code == 1
    assert "no Go today" in output
    assert run.calls == [*QUICK, "cluster-down"]


def test_a_build_that_goes_on_is_stopped_when_the_run_fails(tmp_path: Path) -> None:
    run = Run(tmp_path, cluster_build=LASTS, test="while ! test -s build.pid; do sleep 0.01; done; exit 3")
    build = run.build()
    assert run.ended()[0] == 3
    assert run.is_gone(build)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_build_that_goes_on_is_stopped_when_the_run_is(tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path, cluster_build=LASTS, test="echo yes > testing; sleep 60")
    build = run.build()
    run.noted("testing")
    os.killpg(run.process.pid, number)
    assert run.ended()[0] != 0
    assert run.is_gone(build)
    assert run.calls == ["test", "cluster-down"]
