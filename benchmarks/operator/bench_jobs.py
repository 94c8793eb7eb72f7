"""From `apply` to a right status: our operator beside one that is bare kopf, on a real API server without nodes.

    python benchmarks/operator/bench_jobs.py [--jobs 200] [--nodes 2] [--rounds 3] [--only product] [--limits default]

Each round gives each operator a fresh control plane with what the chart installs, and applies all jobs at once, 16
requests at a time, over four namespaces.  A round ends when the status of every job tells of all its pods; that of bare
kopf, which writes none, ends at the last pod.  Latencies are per job, from its request: until its last child was made
(audit log), until its last pod and its status were seen (watches).  Writes, requests and what is called `in_all` count
on until the operator has written nothing for 20 s.  It has its own rights, and a Lease, which is not counted.

With `--until running`, pods get ready as soon as they are made, and a round ends when every job is reported to run.
`--limits default` leaves kube-controller-manager at its 20 requests a second; `raised` allows it 500.  Medians over the
rounds, and the ratio to bare kopf.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from audit import SILENCE_S, Request, await_silence, requests, writes_of
from load import Load, Manifest, Name, load_on, name_of, training_jobs
from plane import OPERATOR, Plane, control_plane
from processes import Operator, cpu_s, machine_cpu_s, memory_mb, operator

QUIET_S = 20.0  # longer than the pause between two passes over a job
CHILDREN = frozenset({"jobs", "networkpolicies", "persistentvolumeclaims", "serviceaccounts", "services"})


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
    operator_cpu_s: float  # until the end, as the next three
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
    limits: str  # of kube-controller-manager: raised, default
    until: str  # what the status has to tell of: pods, running

    def is_right(self, status: Manifest) -> bool:
        if self.until == "running":
            return bool(status.get("phase") == "Running")
        return bool(status.get("replicas") == self.nodes)


def one_round(program: str, setting: Setting) -> Result:
    with control_plane(raised=setting.limits == "raised") as plane:
        return asyncio.run(measure(plane, program, setting))


async def measure(plane: Plane, program: str, setting: Setting) -> Result:
    async with load_on(plane) as load:
        await load.prepare(plane, has_all_rights=program == "floor")  # kopf wants more
        with operator(plane, program) as process:
            await asyncio.sleep(SILENCE_S)  # its watches have begun
            return await measure_load(plane, load, process, setting, has_status=program == "product")


async def measure_load(plane: Plane, load: Load, process: Operator, setting: Setting, *, has_status: bool) -> Result:
    pids = {**plane.processes, "operator": process.pid, "load": os.getpid()}
    jobs, manifests = setting.jobs, training_jobs(setting.jobs, setting.nodes)
    names = [name_of(job) for job in manifests]
    kubelet = asyncio.create_task(load.run_all("127.0.0.1")) if setting.until == "running" else None
    pods = asyncio.create_task(load.all_pods_made(names, setting.nodes))
    statuses = asyncio.create_task(load.all_reported(names, setting.is_right)) if has_status else pods
    before, start = usage(pids), time.time()
    sent = await load.apply(manifests)
    made, told = await pods, await statuses
    after, end = usage(pids), time.time()
    await asyncio.to_thread(await_silence, plane.audit_log, OPERATOR, start, QUIET_S)
    if kubelet:
        kubelet.cancel()
    in_all = usage(pids)
    used = {name: seconds - before[name] for name, seconds in after.items()}
    found = list(requests(plane.audit_log, start))
    ours = [request for request in found if request.user == OPERATOR and request.is_counted]
    children = [last - sent[name] for name, last in last_children(ours).items()]
    to_pods, to_status = ([seen[name] - sent[name] for name in names] for seen in (made, told))
    first = min(sent.values())
    counted = writes_of(OPERATOR, found)
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
        len(ours) / jobs,
        used["operator"],
        used["kube-apiserver"],
        used["kube-controller-manager"],
        used["etcd"],
        (used["machine"] - sum(used[name] for name in pids)) / (end - start),
        in_all["operator"] - before["operator"],
        in_all["kube-apiserver"] - before["kube-apiserver"],
        memory_mb(process.pid),
        {what: count / jobs for what, count in counted.most_common()},
    )


def usage(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds so far, by process and of the whole machine."""
    return {name: cpu_s(pid) for name, pid in pids.items()} | {"machine": machine_cpu_s()}


def last_children(found: Iterable[Request]) -> dict[Name, float]:
    """When the last child of each job was made [s since the epoch]."""
    last: dict[Name, float] = {}
    for request in found:
        if request.resource in CHILDREN and request.code == 201:
            job = request.namespace, request.name.removeprefix("dstj-").removesuffix("-a1")
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
    parser.add_argument("--limits", choices=("raised", "default"), default="raised", help="of kube-controller-manager")
    parser.add_argument("--until", choices=("pods", "running"), default="pods", help="what the status has to tell of")
    arguments = parser.parse_args()
    programs = (arguments.only,) if arguments.only else ("floor", "product")
    setting = Setting(arguments.jobs, arguments.nodes, arguments.limits, arguments.until)
    results: dict[str, list[Result]] = {program: [] for program in programs}
    for _ in range(arguments.rounds):
        for program in programs:
            results[program].append(one_round(program, setting))
            print(f"{program}: {results[program][-1]}", flush=True)
    print(f"\n{setting}, {arguments.rounds} rounds, medians")
    report(results)


def report(results: dict[str, list[Result]]) -> None:
    print(f"{'':22}" + "".join(f"{program:>12}" for program in results) + ("       ratio" if len(results) > 1 else ""))
    for name in [part.name for part in fields(Result) if part.name != "by_kind"]:
        medians = [statistics.median(getattr(result, name) for result in each) for each in results.values()]
        ratio = f"{medians[-1] / medians[0]:12.2f}" if len(medians) > 1 and medians[0] else ""
        print(f"{name:22}" + "".join(f"{median:12.2f}" for median in medians) + ratio)


if __name__ == "__main__":
    main()
