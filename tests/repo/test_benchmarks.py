"""What benchmarks read of the project: they run by hand, so nobody notices at once when it has changed."""

import sys
from pathlib import Path

import pytest

from deepseek_operator.jobs.status import JobStatus, NodeCounts, ReplicaStatuses

OPERATOR = Path(__file__).resolve().parents[2] / "benchmarks" / "operator"


@pytest.mark.parametrize(("active", "is_right"), [(1, False), (2, True)])
def test_the_benchmark_of_the_operator_ends_by_what_the_status_says_of_pods(
    monkeypatch: pytest.MonkeyPatch, active: int, is_right: bool
) -> None:
    monkeypatch.setattr(sys, "path", [str(OPERATOR), *sys.path])
    from load import tells_of_pods

    status = JobStatus(replica_statuses=ReplicaStatuses(nodes=NodeCounts(desired=2, active=active)))
    assert tells_of_pods(status.manifest(), 2) is is_right
