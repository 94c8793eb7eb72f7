"""Nodes that the next attempts keep away from: those that refused a pod, and those on which attempts failed in a row.

The functions are pure.  A node is excluded for a limited time, and few are at once, so that a job never waits for long
for a cluster that has no others.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from deepseek_operator.jobs.failure import AttemptFailure
from deepseek_operator.jobs.status import ExcludedNode, JobStatus

MAX_NODES: Final = 8
EXCLUDED_FOR: Final = timedelta(hours=1)


def still_excluded(nodes: Iterable[ExcludedNode], now: datetime) -> tuple[ExcludedNode, ...]:
    return tuple(node for node in nodes if node.until > now)


def with_excluded(
    status: JobStatus, failure: AttemptFailure, rejections: Iterable[AttemptFailure], now: datetime
) -> JobStatus:
    """The status after an attempt that ended by `failure`, with the nodes in it that the next one is to avoid.

    `status` does not yet tell how the attempt ended.
    """
    bad = [each for each in (*rejections, failure) if each.node_name and (each.rejected or _is_repeated(status, each))]
    until = now + EXCLUDED_FOR
    new = {
        name: ExcludedNode(name=name, reason=each.reason[:256], until=until) for each in bad if (name := each.node_name)
    }
    old = (node for node in still_excluded(status.excluded_nodes, now) if node.name not in new)
    return status.model_copy(update={"excluded_nodes": (*old, *new.values())[-MAX_NODES:]})


def _is_repeated(status: JobStatus, failure: AttemptFailure) -> bool:
    """Whether the attempt before the current one failed on the same node."""
    before = next((each for each in reversed(status.attempts) if each.attempt < status.attempt), None)
    return before is not None and before.node_name == failure.node_name
