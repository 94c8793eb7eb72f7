"""The model as it learns: spread over the ranks, with its optimizers and the average of its weights.

What a checkpoint holds of it: weights, moments and averages that are trained, and each rank's random state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.checkpoints.manifest import TensorInfo
from deepseek_trainer.checkpoints.statefile import code_of, split
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.method import PreferenceSpec
from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.data.dataset import Batch
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.parallel import SummedLoss, spread, sync_gradients, whole
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.training.ema import Ema
from deepseek_trainer.training.optimizer import load_state_by_name, optimizers, state_by_name
from deepseek_trainer.training.preference import PairLoss
from deepseek_trainer.training.state import load_weights, random_state, restore_random_state
from deepseek_trainer.worker.distributed import World

State = Mapping[str, Any]


class Learner(ABC):
    """One rank's part of it.  All methods but `update` and `discard` are collective; under ZeRO these are, too."""

    def __init__(
        self,
        model: nn.Module,
        optimization: OptimizationSpec,
        world: World,
        preference: PreferenceSpec | None = None,
    ) -> None:
        """`model` as it is before training: where it learns preferences, it is their reference, too."""
        self.model, self._optimization, self._world = model, optimization, world
        self.autocast = autocast(optimization.precision, world.device)
        drop_out(model, optimization.dropout)
        recompute_activations(model, optimization.recompute)
        arguments = (model, self.autocast, optimization)
        self.loss = PairLoss(*arguments, preference.beta) if preference else SummedLoss(*arguments)

    @staticmethod
    def of(
        model: nn.Module, optimization: OptimizationSpec, world: World, preference: PreferenceSpec | None = None
    ) -> "Learner":
        """Of `model`, which the job's strategy spreads over the ranks."""
        if not optimization.strategy.zero_stage:
            return TorchLearner(model, optimization, world, preference)
        from deepseek_trainer.training.zero_learner import ZeroLearner  # noqa: PLC0415 not every image has DeepSpeed

        return ZeroLearner(model, optimization, world)

    @abstractmethod
    def accumulate(
        self, batches: Sequence[Batch], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Add up the gradients of the losses' sum over `targets`; this rank's sum, float64 on the device.

        `targets`: losses of all ranks, as `loss.count` has them, over a loss scale where there is one.
        `before_exchange` is called where a rank first waits for others: in its last backward pass, under ZeRO2 in its
        first; not under FSDP and ZeRO3, where it waits in every layer.
        """

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """Of all ranks' gradients as they lie, a scalar on the device."""

    @abstractmethod
    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:
        """Take the step of gradients that are `scale` times too large and have `norm`; `steps`: with this one."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def settle_order_of_sums(self, batch: Batch) -> None:
        """Have the order in which ranks' gradients are summed settle before the first step, by a pass of no effect."""

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that are evaluated and exported: their averages, where the job keeps them."""
        return nullcontext()

    @abstractmethod
    def finished(self) -> AbstractContextManager[nn.Module]:
        """A model with the weights of `averaged`, whole on every rank, to be used by a rank alone."""

    @abstractmethod
    def state(self) -> State:
        """What a checkpoint holds."""

    @abstractmethod
    def load(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Go back to a checkpoint, whatever number of ranks and strategy it was saved with."""

    @abstractmethod
    def load_weights(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Take the checkpoint's weights and their averages only."""


class TorchLearner(Learner):
    """By torch alone: DDP or FSDP."""

    def __init__(
        self,
        model: nn.Module,
        optimization: OptimizationSpec,
        world: World,
        preference: PreferenceSpec | None = None,
    ) -> None:
        super().__init__(model, optimization, world, preference)
        self._spread = spread(self.loss, optimization, world)
        # FSDP shows other tensors while it has gathered them: these are the ones that are trained.
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizers = optimizers(model, optimization)
        self._ema = Ema(self._weights, optimization.ema_decay) if optimization.ema_decay else None

    def accumulate(
        self, batches: Sequence[Batch], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        computes_alone = self._optimization.strategy is Strategy.DDP
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1
            sync_gradients(self._spread, now=is_last)
            loss = self._spread(batch)
            if is_last and computes_alone:
                before_exchange()
            # The ranks' mean is taken and we want the sum: `targets` already counts all ranks.
            (loss * (self._world.size / targets)).backward()
            total += loss.detach()
        return total

    def gradient_norm(self) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self._weights.values() if p.grad is not None])
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return whole_norm.to(self._world.device)  # of gradients that are offloaded it is on the host

    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:
        nn.utils.clip_grads_with_norm_(self._weights.values(), self._optimization.max_grad_norm * scale, norm)
        if scale != 1:
            torch._foreach_mul_([p.grad for p in self._weights.values() if p.grad is not None], 1 / scale)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.discard()
        if self._ema:
            self._ema.update(steps)

    def discard(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def settle_order_of_sums(self, batch: Batch) -> None:
        """Have DDP order its gradients for good.

        It lays them out anew after its first backward pass.  From three ranks on that changes the order of sums,
        and a resumed run, for which a later step is the first, would part from an uninterrupted one.
        """
        if not isinstance(self._spread, DistributedDataParallel):
            return
        gpus = [self._world.device] if self._world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            self._spread(batch).backward()
        self.discard()

    def averaged(self) -> AbstractContextManager[None]:
        return self._ema.in_place() if self._ema else nullcontext()

    @contextmanager
    def finished(self) -> Iterator[nn.Module]:
        with self.averaged(), whole(self._spread):
            yield self.model

    def state(self) -> State:
        return self._trained() | {
            "rng": random_state(self._world),
            "optimizer": state_by_name(self._weights, self._optimizers),
        }

    def load(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        state, _ = store.load(info, self._shards(info))
        load_weights(self._trained(), state)
        load_state_by_name(self._weights, self._optimizers, state["optimizer"])
        restore_random_state(state.get("rng", {}), self._world)

    def load_weights(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        load_weights(self._trained(), store.load(info, self._shards(info))[0])

    def _trained(self) -> dict[str, Any]:
        weights = {name: weight.detach() for name, weight in self._weights.items()}
        return {"model": weights} | ({"ema": self._ema.averages} if self._ema else {})

    def _shards(self, info: CheckpointInfo) -> dict[str, Tensor]:
        """Places for this rank's shards of what the checkpoint has, by path; nothing where weights are whole."""
        trained, _ = split(self._trained())
        owners, _ = split({"optimizer": {name: weight.detach() for name, weight in self._weights.items()}})
        places: dict[str, Tensor] = {}
        for tensor in info.manifest.tensors:
            weight, owner = trained.get(tensor.name), owners.get(tensor.name.rpartition("/")[0])
            if isinstance(weight, DTensor):
                places[tensor.name] = weight
            elif isinstance(owner, DTensor) and _is_like(owner, tensor):
                places[tensor.name] = torch.empty_like(owner)  # a moment that is laid out as its weight
        return places


def _is_like(weight: DTensor, tensor: TensorInfo) -> bool:
    return (code_of(weight.dtype), tuple(weight.shape)) == (tensor.dtype, tensor.whole or tensor.shape)
