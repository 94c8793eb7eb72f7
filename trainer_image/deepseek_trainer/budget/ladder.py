"""What a job that runs out of memory does without, one rung at a time, before it fails.  Pure; without torch.

Every rung keeps the global batch and everything else that was asked for.  Results stay the same up to rounding.  The
last rung is an exception: where AdamW cannot be sharded, its moments go on in 8 bits.  That gives another result than
the one asked for, which is better than none.
"""

from collections.abc import Iterator
from typing import Any, Final

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.optimization import OnOutOfMemory, Optimizer, Recompute, Strategy

FEW_LOGITS: Final = 32  # [MiB]: an eighth of the default
# The strategy that needs less memory than each.  FSDP has no copy of the weights that a rank changes; DeepSpeed does.
_MORE_SHARDS: Final = {
    Strategy.DDP: Strategy.FSDP,
    Strategy.ZERO1: Strategy.ZERO2,
    Strategy.ZERO2: Strategy.ZERO3,
    Strategy.ZERO3: Strategy.FSDP,
}
_WHOLE_ADAMW: Final = (Strategy.DDP, Optimizer.ADAMW)


def ladder(config: TrainingConfig) -> Iterator[TrainingConfig]:
    """The rungs in order: `config` with ever lighter settings.  Empty where the job wants to fail instead."""
    while config.optimization.on_out_of_memory is OnOutOfMemory.ADAPT and (lighter := _lighter(config)):
        config = config.model_copy(update={"optimization": config.optimization.model_copy(update=lighter)})
        yield config


def climbed(config: TrainingConfig, rungs: int) -> TrainingConfig:
    """`config` on a rung of its ladder; 0 is `config` as it is.  Beyond the last rung it is the last one."""
    return [config, *ladder(config)][: rungs + 1][-1]


def settings(config: TrainingConfig) -> dict[str, Any]:
    """All settings that a rung may change, named as in the job file."""
    now = config.optimization
    return {
        "microBatchSize": now.micro_batch_size,
        "recompute": now.recompute.value,
        "logitsMebibytes": now.logits_mebibytes,
        "strategy": now.strategy.value,
        "offload": now.offload,
        "optimizer": now.optimizer.value,
    }


def promise(asked: TrainingConfig, rung: TrainingConfig) -> str:
    """How the result on `rung` compares with the one that was asked for."""
    is_kept = rung.optimization.optimizer is asked.optimization.optimizer
    return "as asked for, up to rounding" if is_kept else "another one: the moments are rounded to 8 bits"


def describe(config: TrainingConfig) -> str:
    """`microBatchSize 2, recompute Full, ...`."""
    return ", ".join(f"{name} {value}" for name, value in settings(config).items() if value is not False)


def _lighter(config: TrainingConfig) -> dict[str, Any]:
    """The settings that the next rung changes, the cheapest first.  Empty where nothing is left to change."""
    now = config.optimization
    if now.micro_batch_size > 1:
        rows = min(now.micro_batch_size, now.global_batch_size // config.world_size)
        return {"micro_batch_size": max(1, rows // 2)}
    if now.recompute is not Recompute.FULL:
        return {"recompute": Recompute.SELECTIVE if now.recompute is Recompute.NONE else Recompute.FULL}
    if now.logits_mebibytes > FEW_LOGITS:
        return {"logits_mebibytes": FEW_LOGITS}
    if now.strategy is Strategy.FSDP:
        return {} if now.offload else {"offload": True}
    if _can_shard(config):
        return {"strategy": _MORE_SHARDS[now.strategy]}
    return {"optimizer": Optimizer.ADAMW_8BIT} if (now.strategy, now.optimizer) == _WHOLE_ADAMW else {}


def _can_shard(config: TrainingConfig) -> bool:
    """Whether shards would save memory, and the API's rules allow them."""
    now = config.optimization
    is_allowed = now.optimizer is Optimizer.ADAMW and config.method.type is not MethodType.QLORA
    return is_allowed and config.world_size > 1
