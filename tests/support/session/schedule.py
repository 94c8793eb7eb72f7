"""Who runs which test where pytest-xdist spreads the slower tier over processes."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[3]


class OneForTheCluster(LoadScopeScheduling):
    """To one process go all tests that need the cluster, of which there is one; to the others go whole files."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """What stays together with a test: its file, or all that needs the cluster."""
    file = nodeid.partition("::")[0]
    return "the cluster" if uses_cluster(file) else file


@cache
def uses_cluster(file: str) -> bool:
    """Whether a test file, named as in node ids, drives the cluster."""
    return "support.cluster" in (ROOT / file).read_text()
