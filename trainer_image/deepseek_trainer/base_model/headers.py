"""What a base model's weight files say of themselves, held against its config.json before any of it is read.

Without torch.  Names and shapes are those of transformers for the families of `gguf_model.CLASSES`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from deepseek_trainer.budget.dimensions import ATTENTION, Dimensions
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.tensorfile import extents

Shape = tuple[int, ...]

_HINT: Final = "take config.json and all weights, and nothing else, from one release of the model"
_EMBEDDING: Final = "model.embed_tokens.weight"
_HEAD: Final = "lm_head.weight"
_OLD_BUFFER: Final = "rotary_emb.inv_freq"  # that old releases of transformers saved, and all pass over


def weights_in(directory: Path, names: Iterable[str]) -> dict[str, tuple[str, Shape]]:
    """File and shape of each tensor in these safetensors files, by name; reads their headers alone."""
    return {key: (name, shape) for name in names for key, shape in _shapes_in(directory / name).items()}


def refuse_other_weights(source: Path, found: Mapping[str, tuple[str, Shape]], dimensions: Dimensions) -> None:
    """Raises ConfigError where the weights that were found are not those that `dimensions` ask for."""
    wanted = _wanted(dimensions)
    # A decoder that was saved without its head has names of its own; transformers loads it all the same.
    inside = "" if any(key.startswith("model.") for key in found) else "model."
    names = {key: key if key == _HEAD else f"{inside}{key}" for key in found if _OLD_BUFFER not in key}
    for key, name in sorted(names.items()):
        file, shape = found[key]
        if name not in wanted:
            raise ConfigError(f"{source}: {file} has {key}, of which config.json knows nothing", hint=_HINT)
        if shape != wanted[name]:
            raise ConfigError(
                f"{source}: {file}: {key} has shape {_told(shape)}, by config.json it is {_told(wanted[name])}",
                hint=_HINT,
            )
    optional = {_EMBEDDING, _HEAD} if dimensions.tied else set()
    if missing := sorted(wanted.keys() - names.values() - optional):
        raise ConfigError(f"{source} lacks {missing[0]}, which config.json asks for", hint=_HINT)


def _shapes_in(path: Path) -> dict[str, Shape]:
    size = path.stat().st_size
    with path.open("rb") as file:

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(min(length, size))  # a damaged header may ask for any length

        return {key: extent.shape for key, extent in extents(read_at, size, path.name).items()}


def _wanted(dimensions: Dimensions) -> dict[str, Shape]:
    hidden, embeddings = (dimensions.hidden,), (dimensions.vocab, dimensions.hidden)
    made: dict[str, Shape] = {_EMBEDDING: embeddings, _HEAD: embeddings, "model.norm.weight": hidden}
    block = _of_block(dimensions)
    for layer in range(dimensions.layers):
        made |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return made


def _of_block(dimensions: Dimensions) -> dict[str, Shape]:
    made: dict[str, Shape] = dict.fromkeys(
        ("input_layernorm.weight", "post_attention_layernorm.weight"), (dimensions.hidden,)
    )
    for name, (inputs, outputs) in dimensions.linear.items():
        place = f"{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
        made[f"{place}.weight"] = (outputs, inputs)
        if name in dimensions.biased:
            made[f"{place}.bias"] = (outputs,)
    if dimensions.has_head_norms:
        made |= dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (dimensions.head_dim,))
    return made


def _told(shape: Shape) -> str:
    return " x ".join(map(str, shape))
