"""Reads from a job's files what its run will have: the model's dimensions, and the rows that its data fill.

The trainer's own code reads both, as preparation does.  It does not import torch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from deepseek_trainer import tasks
from deepseek_trainer.base_model.families import read_dimensions, scratch_dimensions
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import MANY_RECORDS, MethodType
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.training.horizon import Horizon
from deepseek_trainer.training.schedule import warmup_steps

INSTALL: Final = "pip install 'deepseek-training-operator[trainer]'"
SAMPLE_BYTES: Final = 4 << 20  # as much of the data is tokenised; of larger data, every n-th record


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows of data.sequenceLength tokens the training records fill."""

    count: int
    is_exact: bool


@contextmanager
def mounted(claims: Mapping[str, Path]) -> Iterator[Paths]:
    """The paths of a worker, in which only the directories of `claims` exist, as links."""
    with TemporaryDirectory() as directory:
        paths = Paths(Path(directory))
        paths.claim("").mkdir(parents=True)
        for name, place in claims.items():
            paths.claim(name).symlink_to(place.absolute())
        yield paths


def dimensions(config: TrainingConfig, paths: Paths) -> Dimensions:
    """The model's dimensions.  Raises ConfigError if the base is missing, unknown, or cannot be trained as asked."""
    if config.data.images is not None:
        raise ConfigError("memory, FLOPs and time of models of images are not known", hint="dstj run tries them")
    if config.model.architecture is not None:
        return scratch_dimensions(config.model.architecture)
    try:
        from deepseek_trainer.base_model.source import source_model
    except ModuleNotFoundError as error:
        raise ConfigError(f"a base model cannot be read without {error.name}", hint=INSTALL) from None
    base = base_of(config, paths)
    settings, _ = source_model(base)
    with understood(base.path):
        refuse_misfit(config, settings)
        return read_dimensions(settings)


def settled(config: TrainingConfig, paths: Paths) -> TrainingConfig:
    """The job with the method that Auto comes to.  If the data are not here, that is the one with the most memory."""
    records = MANY_RECORDS
    if config.method.type is MethodType.AUTO and config.model.base is not None and _are_here(config, paths):
        from deepseek_trainer.data.inputs import TRAIN

        records = sum(1 for _ in tasks.preparer(config).inputs(paths).records(TRAIN))
    return config.settled(records)


def steps(config: TrainingConfig, rows: Rows | None) -> int | None:
    """The optimizer steps of the whole run; None if they depend on time, or on data that are not here."""
    return Horizon.of(config.optimization, rows.count).steps if rows else config.optimization.max_steps


def described_rate(optimization: OptimizationSpec, steps: int | None) -> str:
    """The peak, its schedule and its warm-up: `0.0002, Cosine after 10 steps of warm-up`."""
    warmup = warmup_steps(steps, optimization) if steps is not None or optimization.warmup_steps else None
    if warmup is None and optimization.warmup_fraction is not None:
        return (
            f"{optimization.peak_rate:g}, {optimization.schedule} after {optimization.warmup_fraction:.0%} of warm-up"
        )
    after = "warm-up" if warmup is None else f"{warmup} step{'s' if warmup != 1 else ''} of warm-up"
    return f"{optimization.peak_rate:g}, {optimization.schedule} after {after}"


def rows_at_hand(config: TrainingConfig, paths: Paths) -> Rows | None:
    """The rows of the training data.

    None if nothing depends on them, or if a claim or the trainer's own packages are missing.  Raises DataError for what
    is wrong with the places, the files and the records that are read.
    """
    optimization = config.optimization
    is_timed = optimization.max_minutes is not None and optimization.epochs is None
    if optimization.max_steps or is_timed or not _are_here(config, paths):
        return None
    try:
        return _rows(config, paths)
    except ModuleNotFoundError:
        return None


def _are_here(config: TrainingConfig, paths: Paths) -> bool:
    places = (*config.data.training_places.values(), config.data.validation)
    return all(paths.claim(each.claim_name).exists() for each in places if each)


def _rows(config: TrainingConfig, paths: Paths) -> Rows:
    """Of a sample, made as preparation makes rows."""
    from deepseek_trainer.data.inputs import TRAIN

    preparer = tasks.preparer(config)
    inputs = preparer.inputs(paths)
    every, count = inputs.every(SAMPLE_BYTES), 0
    preparer.learn(inputs, base_of(config, paths) if config.model.base else None, SAMPLE_BYTES)
    for name in inputs.names(TRAIN):
        maker = preparer.maker(TRAIN, fills_row=inputs.fills_rows(TRAIN))
        count += sum(len(row) for row in maker.rows(islice(inputs.records(TRAIN, name), 0, None, every)))
    return Rows(count * every, is_exact=every == 1)


def base_of(config: TrainingConfig, paths: Paths) -> Place:
    base = config.model.base
    assert base is not None, "the spec asks for exactly one of base and architecture"
    place = Place(paths.claim(base.claim_name, base.path), paths.claim(base.claim_name))
    if not place.path.exists():
        raise ConfigError(
            f"model.base: the claim {base.claim_name} has no {base.path or 'such volume'}: its size is not known",
            hint=f"--volume {base.claim_name}=DIR names the directory that holds it",
        )
    return place
