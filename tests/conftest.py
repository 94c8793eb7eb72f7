"""Options and fixtures of every test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# An example's wall time says how busy the machine is, not whether the code is right.
settings.register_profile("dstj", deadline=None)
settings.load_profile("dstj")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing with them")


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
