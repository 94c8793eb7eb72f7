"""A new operator finds thousands of jobs: how long until it has passed over each, and what that takes.

    python benchmarks/operator/bench_resync.py [--jobs 5000] [--nodes 1]

One operator starts all jobs first (minutes); their pods wait for a node.  Then it ends, and the one that is measured
starts: every pass looks at the job, its worker job and its pods, and nothing is to be written.
"""

import argparse
import asyncio
import re
import sys
import time
import urllib.request

from audit import await_silence, requests, writes_of
from load import load_on, name_of, training_jobs
from plane import OPERATOR, Plane, control_plane
from processes import cpu_s, memory_mb, operator

AFTER_S = 20.0  # the first looks after the resync belong to the memory, and to the needless writes


async def start_all(plane: Plane, jobs: int, nodes: int) -> None:
    begun = time.time()
    async with load_on(plane) as load:
        await load.prepare(plane)
        with operator(plane, "product"):
            manifests = training_jobs(jobs, nodes)
            await load.apply(manifests)
            await load.all_pods_reported(map(name_of, manifests), nodes)
            await asyncio.to_thread(await_silence, plane.audit_log, (OPERATOR,), begun)
    print(f"{jobs} jobs of {nodes} pods started in {time.time() - begun:.0f} s", file=sys.stderr)


def measure(plane: Plane, jobs: int) -> None:
    begun = time.time()
    with operator(plane, "product") as process:
        while passes(process.port) < jobs:
            time.sleep(0.1)
        seconds, cpu, peak = time.time() - begun, cpu_s(process.pid), memory_mb(process.pid)
        time.sleep(AFTER_S)
        peak, now = max(peak, memory_mb(process.pid)), memory_mb(process.pid, "VmRSS")
    found = list(requests(plane.audit_log, begun))
    asked = sum(request.is_counted for request in found if request.user == OPERATOR)
    writes = writes_of((OPERATOR,), found)
    print(f"{jobs} jobs: {seconds:.1f} s from the start of the process to the last pass, {cpu:.1f} s of CPU")
    print(f"memory {peak:.0f} MB at most, {now:.0f} MB {AFTER_S:.0f} s later")
    print(f"{asked} requests, {writes.total()} writes {dict(writes)}")


def passes(port: int) -> int:
    """Passes so far, from the operator's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r'^dstj_reconcile_duration_seconds_count{outcome="done"} ([0-9.]+)$', text, re.MULTILINE)
    return int(float(found[0])) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="A new operator finds thousands of jobs.")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--nodes", type=int, default=1, help="pods of each job")
    arguments = parser.parse_args()
    with control_plane() as plane:
        asyncio.run(start_all(plane, arguments.jobs, arguments.nodes))
        measure(plane, arguments.jobs)


if __name__ == "__main__":
    main()
