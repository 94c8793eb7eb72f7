"""From `apply` to a right status: our operator beside others', on a real API server without nodes.

    python benchmarks/operator/bench_jobs.py [--jobs 200] [--nodes 2] [--rounds 3] [--only product]
        [--limits default] [--until running] [--peer trainer] [--peer training-operator]

Each round gives each operator a fresh control plane with what is installed with it, and applies all jobs at once, 16
requests at a time, over four namespaces.  `floor` is bare kopf; a peer (peers.py) is fetched and built before its first
run, which takes Go, the module proxy and minutes.

A round ends when the status of every job tells of all its pods.  That of bare kopf, which writes none, and that of
training-operator, whose status counts running pods only, ends at the last pod; Trainer's tells that a job's pods are
active, not how many.  With `--until running`, pods get ready as soon as they are made, and a round ends when every job
is reported to run, by its pods.  Latencies are per job, from its request: until its last child was made (audit log),
until its last pod and its status were seen (watches).  Writes, requests and what is called `in_all` count on until the
operator has written nothing for 20 s.  Each has its own rights, and a Lease where it takes one, which is not counted.

`--limits default` leaves kube-controller-manager and the peers at their own limits, which is 20 requests a second for
the former; `raised` allows all of them 500, and 20 workers where more than one can be had.  Medians over the rounds,
and the ratio to the first column.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from audit import SILENCE_S, Request, await_silence, requests, writes_of
from contestants import CONTESTANTS, prepare, running
from load import Load, Name, copies, job_of, load_on, name_of
from peer_programs import built
from peers import PEERS, Contestant
from plane import Plane, control_plane
from processes import cpu_s, machine_cpu_s, memory_mb

QUIET_S = 20.0  # longer than the pause between two passes over a job
CHILDREN = frozenset(
    {"jobs", "jobsets", "networkpolicies", "persistentvolumeclaims", "pods", "serviceaccounts", "services"}
)


@dataclass
class Result:
    """One operator, one round; the units stand in the names."""

    jobs_per_s: float
    seconds: float  # from the first request to the end
    last_pod_s: float
    children_p50_s: float
    children_p99_s: float
    pods_p50_s: float
    pods_p99_s: float
    status_p50_s: float
    status_p99_s: float
    writes_per_job: float
    requests_per_job: float
    operator_cpu_s: float  # of all its programs until the end, as the next three
    api_server_cpu_s: float
    controllers_cpu_s: float
    etcd_cpu_s: float
    others_cores: float  # what everybody else on the machine used meanwhile; near 0 on a quiet one
    operator_cpu_in_all_s: float  # until the operator has been silent for a while, as the next
    api_server_cpu_in_all_s: float
    operator_memory_mb: float
    by_kind: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    jobs: int
    nodes: int  # pods of each job
    limits: str  # of kube-controller-manager and of peers: raised, default
    until: str  # what the status has to tell of: pods, running


def one_round(contestant: Contestant, setting: Setting) -> Result:
    with control_plane(contestant.users, raised=setting.limits == "raised") as plane:
        return asyncio.run(measure(plane, contestant, setting))


async def measure(plane: Plane, contestant: Contestant, setting: Setting) -> Result:
    async with load_on(plane) as load:
        await prepare(contestant, load, plane)
        with running(contestant, plane, raised=setting.limits == "raised") as programs:
            await asyncio.sleep(SILENCE_S)  # its watches have begun
            return await measure_load(plane, load, contestant, programs, setting)


async def measure_load(
    plane: Plane, load: Load, contestant: Contestant, programs: Mapping[str, int], setting: Setting
) -> Result:
    pids = {**plane.processes, **programs, "load": os.getpid()}
    jobs, manifests = setting.jobs, copies(contestant.job(setting.nodes), setting.jobs)
    names = [name_of(job) for job in manifests]
    kubelet = asyncio.create_task(load.run_all("127.0.0.1")) if setting.until == "running" else None
    pods = asyncio.create_task(load.all_pods_made(names, setting.nodes))
    statuses = asyncio.create_task(reported(load, contestant, names, setting))
    before, start = usage(pids), time.time()
    sent = await load.apply(manifests, contestant.plural)
    made, right = await pods, await statuses
    told = {name: max(at, right.get(name, 0.0)) for name, at in made.items()}
    after, end = usage(pids), time.time()
    await asyncio.to_thread(await_silence, plane.audit_log, contestant.users, start, QUIET_S)
    if kubelet:
        kubelet.cancel()
    in_all = usage(pids)
    used = {name: seconds - before[name] for name, seconds in after.items()}
    found = list(requests(plane.audit_log, start))
    theirs = [request for request in found if request.user in contestant.users and request.is_counted]
    children = [last - sent[name] for name, last in last_children(theirs).items()]
    to_pods, to_status = ([seen[name] - sent[name] for name in names] for seen in (made, told))
    first = min(sent.values())
    counted = writes_of(contestant.users, found)
    return Result(
        jobs / (max(told.values()) - first),
        max(told.values()) - first,
        max(made.values()) - first,
        percentile(children, 50),
        percentile(children, 99),
        percentile(to_pods, 50),
        percentile(to_pods, 99),
        percentile(to_status, 50),
        percentile(to_status, 99),
        counted.total() / jobs,
        len(theirs) / jobs,
        sum(used[name] for name in programs),
        used["kube-apiserver"],
        used["kube-controller-manager"],
        used["etcd"],
        (used["machine"] - sum(used[name] for name in pids)) / (end - start),
        sum(in_all[name] - before[name] for name in programs),
        in_all["kube-apiserver"] - before["kube-apiserver"],
        sum(memory_mb(pid) for pid in programs.values()),
        {what: count / jobs for what, count in counted.most_common()},
    )


async def reported(load: Load, contestant: Contestant, names: list[Name], setting: Setting) -> dict[Name, float]:
    """When the status of each job was right [s since the epoch]; nothing where no status ever tells of that."""
    is_right = contestant.is_right.get(setting.until)
    if is_right is None:
        return {}
    return await load.all_reported(contestant.path, names, lambda status: is_right(status, setting.nodes))


def usage(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds so far, by process and of the whole machine."""
    return {name: cpu_s(pid) for name, pid in pids.items()} | {"machine": machine_cpu_s()}


def last_children(found: Iterable[Request]) -> dict[Name, float]:
    """When the last child of each job was made [s since the epoch]."""
    last: dict[Name, float] = {}
    for request in found:
        if request.resource in CHILDREN and request.code == 201:
            job = job_of(request.namespace, request.name)
            last[job] = max(last.get(job, 0.0), request.answered)
    return last


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description="From apply to a right status.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=2, help="pods of each job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("product", "floor"))
    parser.add_argument("--limits", choices=("raised", "default"), default="raised", help="of controllers and peers")
    parser.add_argument("--until", choices=("pods", "running"), default="pods", help="what the status has to tell of")
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], default=[])
    arguments = parser.parse_args()
    contestants = ((arguments.only,) if arguments.only else ("floor", "product")) + tuple(arguments.peer)
    for component in [component for name in contestants for component in CONTESTANTS[name].components]:
        built(component)
    setting = Setting(arguments.jobs, arguments.nodes, arguments.limits, arguments.until)
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name in contestants:
            results[name].append(one_round(CONTESTANTS[name], setting))
            print(f"{name}: {results[name][-1]}", flush=True)
    print(f"\n{setting}, {arguments.rounds} rounds, medians")
    report(results)


def report(results: dict[str, list[Result]]) -> None:
    print(f"{'':24}" + "".join(f"{name:>20}" for name in results))
    for name in [part.name for part in fields(Result) if part.name != "by_kind"]:
        medians = [statistics.median(getattr(result, name) for result in each) for each in results.values()]
        print(f"{name:24}" + "".join(f"{_beside(median, medians[0]):>20}" for median in medians))


def _beside(value: float, first: float) -> str:
    return f"{value:.2f} ({value / first:.2f})" if first else f"{value:.2f}"


if __name__ == "__main__":
    main()
