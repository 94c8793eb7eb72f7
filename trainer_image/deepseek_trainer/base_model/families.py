"""What is particular to a family of models, in one table: a new family is one entry of FAMILIES and a test.

The table is data and pure functions, without torch and transformers, so that `dstj` reads it, too.  `model/blocks.py`
finds the named parts in a loaded model.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

from deepseek_trainer.base_model import decoder
from deepseek_trainer.base_model.decoder import Settings, Shape
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.model import Architecture


class Rotary(StrEnum):
    """Where GGUF files have the two rows of queries or keys that are rotated together.

    As llama.cpp's convert_hf_to_gguf.py leaves them, or permutes them.
    """

    APART = "apart"  # half a head lies between them, as in transformers
    INTERLEAVED = "interleaved"  # each is the other's neighbour


@dataclass(frozen=True, slots=True)
class Family:
    """One entry.  Parts are named as transformers names its modules, dotted; a `*` stands for every child.

    What is left out is something that models of the family do not have, or that nobody has looked up: a job that needs
    it is refused.
    """

    model_type: str  # in config.json
    model_class: str  # of transformers
    embedding: str  # makes the first hidden states of what is read
    blocks: str  # come after it, in the order in which they run
    head: str  # makes the outputs of the last hidden states
    linear: tuple[str, ...] = ()  # in a block: layers that can get an adapter and be kept in four bits
    residual: tuple[str, ...] = ()  # in a block: layers whose outputs are added to the residual stream
    own_dropout: tuple[str, ...] = ()  # attributes that hold rates of config.json; a job sets its own
    dimensions: Callable[[Settings], Dimensions] | None = None
    weights: Callable[[Settings], dict[str, Shape]] | None = None  # all that the files of a model may hold, by name
    rotary_in_gguf: Rotary | None = None  # None: GGUF files of the family are not converted
    sees_images: bool = False  # other than tokens

    def linear_for(self, asked: str) -> tuple[str, ...]:
        """`linear`.  Raises ConfigError where the table lists none, with what the job `asked` for."""
        if not self.linear:
            raise self._unable(asked, "linear layers of a block", "set method.type: Full")
        return self.linear

    def residual_for(self, asked: str) -> tuple[str, ...]:
        """`residual`.  Raises ConfigError as `linear_for`."""
        if not self.residual:
            raise self._unable(asked, "layers that write to the residual stream", f"drop {asked}")
        return self.residual

    def dimensions_for(self, settings: Settings) -> Dimensions:
        """Raises ConfigError where config.json lacks one, or where the table does not tell how to read them."""
        if self.dimensions is None:
            raise self._unable("memory and FLOPs", "dimensions")
        return self.dimensions(settings)

    def _unable(self, asked: str, part: str, way_out: str = "") -> ConfigError:
        return ConfigError(f"{asked}: of {self.model_type} models no {part} are known", hint=way_out)


def llama_like(
    model_type: str,
    model_class: str,
    *,
    key_value_heads: int | None = None,
    head_dim: int | None = None,
    biased: Callable[[Settings], tuple[str, ...]] = lambda _: (),
    has_head_norms: bool = False,
    rotary_in_gguf: Rotary | None = None,
) -> Family:
    """An entry for a decoder whose blocks are Llama's: attention of four linear layers, a feed-forward of three.

    `key_value_heads` and `head_dim` are what transformers assumes where config.json is silent; None: as many as heads,
    and an equal part of the hidden states for each head.  `biased` names the linear layers with a bias.
    """
    dimensions = partial(
        decoder.dimensions,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        biased=biased,
        head_norms=decoder.HEAD_NORMS if has_head_norms else (),
    )
    return Family(
        model_type,
        model_class,
        embedding="model.embed_tokens",
        blocks="model.layers.*",
        head="lm_head",
        linear=decoder.ATTENTION + decoder.FEED_FORWARD,
        residual=(decoder.OUTPUT, decoder.DOWN),
        own_dropout=("model.layers.*.self_attn.attention_dropout",),
        dimensions=dimensions,
        weights=lambda settings: decoder.weights(dimensions(settings)),
        rotary_in_gguf=rotary_in_gguf,
    )


def _biased_attention(settings: Settings) -> tuple[str, ...]:
    return decoder.ATTENTION if settings.get("attention_bias") else ()


def _llama_biased(settings: Settings) -> tuple[str, ...]:
    return _biased_attention(settings) + (decoder.FEED_FORWARD if settings.get("mlp_bias") else ())


# Defaults are those of transformers' configuration_{llama,qwen2,qwen3}.py.
FAMILIES: Final = {
    family.model_type: family
    for family in (
        llama_like("llama", "LlamaForCausalLM", biased=_llama_biased, rotary_in_gguf=Rotary.INTERLEAVED),
        llama_like(
            "qwen2",
            "Qwen2ForCausalLM",
            key_value_heads=32,
            biased=lambda _: decoder.ATTENTION[:3],
            rotary_in_gguf=Rotary.APART,
        ),
        llama_like(
            "qwen3",
            "Qwen3ForCausalLM",
            key_value_heads=32,
            head_dim=128,
            biased=_biased_attention,
            has_head_norms=True,
            rotary_in_gguf=Rotary.APART,
        ),
        Family(
            "vit",
            "ViTForImageClassification",
            embedding="vit.embeddings",
            blocks="vit.layers.*",
            head="classifier",
            sees_images=True,
        ),
        Family(
            "bit",
            "BitForImageClassification",
            embedding="bit.embedder",
            blocks="bit.encoder.stages.*.layers.*",
            head="classifier.1",
            sees_images=True,
        ),
    )
}


def family_of(model_type: object, where: str = "the base model") -> Family:
    """Raises ConfigError where the model that is `where` is of no family in the table."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where} is a {_word(model_type)} model: of these the trainer knows neither the blocks nor their linear "
            "layers, nor which weights and dimensions follow from config.json",
            hint=f"models of type {', '.join(FAMILIES)} can be trained",
        )
    return FAMILIES[model_type]


def _word(model_type: object) -> str:
    is_word = isinstance(model_type, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", model_type)
    return str(model_type) if is_word else shown(model_type)


def last_names(paths: Iterable[str]) -> list[str]:
    """As `targetModules` has them."""
    return sorted({path.rpartition(".")[2] for path in paths})


def read_dimensions(settings: Settings) -> Dimensions:
    """Raises ConfigError where config.json lacks one, or where the family's are not known."""
    return family_of(settings.get("model_type")).dimensions_for(settings)


def scratch_dimensions(architecture: Architecture) -> Dimensions:
    return read_dimensions(scratch_settings(architecture))


def scratch_settings(architecture: Architecture) -> Settings:
    """What the config.json of a model from scratch says of its shape."""
    return {
        "model_type": "llama",
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_key_value_heads or architecture.num_heads,
        "tie_word_embeddings": architecture.tie_embeddings,
    }
