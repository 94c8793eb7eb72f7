"""Whether the ResourceQuotas of a namespace have room for all pods of a worker job.

The API server counts pods one by one.  It would admit only some of them, and those would hold their share of the quota
without being able to train.  The API server adds the defaults of LimitRanges and the default PriorityClass to each pod
before it counts, and so does this module.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.foreign import named

QUOTA_FIX: Final = "ask for less, raise the ResourceQuota, or wait until other jobs finish"
_NEVER_FIX: Final = "so it never fits: ask for less, or raise the ResourceQuota"
_DECIMAL: Final = {
    unit: Decimal(1000) ** i for i, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
_BINARY: Final = {unit: Decimal(1024) ** i for i, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_UNITS: Final = _DECIMAL | _BINARY

Amounts = dict[str, Decimal]


@dataclass(frozen=True, slots=True)
class Shortage:
    """A resource of which a quota has too little."""

    quota: str
    resource: str
    needed: Decimal
    used: Decimal
    hard: Decimal

    @property
    def is_for_good(self) -> bool:
        """Whether the pods would not fit even if nobody else used the quota."""
        return self.needed > self.hard

    def __str__(self) -> str:
        needed, hard, free = (
            in_units(amount) for amount in (self.needed, self.hard, max(Decimal(0), self.hard - self.used))
        )
        name = named(self.quota)
        what = f"ResourceQuota {name} is short of {self.resource}: {needed} needed at once, {free} of {hard} free"
        return f"{what}, {_NEVER_FIX}" if self.is_for_good else f"{what}: {QUOTA_FIX}"


def shortage(
    worker_job: Manifest,
    quotas: Iterable[Manifest],
    limit_ranges: Iterable[Manifest] = (),
    default_priority: str | None = None,
) -> Shortage | None:
    """Why `worker_job` and its pods do not fit, or None if they do.  What can never fit comes first."""
    pod = _admitted(worker_job["spec"]["template"]["spec"], limit_ranges, default_priority)
    needed = _needed(pod, worker_job["spec"]["parallelism"])
    found = [each for quota in quotas if _applies(quota, pod) for each in _shortages(quota, needed)]
    return min(found, key=lambda each: not each.is_for_good, default=None)


def counts_priorities(quota: Manifest) -> bool:
    """Whether the quota is for the pods of some PriorityClasses alone."""
    return any(scope["scopeName"] == "PriorityClass" for scope in _scopes(quota))


def amount(quantity: int | str) -> Decimal:
    """A Kubernetes quantity, such as 500m, 1.5, 2e3 or 64Gi, as a number."""
    text = str(quantity)
    number = text.rstrip("numkKMGTPEi")
    return Decimal(number) * _UNITS[text[len(number) :]]


def in_units(amount: Decimal) -> str:
    """A number as people write it: 137438953472 is 128Gi."""
    units = (unit for unit in ("Gi", "Mi") if amount and amount % _BINARY[unit] == 0)
    unit = next(units, "")
    return f"{(amount / _UNITS[unit]).normalize():f}{unit}"


def spread(seconds: float, seed: str) -> float:
    """`seconds` times 1 to 2, depending on `seed`, so that jobs that wait for the same room do not retry in step."""
    return seconds * (1 + zlib.crc32(seed.encode()) / 2**32)


def _shortages(quota: Manifest, needed: Amounts) -> Iterator[Shortage]:
    """Compare with the status of the quota, which is what the API server enforces; the spec may be newer."""
    hard, used = (_amounts(quota.get("status", {}).get(field)) for field in ("hard", "used"))
    for resource in sorted(hard.keys() & used.keys() & needed.keys()):
        if needed[resource] > hard[resource] - used[resource]:
            yield Shortage(quota["metadata"]["name"], resource, needed[resource], used[resource], hard[resource])


def _admitted(pod: Manifest, limit_ranges: Iterable[Manifest], default_priority: str | None) -> Manifest:
    """The spec of the pod with the defaults that the API server adds before it counts the pod.

    Its init container asks for the same as its trainer container, so one of them stands for both.
    """
    resources = pod["containers"][0].get("resources", {})
    limits = resources.get("limits") or {}
    requests = limits | (resources.get("requests") or {})
    for item in (
        item for each in limit_ranges for item in each["spec"].get("limits", ()) if item["type"] == "Container"
    ):
        limits = item.get("default", {}) | limits
        requests = item.get("defaultRequest", {}) | requests
    container = pod["containers"][0] | {"resources": {"limits": limits, "requests": requests}}
    priority = pod.get("priorityClassName") or default_priority
    return pod | {"containers": [container]} | ({"priorityClassName": priority} if priority else {})


def _needed(pod: Manifest, num_pods: int) -> Amounts:
    """What the worker job and its pods use, by the names that quotas give it."""
    requests, limits = _resources(pod)
    each = {"pods": Decimal(1), "count/pods": Decimal(1)}
    each |= {f"requests.{name}": value for name, value in requests.items()}
    each |= {f"limits.{name}": value for name, value in limits.items() if "/" not in name}
    each |= {name: value for name, value in requests.items() if "/" not in name}
    return {name: num_pods * value for name, value in each.items()} | {"count/jobs.batch": Decimal(1)}


def _resources(pod: Manifest) -> tuple[Amounts, Amounts]:
    """The requests and limits of the pod."""
    resources = pod["containers"][0].get("resources", {})
    limits = _amounts(resources.get("limits"))
    return limits | _amounts(resources.get("requests")), limits


def _amounts(resources: Manifest | None) -> Amounts:
    return {name: amount(quantity) for name, quantity in (resources or {}).items()}


def _applies(quota: Manifest, pod: Manifest) -> bool:
    return all(_matches(scope, pod) for scope in _scopes(quota))


def _scopes(quota: Manifest) -> list[Manifest]:
    spec = quota.get("spec", {})
    scopes = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes", ())]
    return [*scopes, *spec.get("scopeSelector", {}).get("matchExpressions", ())]


def _matches(scope: Manifest, pod: Manifest) -> bool:
    """Whether a scope covers the pod.  One that is not known here does not; the API server enforces it all the same."""
    priority, values = pod.get("priorityClassName"), scope.get("values", ())
    requests, _ = _resources(pod)
    is_best_effort = not any(requests.get(name) for name in ("cpu", "memory"))
    answers = {
        ("Terminating", "Exists"): "activeDeadlineSeconds" in pod,
        ("NotTerminating", "Exists"): "activeDeadlineSeconds" not in pod,
        ("BestEffort", "Exists"): is_best_effort,
        ("NotBestEffort", "Exists"): not is_best_effort,
        ("PriorityClass", "Exists"): priority is not None,
        ("PriorityClass", "DoesNotExist"): priority is None,
        ("PriorityClass", "In"): priority in values,
        ("PriorityClass", "NotIn"): priority not in values,
    }
    return answers.get((scope["scopeName"], scope["operator"]), False)
