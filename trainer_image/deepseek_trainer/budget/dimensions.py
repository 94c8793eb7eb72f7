"""A decoder's dimensions: all that its size, memory and FLOPs follow from.  Without torch and numpy.

Of the Llama and Qwen families that `gguf_model.CLASSES` names: the same linear layers in every block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import ALL_LINEAR, NF4_BLOCK, LoraSpec, MethodType
from deepseek_trainer.contract.model import Architecture

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD: Final = ("gate_proj", "up_proj", "down_proj")
LINEAR: Final = ATTENTION + FEED_FORWARD  # what `targetModules` may hold

# What transformers assumes where config.json is silent (configuration_{llama,qwen2,qwen3}.py).
_KEY_VALUE_HEADS: Final = {"qwen2": 32, "qwen3": 32}  # llama: as many as heads
_HEAD_DIM: Final = {"qwen3": 128}  # others: hidden_size / num_attention_heads


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Widths [elements] and counts; `biased` names the linear layers of a block that have a bias."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    biased: tuple[str, ...] = ()
    has_head_norms: bool = False  # Qwen3 normalises queries and keys of each head
    max_positions: int | None = None  # None: as many as a row has tokens

    @classmethod
    def of_architecture(cls, architecture: Architecture) -> Self:
        return cls(
            hidden=architecture.hidden_size,
            layers=architecture.num_layers,
            heads=architecture.num_heads,
            key_value_heads=architecture.num_key_value_heads or architecture.num_heads,
            head_dim=architecture.hidden_size // architecture.num_heads,
            intermediate=architecture.intermediate_size,
            vocab=architecture.vocab_size,
            tied=architecture.tie_embeddings,
        )

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of the content of a config.json.  Raises ConfigError where it lacks a dimension."""
        kind = settings.get("model_type", "")
        try:
            heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
            return cls(
                hidden=hidden,
                layers=settings["num_hidden_layers"],
                heads=heads,
                key_value_heads=settings.get("num_key_value_heads") or _KEY_VALUE_HEADS.get(kind, heads),
                head_dim=settings.get("head_dim") or _HEAD_DIM.get(kind, hidden // heads),
                intermediate=settings["intermediate_size"],
                vocab=settings["vocab_size"],
                tied=bool(settings.get("tie_word_embeddings")),
                biased=_biased(kind, settings),
                has_head_norms=kind == "qwen3",
                max_positions=settings.get("max_position_embeddings"),
            )
        except KeyError as error:
            raise ConfigError(
                f"the base model's config.json lacks {error.args[0]}", hint="take it from the model's own release"
            ) from None

    @property
    def attention(self) -> int:
        """Width of all heads side by side."""
        return self.heads * self.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block."""
        narrow = self.key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden, self.attention),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (self.attention, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """Tied weights count once."""
        biases = sum(self.linear[name][1] for name in self.biased)
        norms = 2 * self.hidden + (2 * self.head_dim if self.has_head_norms else 0)
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return self.in_blocks + self.layers * (biases + norms) + self.hidden + embeddings

    @property
    def multiplied(self) -> int:
        """Elements of the matrices that a token is multiplied with: those of all blocks and of the output."""
        return self.in_blocks + self.vocab * self.hidden

    @property
    def looked_up(self) -> int:
        """Parameters that are only ever looked up: an input embedding of its own."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def in_blocks(self) -> int:
        """Elements of the matrices of all blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear.values())

    def adapters(self, lora: LoraSpec | None) -> int:
        """Parameters of the adapters: a rank times (inputs + outputs) in each block, for each target."""
        targets = [self.linear[name] for name in targets_of(lora)] if lora else []
        return self.layers * sum(lora.rank * (inputs + outputs) for inputs, outputs in targets) if lora else 0

    def frozen(self, layers: int) -> int:
        """Parameters of the input embedding, of a head that is tied to it, and of the first `layers` blocks."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        of_block = (self.parameters - self.hidden - embeddings) // self.layers
        return self.vocab * self.hidden + layers * of_block


def targets_of(lora: LoraSpec) -> tuple[str, ...]:
    """The linear layers of a block that get an adapter."""
    return LINEAR if ALL_LINEAR in lora.target_modules else lora.target_modules


def refuse_misfit(config: TrainingConfig, dimensions: Dimensions) -> None:
    """Raises ConfigError where the base model cannot be trained as the job asks: found before its weights are read."""
    length, longest = config.data.sequence_length, dimensions.max_positions
    if longest is not None and length > longest:
        raise ConfigError(
            f"data.sequenceLength={length} is longer than the base model's {longest} positions",
            hint=f"lower data.sequenceLength to {longest}, or take a model for longer texts",
        )
    lora = config.method.lora
    if lora and (unknown := [name for name in targets_of(lora) if name not in LINEAR]):
        raise ConfigError(
            f"method.lora.targetModules: the model has no linear layer {', '.join(unknown)}",
            hint=f"it has {', '.join(sorted(LINEAR))}",
        )
    if config.method.type is MethodType.QLORA:
        _refuse_split_blocks(dimensions)


def _refuse_split_blocks(dimensions: Dimensions) -> None:
    """bitsandbytes's AVX-512 kernel takes wrong scales where a block of NF4 goes on in the next row."""
    for name, (inputs, _) in dimensions.linear.items():
        if inputs % NF4_BLOCK:
            raise ConfigError(
                f"method.type QLoRA keeps weights in blocks of {NF4_BLOCK}, and the model's {name} has {inputs} inputs",
                hint="set method.type: LoRA",
            )


def _biased(kind: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    if kind == "qwen2":
        return ATTENTION[:3]
    attention = ATTENTION if settings.get("attention_bias") else ()
    return attention + (FEED_FORWARD if kind == "llama" and settings.get("mlp_bias") else ())
