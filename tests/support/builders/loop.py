"""The smallest loops that train: a model of a few thousand weights and rows of random tokens."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType, PreferenceSpec
from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.draws import Draws
from deepseek_trainer.evaluation.evaluate import EvalResult
from deepseek_trainer.model.dropout import RowDropout
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.model.method import trainable
from deepseek_trainer.run import assembly
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.language.batch import TokenBatch, collate
from deepseek_trainer.tasks.language.packing import Document, packed_row, row_dtype
from deepseek_trainer.tasks.language.task import LanguageTask
from deepseek_trainer.telemetry.reporter import Silent, StepResult
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.state import RunState
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.process import StopRequested

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TINY = Architecture(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, vocab_size=260)
LENGTH = 16
DIGEST = "ab" * 32
PAIRS: Final = {"data": {"train": {"claimName": "d"}, "format": "Preference"}}
BY_ODDS: Final = PAIRS | {"method": {"preference": {"loss": "ORPO", "oddsRatioWeight": 0.5}}}


class RandomRows:
    """Rows of one document each, of which a different number of tokens is learned."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(0, 260, (count, LENGTH), generator=generator)
        self.learned = torch.arange(LENGTH) < 1 + torch.randint(0, LENGTH - 1, (count, 1), generator=generator)
        self.before_batch: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.tokens)

    def sample(self, limit: int) -> npt.NDArray[np.int64]:
        return np.arange(min(len(self), limit))

    def batch(self, indices: Sequence[int], draws: Draws | None = None) -> TokenBatch:
        self.before_batch()
        picked = torch.as_tensor(list(indices))
        tokens = self.tokens[picked]
        targets = torch.where(self.learned[picked], tokens.roll(-1, 1), -100)
        positions = torch.arange(LENGTH).expand_as(tokens)
        return TokenBatch(
            tokens, targets, positions, torch.zeros_like(tokens), None if draws is None else draws.numbers
        )


def pair_rows(count: int) -> Rows[TokenBatch]:
    """Pairs: after random questions an answer of fives is chosen, one of sixes rejected, of different lengths."""
    random, dtype = np.random.default_rng(7), row_dtype(LENGTH, 260)
    pairs = []
    for _ in range(count):
        question = random.integers(10, 260, 3)
        sides = [_answered(question, token, int(random.integers(1, 5))) for token in (5, 6)]
        pairs.append(packed_row(sides, dtype, pad=0))
    return Rows([np.concatenate(pairs)], collate)


def _answered(question: npt.NDArray[np.int64], token: int, length: int) -> Document:
    tokens = np.array([*question, *[token] * length], np.uint32)
    return Document(tokens, np.arange(len(tokens)) >= len(question))


class Recorder(Silent):
    """Remembers every loss."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float | None] = []
        self.evaluations: list[tuple[int, float]] = []
        self.results: list[EvalResult] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def step(self, result: StepResult, size: int, seconds: float) -> None:
        self.losses.append(result.loss)

    def evaluation(self, step: int, epoch: float, result: EvalResult) -> None:
        self.evaluations.append((step, result.loss))
        self.results.append(result)


def config(**optimization: object) -> TrainingConfig:
    checkpoint = optimization.pop("checkpoint", {"interval": {"steps": 100}})
    evaluation = optimization.pop("evaluation", {"intervalSteps": 100})
    data = optimization.pop("data", {"train": {"claimName": "d"}})
    method = optimization.pop("method", {})
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "ml", "name": "tiny"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": {"architecture": TINY.model_dump(by_alias=True)},
            "data": data,
            "method": method,
            "optimization": {"globalBatchSize": 4, "learningRate": 0.01, "maxSteps": 6, "dropout": 0.2} | optimization,
            "checkpoint": checkpoint,
            "evaluation": evaluation,
            "export": {},
        }
    )


class Untokenised(LanguageTask):
    """A language task without prepared data: the bytes of tokens are not known."""

    def __init__(self, preference: PreferenceSpec | None) -> None:
        data = PAIRS if preference else {}
        super().__init__(config(**data), Paths(Path()), Vault("ml/tiny", Purpose.DATA), Path())
        self._config = self._config.model_copy(update={"method": MethodSpec(preference=preference)})

    def _token_bytes(self) -> None:
        return None


def a_learner(
    model: nn.Module, optimization: OptimizationSpec, world: World, preference: PreferenceSpec | None = None
) -> Learner:
    """As a run makes one of tokens or, with `preference`, of pairs of answers."""
    return assembly.a_learner(Untokenised(preference), model, optimization, world)


def a_loop(
    config: TrainingConfig,
    directory: Path,
    *,
    stop_after: int | None = None,
    world: World = ALONE,
    model: nn.Module | None = None,
) -> Loop:
    """A loop where its directory's newest checkpoint left off."""
    torch.manual_seed(1 + world.rank)
    learner = a_learner(model or a_model(), config.optimization, world, config.preference)
    rows_of: Callable[[int], Any] = pair_rows if config.preference else RandomRows
    rows, state = rows_of(10), RunState()
    cursor = Cursor(seed=3, rows=len(rows), global_batch=config.optimization.global_batch_size, data_digest=DIGEST)
    vault = Vault("ml/tiny", Purpose.CHECKPOINT)
    store = CheckpointStore(directory, vault, rank=world.rank, world_size=world.size, exchange=world.gather)
    exchange = world.beside().gather if config.checkpoint.asynchronous else None
    saver = Saver(store, config.checkpoint.retention, exchange, waits_for_copy=config.checkpoint.wait_for_copy)
    if info := store.latest():
        learner.load(store, info)
        state = RunState.from_json(info.meta["run"])
        cursor = Cursor.from_state(
            bytes.fromhex(info.meta["cursor"]), rows=len(rows), global_batch=cursor.global_batch, data_digest=DIGEST
        )
    savepoints = Savepoints(saver, config.checkpoint, {"jobUid": "uid"})
    loop = Loop(config, world, learner, rows, rows_of(3), cursor, state, savepoints, Recorder(), lambda: False)
    if stop_after is not None:
        loop.stop_requested = lambda: loop.state.step >= stop_after
    return loop


def a_model() -> nn.Module:
    return scratch_model(TINY, LENGTH, seed=0)


def a_wide_model() -> nn.Module:
    """Of which some weights are large enough for moments in 8 bits: 4096 numbers at least."""
    return scratch_model(TINY.model_copy(update={"hidden_size": 32}), LENGTH, seed=0)


def an_adapted_model(type_: MethodType = MethodType.LORA) -> nn.Module:
    return trained_by(MethodSpec(type=type_, lora=LoraSpec(rank=2, dropout=0.2)))


def a_quantised_model() -> nn.Module:
    return an_adapted_model(MethodType.QLORA)


def a_partly_frozen_model() -> nn.Module:
    """The second of two layers, and the last norm, are trained."""
    return trained_by(MethodSpec(frozen_layers=1), num_layers=2)


def trained_by(method: MethodSpec, num_layers: int = 1) -> nn.Module:
    model = scratch_model(TINY.model_copy(update={"num_layers": num_layers}), LENGTH, seed=0)
    return trainable(model, method, 0, ALONE.device, torch.float32)


def without_dropout(model: nn.Module) -> nn.Module:
    """None before adapters."""
    for module in model.modules():
        if isinstance(module, RowDropout):
            module.rate = 0.0
    return model


def weights(loop: Loop) -> dict[str, Tensor]:
    return copy.deepcopy(loop.model.state_dict())


def run_until_stopped(loop: Loop) -> None:
    try:
        loop.run()
    except StopRequested:
        return
    raise AssertionError("the loop came to its end")
