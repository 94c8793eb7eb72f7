"""Whose checkpoints a job goes on from, over whole runs: those of an earlier job of its name, unasked and asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from deepseek_trainer.checkpoints.legs import LEGS
from deepseek_trainer.contract.checkpoint import CheckpointPolicy
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.contract.shaping import changes, shaping
from deepseek_trainer.run.rank import Rank
from deepseek_trainer.training import loop
from deepseek_trainer.worker.process import StopFlag
from support.builders.data import texts, write_jsonl
from support.builders.model import sealed
from support.builders.run import a_job, a_worker, events, trained

SHORT = {"maxSteps": 3, "globalBatchSize": 2, "learningRate": 0.001, "schedule": "Constant", "warmupSteps": 0}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    with a_worker(tmp_path, monkeypatch) as paths:
        yield paths


@pytest.fixture
def applied(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    """Runs a job as a new object of the same name, on the volume that the one before left."""
    uids = iter("abcdef")

    def run(config: TrainingConfig, stop: StopFlag | None = None) -> Path:
        monkeypatch.setenv(ENV_RUN_ID, f"uid-{next(uids)}-1")
        try:
            return trained(config, paths, stop)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return run


def job(resume_from: str = "Latest", **optimization: Any) -> TrainingConfig:
    config = a_job(**SHORT | optimization)
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"resume_from": resume_from})})


def losses(paths: Paths) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events(paths) if event["event"] == "step"]


def test_a_job_applied_again_with_another_rate_is_refused_and_names_both_and_the_ways_out(paths: Paths, applied):
    applied(job())
    with pytest.raises(ConfigError) as caught:
        applied(job(learningRate=0.0003))
    assert str(caught.value) == (
        "the checkpoint of step 3 is of an earlier job of this name (uid-a) with other settings; now "
        "optimization.learningRate: 0.0003 instead of 0.001 (hint: change it back; or set checkpoint.resumeFrom: '3' "
        "to go on from it with the settings of now, or None to start over; or give the job another name)"
    )
    assert caught.value.code == 64


def test_the_same_job_applied_again_after_its_end_is_no_new_success(paths: Paths, applied):
    applied(job())
    with pytest.raises(ConfigError, match=r"\(uid-a\) has trained this model to its end, step 3, and exported it"):
        applied(job())
    assert len(losses(paths)) == 3


def test_the_same_job_applied_again_before_its_end_goes_on_as_if_it_had_never_been_deleted(
    paths: Paths, applied, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(3))
        with pytest.raises(RuntimeError, match="killed"):
            applied(job())
    result = applied(job())
    assert [step for step, _ in losses(paths)] == [1, 2, 3]
    assert "| 1 to 2 | uid-a | none |" in (result / "README.md").read_text()
    assert "| 3 to 3 | uid-b | none |" in (result / "README.md").read_text()


def failing_at(step: int) -> Any:
    rate = loop.Loop._rate

    def failing(self: loop.Loop) -> float:
        if self.state.step + 1 == step:
            self.savepoints.saver.wait()
            raise RuntimeError("killed")
        return rate(self)

    return failing


def test_a_step_that_is_named_goes_on_under_new_settings_and_log_card_and_report_say_so(paths: Paths, applied):
    applied(job())
    result = applied(job("3", learningRate=0.0003, maxSteps=5))
    (changed,) = (event for event in events(paths) if event["event"] == "config_changed")
    assert (
        changed["settings"]
        == "optimization.maxSteps: 5 instead of 3; optimization.learningRate: 0.0003 instead of 0.001"
    )
    (resumed,) = (event for event in events(paths) if event["event"] == "resumed")
    assert (resumed["step"], resumed["savedBy"]) == (3, "uid-a")
    card = (result / "README.md").read_text()
    assert "| 1 to 3 | uid-a | optimization.maxSteps: 3, optimization.learningRate: 0.001 |" in card
    assert "| 4 to " in card
    assert "0.0003 instead of 0.001" in (result / "report.html").read_text()


def test_weights_of_an_earlier_jobs_settings_are_not_exported_as_the_best_of_the_new_ones(paths: Paths, applied):
    """The new rate only makes it worse."""
    applied(job())
    result = applied(job("3", learningRate=5.0, maxSteps=5))
    assert "| Weights | of step 4" in (result / "README.md").read_text()


def test_a_named_step_after_which_changed_settings_would_train_nothing_is_refused(paths: Paths, applied):
    applied(job())
    with pytest.raises(ConfigError, match=r"of step 3 leaves no step to train.*learningRate: 0.0003 instead of 0.001"):
        applied(job("3", learningRate=0.0003))


def test_a_finished_model_is_exported_again_when_its_last_step_is_named(paths: Paths, applied):
    applied(job())
    result = applied(job("3"))
    assert len(losses(paths)) == 3
    assert "| 1 to 3 | uid-a | none |" in (result / "README.md").read_text()


def test_starting_over_trains_every_step(paths: Paths, applied):
    applied(job())
    applied(job("None", learningRate=0.0003))
    assert [step for step, _ in losses(paths)] == [1, 2, 3, 1, 2, 3]


def test_a_restart_of_a_job_that_changed_settings_goes_on_from_its_own_checkpoint(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
):
    trained(job(), paths)
    monkeypatch.setenv(ENV_RUN_ID, "other-1")
    changed = job("2", learningRate=0.0003, maxSteps=5)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(5))
        with pytest.raises(RuntimeError, match="killed"):
            trained(changed, paths)
    dist.destroy_process_group()
    monkeypatch.setenv(ENV_RUN_ID, "other-2")
    trained(changed, paths)
    assert [step for step, _ in losses(paths)] == [1, 2, 3, 3, 4, 5]


def test_a_job_applied_again_with_more_steps_goes_on_from_where_it_ended_and_log_and_card_say_so(paths: Paths, applied):
    applied(job())
    result = applied(job(maxSteps=5))
    assert [step for step, _ in losses(paths)] == [1, 2, 3, 4, 5]
    (changed,) = (event for event in events(paths) if event["event"] == "config_changed")
    assert changed["settings"] == "optimization.maxSteps: 5 instead of 3"
    card = (result / "README.md").read_text()
    assert "| 1 to 3 | uid-a | optimization.maxSteps: 3 |" in card
    assert "| 4 to 5 | uid-b | none |" in card


def test_a_longer_run_at_a_constant_rate_is_the_run_that_would_have_been_as_long_at_once(
    paths: Paths, applied, tmp_path: Path
):
    applied(job())
    applied(job(maxSteps=5))
    elsewhere = Paths(tmp_path / "elsewhere", tmp_path / "other scratch")
    elsewhere.scratch.mkdir()
    write_jsonl(elsewhere, "train/a.jsonl", texts(12))
    trained(job(maxSteps=5), elsewhere)
    assert losses(elsewhere) == losses(paths)


def test_the_best_step_of_a_run_stays_the_best_one_when_it_goes_on_for_longer(paths: Paths, applied):
    """The steps are so long that the loss only rises."""
    applied(job(learningRate=1.0))
    result = applied(job(learningRate=1.0, maxSteps=4))
    found = {event["step"]: event["loss"] for event in events(paths) if event["event"] == "evaluation"}
    assert found.keys() == {0, 1, 2, 3, 4}
    best = min(range(1, 5), key=found.__getitem__)
    assert best < 4
    assert f"| Weights | of step {best}, " in (result / "README.md").read_text()


@pytest.mark.parametrize("also", [{"weightDecay": 0.5}, {"maxSteps": 2}])
def test_a_job_that_is_not_just_longer_is_still_refused(paths: Paths, applied, also: dict[str, Any]):
    applied(job())
    with pytest.raises(ConfigError, match="with other settings"):
        applied(job(**{"maxSteps": 5} | also))


def as_recorded_before(**optimization: Any) -> Any:
    """`Rank.origin` with the defaults that versions without warmupFraction recorded."""

    def origin(rank: Rank) -> dict[str, Any]:
        made = ORIGIN.fget(rank)
        for leg in made[LEGS]:
            leg["settings"]["optimization"] |= {"warmupSteps": 100, "learningRate": 5e-5} | optimization
            leg["settings"]["optimization"].pop("warmupFraction")
        return made

    return property(origin)


@pytest.mark.parametrize("asked", [None, 100])
def test_a_run_goes_on_from_a_checkpoint_that_recorded_a_default_warm_up_as_if_it_had_been_asked_for(
    paths: Paths, applied, monkeypatch: pytest.MonkeyPatch, asked: int | None
):
    settings = {"learningRate": 5e-5, "maxSteps": 200, "warmupSteps": asked}
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(3))
        patch.setattr(Rank, "origin", as_recorded_before())
        with pytest.raises(RuntimeError, match="killed"):
            applied(job(**settings))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(4))
        with pytest.raises(RuntimeError, match="killed"):
            applied(job(**settings))
    assert not [event for event in events(paths) if event["event"] == "config_changed"]


def test_no_checkpoint_gets_another_default_rate_without_a_word(paths: Paths, applied, monkeypatch: pytest.MonkeyPatch):
    """Such as adapters, that earlier versions trained at the rate of all weights."""
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(3))
        patch.setattr(Rank, "origin", as_recorded_before(learningRate=2e-4))
        with pytest.raises(RuntimeError, match="killed"):
            applied(job(learningRate=None))
    with pytest.raises(ConfigError, match=r"now optimization.learningRate: 5e-05 instead of 0.0002"):
        applied(job(learningRate=None))


def without_legs(rank: Rank) -> dict[str, Any]:
    return {name: value for name, value in ORIGIN.fget(rank).items() if name != LEGS}


ORIGIN: Any = Rank.origin


def test_only_the_job_itself_goes_on_unasked_from_a_checkpoint_of_a_version_that_recorded_no_settings(
    paths: Paths, applied, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_rate", failing_at(3))
        patch.setattr(Rank, "origin", property(without_legs))
        with pytest.raises(RuntimeError, match="killed"):
            applied(job())
    with pytest.raises(ConfigError, match="its version recorded no settings"):
        applied(job())
    monkeypatch.setenv(ENV_RUN_ID, "uid-a-2")
    result = trained(job(), paths)
    assert "| 1 to 3 | uid-a | none |" in (result / "README.md").read_text()


def test_the_settings_in_a_sealed_checkpoint_are_sealed(paths: Paths):
    config = job()
    policy = CheckpointPolicy.model_validate({"interval": {"steps": 1}} | sealed(paths))
    trained(config.model_copy(update={"checkpoint": policy}), paths)
    files = [path for path in paths.checkpoints.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"learningRate" in path.read_bytes()]


FREE = {
    "numNodes": 2,
    "checkpoint.interval": {"steps": 7},
    "evaluation.maxRows": 5,
    "export.sealed": False,
    "data.sealed": False,
    "optimization.microBatchSize": 1,
    "optimization.strategy": "FSDP",
    "optimization.recompute": "Full",
    "optimization.compile": True,
    "optimization.logitsMebibytes": 3,
    "optimization.onOutOfMemory": "Fail",
}
COUNTED = {
    "optimization.seed": 1,
    "optimization.maxSteps": 4,
    "optimization.globalBatchSize": 4,
    "optimization.earlyStopping": {},
    "optimization.guard": {"maxSkips": 0},
    "optimization.precision": "FP32",
    "data.train": {"claimName": "other"},
    "data.sequenceLength": 128,
    "data.onBadRecord": "Skip",
    "model.architecture.numLayers": 3,
    "method.frozenLayers": 1,
}


def with_setting(path: str, value: Any) -> TrainingConfig:
    fields = job().model_dump(mode="json", by_alias=True, exclude_none=True)
    *parts, last = path.split(".")
    node = fields
    for part in parts:
        node = node[part]
    node[last] = value
    return TrainingConfig.model_validate(fields)


@pytest.mark.parametrize("path", FREE)
def test_what_only_spreads_saves_measures_or_exports_may_change(path: str):
    assert not list(changes(with_setting(path, FREE[path]), shaping(job())))


@pytest.mark.parametrize("path", COUNTED)
def test_what_shapes_the_weights_is_named_when_it_changes(path: str):
    (change,) = changes(with_setting(path, COUNTED[path]), json.loads(json.dumps(shaping(job()))))
    assert change.path.startswith(path)


def test_a_setting_that_was_not_known_then_counts_as_its_default():
    recorded = shaping(job())
    del recorded["optimization"]["emaDecay"]
    assert not list(changes(job(), recorded))
    assert [change.path for change in changes(job(emaDecay=0.9), recorded)] == ["optimization.emaDecay"]
