"""How the weights are changed."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule

ALL_LINEAR: Final = "all-linear"
# Auto: LoRA below the first number of training records, Full from the second on.
FEW_RECORDS: Final = 10_000
MANY_RECORDS: Final = 100_000


class MethodType(StrEnum):
    FULL = "Full"
    LORA = "LoRA"
    QLORA = "QLoRA"
    AUTO = "Auto"


ADAPTED: Final = frozenset({MethodType.LORA, MethodType.QLORA})
NF4_BLOCK: Final = 64  # weights of a row that share a scale


class LoraSpec(Model):
    """Low-rank adapters on a frozen base."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank r of each update.")] = 16
    alpha: Annotated[int, Field(ge=1, le=4096, description="Updates are scaled by alpha / rank.")] = 32
    rank_stabilized: Annotated[
        bool,
        Field(
            description="Updates are scaled by alpha / sqrt(rank), so that a larger rank learns as fast as a small one "
            "(rsLoRA, arXiv:2312.03732): choose alpha anew."
        ),
    ] = False
    dora: Annotated[
        bool,
        Field(
            description="Also train the length of each row of the weights, apart from its direction (DoRA, "
            "arXiv:2402.09353). With type LoRA and strategy DDP; not of experts."
        ),
    ] = False
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapters' input.")] = 0.1
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(
            min_length=1,
            max_length=32,
            description=f"Names of the linear layers that get an adapter; `[{ALL_LINEAR}]`: every one but the head.",
        ),
    ] = ("q_proj", "v_proj")

    rules: ClassVar = (
        Rule(
            f"self.targetModules.size() == 1 || !self.targetModules.exists(m, m == '{ALL_LINEAR}')",
            f"targetModules [{ALL_LINEAR}] stands alone: drop the other names, or drop {ALL_LINEAR}",
            lambda self: len(self.target_modules) == 1 or ALL_LINEAR not in self.target_modules,
        ),
    )


WIDER_LORA: Final = LoraSpec(rank=64, alpha=128, target_modules=(ALL_LINEAR,))


class PreferenceLoss(StrEnum):
    DPO = "DPO"
    ORPO = "ORPO"


class PreferenceSpec(Model):
    """By which loss preferences are learned: DPO, arXiv:2305.18290, or ORPO, arXiv:2403.07691."""

    loss: Annotated[
        PreferenceLoss,
        Field(
            description="DPO: the chosen answer gains on the rejected one, against the base model as the reference. "
            "ORPO: the chosen answer is learned as of Instruction data, while its odds gain on those of the rejected "
            "one; there is no reference model."
        ),
    ] = PreferenceLoss.DPO
    beta: Annotated[
        float,
        Field(
            gt=0, le=100, description="Of DPO: how dearly the model pays for leaving the base: the larger, the closer."
        ),
    ] = 0.1
    odds_ratio_weight: Annotated[
        float,
        Field(gt=0, le=100, description="Of ORPO: lambda, the weight of the odds ratio beside the chosen answer."),
    ] = 0.1

    rules: ClassVar = (
        Rule(
            "!has(self.oddsRatioWeight) || self.oddsRatioWeight == 0.1 || (has(self.loss) && self.loss == 'ORPO')",
            "oddsRatioWeight is only read with loss ORPO: set it, or drop oddsRatioWeight",
            lambda self: self.odds_ratio_weight == 0.1 or self.loss is PreferenceLoss.ORPO,
        ),
        Rule(
            "!has(self.beta) || self.beta == 0.1 || !has(self.loss) || self.loss != 'ORPO'",
            "beta is not read with loss ORPO, which has no reference model: set oddsRatioWeight, or drop beta",
            lambda self: self.beta == 0.1 or self.loss is not PreferenceLoss.ORPO,
        ),
    )

    @property
    def has_reference(self) -> bool:
        """Whether the loss asks the model before training."""
        return self.loss is not PreferenceLoss.ORPO


class MethodSpec(Model):
    """How the weights are changed."""

    type: Annotated[
        MethodType,
        Field(
            description="Full: all weights. LoRA: adapters on a frozen base. QLoRA: the same, with the base's linear "
            f"layers in 4 bits (NF4). Auto: by the number of training records, below {FEW_RECORDS:,} LoRA, from "
            f"{MANY_RECORDS:,} on Full, between them LoRA, unless `lora` says otherwise of rank {WIDER_LORA.rank} and "
            f"alpha {WIDER_LORA.alpha} on every linear layer; from scratch always Full. Where it is Full, with several "
            "processes, AdamW and strategy DDP, Auto shards by FSDP, too."
        ),
    ] = MethodType.FULL
    lora: Annotated[
        LoraSpec | None,
        Field(description="Adapter settings, for LoRA and QLoRA, and for Auto where it chooses LoRA."),
    ] = None
    preference: Annotated[
        PreferenceSpec | None,
        Field(
            description="How preferences are learned. Only for data.format Preference, where it may be left out: DPO."
        ),
    ] = None
    frozen_layers: Annotated[
        int | None,
        Field(
            ge=1,
            le=512,
            description="The input embedding and this many decoder layers, counted from it, stay as they are; "
            "only with type Full. A head that is tied to the embedding stays, too. Default: nothing stays.",
        ),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.lora) || self.type != 'Full'",
            "lora is not read with type Full: set type: LoRA or drop lora",
            lambda self: self.lora is None or self.type is not MethodType.FULL,
        ),
        Rule(
            "!has(self.frozenLayers) || self.type == 'Full'",
            "frozenLayers is only read with type Full: adapters freeze the whole base; set type: Full or drop it",
            lambda self: self.frozen_layers is None or self.type is MethodType.FULL,
        ),
    )

    @property
    def adapters(self) -> LoraSpec | None:
        """The adapters that are trained beside a frozen base; None where the base itself is.  Auto must be settled."""
        assert self.type is not MethodType.AUTO, "settled before anything is trained"
        return None if self.type is MethodType.FULL else self.lora or LoraSpec()

    @property
    def trains_all(self) -> bool:
        """Whether every weight of the base is trained."""
        return self.type is MethodType.FULL and self.frozen_layers is None

    def settled(self, records: int, *, has_base: bool) -> "MethodSpec":
        """This method, but for Auto the method that fits `records` training records."""
        if self.type is not MethodType.AUTO:
            return self
        if not has_base or records >= MANY_RECORDS:
            return MethodSpec(preference=self.preference)
        usual = LoraSpec() if records < FEW_RECORDS else WIDER_LORA
        return MethodSpec(type=MethodType.LORA, lora=self.lora or usual, preference=self.preference)


# Of a whole job.
DORA_RULES: Final = (
    Rule(
        "!has(self.method.lora) || !self.method.lora.dora"
        " || (self.method.type != 'QLoRA' && self.optimization.strategy == 'DDP')",
        "method.lora.dora needs whole weights in full precision: set method.type: LoRA and "
        "optimization.strategy: DDP, or drop it",
        lambda self: (
            self.method.lora is None
            or not self.method.lora.dora
            or (self.method.type != "QLoRA" and self.optimization.strategy == "DDP")
        ),
    ),
)
