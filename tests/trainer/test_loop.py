"""The loop on one rank, with a model of a few thousand weights; several ranks are in tests/e2e."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from deepseek_trainer.checkpoint import CheckpointStore
from deepseek_trainer.contract.config import Architecture, TrainingConfig
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.cursor import Cursor
from deepseek_trainer.dataset import Batch
from deepseek_trainer.distributed import World
from deepseek_trainer.loop import Loop, StopRequested, steps_in
from deepseek_trainer.model import scratch_model
from deepseek_trainer.optimizer import adamw
from deepseek_trainer.reporter import Silent, StepResult
from deepseek_trainer.state import RunState, load_state
from deepseek_trainer.vault import Purpose, Vault

WORLD = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
TINY = Architecture(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, vocab_size=260)
LENGTH = 16


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class RandomRows:
    """Rows of one document each, of which a different number of tokens is learned."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(0, 260, (count, LENGTH), generator=generator)
        self.learned = torch.arange(LENGTH) < 1 + torch.randint(0, LENGTH - 1, (count, 1), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices) -> Batch:
        picked = torch.as_tensor(list(indices))
        tokens = self.tokens[picked]
        targets = torch.where(self.learned[picked], tokens.roll(-1, 1), -100)
        positions = torch.arange(LENGTH).expand_as(tokens)
        return Batch(tokens, targets, positions, torch.zeros_like(tokens))


class Recorder(Silent):
    """Remembers every step's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def step(self, result: StepResult, tokens: int, seconds: float, *, is_logged: bool) -> None:
        self.losses.append(result.loss)


def config(**optimization: object) -> TrainingConfig:
    checkpoint = optimization.pop("checkpoint", {"interval": {"steps": 100}})
    evaluation = optimization.pop("evaluation", {"intervalSteps": 100})
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "ml", "name": "tiny"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": {"architecture": TINY.model_dump(by_alias=True)},
            "data": {"train": {"claimName": "d"}},
            "method": {},
            "optimization": {"globalBatchSize": 4, "learningRate": 0.01, "maxSteps": 6} | optimization,
            "checkpoint": checkpoint,
            "evaluation": evaluation,
            "export": {},
        }
    )


def a_loop(config: TrainingConfig, directory: Path, *, stop_after: int | None = None) -> Loop:
    """A loop where its directory's newest checkpoint left off."""
    torch.manual_seed(1)
    model = scratch_model(TINY, LENGTH, seed=0)
    model.model.layers[0].self_attn.attention_dropout = 0.2
    optimizer = adamw(model, config.optimization)
    rows, state = RandomRows(10), RunState()
    cursor = Cursor(seed=3, rows=len(rows), global_batch=config.optimization.global_batch_size, data_digest="ab" * 32)
    store = CheckpointStore(directory, Vault("ml/tiny", Purpose.CHECKPOINT))
    if info := store.latest():
        tensors, meta = store.load(info)
        load_state(model, optimizer, tensors, WORLD)
        state = RunState.from_json(meta["run"])
        cursor = Cursor.from_state(
            bytes.fromhex(meta["cursor"]), rows=len(rows), global_batch=cursor.global_batch, data_digest="ab" * 32
        )
    loop = Loop(
        config, WORLD, model, optimizer, rows, RandomRows(3), cursor, state, store, Recorder(), lambda: False, "uid"
    )
    if stop_after is not None:
        loop.stop_requested = lambda: loop.state.step >= stop_after
    return loop


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return copy.deepcopy(loop.model.state_dict())


def test_an_interrupted_run_ends_with_the_very_losses_and_weights_of_an_uninterrupted_one(tmp_path: Path):
    whole = a_loop(config(), tmp_path / "whole")
    whole.run()
    first = a_loop(config(), tmp_path / "parts", stop_after=2)
    with pytest.raises(StopRequested):
        first.run()
    second = a_loop(config(), tmp_path / "parts")
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_update_does_not_depend_on_the_micro_batch(tmp_path: Path, micro_batch: int):
    losses = []
    for size in (micro_batch, 4):
        loop = a_loop(config(microBatchSize=size, maxSteps=3), tmp_path / str(size))
        loop.model.model.layers[0].self_attn.attention_dropout = 0.0
        loop.run()
        losses.append(loop.reporter.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path):
    loop = a_loop(config(), tmp_path)
    with torch.no_grad():
        loop.model.lm_head.weight[0, 0] = float("nan")
    before = weights(loop)
    with pytest.raises(NotFiniteError, match="step 1: the gradient norm is nan"):
        loop.run()
    assert loop.state.step == 0
    after = weights(loop)
    assert all(torch.allclose(value, after[name], rtol=0, atol=0, equal_nan=True) for name, value in before.items())


def test_training_stops_when_the_validation_loss_has_not_fallen_for_long_enough(tmp_path: Path):
    stopping = config(maxSteps=50, learningRate=1.0, earlyStopping={"patience": 2}, evaluation={"intervalSteps": 1})
    loop = a_loop(stopping, tmp_path)
    loop.run()
    assert loop.state.step < 50
    assert loop.state.stale_evaluations == 2
    assert loop.store.latest().step == loop.state.step


def test_checkpoints_come_at_their_interval_and_retention_keeps_the_last_and_the_best(tmp_path: Path):
    checkpoint = {"interval": {"steps": 2}, "retention": {"keepLast": 1, "keepBest": True}}
    loop = a_loop(config(checkpoint=checkpoint, evaluation={"intervalSteps": 3}), tmp_path)
    saved = []
    loop.reporter.checkpoint = lambda info, seconds: saved.append(info.step)
    loop.run()
    assert {2, 4, 6} <= set(saved)
    kept = {int(path.name[5:]) for path in tmp_path.glob("step-*")}
    assert kept == {6, loop.state.best_step}


def test_a_checkpoint_comes_when_its_time_has_passed(tmp_path: Path):
    loop = a_loop(config(checkpoint={"interval": {"seconds": 3600}}), tmp_path)
    loop._saved_at -= 3601
    saved = []
    loop.reporter.checkpoint = lambda info, seconds: saved.append(info.step)
    loop.run()
    assert saved == [1, 6]  # with nothing done there is nothing to save


def test_epochs_become_steps_and_the_last_batch_may_reach_into_the_next_epoch():
    assert steps_in(config(maxSteps=None, epochs=2), rows=10) == 5
    assert steps_in(config(maxSteps=None), rows=9) == 7  # 3 epochs by default
    assert steps_in(config(maxSteps=4), rows=10) == 4
