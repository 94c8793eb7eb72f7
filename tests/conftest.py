"""Options and fixtures of every test."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from support.session.file_times import FileTimes

# An example's wall time says how busy the machine is, not whether the code is right.
settings.register_profile("dstj", deadline=None)
settings.load_profile("dstj")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing with them")
    parser.addoption("--file-limit", type=float, metavar="SECONDS", help="fail when the tests of one file take longer")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FileTimes(config.getoption("--file-limit")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("needs root to mount a tmpfs")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def golden_numbers(request: pytest.FixtureRequest) -> Callable[[str, Mapping[str, list[float]], float], None]:
    """`golden_numbers(name, found, rel)`: the file tests/golden/<name> has the numbers `found`, up to a share `rel`."""
    update = request.config.getoption("--update-golden")

    def check(name: str, found: Mapping[str, list[float]], rel: float) -> None:
        path = GOLDEN / name
        if update:
            path.write_text(json.dumps(found, indent=2) + "\n")
        assert path.exists(), f"{path} is missing: run `make golden`"
        expected = json.loads(path.read_text())
        assert found.keys() == expected.keys()
        for series, numbers in expected.items():
            assert found[series] == pytest.approx(numbers, rel=rel), f"{series}: run `make golden` and read the diff"

    return check


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the file tests/golden/<name> holds exactly `text`."""
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run `make golden`"
        assert text == path.read_text(), f"{path} is stale: run `make golden` and read the diff"

    return check
