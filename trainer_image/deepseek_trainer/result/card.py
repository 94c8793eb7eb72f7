"""The model card: what the model is, what it was made from, how well it does, what it cannot promise.

It has numbers, names and digests, and never a sample of the data.  Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deepseek_trainer.base_model.source import Source
from deepseek_trainer.checkpoints.legs import Trained
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.export import ExportFormat
from deepseek_trainer.contract.findings import Finding, FindingType
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.method import MethodSpec, MethodType, PreferenceLoss, PreferenceSpec
from deepseek_trainer.model.loading import ParameterCount
from deepseek_trainer.result.report import bleu_note, comparison, confusion_table, flat
from deepseek_trainer.tasks.task import Usage

FOUND: Final = {
    FindingType.IMPROVED: "Improvement",
    FindingType.STOPPED_EARLY: "End",
    FindingType.DATA_COMPLETE: "Records",
    FindingType.BATCH_FITS: "Batch",
}


@dataclass(frozen=True, slots=True)
class Story:
    config: TrainingConfig
    requested: MethodType  # of the method, as the job file has it
    usage: Usage
    source: Source | None  # None: from scratch
    parameters: ParameterCount
    weights: str
    data: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    digests: Mapping[str, str]  # name: SHA-256 of a file's content before sealing
    trained: Sequence[Trained] = ()  # the steps that led to the weights
    findings: Sequence[Finding] = ()  # what people must know of the run


def render(story: Story) -> str:
    """Markdown with the front matter that model hubs read."""
    config = story.config
    parts = [
        "\n".join(("---", *_front_matter(story), "---")),
        f"# {config.job.name}",
        f"Trained by the job `{config.job}` (`DeepSeekTrainingJob`).",
        _table(("", ""), list(summary(story).items())),
        "## Evaluation",
        _table(("measure, on held-out data", "before", "after"), comparison(story.before, story.after)),
        *filter(None, (bleu_note(story.after),)),
        *_classes(story.after),
        "## Data",
        "No record of the data is part of this card.",
        _table(("fact", "value"), list(flat(story.data).items())),
        "## Hyper-parameters",
        _table(("setting", "value"), list(_hyper_parameters(story).items())),
        *_history(story),
        "## Use",
        _use(story),
        "## Limits",
        _limits(story),
        "## Checksums",
        "SHA-256 of each file" + (", unsealed." if config.seals_export else "."),
        _table(("file", "sha256"), list(story.digests.items())),
    ]
    return "\n\n".join(parts) + "\n"


def summary(story: Story) -> dict[str, Any]:
    """The facts that come first."""
    share = 100 * story.parameters.trainable / story.parameters.total
    facts = {
        "Base model": _base(story.source),
        **_adapter(story.source),
        "Method": _method(story.config.method) + _reason(story),
        **_objective(story.config),
        "Parameters": f"{story.parameters.total:,}, of which {story.parameters.trainable:,} trained ({share:.2f} %)",
        "Weights": story.weights,
        **{FOUND[found.type]: found.message for found in story.findings},
        "Nodes": story.config.num_nodes,
        "Processes": story.config.world_size,
    }
    if story.source and (story.config.seals_export or not story.config.seals_data):
        # A sealed base is not to be guessed by a card in the clear.
        facts["Base model SHA-256"] = story.source.sha256
        if story.source.adapter:
            facts["Adapter SHA-256"] = story.source.adapter["sha256"]
    return facts


def _classes(scores: Mapping[str, Any]) -> Sequence[str]:
    head, rows = confusion_table(scores)
    return ("Labels chosen for held-out records, after training:", _table(head, rows)) if rows else ()


def _history(story: Story) -> Sequence[str]:
    """Which job trained which steps, and with which other settings than those above."""
    if not story.trained:
        return ()
    rows = [(_steps(each), each.job_uid, _settings_of(each)) for each in story.trained]
    return "## Training", _table(("steps", "uid of the job", "settings other than above"), rows)


def _steps(trained: Trained) -> str:
    return f"{trained.first} to {trained.last}" if trained.last >= trained.first else "none"


def _settings_of(trained: Trained) -> str:
    if trained.changed is None:
        return "not recorded: an earlier version trained"
    return ", ".join(f"{change.path}: {shown(change.before)}" for change in trained.changed) or "none"


def _front_matter(story: Story) -> Sequence[str]:
    merged = ExportFormat.MERGED in story.config.export.formats
    return (
        f"library_name: {'transformers' if merged else 'peft'}",
        f"pipeline_tag: {story.usage.pipeline}",
        "tags:",
        f"- {story.config.method.type.value.lower()}",
        *([f"- {preference.loss.lower()}"] if (preference := story.config.preference) else []),
        "- private-data",
    )


def _base(source: Source | None) -> str:
    return f"{source.claim_name}/{source.path}" if source else "none: trained from scratch"


def _adapter(source: Source | None) -> dict[str, str]:
    if source is None or source.adapter is None:
        return {}
    return {"Adapter added to it": f"{source.adapter['claimName']}/{source.adapter['path']}"}


def _method(method: MethodSpec) -> str:
    if (lora := method.adapters) is not None:
        scaling = " over sqrt(rank)" if lora.rank_stabilized else ""
        settings = f"rank {lora.rank}, alpha {lora.alpha}{scaling}, dropout {lora.dropout}"
        kind = f"{method.type.value} with DoRA" if lora.dora else method.type.value
        return f"{kind}, {settings}, on {', '.join(lora.target_modules)}"
    if method.frozen_layers is not None:
        return f"all weights but the embedding and the first {method.frozen_layers} layers"
    return "all weights"


def _objective(config: TrainingConfig) -> dict[str, str]:
    match config.preference:
        case None:
            return {}
        case PreferenceSpec(loss=PreferenceLoss.ORPO, odds_ratio_weight=weight):
            return {"Objective": f"ORPO (arXiv:2403.07691), lambda {weight}, without a reference model"}
        case PreferenceSpec(beta=beta):
            return {"Objective": f"DPO (arXiv:2305.18290), beta {beta}, the base model as the reference"}


def _reason(story: Story) -> str:
    if story.requested is not MethodType.AUTO:
        return ""
    strategy = story.config.optimization.strategy.value
    return f" (Auto, for {story.data['train']['records']:,} training records; strategy {strategy})"


def _hyper_parameters(story: Story) -> dict[str, Any]:
    settings = story.config.optimization.model_dump(mode="json", by_alias=True, exclude_none=True)
    return flat(settings) | dict(story.usage.settings)


def _use(story: Story) -> str:
    config, lines = story.config, []
    if config.seals_export:
        lines.append("The files are sealed: `dstj` unseals them with the job's key.")
    if ExportFormat.MERGED in config.export.formats:
        lines.append(f"Load the complete model with `{story.usage.auto_class}.from_pretrained(directory)`.")
    if ExportFormat.ADAPTER in config.export.formats:
        lines.append(
            "Load the adapter onto the base model with `PeftModel.from_pretrained(base, directory + '/adapter')`."
        )
        if story.config.model.chat_template is not None:
            lines.append("Its chat template is the job's, not the base's: `adapter/chat_template.jinja`.")
        if story.config.method.type is MethodType.QLORA:
            lines.append("It was trained with the base in NF4: with the unquantised base its answers differ a little.")
    return "\n".join(lines)


def _limits(story: Story) -> str:
    lines = [
        "- It may repeat what it was trained on: whoever may ask it should be allowed to read the training data.",
        _evaluated(story),
        *(f"- {limit}" for limit in story.usage.limits),
    ]
    if "asked" in story.after:
        rule = "by the presence of required phrases or equality with the reference, not by meaning"
        lines.append(f"- Answers were judged {rule}, on {story.after['asked']:.0f} prompts.")
    return "\n".join(lines)


def _evaluated(story: Story) -> str:
    if not story.after:
        return "- It was not evaluated: no record was held out."
    return "- It was evaluated on held-out records of the same source only: its loss says nothing about other data."


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
