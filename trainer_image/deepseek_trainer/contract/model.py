"""What is trained."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.images import Vision
from deepseek_trainer.contract.rules import FREE, Model, Rule
from deepseek_trainer.contract.volume import VolumePath

MAX_TEMPLATE: Final = 32768  # [characters]: pods have the job in an annotation


class BaseModelSource(VolumePath):
    """An existing model: a directory with safetensors files, or one GGUF file."""

    sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            description="SHA-256 of the GGUF file, or of a directory's sorted `<sha256>  <name>` lines; "
            "checked before the first byte is used. `dstj doctor --digest PATH` prints it.",
        ),
        FREE,
    ] = None


class AdapterSource(BaseModelSource):
    """An adapter of LoRA as peft writes it, a directory with adapter_config.json and adapter_model.safetensors."""


class ArchitectureFamily(StrEnum):
    """What the layers of a decoder are made of."""

    LLAMA = "Llama"
    DEEPSEEK_V3 = "DeepSeekV3"
    ALBERT = "ALBERT"


_OF_EXPERTS: Final = "with family DeepSeekV3"


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: routed ones of a layer, those that a token uses, shared ones; and where there are none."""

    routed: int
    used: int
    shared: int
    width: int
    first_dense: int  # layers


class Architecture(Model):
    """A decoder trained from scratch; its tokenizer is trained on the job's data."""

    family: Annotated[
        ArchitectureFamily,
        Field(
            description="Llama: each layer has weights of its own. DeepSeekV3: attention through a latent (MLA), and a "
            "mixture of experts in the place of the feed-forward, whose load is kept even. ALBERT: Llama's layers, all "
            "of which share the weights of one; the result is a Llama in which every layer holds them."
        ),
    ] = ArchitectureFamily.LLAMA
    hidden_size: Annotated[int, Field(ge=8, le=32768, description="Width of the residual stream.")]
    num_layers: Annotated[int, Field(ge=1, le=512, description="Decoder layers.")]
    num_heads: Annotated[int, Field(ge=1, le=512, description="Attention heads; hiddenSize is a multiple of it.")]
    num_key_value_heads: Annotated[
        int | None,
        Field(ge=1, le=512, description="Key and value heads; numHeads is a multiple of it. Default: numHeads."),
    ] = None
    intermediate_size: Annotated[int, Field(ge=8, le=262144, description="Width of the feed-forward layers.")]
    vocab_size: Annotated[int, Field(ge=260, le=262144, description="Tokens of the byte-level BPE tokenizer.")]
    tie_embeddings: Annotated[bool, Field(description="Share the input and output embeddings.")] = True
    num_experts: Annotated[
        int | None, Field(ge=2, le=1024, description=f"Routed experts of a layer, {_OF_EXPERTS}. Default: 8.")
    ] = None
    experts_per_token: Annotated[
        int | None, Field(ge=1, le=64, description=f"Of them by each token, {_OF_EXPERTS}. Default: 2.")
    ] = None
    num_shared_experts: Annotated[
        int | None, Field(ge=1, le=64, description=f"Experts that every token uses, {_OF_EXPERTS}. Default: 1.")
    ] = None
    expert_intermediate_size: Annotated[
        int | None,
        Field(
            ge=8,
            le=262144,
            description=f"Width of each expert, {_OF_EXPERTS}. Default: such that all experts of a token are "
            "together as wide as intermediateSize.",
        ),
    ] = None
    first_dense_layers: Annotated[
        int | None,
        Field(ge=0, le=512, description=f"Layers before the first with experts, {_OF_EXPERTS}. Default: 1, of one: 0."),
    ] = None
    kv_lora_rank: Annotated[
        int | None,
        Field(
            ge=8,
            le=32768,
            description=f"Width of the latent of keys and values, {_OF_EXPERTS}. Default: a quarter of hiddenSize.",
        ),
    ] = None
    q_lora_rank: Annotated[
        int | None,
        Field(ge=8, le=32768, description=f"Width of the latent of queries, {_OF_EXPERTS}. Default: they have none."),
    ] = None

    @property
    def experts(self) -> "Experts":
        """Of family DeepSeekV3, with the defaults."""
        used, shared = self.experts_per_token or 2, self.num_shared_experts or 1
        even = max(8, self.intermediate_size // (used + shared) // 8 * 8)
        dense = min(1, self.num_layers - 1) if self.first_dense_layers is None else self.first_dense_layers
        return Experts(self.num_experts or 8, used, shared, self.expert_intermediate_size or even, dense)

    @property
    def _sizes_of_experts(self) -> tuple[int | None, ...]:
        of_layers = self.num_experts, self.experts_per_token, self.num_shared_experts, self.expert_intermediate_size
        return *of_layers, self.first_dense_layers, self.kv_lora_rank, self.q_lora_rank

    rules: ClassVar = (
        Rule(
            "self.family == 'DeepSeekV3' || !(has(self.numExperts) || has(self.expertsPerToken) "
            "|| has(self.numSharedExperts) || has(self.expertIntermediateSize) || has(self.firstDenseLayers) || "
            "has(self.kvLoraRank) || has(self.qLoraRank))",
            "numExperts, expertsPerToken, numSharedExperts, expertIntermediateSize, firstDenseLayers, kvLoraRank and "
            "qLoraRank are only read with family DeepSeekV3: set it, or drop them",
            lambda self: (
                self.family is ArchitectureFamily.DEEPSEEK_V3 or all(size is None for size in self._sizes_of_experts)
            ),
        ),
        Rule(
            "self.family != 'DeepSeekV3' || !has(self.numKeyValueHeads)",
            "numKeyValueHeads is not read with family DeepSeekV3, whose keys and values come from a latent: drop it, "
            "or set kvLoraRank",
            lambda self: self.family is not ArchitectureFamily.DEEPSEEK_V3 or self.num_key_value_heads is None,
        ),
        Rule(
            "(has(self.expertsPerToken) ? self.expertsPerToken : 2) <= (has(self.numExperts) ? self.numExperts : 8)",
            "expertsPerToken must not exceed numExperts",
            lambda self: self.experts.used <= self.experts.routed,
        ),
        Rule(
            "!has(self.firstDenseLayers) || self.firstDenseLayers < self.numLayers",
            "firstDenseLayers must be less than numLayers: else no layer has experts",
            lambda self: self.first_dense_layers is None or self.first_dense_layers < self.num_layers,
        ),
        Rule(
            "self.hiddenSize % self.numHeads == 0",
            "hiddenSize must be a multiple of numHeads",
            lambda self: self.hidden_size % self.num_heads == 0,
        ),
        Rule(
            "!has(self.numKeyValueHeads) || self.numHeads % self.numKeyValueHeads == 0",
            "numHeads must be a multiple of numKeyValueHeads",
            lambda self: self.num_key_value_heads is None or self.num_heads % self.num_key_value_heads == 0,
        ),
    )


class ModelSpec(Model):
    """What is trained: an existing model, or one from scratch."""

    base: Annotated[BaseModelSource | None, Field(description="Existing model to start from.")] = None
    adapter: Annotated[
        AdapterSource | None,
        Field(
            description="Adapter that is added to the weights of the base before anything is trained, such as the "
            "directory `adapter` of an earlier job's result. What is trained, and the reference of preferences, is the "
            "sum; its result is a complete model."
        ),
    ] = None
    architecture: Annotated[Architecture | None, Field(description="Model to train from scratch.")] = None
    chat_template: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_TEMPLATE,
            description="Jinja text of a chat template. It takes the place of the base model's, and is exported with "
            "the tokenizer. Default: the base model's; from scratch: none.",
        ),
    ] = None
    vision: Annotated[
        Vision | None, Field(description="Image classifier to train from scratch, with data.format Images.")
    ] = None

    @property
    def places(self) -> tuple[BaseModelSource, ...]:
        """What is read of an existing model."""
        return tuple(place for place in (self.base, self.adapter) if place is not None)

    rules: ClassVar = (
        Rule(
            "[has(self.base), has(self.architecture), has(self.vision)].exists_one(given, given)",
            "give exactly one of base, architecture and vision",
            lambda self: [self.base, self.architecture, self.vision].count(None) == 2,
        ),
        Rule(
            "!has(self.adapter) || has(self.base)",
            "adapter needs base: give the model that it was trained beside",
            lambda self: self.adapter is None or self.base is not None,
        ),
    )
