"""Lets a training loop of your own save with `torch.distributed.checkpoint.save` into a store.  Planners are in `dcp`.

dcp.save(state, storage_writer=StoreWriter(store, step=100), planner=save_planner())
dcp.load(state, storage_reader=VaultReader(store.latest(), store.vault), planner=load_planner())
"""

from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from deepseek_trainer.checkpoints.dcp import planned_pieces
from deepseek_trainer.checkpoints.store import CheckpointStore, Part


class StoreWriter(StorageWriter):
    """Commits the state of one call of `save` as a checkpoint.  The state holds tensors only, by flat names."""

    def __init__(self, store: CheckpointStore, step: int, meta: Mapping[str, Any] | None = None) -> None:
        self._store, self._step, self._meta = store, step, meta or {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Returns when the checkpoint is committed.  Collective, like all calls of DCP."""
        part = Part(planned_pieces(plan, planner, self._store.file_name), {})
        self._store.commit(self._step, part, self._meta)
        done: Future[list[WriteResult]] = Future()
        sizes = (piece.tensor.numel() * piece.tensor.itemsize for piece in part.pieces)
        done.set_result([WriteResult(i.index, size, None) for i, size in zip(plan.items, sizes, strict=True)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None: ...

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return False  # a checkpoint is a step of a store, not a path or an address
