"""Saves and loads DeepSpeed's ZeRO states: the files that it would write become entries of one checkpoint of ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, read_rest
from deepseek_trainer.checkpoints.dcp import read_only
from deepseek_trainer.checkpoints.packed import Packer, unpacked
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.worker.distributed import World

CLASSES: Final = {
    class_.__name__: class_ for class_ in (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)
}
FILES: Final = "zeroFiles"  # in a checkpoint's meta: DeepSpeed's names of its files -> the rank that has the content


class SealedEngine(CheckpointEngine):  # type: ignore[misc]  # without types
    """Commits all that DeepSpeed saves between `create` and `commit` as one checkpoint of `store`.

    DeepSpeed's tag is the step.  Its directories hold nothing worth keeping, and are temporary.
    """

    def __init__(self, store: CheckpointStore, world: World) -> None:
        super().__init__()
        self.name = "sealed"
        self._store, self._world = store, world
        self._saved: dict[str, Any] = {}
        self._open: CheckpointInfo | None = None
        self._meta: Mapping[str, Any] = {}

    def save_checkpoint(self, engine: DeepSpeedEngine, step: int, meta: Mapping[str, Any]) -> CheckpointInfo:
        """Commit what `engine` trains as `step`.  Collective; raises what CheckpointStore.save raises.

        Raises ConfigError for an optimizer on NVMe.
        """
        if engine.zero_nvme_offload_optimizer():
            problem = "DeepSpeed copies an optimizer that is offloaded to NVMe past its checkpoint engine, unsealed"
            raise ConfigError(problem, hint="offload to the CPU")
        self._meta = meta
        with self._in(engine), TemporaryDirectory() as directory:
            engine.save_checkpoint(directory, tag=str(step), save_latest=False)
        assert self._open is not None, "save_checkpoint commits"
        return self._open

    def load_checkpoint(self, engine: DeepSpeedEngine, info: CheckpointInfo) -> Mapping[str, Any]:
        """Put `engine`, which has not trained yet, into the state of a checkpoint; returns its meta.  Collective.

        Raises ConfigError for another number of ranks, IntegrityError where a byte does not authenticate.
        """
        saved, now = info.manifest.world_size, self._world.size
        if saved != now:
            raise ConfigError(
                f"{saved} ranks saved this ZeRO checkpoint, {now} cannot load it", hint=f"start {saved} ranks"
            )
        self._open = info
        with self._in(engine), TemporaryDirectory() as directory:
            (names := Path(directory, str(info.step))).mkdir()
            for name in info.meta[FILES]:
                (names / name).touch()  # DeepSpeed globs for what it loads
            engine.load_checkpoint(directory, tag=names.name)
        return info.meta

    @contextmanager
    def _in(self, engine: DeepSpeedEngine) -> Iterator[None]:
        before, engine.checkpoint_engine = engine.checkpoint_engine, self
        try:
            yield
        finally:
            engine.checkpoint_engine = before

    def create(self, info: CheckpointCommitInfo) -> None:  # noqa: ARG002 the tag comes with the commit, too
        self._saved = {}

    def save(self, state_dict: Any, path: str) -> None:
        packer = Packer(CLASSES)
        tree = packer.tree(state_dict)
        self._saved[Path(path).name] = {"tree": tree, "tensors": packer.tensors}

    def commit(self, info: CheckpointCommitInfo) -> bool:
        holders = {name: rank for rank, names in enumerate(self._world.gather([*self._saved])) for name in names}
        self._open = self._store.save(int(info.tag), self._saved, {**self._meta, FILES: holders})
        self._saved = {}
        return True

    def load(self, path: str, map_location: Any = None) -> Any:  # noqa: ARG002 DeepSpeed copies to where it wants it
        info, name = self._open, Path(path).name
        assert info is not None, "load_checkpoint says which"
        tree = read_rest(info, info.meta[FILES][name], self._store.vault)[name]["tree"]
        tensors = read_only(info, self._store.vault, f"{name}/tensors/")
        return unpacked(tree, tensors, CLASSES)

    def preserves_storage_sharing(self) -> bool:
        return False  # a view is written without the rest of its storage
