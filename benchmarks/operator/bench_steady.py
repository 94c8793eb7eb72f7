"""Nothing happens for ten minutes: what the operator writes (nothing), asks, and takes meanwhile.

    python benchmarks/operator/bench_steady.py [--jobs 200] [--nodes 2] [--minutes 10]

The pods of every second job are told to run, and their rank 0 answers /progress, always the same; those of the others
wait for a node.  Counted from the audit log.
"""

import argparse
import asyncio
import time
from collections import Counter

from aiohttp import web
from audit import await_silence, requests, writes_of
from load import NAMESPACES, Load, load_on, name_of, training_jobs
from plane import OPERATOR, Plane, control_plane
from processes import Operator, cpu_s, memory_mb, operator

from deepseek_trainer.contract.names import METRICS_PORT

ADDRESS = "127.0.0.1"  # of every pod
PROGRESS = {"stage": "training", "step": 7, "maxSteps": 100, "loss": 2.5}


async def run_pods(load: Load) -> None:
    """Every second job's pods get ready."""
    for namespace in NAMESPACES[::2]:
        for pod in await load.items(f"/api/v1/namespaces/{namespace}/pods"):
            await load.run(pod, ADDRESS)


async def progress_server() -> web.AppRunner:
    async def progress(_: web.Request) -> web.Response:
        return web.json_response(PROGRESS)

    app = web.Application()
    app.add_routes([web.get("/progress", progress)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, ADDRESS, METRICS_PORT).start()
    return runner


async def measure(plane: Plane, jobs: int, nodes: int, minutes: float) -> None:
    server = await progress_server()
    try:
        async with load_on(plane) as load:
            await load.prepare(plane)
            with operator(plane, "product") as process:
                manifests = training_jobs(jobs, nodes)
                await load.apply(manifests)
                await load.all_pods_reported(map(name_of, manifests), nodes)
                await run_pods(load)
                await asyncio.sleep(30)  # progress is read every 15 s
                await asyncio.to_thread(await_silence, plane.audit_log, (OPERATOR,), time.time() - 30)
                await watch_steadily(plane, process, jobs, minutes)
    finally:
        await server.cleanup()


async def watch_steadily(plane: Plane, process: Operator, jobs: int, minutes: float) -> None:
    begun, cpu = time.time(), cpu_s(process.pid)
    await asyncio.sleep(60 * minutes)
    seconds = time.time() - begun
    found = [request for request in requests(plane.audit_log, begun) if request.user == OPERATOR]
    writes = writes_of((OPERATOR,), found)
    asked = Counter(f"{request.verb} {request.resource}" for request in found if request.is_counted)
    print(f"{jobs} jobs, half of them running, {minutes:g} minutes: {writes.total()} writes {dict(writes)}")
    print(f"{asked.total() / seconds:.1f} requests/s: {dict(asked.most_common())}")
    print(f"{(cpu_s(process.pid) - cpu) / seconds:.3f} cores, {memory_mb(process.pid, 'VmRSS'):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Nothing happens for ten minutes.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=2, help="pods of each job")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with control_plane() as plane:
        asyncio.run(measure(plane, arguments.jobs, arguments.nodes, arguments.minutes))


if __name__ == "__main__":
    main()
