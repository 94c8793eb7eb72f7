"""The result of a job, committed as one directory.

    <job name>/                 complete model that `from_pretrained` of plain transformers loads (Merged)
    <job name>/adapter/         LoRA weights alone, in peft's layout, and the job's own chat template (Adapter)
    <job name>/LICENSE ...      licence and notices of the base model, where it has some
    <job name>/README.md        model card: no samples of the data
    <job name>/report.html      run report, with answers to held-out prompts
    <job name>/manifest.json    which files these are, written last: see manifest.py

The job's vault writes all of it.  A sealed result is sealed to the last file, because a tokenizer and a report reveal
something of the data, too.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from peft import PeftModel
from torch import Tensor, nn

from deepseek_trainer.base_model.directory import TEMPLATE
from deepseek_trainer.base_model.kept import is_legal
from deepseek_trainer.base_model.source import Source, prepared_model, read_source
from deepseek_trainer.checkpoints.legs import Trained
from deepseek_trainer.checkpoints.statefile import entries
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.export import ExportFormat
from deepseek_trainer.contract.findings import Finding
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.model.adapters import adapter_settings, adapter_state, merged
from deepseek_trainer.model.loading import count_parameters, transformer
from deepseek_trainer.result import card
from deepseek_trainer.result.manifest import File, Manifest, write_manifest
from deepseek_trainer.result.report import Report, flat, render
from deepseek_trainer.result.weights import (
    Dtypes,
    export_dtypes,
    file_weights,
    refuse_overflow,
    stored_dtypes,
    usual_dtype,
)
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.tensorfile import stream
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.task import Answer, Task
from deepseek_trainer.worker.vaults import data_vault, export_vault, manifest_vault

ADAPTER: Final = "adapter"  # subdirectory: beside a model, transformers would take adapter_config.json for the model's


@dataclass(frozen=True, slots=True)
class Results:
    """What a run reports about itself."""

    events: Sequence[Mapping[str, Any]]  # the event log, in order
    weights: str  # which ones these are, and why: "of step 6, ..."
    step: int  # that they are of
    requested: MethodType  # of the method, as the job file has it
    data: Mapping[str, Any] = field(default_factory=dict)  # counts and name of the prepared data; never samples
    before: Mapping[str, Any] = field(default_factory=dict)  # evaluation of the untrained model: loss, ...
    after: Mapping[str, Any] = field(default_factory=dict)
    trained: Sequence[Trained] = ()  # the steps that led to the weights
    findings: Sequence[Finding] = ()
    answers: Sequence[Answer] = ()  # to held-out prompts; they go into the report, not into the model card
    commit: str | None = None  # digest of the manifest of the checkpoint with which the run ended


def export(
    model: nn.Module,
    task: Task[Any],
    config: TrainingConfig,
    paths: Paths,
    results: Results,
) -> Path:
    """Write `paths.export/<job name>` and return it, replacing an earlier result in one step.

    One rank calls it, and last of all: merging uses `model` up.
    """
    target, vault = paths.export / config.job.name, export_vault(config, paths)
    base = _Base.of(config, paths)
    counts = count_parameters(model)  # before merging: afterwards nothing is trainable
    with committed(target) as directory:
        output = _Output(directory, vault)
        _write_model(model, task, config, base.dtypes, output)
        for name, content in base.terms.items():
            output.write(name, [content])
        story = card.Story(
            config=config,
            requested=results.requested,
            usage=task.usage,
            source=base.source,
            parameters=counts,
            weights=results.weights,
            trained=results.trained,
            findings=results.findings,
            data=results.data,
            before=results.before,
            after=results.after,
            digests=dict(output.digests),
        )
        output.write("README.md", [card.render(story).encode()])
        output.write("report.html", [render(_report(config, results, story)).encode()])
        output.write("evaluation.json", [_json(_evaluation(results))])
        manifest = _manifest(config, results, vault, output.files)
        write_manifest(manifest, directory, manifest_vault(config, paths))
    return target


def _manifest(config: TrainingConfig, results: Results, vault: Vault, files: Iterable[File]) -> Manifest:
    return Manifest(
        job=str(config.job),
        name=config.job.name,
        created=utc_now(),
        key_id=vault.key_id,
        step=results.step,
        commit=results.commit,
        files=tuple(files),
    )


def _evaluation(results: Results) -> dict[str, Any]:
    """The report's figures and answers, for programs."""
    answers = [asdict(answer) for answer in results.answers]
    return {"before": dict(results.before), "after": dict(results.after), "answers": answers}


@dataclass(frozen=True, slots=True)
class _Base:
    """What a result has of its base model: where it came from, its weights' types, its licence and notices."""

    source: Source | None = None
    dtypes: Dtypes = field(default_factory=dict)
    terms: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainingConfig, paths: Paths) -> Self:
        """Nothing of all that from scratch."""
        if config.model.base is None:
            return cls()
        vault = data_vault(config, paths)
        home = prepared_model(config, paths, vault)
        source = read_source(home, vault)
        terms = {name: bytes(vault.read(home / name)) for name in source.kept if is_legal(name)}
        return cls(source, stored_dtypes(home, vault), terms)


class _Output:
    """Writes files through the vault.  Remembers each as it is on the disk, and the SHA-256 of what was in it."""

    def __init__(self, directory: Path, vault: Vault) -> None:
        self._directory, self._vault = directory, vault
        self.digests: dict[str, str] = {}
        self.files: list[File] = []

    def write(self, name: str, content: Iterable[bytes | memoryview]) -> None:
        path = self._directory / name
        path.parent.mkdir(exist_ok=True)
        self.files.append(File.of(name, self._vault.write(path, self._digested(name, content))))

    def _digested(self, name: str, content: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        seen = hashlib.sha256()
        for piece in content:
            seen.update(piece)
            yield piece
        self.digests[name] = seen.hexdigest()


def _write_model(model: nn.Module, task: Task[Any], config: TrainingConfig, stored: Dtypes, output: _Output) -> None:
    """`stored`: what the base model's files hold its weights in."""
    asked = config.export.dtype
    if ExportFormat.ADAPTER in config.export.formats:
        assert isinstance(model, PeftModel), "the job file's rules ask for LoRA or QLoRA with Adapter"
        adapter = adapter_state(model)
        _write_weights(f"{ADAPTER}/adapter_model.safetensors", adapter, export_dtypes(adapter, asked), output)
        output.write(f"{ADAPTER}/adapter_config.json", [_json(adapter_settings(model))])
        if config.model.chat_template is not None:
            output.write(f"{ADAPTER}/{TEMPLATE}", [config.model.chat_template.encode()])
    if ExportFormat.MERGED in config.export.formats:
        complete = merged(model) if isinstance(model, PeftModel) else transformer(model)
        weights = file_weights(complete)
        dtypes = export_dtypes(weights, asked, stored, complete)
        _write_weights("model.safetensors", weights, dtypes, output)
        for name, content in task.companions(complete, usual_dtype(dtypes)).items():
            output.write(name, [content])


def _write_weights(name: str, weights: Mapping[str, Tensor], dtypes: Dtypes, output: _Output) -> None:
    refuse_overflow(weights, dtypes)
    output.write(name, stream(entries(weights, dtypes)))


def _report(config: TrainingConfig, results: Results, story: card.Story) -> Report:
    return Report(
        title=f"Run report: {config.job}",
        summary=card.summary(story),
        settings=flat(config.model_dump(mode="json", by_alias=True, exclude_none=True)),
        before=results.before,
        after=results.after,
        events=results.events,
        answers=results.answers,
        loss_unit=story.usage.loss_unit,
        data=flat(results.data),
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return json_text(value, indent=2, sort_keys=True).encode()
