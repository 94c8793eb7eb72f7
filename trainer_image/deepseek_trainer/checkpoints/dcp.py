"""Divides the tensors of a checkpoint among the ranks and reads them back, with torch's distributed checkpointing.

Its planners know DTensors, let one rank write what several hold alike, and read for any number of ranks.  This module
turns their plans into files of the vault.  Plans travel between ranks as JSON, and nothing is pickled.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, place_of
from deepseek_trainer.checkpoints.manifest import TensorInfo
from deepseek_trainer.checkpoints.statefile import code_of, memory_of, torch_dtype
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import first_line, shown
from deepseek_trainer.storage.streams import Reader
from deepseek_trainer.storage.tensorfile import SIZES, Extent, extents
from deepseek_trainer.storage.vault import Vault

Agreed = Callable[[Callable[[], Any]], list[Any]]  # work of each rank -> the JSON values of all, or all raise
PER_RANK: Final = frozenset({"rng"})  # entries of a state that each rank has for itself


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or one rank's shard of it, that is written to `info.file`."""

    info: TensorInfo
    tensor: Tensor


def save_planner() -> DefaultSavePlanner:
    """torch's planner for saving a state of tensors by flat names.  Anything else it would pickle."""
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def load_planner() -> DefaultLoadPlanner:
    """torch's planner for loading such a state."""
    return DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def is_per_rank(name: str) -> bool:
    return name.partition("/")[0] in PER_RANK


def pieces_to_write(tensors: Mapping[str, Tensor], rank: int, file: str, agreed: Agreed) -> list[Piece]:
    """The pieces that this rank writes: its part of what all ranks hold, and all that is its own.  Collective."""
    shared = {name: tensor for name, tensor in tensors.items() if not is_per_rank(name)}
    planner = save_planner()
    planner.set_up_planner(shared, is_coordinator=rank == 0)
    wanted = agreed(lambda: [_to_json(item) for item in planner.create_local_plan().items])
    # Every rank has the same plans, and so computes the same division.
    divided, _ = planner.create_global_plan([SavePlan([_from_json(item) for item in items]) for items in wanted])
    parts = planned_pieces(divided[rank], planner, file)
    own = [(name, tensor) for name, tensor in tensors.items() if is_per_rank(name)]
    return parts + [Piece(TensorInfo(name, code_of(t.dtype), tuple(t.shape), file), t) for name, t in own]


def planned_pieces(plan: SavePlan, planner: SavePlanner, file: str) -> list[Piece]:
    return [Piece(_info(item, file), _resolved(planner, item)) for item in plan.items]


def read_tensors(
    info: CheckpointInfo,
    rank: int,
    vault: Vault,
    into: Mapping[str, Tensor] | None = None,
    wanted: Callable[[str], bool] = lambda _: True,
) -> dict[str, Tensor]:
    """The tensors that the ranks shared, as far as they are `wanted`, and this rank's own.

    A tensor comes whole, or into its place in `into`, which is overwritten and may be sharded.  Raises ConfigError
    where a shape differs.
    """
    reader = VaultReader(info, vault)
    metadata = reader.read_metadata()
    targets = dict(into or {})
    for name, of in metadata.state_dict_metadata.items():
        if name not in targets and wanted(name):
            targets[name] = _empty(of)
    _fill(targets, reader, metadata)
    return targets | reader.read_own(rank)


def read_only(info: CheckpointInfo, vault: Vault, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, by the rest of their names."""
    reader = VaultReader(info, vault)
    metadata = reader.read_metadata()
    found = {name: _empty(of) for name, of in metadata.state_dict_metadata.items() if name.startswith(prefix)}
    _fill(found, reader, metadata)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _fill(targets: dict[str, Tensor], reader: "VaultReader", metadata: Metadata) -> None:
    planner = load_planner()
    planner.set_up_planner(targets, metadata)
    try:
        plan = planner.create_local_plan()
    except (ValueError, RuntimeError) as error:  # another shape, a name that is not there
        raise ConfigError(f"the checkpoint is of another model: {first_line(error)}") from error
    reader.read_data(plan, planner).wait()


class VaultReader(StorageReader):
    """Reads one checkpoint, and of it only the segments that a plan needs."""

    def __init__(self, info: CheckpointInfo, vault: Vault) -> None:
        self._info, self._vault = info, vault
        self._shared = {_index(t): t for t in info.manifest.tensors if not is_per_rank(t.name)}
        self._files = {file.record.name: file for file in info.manifest.files}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        found: dict[str, Any] = {}
        for index, tensor in self._shared.items():
            data = _write_data(index, tensor)
            of = found.setdefault(tensor.name, TensorStorageMetadata(data.properties, data.size, []))
            of.chunks.append(data.chunk)
        return Metadata(found)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        def file_of(item: ReadItem) -> str:
            return self._shared[item.storage_index].file

        for name, items in groupby(sorted(plan.items, key=file_of), file_of):
            with self._open(name) as reader:
                found = extents(reader.read_at, reader.size, name)
                for extent, item in _in_order((_extent(found, self._shared[i.storage_index]), i) for i in items):
                    _read(reader, extent, item, planner.resolve_tensor(item).detach())
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_own(self, rank: int) -> dict[str, Tensor]:
        """The tensors that the rank has for itself, from its own file."""
        own: dict[str, Tensor] = {}
        for name in (file.record.name for file in self._info.manifest.files_of(rank)):
            if name.endswith(".safetensors"):
                with self._open(name) as reader:
                    found = extents(reader.read_at, reader.size, name)
                    own |= {key: _whole(reader, extent) for key, extent in found.items() if is_per_rank(key)}
        return own

    def _open(self, name: str) -> Reader:
        file = self._files[name]
        return self._vault.open_recorded(self._info.path, file.record, place_of(self._info, file))

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return False  # a checkpoint is a CheckpointInfo, not a path or an address


def _index(tensor: TensorInfo) -> MetadataIndex:
    return MetadataIndex(tensor.name, tensor.offset or (0,) * len(tensor.shape))


def _empty(of: Any) -> Tensor:
    return torch.empty(of.size, dtype=of.properties.dtype)


def _extent(found: Mapping[str, Extent], tensor: TensorInfo) -> Extent:
    """Where a tensor lies.  Raises IntegrityError where its file has another one than the manifest says."""
    extent = found.get(tensor.key)
    if extent is None or (extent.dtype, tuple(extent.shape)) != (tensor.dtype, tensor.shape):
        raise IntegrityError(
            f"{tensor.file} has no tensor {shown(tensor.key)} as the manifest lists it", hint="restore it from a backup"
        )
    return extent


def _in_order(found: Iterator[tuple[Extent, ReadItem]]) -> list[tuple[Extent, ReadItem]]:
    """In the order of the file, so that each segment is opened once."""
    return sorted(found, key=lambda pair: (pair[0].start, tuple(pair[1].storage_offsets)))


def _read(reader: Reader, extent: Extent, item: ReadItem, target: Tensor) -> None:
    """Fill `target` with the part of a stored tensor that `item` asks for.

    Rows are read from the file; the other dimensions are narrowed in memory.
    """
    first, *offsets = item.storage_offsets or (0,)
    rows, *lengths = item.lengths or (1,)
    if target.is_contiguous() and _is_like(target, extent) and tuple(lengths) == extent.shape[1:]:
        reader.read_onto(extent.start + first * _row_bytes(extent), memory_of(target))
        return
    part = torch.empty((rows, *extent.shape[1:]) if extent.shape else (), dtype=torch_dtype(extent.dtype))
    reader.read_onto(extent.start + first * _row_bytes(extent), memory_of(part))
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True), start=1):
        part = part.narrow(dimension, offset, length)
    target.copy_(part)


def _whole(reader: Reader, extent: Extent) -> Tensor:
    tensor = torch.empty(extent.shape, dtype=torch_dtype(extent.dtype))
    reader.read_onto(extent.start, memory_of(tensor))
    return tensor


def _is_like(target: Tensor, extent: Extent) -> bool:
    return target.device.type == "cpu" and target.dtype == torch_dtype(extent.dtype)


def _row_bytes(extent: Extent) -> int:
    return math.prod(extent.shape[1:]) * SIZES[extent.dtype]


def _resolved(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor), f"{item.index.fqn}: what is no tensor is not saved through DCP"
    return tensor.detach()


def _info(item: WriteItem, file: str) -> TensorInfo:
    data = item.tensor_data
    assert data is not None, f"{item.index.fqn}: not a tensor"
    dtype, shape = code_of(data.properties.dtype), tuple(data.chunk.sizes)
    if item.type is not WriteItemType.SHARD:
        return TensorInfo(item.index.fqn, dtype, shape, file)
    return TensorInfo(item.index.fqn, dtype, shape, file, tuple(data.chunk.offsets), tuple(data.size))


def _to_json(item: WriteItem) -> dict[str, Any]:
    return {"type": item.type.name} | _info(item, "").to_json()


def _from_json(data: Mapping[str, Any]) -> WriteItem:
    info = TensorInfo.from_json(data)
    index = _index(info)
    return WriteItem(index, WriteItemType[data["type"]], tensor_data=_write_data(index, info))


def _write_data(index: MetadataIndex, info: TensorInfo) -> TensorWriteData:
    chunk = ChunkStorageMetadata(torch.Size(index.offset or ()), torch.Size(info.shape))
    return TensorWriteData(chunk, TensorProperties(dtype=torch_dtype(info.dtype)), torch.Size(info.whole or info.shape))
