"""The loop on one rank, with a model of a few thousand weights; more ranks are in test_ranks.py."""

import gzip
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepseek_trainer.checkpoints.dcp import Piece
from deepseek_trainer.checkpoints.saver import HostCopies
from deepseek_trainer.contract.errors import ConfigError, NotFiniteError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType
from deepseek_trainer.data.loader import Ahead
from deepseek_trainer.evaluation.evaluate import EvalResult
from deepseek_trainer.model.loading import transformer
from deepseek_trainer.model.method import trainable
from deepseek_trainer.telemetry.meter import Meter
from deepseek_trainer.telemetry.profiler import STEPS, Profiler
from deepseek_trainer.telemetry.reporter import StepResult
from deepseek_trainer.training.loop import Loop
from support.builders.loop import (
    ALONE,
    a_loop,
    a_model,
    a_partly_frozen_model,
    a_quantised_model,
    a_wide_model,
    an_adapted_model,
    config,
    run_until_stopped,
    weights,
)
from support.builders.model import tiny_model


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("model", "optimization"),
    [
        (a_model, {}),
        (a_partly_frozen_model, {}),
        (an_adapted_model, {}),
        (a_quantised_model, {}),
        (a_model, {"emaDecay": 0.9, "schedule": "WSD", "precision": "FP16"}),
        (a_model, {"optimizer": "Muon", "labelSmoothing": 0.1, "recompute": "Full"}),
    ],
    ids=["all weights", "some", "adapters", "NF4", "average and FP16", "Muon and recompute"],
)
def test_an_interrupted_run_ends_with_the_very_losses_and_weights_of_an_uninterrupted_one(
    tmp_path: Path, model: Callable[[], nn.Module], optimization: dict[str, Any]
):
    same_when_interrupted(tmp_path, model, optimization)


def test_moments_of_eight_bits_are_saved_as_they_are_and_an_interrupted_run_goes_on_from_them(tmp_path: Path):
    resumed = same_when_interrupted(tmp_path, a_wide_model, {"optimizer": "AdamW8bit"})
    saved = {tensor.name: tensor.dtype for tensor in resumed.savepoints.saver.store.latest().manifest.tensors}
    assert [saved[f"optimizer/model.embed_tokens.weight/{moment}"] for moment in ("state1", "state2")] == ["U8"] * 2


def same_when_interrupted(root: Path, model: Callable[[], nn.Module], optimization: dict[str, Any]) -> Loop:
    """The second part of a run that is stopped after two steps and ends as one that is not."""
    settings = config(**optimization)
    whole = a_loop(settings, root / "whole", model=model())
    whole.run()
    first = a_loop(settings, root / "parts", stop_after=2, model=model())
    run_until_stopped(first)
    second = a_loop(settings, root / "parts", model=model())
    assert second.state.step == 2
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert second.reporter.results == whole.reporter.results, "of the averages, where there are any"
    assert same(weights(second), weights(whole))
    with second.learner.averaged(), whole.learner.averaged():
        assert same(weights(second), weights(whole))
    return second


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


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
    assert second.savepoints.saver.store.at(second.state.best_step).best


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path: Path):
    loop = a_loop(config(), tmp_path, stop_after=0)
    run_until_stopped(loop)
    assert loop.savepoints.saver.store.latest() is None


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_update_does_not_depend_on_the_micro_batch(tmp_path: Path, micro_batch: int):
    losses = []
    for size in (micro_batch, 4):
        loop = a_loop(config(microBatchSize=size, maxSteps=3), tmp_path / str(size))
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


def test_labels_are_smoothed_where_weights_are_trained_and_not_where_they_are_evaluated(tmp_path: Path):
    plain = a_loop(config(maxSteps=1, dropout=0), tmp_path / "plain")
    smoothed = a_loop(config(maxSteps=1, dropout=0, labelSmoothing=0.2), tmp_path / "smoothed")
    assert smoothed.measure() == plain.measure()
    (batch,) = plain._next_batches()
    logits_NV = plain.model(input_ids=batch.tokens_BT).logits.flatten(0, 1)
    for loop, smoothing in ((plain, 0.0), (smoothed, 0.2)):
        expected = cross_entropy(logits_NV, batch.targets_BT.flatten(), label_smoothing=smoothing)
        loop.run()
        assert loop.reporter.losses == pytest.approx([expected.item()], rel=1e-6)


def test_a_long_run_sums_up_the_loss_of_logged_steps_only(tmp_path: Path):
    loop = a_loop(config(maxSteps=405), tmp_path, stop_after=5)
    run_until_stopped(loop)
    assert [loss is None for loss in loop.reporter.losses] == [True, False, True, False, True]


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path):
    loop = a_loop(config(guard={"maxSkips": 0}), tmp_path)
    with torch.no_grad():
        loop.model.lm_head.weight[0, 0] = float("nan")
    before = weights(loop)
    with pytest.raises(NotFiniteError, match="step 1: the gradient norm is nan"):
        loop.run()
    assert loop.savepoints.saver.store.latest() is None
    after = weights(loop)
    assert all(torch.allclose(value, after[name], rtol=0, atol=0, equal_nan=True) for name, value in before.items())


class BadBatches:
    """Gradients that are not finite at some steps, as a broken record would make them."""

    def __init__(self, loop: Loop, steps: set[int]) -> None:
        norm = loop.learner.gradient_norm
        loop.learner.gradient_norm = lambda: norm() * (math.nan if loop.cursor.consumed // 4 + 1 in steps else 1.0)


def test_a_step_that_is_not_finite_is_skipped_and_training_goes_on(tmp_path: Path):
    loop = a_loop(config(), tmp_path)
    BadBatches(loop, {3})
    seen = {}
    loop.reporter.step = lambda result, tokens, seconds: seen.update({result.step: weights(loop)})
    loop.run()
    assert loop.state.step == 6
    assert loop.reporter.events == [("skipped", {"step": 3, "reason": "NotFinite", "gradNorm": ANY})]
    assert all(torch.equal(value, seen[2][name]) for name, value in seen[3].items())
    assert any(not torch.equal(value, seen[3][name]) for name, value in seen[4].items())


def test_too_many_bad_steps_go_back_to_the_checkpoint_with_half_the_rate_and_the_next_data(tmp_path: Path):
    loop = a_loop(config(checkpoint={"interval": {"steps": 2}}, schedule="Constant", warmupSteps=0), tmp_path)
    BadBatches(loop, {3, 4, 5, 6})
    rates = []
    loop.reporter.step = lambda result, tokens, seconds: rates.append((result.step, result.learning_rate))
    loop.run()
    assert loop.reporter.events[-1] == ("rolled_back", {"step": 6, "to": 4, "rateFactor": 0.5})
    assert rates[-2:] == [(5, 0.005), (6, 0.005)]
    assert loop.cursor.consumed == 8 * 4


@pytest.mark.parametrize(("how", "step"), [("stopped", 4), ("stopped", 5), ("killed", 6)])
def test_a_run_that_ends_after_a_rollback_goes_on_as_one_that_did_not_end(tmp_path: Path, how: str, step: int):
    """And not from before the rollback: it does not read the bad rows again."""
    settings, bad = config(checkpoint={"interval": {"steps": 4}}, maxSteps=10), {5, 6, 7, 8}
    whole = a_loop(settings, tmp_path / "whole")
    BadBatches(whole, bad)
    whole.run()
    first = a_loop(settings, tmp_path / "parts")
    BadBatches(first, bad)
    end_after_rollback(first, how, step)
    second = a_loop(settings, tmp_path / "parts")
    BadBatches(second, bad)
    second.run()
    assert [event for event, _ in whole.reporter.events] == ["skipped"] * 4 + ["rolled_back"]
    assert second.reporter.events == []
    assert second.reporter.losses == whole.reporter.losses[-5:]
    assert second.state.rate_factor == 0.5
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


def end_after_rollback(loop: Loop, how: str, step: int) -> None:
    def is_due() -> bool:
        return loop.state.rollbacks > 0 and loop.state.step >= step

    if how == "stopped":
        loop.stop_requested = is_due
        run_until_stopped(loop)
        return

    def dies(*_: Any) -> None:
        if is_due():
            raise InterruptedError

    loop.reporter.step = dies
    with pytest.raises(InterruptedError):
        loop.run()
    loop.savepoints.saver.wait()


def test_a_run_that_no_rollback_helps_fails_and_leaves_its_last_checkpoint(tmp_path: Path):
    loop = a_loop(config(checkpoint={"interval": {"steps": 2}}, guard={"maxSkips": 0, "maxRollbacks": 2}), tmp_path)
    BadBatches(loop, set(range(3, 99)))
    with pytest.raises(NotFiniteError, match=r"step 3: the gradient norm is nan.*2 rollbacks"):
        loop.run()
    assert loop.savepoints.saver.store.latest().step == 2


def test_fp16_gradients_that_overflow_halve_the_scale_until_they_fit(tmp_path: Path):
    loop = a_loop(config(precision="FP16", maxSteps=12), tmp_path)
    loop.state.loss_scale.value = 2.0**20
    loop.run()
    assert loop.state.loss_scale.value < 2.0**20
    assert loop.state.norms.skipped == 0
    assert loop.reporter.events == []
    assert 0 < loop.state.norms.steps < 12  # overflows change no weight, and are no business of the guard


def test_fp16_trains_as_fp32_does_within_its_rounding(tmp_path: Path):
    losses = {}
    for precision in ("FP16", "FP32"):
        loop = a_loop(config(precision=precision), tmp_path / precision)
        loop.run()
        losses[precision] = loop.reporter.losses
    assert losses["FP16"] == pytest.approx(losses["FP32"], rel=2e-3)


def test_a_loss_that_stalls_halves_the_rate(tmp_path: Path):
    settings = config(schedule="Plateau", plateauPatience=1, evaluation={"intervalSteps": 1}, learningRate=1.0)
    loop = a_loop(settings, tmp_path)
    loop.run()
    plateaus = [fields for event, fields in loop.reporter.events if event == "plateau"]
    assert plateaus
    assert plateaus[-1]["rateFactor"] == 0.5 ** len(plateaus)


def test_the_averages_are_evaluated_and_the_weights_trained(tmp_path: Path):
    plain = a_loop(config(evaluation={"intervalSteps": 2}), tmp_path / "plain")
    plain.run()
    loop = a_loop(config(emaDecay=0.5, evaluation={"intervalSteps": 2}), tmp_path / "averaged")
    loop.run()
    assert loop.reporter.losses == plain.reporter.losses
    assert loop.reporter.evaluations != plain.reporter.evaluations
    with loop.learner.averaged():
        assert loop.measure().loss != loop.reporter.evaluations[-1][1]  # averages in place twice: the weights again
    assert loop.measure().loss == loop.reporter.evaluations[-1][1]


def test_a_run_ends_with_its_time_and_its_schedule_with_it(tmp_path: Path):
    loop = a_loop(config(maxSteps=None, maxMinutes=1, warmupSteps=0), tmp_path)
    rates = []
    loop.reporter.step = lambda result, tokens, seconds: rates.append(result.learning_rate)
    loop._last_seconds = 0.0
    clock = iter(range(0, 10**6, 5))  # each look at the clock is five seconds after the last
    loop.now = lambda: float(next(clock))
    loop.run()
    assert loop.state.step == len(rates) == 13
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.001)


def test_training_stops_when_the_validation_loss_has_not_fallen_for_long_enough(tmp_path: Path):
    stopping = config(maxSteps=50, learningRate=1.0, earlyStopping={"patience": 2}, evaluation={"intervalSteps": 1})
    loop = a_loop(stopping, tmp_path)
    loop.run()
    assert loop.state.step < 50
    assert loop.state.stale_evaluations == 2
    assert loop.savepoints.saver.store.latest().step == loop.state.step


def test_a_step_that_is_the_best_and_due_is_saved_once_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = {"interval": {"steps": 1}, "retention": {"keepLast": 1, "keepBest": True}}
    loop = a_loop(config(maxSteps=2, checkpoint=checkpoint, evaluation={"intervalSteps": 1}), tmp_path)
    losses = iter(EvalResult(loss) for loss in (3.0, 2.0))
    monkeypatch.setattr(Loop, "measure", lambda _loop: next(losses))
    waited_at = []
    monkeypatch.setattr(loop.savepoints.saver, "prune", lambda _best: waited_at.append(loop.state.step))
    loop.run()
    assert (loop.savepoints.saver.store.latest().step, loop.state.best_step) == (2, 2)
    assert waited_at == [0], "only for what an earlier run left"


class Late(HostCopies):
    """Copies that are made when a step without them would be long over."""

    def of(self, pieces: Sequence[Piece]) -> list[Piece]:
        threading.Event().wait(0.1)
        return super().of(pieces)


def test_no_weight_changes_before_it_is_copied(tmp_path: Path):
    loop = a_loop(config(maxSteps=2, checkpoint={"interval": {"steps": 1}, "retention": {"keepLast": 9}}), tmp_path)
    loop.savepoints.saver._copies = Late()
    begin, at_save = loop.savepoints.saver.save, {}

    def save(step: int, state: dict[str, Any], *rest: Any) -> None:
        at_save[step] = {name: tensor.clone() for name, tensor in state["model"].items()}
        begin(step, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.savepoints.saver, "save", save)
        loop.run()
    store = loop.savepoints.saver.store
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
    loop.savepoints._at -= 3601
    saved = []
    loop.reporter.checkpoint = lambda each: saved.append(each.info.step)
    loop.run()
    assert saved == [1, 6]  # with nothing done there is nothing to save


def test_without_a_compiler_a_job_that_compiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"optimization.compile: there is no no-such-compiler"):
        a_loop(config(compile=True), tmp_path)


def with_batches(loop: Loop, made: str) -> Loop:
    """`made`: "plain", or "ahead" as on a GPU."""
    if made == "ahead":
        loop._load = Ahead(loop._load)
    return loop


def test_a_run_whose_batches_are_made_ahead_stops_rolls_back_and_ends_as_any_other(tmp_path: Path):
    settings = config(checkpoint={"interval": {"steps": 2}}, maxSteps=8)
    losses, cursors = [], []
    for name in ("plain", "ahead"):
        first = with_batches(a_loop(settings, tmp_path / name, stop_after=3), name)
        run_until_stopped(first)
        second = with_batches(a_loop(settings, tmp_path / name), name)
        BadBatches(second, {5, 6, 7, 8})
        second.run()
        assert second.reporter.events[-1][0] == "rolled_back"
        losses.append(first.reporter.losses + second.reporter.losses)
        cursors.append(second.savepoints.saver.store.latest().meta["cursor"])
    assert losses[0] == losses[1]
    assert cursors[0] == cursors[1] == second.cursor.state().hex()


def test_an_error_of_a_row_that_is_read_ahead_ends_the_loop(tmp_path: Path):
    loop = a_loop(config(), tmp_path)
    loop._load = Ahead(loop._load)

    def broken() -> None:
        if loop.state.step >= 2:
            raise OSError(116, "Stale file handle")

    loop.train_rows.before_batch = broken
    with pytest.raises(OSError, match="Stale file handle"):
        loop.run()
    assert loop.state.step in (2, 3)  # the thread may have read its rows just before


def test_each_logged_step_tells_what_the_ranks_measured_since_the_one_before(tmp_path: Path):
    loop = a_loop(config(maxSteps=405, microBatchSize=2), tmp_path, stop_after=4)
    loop._meter = Meter(ALONE.device, count(0.0).__next__)
    found: list[StepResult] = []
    loop.reporter.step = lambda result, tokens, seconds: found.append(result)
    run_until_stopped(loop)
    assert [result.rows for result in found] == [4] * 4
    assert [result.ranks is None for result in found] == [True, False, True, False]
    ranks = found[1].ranks
    assert (ranks.waited, ranks.alone) == ([2.0], [2.0])  # of two steps: the clock moves on whenever it is read
    assert ranks.memory[0] > 1e8


def test_a_profile_that_is_asked_for_records_the_next_steps_and_changes_nothing(tmp_path: Path):
    trace = tmp_path / "trace.json.gz"
    plain = a_loop(config(maxSteps=8), tmp_path / "plain")
    plain.run()
    profiled = a_loop(config(maxSteps=8), tmp_path / "profiled")
    profiled.profiler = Profiler(trace, lambda: profiled.state.step == 1, profiled.reporter.event)
    profiled.run()
    assert profiled.reporter.events == [("profiled", {"step": 2, "steps": STEPS, "path": str(trace)})]
    names = [event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("aten::embedding") == STEPS
    assert profiled.reporter.losses == plain.reporter.losses
