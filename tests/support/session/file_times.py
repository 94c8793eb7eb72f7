"""How long each test file took: printed at the end of a session, slowest first, and held to a limit where one is given.

With pytest-xdist the reports of all workers come here, so a file counts what its tests took, wherever they ran.
"""

from collections import Counter

import pytest


class FileTimes:
    """A pytest plugin that adds up set-up, call and teardown of a file's tests."""

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if complaints(self.seconds, self.limit_s) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.seconds:
            terminalreporter.section("seconds by file")
        for file, seconds in self.seconds.most_common():
            terminalreporter.line(f"{seconds:8.1f}  {file}")
        for complaint in complaints(self.seconds, self.limit_s):
            terminalreporter.line(complaint, red=True)


def complaints(seconds: dict[str, float], limit_s: float | None) -> list[str]:
    """One line for each file that took longer than it may; none without a limit."""
    return [
        f"{file} took {took:.1f} s, a file may take {limit_s:g}: share its set-up, or mark what rarely breaks `long`"
        for file, took in seconds.items()
        if limit_s is not None and took > limit_s
    ]
