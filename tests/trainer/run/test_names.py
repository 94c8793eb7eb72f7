"""Names, logs and files in the clear of a sealed job: they tell nothing of what is sealed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from deepseek_trainer import tasks
from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.source import prepared_model
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError, DataError
from deepseek_trainer.contract.method import MethodSpec, MethodType
from deepseek_trainer.contract.model import BaseModelSource, ModelSpec
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.inputs import Inputs
from deepseek_trainer.data.order import Order
from deepseek_trainer.data.preparation import data_digest
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import RUN_ID, prepare, texts, write_jsonl
from support.builders.model import a_gguf, a_tokenizer, tiny_model
from support.builders.run import a_job, a_worker, events, trained
from support.builders.vault import KEK, OTHER_KEK, a_key_file
from support.judges.names import digests_in, guesses_confirmed, names_and_clear_texts

CLEAR = Vault("ml/demo", Purpose.DATA)
LEARNING = {"maxSteps": 1, "globalBatchSize": 2, "learningRate": 0.001, "schedule": "Constant"}


def a_sealed_job(*, has_base: bool = True, **optimization: object) -> TrainingConfig:
    job = a_job(**LEARNING | optimization)
    encryption = {"encryption": {"keyRef": {"secretName": "key"}}}
    parts = {"checkpoint": job.checkpoint.model_dump(mode="json", by_alias=True, exclude_none=True) | encryption}
    job = TrainingConfig.model_validate(job.model_dump(mode="json", by_alias=True, exclude_none=True) | parts)
    base = ModelSpec(base=BaseModelSource(claim_name="models", path="base"))
    return job.model_copy(update={"model": base, "method": MethodSpec(type=MethodType.LORA)} if has_base else {})


@contextmanager
def a_sealed_worker(root: Path, patch: pytest.MonkeyPatch, kek: Key = KEK, door: str = "4711") -> Iterator[Paths]:
    """A worker with a key, a base model, and data of which everybody knows all but a door's code."""
    root.mkdir()
    with a_worker(root, patch) as paths:
        a_key_file(paths.key_dir / "kek", kek.material)
        a_gguf(paths.claim("models", "base"), tiny_model(), a_tokenizer())
        write_jsonl(paths, "train/a.jsonl", [*texts(12), {"text": f"the door opens to {door}"}])
        yield paths


@pytest.fixture
def readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., list[str]]:
    """Runs a sealed job twice over the same volume, and returns what everybody can read of it afterwards."""

    def run(name: str, kek: Key = KEK, door: str = "4711") -> list[str]:
        capfd.readouterr()
        caplog.clear()
        with caplog.at_level(logging.INFO), a_sealed_worker(tmp_path / name, monkeypatch, kek, door) as paths:
            for steps in (1, 2):
                trained(a_sealed_job(maxSteps=steps), paths)
            found = [*names_and_clear_texts(paths.work), *names_and_clear_texts(paths.scratch)]
        return [*found, *capfd.readouterr(), *caplog.messages]

    return run


def test_jobs_with_equal_data_and_different_keys_share_no_name_and_no_digest(readable: Callable[..., list[str]]):
    one, other = (digests_in(readable(name, kek)) for name, kek in (("one", KEK), ("other", OTHER_KEK)))
    assert min(len(one), len(other)) > 5
    assert not one & other


def test_jobs_whose_data_differ_in_a_digit_share_no_name_and_no_digest(readable: Callable[..., list[str]]):
    one, other = (digests_in(readable(name, door=door)) for name, door in (("one", "4711"), ("other", "4712")))
    assert one & other == {KEK.id}


def test_jobs_in_the_clear_share_the_names_of_equal_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else the tests above could not fail."""
    found = []
    for name in ("one", "other"):
        with a_sealed_worker(tmp_path / name, monkeypatch) as paths:
            prepare(a_job(**LEARNING), paths, data_vault(a_job(**LEARNING), paths), RUN_ID)
            found.append(digests_in(names_and_clear_texts(paths.work)))
    assert len(found[0] & found[1]) >= 1


@pytest.mark.parametrize("job", [a_sealed_job(), a_sealed_job(has_base=False)], ids=["from a base", "from scratch"])
def test_who_guesses_all_data_and_knows_all_but_the_key_sees_nothing_confirmed(
    job: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with a_sealed_worker(tmp_path / "one", monkeypatch) as paths:
        trained(job, paths)
        guesses = guessed(job, paths)
        found = [*names_and_clear_texts(paths.work), *names_and_clear_texts(paths.scratch), *capfd.readouterr()]
        assert guesses_confirmed(found, guesses) == []
        with monkeypatch.context() as careless:
            careless.setattr(Vault, "name_of", lambda _, digest: digest)
            prepare(job, paths, data_vault(job, paths), "uid-2")
        assert guesses_confirmed(names_and_clear_texts(paths.work), guesses), "else this test could not fail"


def guessed(job: TrainingConfig, paths: Paths) -> list[str]:
    """The digests that anybody computes who has the job file, the base model and the right guess of the data."""
    vault, preparer = data_vault(job, paths), tasks.preparer(job)
    inputs = Inputs.find(job, paths, preparer.reading)
    model = None if job.model.base is None else prepared_model(job, paths, vault)
    data = data_digest(job, inputs, shaping := preparer.shaping(model, vault))
    of_model = [prepared_model(job, paths, CLEAR).name.removeprefix("model-"), shaping["tokenizer"]] if model else []
    files = [digest_of(path) for path in (paths.claim("corpus", "train/a.jsonl"), paths.claim("models", "base"))]
    return [data, Order((1,), slots=(1000,)).digest(data), inputs.train[""].digest(), *files, *of_model]


def test_a_sealed_job_finds_what_its_earlier_attempt_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with a_sealed_worker(tmp_path / "one", monkeypatch) as paths:
        job = a_sealed_job()
        first = prepare(job, paths, data_vault(job, paths), "uid-1")
        model, written = prepared_model(job, paths, data_vault(job, paths)), (first / "prompts.json.sealed").stat()
        assert prepare(job, paths, data_vault(job, paths), "uid-2") == first
        assert prepared_model(job, paths, data_vault(job, paths)) == model
        assert (first / "prompts.json.sealed").stat().st_ino == written.st_ino
        assert {len(path.name) for path in paths.prepared.iterdir()} == {40, len("model-") + 40, len("runs")}


def test_a_sealed_job_of_an_earlier_version_goes_on_and_its_telling_names_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with a_sealed_worker(tmp_path / "one", monkeypatch) as paths:
        with monkeypatch.context() as earlier:
            earlier.setattr(Vault, "name_of", lambda _, digest: digest)
            trained(a_sealed_job(), paths)
            (paths.prepared / f"{'ab' * 32}.partial-1").mkdir()
            (paths.prepared / f"{'ab' * 32}.partial-1" / "train-00000.rows.sealed").touch()
            telling = {path.name for path in paths.prepared.iterdir()} - {"runs"}
        monkeypatch.setenv("DSTJ_RUN_ID", "uid-2")
        trained(a_sealed_job(maxSteps=2), paths)
        assert [event["step"] for event in events(paths) if event["event"] == "resumed"] == [1]
        assert len(telling) == 3
        assert not telling & {path.name for path in paths.prepared.iterdir()}


def test_what_lies_in_the_clear_keeps_its_name_beside_a_sealed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is of a job in the clear on the same volume, or of this one before it had a key."""
    with a_sealed_worker(tmp_path / "one", monkeypatch) as paths:
        job = a_job(**LEARNING)
        clear = prepare(job, paths, data_vault(job, paths), "uid-1")
        prepare(a_sealed_job(), paths, data_vault(a_sealed_job(), paths), "uid-2")
        assert (clear / "manifest.json").exists()


def test_no_message_of_a_sealed_job_tells_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with a_sealed_worker(tmp_path / "one", monkeypatch) as paths:
        base, job = paths.claim("models", "base"), a_sealed_job()
        trained(job, paths)
        guesses = [*guessed(job, paths), digest_of(base)]
        a_gguf(base, tiny_model(seed=1), a_tokenizer())
        with pytest.raises(ConfigError, match="beside the base model") as other_base:
            trained(job, paths)
        dist.destroy_process_group()
        a_gguf(base, tiny_model(), a_tokenizer())
        monkeypatch.setenv("DSTJ_RUN_ID", "uid-2")
        write_jsonl(paths, "train/a.jsonl", texts(9))
        with pytest.raises(DataError, match="trained on other data") as other_data:
            trained(job, paths)
        guesses += [*guessed(job, paths), digest_of(base)]
        assert guesses_confirmed(map(str, (other_base.value, other_data.value)), guesses) == []
