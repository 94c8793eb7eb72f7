"""DeepSpeed's engine as `ZeroLearner` needs it.  No other file knows DeepSpeed's internals.

DeepSpeed's documented functions do a whole step at once.  We need the norm before the step, and sometimes skip the step
after all.  For that we use what is not documented: of its optimizers `averaged_gradients`,
`single_partition_of_fp32_groups` and, in stage 3, `fp32_partitioned_groups_flat`; of stage 3's parameters `ds_tensor`;
and `ops.__compatible_ops__`.
"""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Final

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from deepseek_trainer.budget.estimate import ZERO_BUCKET
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.worker.distributed import World

MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class ZeroEngine:
    """`loss`, spread over the ranks, and its AdamW.  All methods are collective."""

    def __init__(self, loss: Loss[Any], adamw: torch.optim.Optimizer, stage: int, world: World) -> None:
        self._adamw, self._stage, self._world = adamw, stage, world
        self._is_held = False
        deepspeed.ops.__compatible_ops__ = {}  # otherwise it builds a kernel now, which takes a minute and a compiler
        deepspeed.init_distributed("nccl" if world.device.type == "cuda" else "gloo")
        for weight in (weight for module in loss.uncalled for weight in module.parameters()):
            deepspeed.zero.register_external_parameter(loss, weight)
        self._engine, *_ = deepspeed.initialize(model=loss, optimizer=adamw, config=_settings(stage))
        adamw.register_step_pre_hook(self._hold)
        self._begin()

    def loss(self, batch: Any, *, is_last: bool) -> Tensor:
        """The loss of a micro-batch.  `is_last`: of its step."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        loss: Tensor = self._engine(batch)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, as the mean over ranks."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradients(self) -> list[Tensor]:
        """This rank's part of the gradients after the last micro-batch.  Changing them in place changes the step."""
        return [part for group in self._engine.optimizer.averaged_gradients.values() for part in group]

    def step(self) -> None:
        """Let AdamW take the step, and forget the gradients."""
        self._engine.step()

    def discard(self) -> None:
        """Forget the gradients, by a step in which AdamW does nothing."""
        self._is_held = True
        try:
            self._engine.step()
        finally:
            self._is_held = False

    @property
    def steps(self) -> Tensor:
        """How many steps AdamW has taken, by its own count."""
        steps: Tensor = next(iter(self._adamw.state.values()))["step"]
        return steps.to("cpu", copy=True)

    @steps.setter
    def steps(self, steps: float) -> None:
        for state in self._adamw.state.values():
            state["step"].fill_(steps)

    def gathered(self, weights: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Inside of it, `weights` are whole on every rank.  If they are sharded, changes to them are lost."""
        context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([*weights])
        return context

    def moment(self, weight: nn.Parameter, key: str) -> Tensor:
        """A moment of `weight`, whole; `key` is one of MOMENTS."""
        moment: Tensor = safe_get_full_optimizer_state(weight, key)
        return moment

    def set_moment(self, weight: nn.Parameter, key: str, value: Tensor) -> None:
        """Set a moment of `weight` to `value`, which every rank has whole."""
        if self._stage == 3:
            safe_set_local_optimizer_state(weight, self._part(weight, value), key)
        else:
            safe_set_full_optimizer_state(weight, value, key)

    def set_weight(self, weight: nn.Parameter, value: Tensor) -> None:
        """Set `weight` to `value`, which every rank has whole: for the model's passes, and for AdamW."""
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0), torch.no_grad():
            weight.copy_(value)
        if self._stage == 3:
            safe_set_local_fp32_param(weight, self._part(weight, value))
        else:
            safe_set_full_fp32_param(weight, value)

    def _part(self, weight: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of `value`.  All parts have the same length; zeros fill up the end."""
        size: int = weight.ds_tensor.numel()  # type: ignore[attr-defined]  # of DeepSpeed's
        return pad(value.flatten(), (0, size * self._world.size - value.numel())).narrow(
            0, size * self._world.rank, size
        )

    def _hold(self, adamw: torch.optim.Optimizer, *_: Any) -> None:
        if self._is_held:
            adamw.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient

    def _begin(self) -> None:
        """Give AdamW its moments, all zero at first, and let DeepSpeed find them, by a step that does nothing."""
        zero = self._engine.optimizer
        parts = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for part in parts:
            step = torch.zeros((), device=part.device if self._adamw.defaults["fused"] else "cpu")
            self._adamw.state[part] = {"step": step} | {key: torch.zeros_like(part) for key in MOMENTS}
        zero.averaged_gradients = {i: [torch.zeros_like(part)] for i, part in enumerate(parts)}
        self.discard()


def _settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration.  It leaves nothing of what a step computes to DeepSpeed."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, but unused: we set `scale_wrt_gas` and the boundary
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": ZERO_BUCKET,
            "allgather_bucket_size": ZERO_BUCKET,
            # A layer's weights are whole only while it computes, or while they are fetched for it.
            "stage3_prefetch_bucket_size": ZERO_BUCKET,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
        },
    }
