"""The loop on one rank, with a model of a few thousand weights; more ranks are in test_ranks.py."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType
from deepseek_trainer.contract.optimization import Precision
from deepseek_trainer.dcp import Piece
from deepseek_trainer.evaluate import EvalResult
from deepseek_trainer.loop import Loop, steps_in, wants_bf16
from deepseek_trainer.method import trainable
from deepseek_trainer.model import transformer
from deepseek_trainer.saver import HostCopies
from loop_builders import (
    ALONE,
    a_loop,
    a_model,
    a_partly_frozen_model,
    a_quantised_model,
    an_adapted_model,
    config,
    run_until_stopped,
    weights,
    with_dropout,
)
from model_builders import tiny_model


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("model", [a_model, a_partly_frozen_model, an_adapted_model, a_quantised_model])
def test_an_interrupted_run_ends_with_the_very_losses_and_weights_of_an_uninterrupted_one(
    tmp_path: Path, model: Callable[[], nn.Module]
):
    whole = a_loop(config(), tmp_path / "whole", model=model())
    whole.run()
    first = a_loop(config(), tmp_path / "parts", stop_after=2, model=model())
    run_until_stopped(first)
    second = a_loop(config(), tmp_path / "parts", model=model())
    assert second.state.step == 2
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_adapters_learn_beside_a_base_in_nf4_which_stays_as_it_is(tmp_path: Path, precision: str):
    settings = config(maxSteps=8, learningRate=0.02, precision=precision)
    method = MethodSpec(type=MethodType.QLORA, lora=LoraSpec(dropout=0, target_modules=("all-linear",)))
    dtype = torch.bfloat16 if precision == "BF16" else torch.float32
    loop = a_loop(settings, tmp_path, model=trainable(tiny_model(), method, 0, ALONE.device, dtype))
    before = weights(loop)
    loop.run()
    assert loop.reporter.losses[-1] < 0.8 * loop.reporter.losses[0]
    changed = {name for name, value in weights(loop).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora" in name}


def test_a_stop_cuts_an_evaluation_off_and_the_resumed_run_makes_up_for_it(tmp_path: Path):
    settings = config(evaluation={"intervalSteps": 2}, microBatchSize=1, earlyStopping={"patience": 9})
    whole = a_loop(settings, tmp_path / "whole")
    whole.run()
    first = a_loop(settings, tmp_path / "parts")
    batches = []
    first.validation_rows.before_batch = lambda: batches.append(first.state.step)
    first.stop_requested = lambda: bool(batches)
    run_until_stopped(first)
    assert (batches, first.reporter.evaluations) == ([2], [])
    second = a_loop(settings, tmp_path / "parts")
    second.run()
    assert second.reporter.evaluations == whole.reporter.evaluations
    assert second.reporter.losses == whole.reporter.losses[2:]
    assert second.state == whole.state
    assert second.saver.store.at(second.state.best_step).best


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path: Path):
    loop = a_loop(config(), tmp_path, stop_after=0)
    run_until_stopped(loop)
    assert loop.saver.store.latest() is None


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_update_does_not_depend_on_the_micro_batch(tmp_path: Path, micro_batch: int):
    losses = []
    for size in (micro_batch, 4):
        loop = a_loop(config(microBatchSize=size, maxSteps=3), tmp_path / str(size))
        with_dropout(loop.model, 0.0)
        loop.run()
        losses.append(loop.reporter.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_evaluation_computes_in_the_precision_of_training(tmp_path: Path):
    loop = a_loop(config(precision="BF16", maxSteps=1), tmp_path)
    seen: dict[bool, torch.dtype] = {}
    layer = transformer(loop.model).model.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, output: seen.update({module.training: output.dtype}))
    loop.run()
    assert seen == {True: torch.bfloat16, False: torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "device", "computes_in_bf16", "wanted"),
    [
        (Precision.AUTO, "cuda", True, True),
        (Precision.AUTO, "cuda", False, False),
        (Precision.AUTO, "cpu", True, False),
        (Precision.BF16, "cpu", False, True),
        (Precision.FP32, "cuda", True, False),
    ],
)
def test_by_default_only_a_gpu_that_computes_in_bf16_does(
    precision: Precision, device: str, computes_in_bf16: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes_in_bf16 or including_emulation
    )
    assert wants_bf16(precision, torch.device(device)) is wanted


def test_a_long_run_sums_up_the_loss_of_logged_steps_only(tmp_path: Path):
    loop = a_loop(config(maxSteps=405), tmp_path, stop_after=5)
    run_until_stopped(loop)
    assert [loss is None for loss in loop.reporter.losses] == [True, False, True, False, True]


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
    assert loop.saver.store.latest().step == loop.state.step


def test_a_step_that_is_the_best_and_due_is_saved_once_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = {"interval": {"steps": 1}, "retention": {"keepLast": 1, "keepBest": True}}
    loop = a_loop(config(maxSteps=2, checkpoint=checkpoint, evaluation={"intervalSteps": 1}), tmp_path)
    losses = iter(EvalResult(loss) for loss in (3.0, 2.0))
    monkeypatch.setattr(Loop, "measure", lambda _loop: next(losses))
    waited_at = []
    monkeypatch.setattr(loop.saver, "prune", lambda _best: waited_at.append(loop.state.step))
    loop.run()
    assert (loop.saver.store.latest().step, loop.state.best_step) == (2, 2)
    assert waited_at == [0], "only for what an earlier run left"


class Late(HostCopies):
    """Copies that are made when a step without them would be long over."""

    def of(self, pieces: Sequence[Piece]) -> list[Piece]:
        threading.Event().wait(0.1)
        return super().of(pieces)


def test_no_weight_changes_before_it_is_copied(tmp_path: Path):
    loop = a_loop(config(maxSteps=2, checkpoint={"interval": {"steps": 1}, "retention": {"keepLast": 9}}), tmp_path)
    loop.saver._copies = Late()
    begin, at_save = loop.saver.save, {}

    def save(step: int, state: dict[str, Any], *rest: Any) -> None:
        at_save[step] = {name: tensor.clone() for name, tensor in state["model"].items()}
        begin(step, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.saver, "save", save)
        loop.run()
    store = loop.saver.store
    for step, expected in at_save.items():
        found = store.load(store.at(step))[0]["model"]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(at_save) == 2


def test_checkpoints_come_at_their_interval_and_retention_keeps_the_last_and_the_best(tmp_path: Path):
    checkpoint = {"interval": {"steps": 2}, "retention": {"keepLast": 1, "keepBest": True}}
    loop = a_loop(config(checkpoint=checkpoint, evaluation={"intervalSteps": 3}), tmp_path)
    saved = []
    loop.reporter.checkpoint = lambda each: saved.append(each.info.step)
    loop.run()
    assert {2, 4, 6} <= set(saved)
    kept = {int(path.name[5:]) for path in tmp_path.glob("step-*")}
    assert kept == {6, loop.state.best_step}


def test_a_checkpoint_comes_when_its_time_has_passed(tmp_path: Path):
    loop = a_loop(config(checkpoint={"interval": {"seconds": 3600}}), tmp_path)
    loop._saved_at -= 3601
    saved = []
    loop.reporter.checkpoint = lambda each: saved.append(each.info.step)
    loop.run()
    assert saved == [1, 6]  # with nothing done there is nothing to save


def test_epochs_become_steps_and_the_last_batch_may_reach_into_the_next_epoch():
    assert steps_in(config(maxSteps=None, epochs=2), rows=10) == 5
    assert steps_in(config(maxSteps=None), rows=9) == 7  # 3 epochs by default
    assert steps_in(config(maxSteps=4), rows=10) == 4
