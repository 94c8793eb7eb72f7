"""A learner by torch alone: DDP or FSDP."""

from collections.abc import Callable, Iterator, Sequence
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
from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.model.buffers import moved_buffers
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.parallel import spread, sync_gradients, whole
from deepseek_trainer.training.ema import Ema
from deepseek_trainer.training.learner import Learner, State
from deepseek_trainer.training.optimizer import load_state_by_name, optimizers, state_by_name
from deepseek_trainer.training.state import load_weights, random_state, restore_random_state
from deepseek_trainer.worker.distributed import World


class TorchLearner(Learner):
    """One rank's part of a model under DDP or FSDP."""

    def __init__(self, loss: Loss[Any], optimization: OptimizationSpec, world: World) -> None:
        super().__init__(loss, optimization, world)
        self._spread = spread(self.loss, optimization, world)
        # While FSDP has gathered weights, the model shows other tensors: these are the ones that are trained.
        self._weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._moved = moved_buffers(self.model)
        self._optimizers = optimizers(self.model, optimization)
        self._ema = Ema(self._weights, optimization.ema_decay) if optimization.ema_decay else None

    def accumulate(
        self, batches: Sequence[Any], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        computes_alone = self._optimization.strategy is Strategy.DDP
        self.loss.begin(batches)
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1
            sync_gradients(self._spread, now=is_last)
            loss = self._spread(batch)
            if is_last and computes_alone:
                before_exchange()
            # The backward pass takes the ranks' mean, and we want their sum: `targets` already counts all ranks.
            (loss * (self._world.size / targets)).backward()
            total += loss.detach()
        return total

    def gradient_norm(self) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self._weights.values() if p.grad is not None])
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return whole_norm.to(self._world.device)  # with offloaded gradients the norm is on the host

    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:
        nn.utils.clip_grads_with_norm_(self._weights.values(), self._optimization.max_grad_norm * scale, norm)
        if scale != 1:
            torch._foreach_mul_([p.grad for p in self._weights.values() if p.grad is not None], 1 / scale)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._balance.step()
        self.discard()
        if self._ema:
            self._ema.update(steps)

    def discard(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._balance.forget()

    def settle_order_of_sums(self, batch: Any) -> None:
        """Make DDP order its gradients for good.

        DDP lays them out anew after its first backward pass.  With three ranks or more, that changes the order of sums.
        A resumed run has its first pass at a later step, and would get other results than an uninterrupted one.
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
        return {"model": weights | self._moved} | ({"ema": self._ema.averages} if self._ema else {})

    def _shards(self, info: CheckpointInfo) -> dict[str, Tensor]:
        """Tensors to load this rank's shards into, by their path in the checkpoint; none if weights are whole."""
        trained, _ = split(self._trained())
        owners, _ = split({"optimizer": {name: weight.detach() for name, weight in self._weights.items()}})
        places: dict[str, Tensor] = {}
        for tensor in info.manifest.tensors:
            weight, owner = trained.get(tensor.name), owners.get(tensor.name.rpartition("/")[0])
            if isinstance(weight, DTensor):
                places[tensor.name] = weight
            elif isinstance(owner, DTensor) and _is_like(owner, tensor):
                places[tensor.name] = torch.empty_like(owner)  # a moment is laid out like its weight
        return places


def _is_like(weight: DTensor, tensor: TensorInfo) -> bool:
    return (code_of(weight.dtype), tuple(weight.shape)) == (tensor.dtype, tensor.whole or tensor.shape)
