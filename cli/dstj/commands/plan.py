"""`dstj plan`: estimates before a job runs what it will take: memory of a rank, steps, FLOPs and time."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from deepseek_operator.jobs.limits import resources_of
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.resources import Resources, accelerators_of
from deepseek_operator.objects.quota import amount
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.estimate import PROGRAM, Setup, largest_rows, memory, needed, trainable
from deepseek_trainer.budget.perf import GPUS, gpu_named, model_flops
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.contract.optimization import Precision, Strategy
from deepseek_trainer.training.schedule import refuse_endless_warmup
from dstj.commands import forecast
from dstj.commands.forecast import Rows
from dstj.jobfile import Job, load_job
from dstj.local.claims import claims_at_hand
from dstj.local.home import Home
from dstj.screen.table import lines

GIB: Final = 1 << 30
_BUCKETS: Final = {
    Strategy.DDP: "DDP's buckets",
    Strategy.FSDP: "gathered weights",
    Strategy.ZERO1: "DeepSpeed's buckets",
    Strategy.ZERO2: "DeepSpeed's buckets",
    Strategy.ZERO3: "buckets, gathered weights",
}
Line = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What a rank computes on."""

    name: str
    gpu: str | None  # a name in perf.GPUS
    is_cuda: bool
    memory: int | None  # for one rank [bytes]; None: no limit is known
    host: int | None  # the host's memory for one rank [bytes]; on the CPU the same as `memory`

    def is_bf16(self, precision: Precision) -> bool:
        """Whether ranks compute in BF16 or FP16, as `precision.compute_dtype` decides; an unknown GPU has BF16."""
        if precision is Precision.AUTO:
            return self.is_cuda and (self.gpu is None or GPUS[self.gpu].has_bf16)
        return precision is not Precision.FP32


@dataclass(frozen=True, slots=True)
class Plan:
    """One job on one target."""

    config: TrainingConfig
    target: Target
    dimensions: Dimensions
    rows: Rows | None  # of the training data; None if they are not here

    @property
    def setup(self) -> Setup:
        is_bf16 = self.target.is_bf16(self.config.optimization.precision)
        return Setup.of(self.config, is_bf16=is_bf16, is_cuda=self.target.is_cuda)

    @property
    def tokens_per_step(self) -> int:
        return self.config.optimization.global_batch_size * self.config.data.sequence_length

    @property
    def flops(self) -> int:
        """FLOPs to train on one token."""
        return model_flops(self.config, self.dimensions)

    @property
    def minutes(self) -> float | None:
        """The time after which the run ends, wherever it is."""
        return self.config.optimization.max_minutes

    def flops_per_second(self, mfu: float) -> float | None:
        """The FLOP/s of a rank at this share of its GPU's peak; None in FP32, or if the peak is not known."""
        return mfu * GPUS[self.target.gpu].peak if self.target.gpu is not None and self.setup.is_bf16 else None

    @property
    def shortages(self) -> list[tuple[str, int, int]]:
        """Which memory is too small, the bytes of it that a rank needs, and the bytes that a rank has."""
        target, setup = self.target, self.setup
        parts = [(target.name, needed(self.dimensions, setup), target.memory)]
        if target.is_cuda:
            parts.append(("the host", PROGRAM + memory(self.dimensions, setup).host, target.host))
        return [(name, size, limit) for name, size, limit in parts if limit is not None and size > limit]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the ranks are assumed to be."""

    tokens: float  # per second, of all ranks
    assumption: str

    @classmethod
    def of(cls, plan: Plan, mfu: float, flops: float | None) -> "Speed | None":
        """At `flops` FLOP/s a rank if that is given, else at a share of its peak; None if the peak is not known."""
        if flops is None:
            reached, assumption = plan.flops_per_second(mfu), f"{mfu:.0%} of the peak is reached (--mfu)"
        else:
            reached, assumption = flops, f"a rank reaches {flops:.3g} FLOP/s"
        return None if reached is None else cls(plan.setup.ranks * reached / plan.flops, assumption)


def plan(arguments: Namespace) -> int:
    """Print what a job will take.  Raises ConfigError if a rank has less memory than that."""
    job = load_job(Path(arguments.file), *([Path(arguments.profile)] if arguments.profile else []))
    config = job.spec.training_config(job.namespace, job.name)
    target = _target(job, gpu_named(arguments.gpu) if arguments.gpu else None)
    with forecast.mounted(claims_at_hand(job, Home.from_env(), arguments.volume)) as paths:
        config = forecast.settled(config, paths)
        dimensions = forecast.dimensions(config, paths)
        found = Plan(config, target, dimensions, forecast.rows_at_hand(config, paths))
        if found.rows is not None and found.rows.is_exact:  # an estimate refuses nothing
            refuse_endless_warmup(config.optimization, found.rows.count)
    speed = Speed.of(found, arguments.mfu, arguments.flops_per_second)
    for line in (*lines([*_run(found, speed)]), "", *lines([*_memory(found)])):
        say(line)
    _refuse_large(found)
    return ExitCode.DONE


def _target(job: Job, gpu: str | None) -> Target:
    resources = _resources(job) or Resources()
    limits = resources.limits or {}
    ranks = job.spec.trainer.num_proc_per_node
    host = int(amount(limits["memory"])) // ranks if "memory" in limits else None
    if gpu is not None:
        return Target(gpu, gpu, is_cuda=True, memory=GPUS[gpu].memory, host=host)
    if accelerators_of(resources):
        return Target("a GPU (--gpu NAME names it)", None, is_cuda=True, memory=None, host=host)
    return Target("the CPU", None, is_cuda=False, memory=host, host=host)


def _resources(job: Job) -> Resources | None:
    """The resources of a pod, with those of the job's profile if one of the files has it."""
    profile = job.profiles.get(job.spec.trainer.profile or "")
    return resources_of(job.spec, ProfileSpec.model_validate(profile["spec"]) if profile else None)


def _run(plan: Plan, speed: Speed | None) -> Iterator[Line]:
    steps = forecast.steps(plan.config, plan.rows)
    setup, dimensions, rate = plan.setup, plan.dimensions, None if speed is None else speed.tokens
    yield "ranks", f"{setup.ranks} on {plan.target.name}, {_precision(plan)}"
    total = dimensions.parameters + dimensions.adapters(setup.lora)
    yield "method", str(plan.config.method.type)
    yield "learning rate", forecast.described_rate(plan.config.optimization, steps)
    yield "strategy", f"{setup.strategy}{', offloaded to the host' if setup.optimization.offload else ''}"
    yield "parameters", f"{total:,}, of which {trainable(dimensions, setup):,} are trained{_active(plan)}"
    yield "tokens a step", f"{plan.tokens_per_step:,}"
    yield "steps", " or ".join(_steps(plan, steps, rate))
    yield "FLOPs a token", f"{plan.flops:,} (PaLM's count)"
    if speed is None:
        yield "time", "unknown: give --flops-per-second; the peak is known of GPUs that --gpu names, in BF16"
        return
    yield "tokens a second", f"{speed.tokens:,.0f}, if {speed.assumption}"
    ends = [seconds for seconds in (_seconds(plan, steps, speed.tokens), plan.minutes and 60 * plan.minutes) if seconds]
    if ends:
        yield "time", f"{timedelta(seconds=round(min(ends)))}, evaluation and saves left out"


def _active(plan: Plan) -> str:
    """Of a model with experts, or with layers that share weights: what FLOPs follow from."""
    dimensions, lora = plan.dimensions, plan.setup.lora
    if dimensions.active == dimensions.parameters:
        return ""
    return f"; each token is computed with {dimensions.active + dimensions.active_adapters(lora):,}"


def _precision(plan: Plan) -> str:
    asked = plan.config.optimization.precision
    return asked if asked is Precision.FP16 else "BF16" if plan.setup.is_bf16 else "FP32"


def _seconds(plan: Plan, steps: int | None, speed: float) -> float | None:
    return None if steps is None else steps * plan.tokens_per_step / speed


def _steps(plan: Plan, steps: int | None, speed: float | None) -> Iterator[str]:
    """What steps, data and time each allow.  The run ends with the first of them."""
    if steps is not None and plan.rows is None:
        yield f"{steps:,}"
    elif steps is not None and plan.rows is not None:
        about = "" if plan.rows.is_exact else "about "
        yield f"{about}{steps:,}, for {about}{plan.rows.count:,} rows of {plan.setup.length:,} tokens"
    elif plan.config.optimization.epochs or plan.minutes is None:
        yield "unknown: give maxSteps, or the data by --volume CLAIM=DIR, and the extra [trainer]"
    if plan.minutes is not None:
        count = (
            f"about {60 * plan.minutes * speed / plan.tokens_per_step:,.0f}"
            if speed
            else "as many as there is time for"
        )
        yield f"{count}, in {plan.minutes:g} minutes"


def _memory(plan: Plan) -> Iterator[Line]:
    found, batch = memory(plan.dimensions, plan.setup), f"{plan.setup.rows} x {plan.setup.length} tokens"
    yield "MEMORY OF A RANK", "GIB"
    yield "weights", _gib(found.weights)
    yield "gradients", _gib(found.gradients)
    yield "moments", _gib(found.moments)
    yield _BUCKETS[plan.setup.strategy], _gib(found.buckets)
    yield f"activations, {batch}", _gib(found.activations)
    yield f"logits, {batch}", _gib(found.logits)
    if not plan.target.is_cuda:
        yield "copy for saves", _gib(found.host_copy)
        yield "Python and torch", _gib(PROGRAM)
    limit = "unknown" if plan.target.memory is None else _gib(plan.target.memory)
    yield "sum", f"{_gib(needed(plan.dimensions, plan.setup))} of {limit}"
    if plan.target.is_cuda:
        of_host = "unknown" if plan.target.host is None else _gib(plan.target.host)
        yield "copy for saves, on the host", _gib(found.host_copy)
        yield "sum on the host, with Python and torch", f"{_gib(PROGRAM + found.host)} of {of_host}"
    yield "verdict", _verdict(plan)


def _verdict(plan: Plan) -> str:
    if plan.shortages:
        return "does not fit"
    return "fits" if plan.target.memory is not None else "unknown: the memory of a rank is not known"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _refuse_large(plan: Plan) -> None:
    for name, size, limit in plan.shortages:
        hint = _smaller(plan, limit) if name == plan.target.name else _less_on_the_host(plan)
        raise ConfigError(f"a rank needs {_gib(size)} GiB, {name} has {_gib(limit)} for it", hint=hint)


def _smaller(plan: Plan, limit: int) -> str:
    if rows := largest_rows(plan.dimensions, plan.setup, limit):
        return f"optimization.microBatchSize: {rows}"
    smaller = "method.type: LoRA" if plan.setup.lora is None else "a smaller model"
    return f"{smaller}, or more memory: one row is too much"


def _less_on_the_host(plan: Plan) -> str:
    waits = "checkpoint.asynchronous: false, or " if plan.setup.is_asynchronous else ""
    return f"{waits}more memory in trainer.resourcesPerNode"
