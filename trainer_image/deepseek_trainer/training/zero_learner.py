"""A learner by DeepSpeed's ZeRO: moments are divided among the ranks, in stage 2 also gradients, in stage 3 weights.

It computes what DDP computes: FP32 weights, autocast inside of the forward pass, gradients that are the ranks' mean.
Its checkpoints are like DDP's: each rank collects its share of the parameters, whole.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.checkpoints.statefile import split
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.model.buffers import moved_buffers
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.training.learner import Learner, State
from deepseek_trainer.training.moments import Moments, kept_by
from deepseek_trainer.training.optimizer import optimizers
from deepseek_trainer.training.state import random_state, refuse_other_model, restore_random_state
from deepseek_trainer.training.zero_engine import MOMENTS, ZeroEngine
from deepseek_trainer.worker.agreement import agree
from deepseek_trainer.worker.distributed import World


class ZeroLearner(Learner):
    """One rank's part of a model under ZeRO.  All methods are collective."""

    def __init__(self, loss: Loss[Any], optimization: OptimizationSpec, world: World) -> None:
        super().__init__(loss, optimization, world)
        model = loss.model
        # A copy without DeepSpeed's hooks, with which a rank alone cannot call a module of sharded weights.
        self._bare = with_weights(model, (torch.empty_like(weight, device="meta") for weight in model.parameters()))
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        self._owner = {name: i % world.size for i, name in enumerate(self._weights)}
        self._moved = moved_buffers(model)
        (self._adamw,) = optimizers(model, optimization)
        self._engine = ZeroEngine(self.loss, self._adamw, optimization.strategy.zero_stage, world)

    def accumulate(
        self, batches: Sequence[Any], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        alone_until = {Strategy.ZERO1: len(batches) - 1, Strategy.ZERO2: 0}.get(self._optimization.strategy)
        self.loss.begin(batches)
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for i, batch in enumerate(batches):
            loss = self._engine.loss(batch, is_last=i == len(batches) - 1)
            if i == alone_until:
                before_exchange()
            self._engine.backward(loss * (self._world.size / targets))
            total += loss.detach()
        return total

    def gradient_norm(self) -> Tensor:
        square = nn.utils.get_total_norm(self._engine.gradients()).square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:  # noqa: ARG002 of averages
        clipped = (self._optimization.max_grad_norm * scale / (norm + 1e-6)).clamp(max=1.0)  # as torch does
        torch._foreach_mul_(self._engine.gradients(), clipped / scale)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._engine.step()
        self._balance.step()
        self._balance.forget()

    def discard(self) -> None:
        self._engine.discard()
        self._balance.forget()

    def settle_order_of_sums(self, batch: Any) -> None:
        """Nothing is to be done: the order is the same from the first pass on."""

    @contextmanager
    def finished(self) -> Iterator[nn.Module]:
        with self._engine.gathered(self.model.parameters()):
            finished = with_weights(self._bare, (weight.data for weight in self.model.parameters()))
            for name, buffer in moved_buffers(finished).items():
                buffer.copy_(self._moved[name])
            yield finished

    def state(self) -> State:
        """On the host, each parameter on the rank that owns it."""
        weights: dict[str, Tensor] = {name: buffer.to("cpu", copy=True) for name, buffer in self._moved.items()}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, weight in self._weights.items():
            with self._engine.gathered([weight]):
                if self._owns(name):
                    weights[name] = weight.detach().to("cpu", copy=True)
            collected = {key: self._engine.moment(weight, key) for key in MOMENTS}
            if self._owns(name):
                moments[name] = {key: moment.cpu() for key, moment in collected.items()} | {"step": self._engine.steps}
        return {"model": weights, "rng": random_state(self._world), "optimizer": moments}

    def load(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        state = self._load(store, info, ("model", "optimizer"))
        moments: dict[str, Moments] = {}

        def take_over() -> None:
            saved = state.get("optimizer", {})
            moments.update({name: kept_by(self._adamw, saved[name]) for name in saved if self._owns(name)})

        agree(self._world.gather, take_over)
        for name, weight in self._weights.items():
            for key in MOMENTS:
                self._engine.set_moment(weight, key, self._shared(name, moments.get(name, {}).get(key)))
        self._engine.steps = max(self._world.gather(max((float(each["step"]) for each in moments.values()), default=0)))
        restore_random_state(state.get("rng", {}), self._world)

    def load_weights(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        self._load(store, info, ("model",))

    def _load(self, store: CheckpointStore, info: CheckpointInfo, parts: Sequence[str]) -> State:
        """Take a checkpoint's weights.  Returns what it has of `parts` for the parameters that this rank owns."""
        paths, _ = split({"model": self._weights})
        saved = {tensor.name: tensor.whole or tensor.shape for tensor in info.manifest.tensors}
        shapes = dict(zip(paths, self._shapes.values(), strict=True))
        moved, _ = split({"model": self._moved})
        shapes |= {path: tuple(buffer.shape) for path, buffer in moved.items()}
        refuse_other_model(shapes, {path: shape for path, shape in saved.items() if path.startswith("model/")})
        names = {
            path.partition("/")[2]
            for path, owner in zip(paths, self._owner.values(), strict=True)
            if owner == self._world.rank
        }

        def is_wanted(path: str) -> bool:
            part, name, *_ = path.split("/")
            return path in moved or (part in parts and name in names)

        state, _ = store.load(info, wanted=is_wanted)
        for name, weight in self._weights.items():
            self._engine.set_weight(weight, self._shared(name, state.get("model", {}).get(name)))
        for name, buffer in self._moved.items():
            buffer.copy_(state["model"][name])
        return state

    def _owns(self, name: str) -> bool:
        return self._owner[name] == self._world.rank

    def _shared(self, name: str, mine: Tensor | None) -> Tensor:
        """The value that the owner of the parameter `name` has, on every rank; zeros if it has none."""
        value = torch.zeros(self._shapes[name], device=self._world.device)
        if mine is not None:
            value.copy_(mine)
        dist.broadcast(value, src=self._owner[name])
        return value


def with_weights(model: nn.Module, weights: Iterable[Tensor]) -> nn.Module:
    """A copy of `model` whose parameters, in the order of `parameters()`, are `weights` themselves."""
    known: dict[int, Any] = {
        id(old): nn.Parameter(new, requires_grad=old.requires_grad)
        for old, new in zip(model.parameters(), weights, strict=True)
    }
    return copy.deepcopy(model, known)
