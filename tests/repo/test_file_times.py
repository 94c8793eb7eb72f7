"""A session tells how long each file took, and fails when one took longer than it may."""

import re
from pathlib import Path

import pytest

from support.session.file_times import complaints

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).parents[1] / "conftest.py"
PLAIN = ("-p", "no:cacheprovider", "-p", "no:asyncio")


def test_only_files_over_the_limit_are_complained_of() -> None:
    seconds = {"quick.py": 1.0, "just.py": 300.0, "slow.py": 300.5}
    (complaint,) = complaints(seconds, 300)
    assert complaint.startswith("slow.py took 300.5 s, a file may take 300: ")


def test_without_a_limit_no_file_is_too_slow() -> None:
    assert complaints({"slow.py": 1e6}, None) == []


@pytest.fixture
def two_files(pytester: pytest.Pytester) -> pytest.Pytester:
    """Two files whose tests pass; the set-up of one takes 0.3 s."""
    slow = "import time, pytest\n@pytest.fixture\ndef pause(): time.sleep(0.3)\ndef test_a(pause): pass"
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(test_quick="def test_a(): pass", test_slow=slow)
    return pytester


def test_the_slowest_file_is_shown_first(two_files: pytest.Pytester) -> None:
    result = two_files.runpytest_inprocess(*PLAIN)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.re_match_lines_random([r" +0\.[3-9]  test_slow\.py", r" +0\.0  test_quick\.py"])
    shown = result.stdout.str()
    assert shown.index("test_slow.py\n") < shown.index("test_quick.py\n")


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["alone", "in-two-processes"])
def test_a_file_that_passes_the_limit_fails_a_session_whose_tests_all_pass(
    two_files: pytest.Pytester, processes: tuple[str, ...]
) -> None:
    result = two_files.runpytest_inprocess(*PLAIN, "--file-limit=0.2", *processes)
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"test_slow\.py took 0\.\d s, a file may take 0\.2: ", result.stdout.str())
    assert "test_quick.py took" not in result.stdout.str()
