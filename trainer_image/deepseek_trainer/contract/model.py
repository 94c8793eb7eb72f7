"""What is trained."""

from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.images import Vision
from deepseek_trainer.contract.rules import FREE, Model, Rule
from deepseek_trainer.contract.volume import VolumePath


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


class Architecture(Model):
    """A Llama-style decoder trained from scratch; its tokenizer is trained on the job's data."""

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

    rules: ClassVar = (
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
    architecture: Annotated[Architecture | None, Field(description="Model to train from scratch.")] = None
    vision: Annotated[
        Vision | None, Field(description="Image classifier to train from scratch, with data.format Images.")
    ] = None

    rules: ClassVar = (
        Rule(
            "[has(self.base), has(self.architecture), has(self.vision)].exists_one(given, given)",
            "give exactly one of base, architecture and vision",
            lambda self: [self.base, self.architecture, self.vision].count(None) == 2,
        ),
    )
