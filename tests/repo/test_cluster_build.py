"""What a newcomer meets while the test cluster is built: a locked package manager, long builds, a full disk."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

CLUSTER = Path(__file__).resolve().parents[1] / "e2e" / "cluster"


def ran(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The code, run where the cluster's modules are."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=CLUSTER, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def a_package_manager(directory: Path, says: str) -> str:
    """A PATH on which `apt-get` fails twice with these words and then succeeds."""
    program = directory / "apt-get"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {directory}/calls\n[ $(wc -l < {directory}/calls) -gt 2 ] && exit 0\n'
        f"echo '{says}' >&2\nexit 100\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{directory}:{os.environ['PATH']}"


INSTALL = "import build; build.LOCK_PAUSE_S = 0; build.apt_get('install', 'buildah')"


def test_the_build_waits_for_whoever_holds_the_package_managers_lock(tmp_path: Path) -> None:
    says = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 (unattended-upgr)"
    done = ran(INSTALL, PATH=a_package_manager(tmp_path, says))
    assert (done.returncode, done.stderr.count("another program holds the lock")) == (0, 1)
    assert (tmp_path / "calls").read_text().splitlines() == ["install buildah"] * 3


def test_any_other_failure_of_the_package_manager_ends_the_build_with_its_words(tmp_path: Path) -> None:
    done = ran(INSTALL, PATH=a_package_manager(tmp_path, "E: Unable to locate package buildah"))
    assert done.returncode != 0
    assert "Unable to locate package buildah" in done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["install buildah"]


def test_a_long_command_shows_how_far_it_is() -> None:
    done = ran("from shell import run_shown; run_shown('printf', 'a\\nb\\n', describe=str, every_s=0)")
    assert done.stderr == "cluster:   ['a']\ncluster:   ['a', 'b']\n"


def test_a_long_command_that_fails_leaves_its_last_words() -> None:
    done = ran("from shell import run_shown; run_shown('sh', '-c', 'echo out of luck; exit 3', describe=str)")
    assert "exit 3: out of luck" in done.stderr


def test_a_disk_that_is_too_small_is_named_before_the_build(tmp_path: Path) -> None:
    done = ran(f"from pathlib import Path; import build; build.need_room(Path('{tmp_path}'), 1 << 60)")
    assert f"{tmp_path} has " in done.stderr
    assert "make room, or let XDG_CACHE_HOME and DSTJ_CLUSTER_STATE name another disk" in done.stderr


def test_programs_that_nobody_has_used_for_a_week_are_deleted(tmp_path: Path) -> None:
    builds = tmp_path / "dstj" / "cluster"
    for name, days in {"of-today": 0, "of-this-week": 6, "unused": 8}.items():
        (builds / name).mkdir(parents=True)
        (builds / name / "complete").touch()
        os.utime(builds / name / "complete", times=2 * (time.time() - days * 24 * 3600,))
    done = ran("import build; build.forget_unused()", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in builds.iterdir()) == ["of-this-week", "of-today"]
