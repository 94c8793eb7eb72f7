"""Who takes part in a benchmark: our operator, one that is bare kopf, and others' by name."""

from collections.abc import Iterator
from contextlib import contextmanager

import peer_programs
from load import OURS, PLURAL, Load, training_job
from peers import PEERS, Contestant
from plane import OPERATOR, Plane
from processes import operator

FLOOR = Contestant("floor", (OPERATOR,), PLURAL, training_job, {})
CONTESTANTS = {contestant.name: contestant for contestant in (FLOOR, OURS, *PEERS)}


async def prepare(contestant: Contestant, load: Load, plane: Plane) -> None:
    if contestant.components:  # they bring their own CRDs, roles and webhooks
        await load.make_namespaces()
    else:
        await load.prepare(plane, has_all_rights=contestant is FLOOR)  # kopf wants more


@contextmanager
def running(contestant: Contestant, plane: Plane, *, raised: bool) -> Iterator[dict[str, int]]:
    """Its process ids by program.  `raised`: with higher limits than it has by default; ours has none."""
    if contestant.components:
        with peer_programs.running(plane, contestant.components, raised=raised) as pids:
            yield pids
    else:
        with operator(plane, contestant.name) as process:
            yield {contestant.name: process.pid}
