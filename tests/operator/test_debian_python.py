"""The operator on the Python of Debian 12, on which its images are built.

The asyncio of 3.11.0 to 3.11.2 loses and leaks cancellations, see `deepseek_operator.concurrency`.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROLLER = ROOT / "tests/operator/controller"
STORIES = [
    ROOT / "tests/operator/test_concurrency.py",
    *(
        CONTROLLER / f"test_{name}.py"
        for name in ("workqueue", "workqueue_failures", "shared_reads", "leader", "faults")
    ),
]
VERSION = "import platform; print(platform.python_implementation(), platform.python_version())"
AFFECTED = {f"CPython 3.11.{patch}" for patch in (0, 1, 2)}


def affected() -> str | None:
    """An interpreter of this machine that has those traits."""
    found = (path for name in ("/usr/bin/python3", "python3.11", "python3") if (path := shutil.which(name)))
    return next((path for path in found if _version(path) in AFFECTED), None)


def _version(interpreter: str) -> str:
    return subprocess.run([interpreter, "-c", VERSION], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.timeout(120)
def test_the_queue_and_what_it_stands_on_keep_to_their_stories_on_python_3_11_2() -> None:
    if (interpreter := affected()) is None:
        pytest.skip("no Python 3.11.0 to 3.11.2 here; test_workqueue_failures.py goes over a fake of its asyncio")
    # This environment's packages serve 3.11.2 as well: all of 3.11 has one binary interface.
    path = [str(ROOT / part) for part in ("operator", "trainer_image", "cli")] + [sysconfig.get_path("purelib")]
    command = [
        interpreter,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        "not to_a_create",
        *map(str, STORIES),
    ]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
