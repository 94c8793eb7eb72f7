"""What a base model's weight files say of themselves, held against its config.json before any of it is read.

Without torch.  Names and shapes are those of transformers for the families of `families.FAMILIES`.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from deepseek_trainer.base_model.decoder import Settings, Shape
from deepseek_trainer.base_model.families import Family, family_of
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.tensorfile import extents

_HINT: Final = "take config.json and all weights, and nothing else, from one release of the model"
_OLD_BUFFER: Final = "rotary_emb.inv_freq"  # that old releases of transformers saved, and all pass over


def weights_in(directory: Path, names: Iterable[str]) -> dict[str, tuple[str, Shape]]:
    """File and shape of each tensor in these safetensors files, by name; reads their headers alone."""
    return {key: (name, shape) for name in names for key, shape in _shapes_in(directory / name).items()}


def refuse_other_weights(source: Path, found: Mapping[str, tuple[str, Shape]], settings: Settings) -> None:
    """Raises ConfigError where the weights that were found are not those that a config.json with `settings` asks for.

    Of a family whose weights the table does not list, nothing is refused: loading them will tell.
    """
    family = family_of(settings.get("model_type"), str(source))
    if family.weights is None:
        return
    wanted, names = family.weights(settings), _full_names(found, family)
    for key, name in sorted(names.items()):
        file, shape = found[key]
        if name not in wanted:
            raise ConfigError(f"{source}: {file} has {key}, of which config.json knows nothing", hint=_HINT)
        if shape != wanted[name]:
            raise ConfigError(
                f"{source}: {file}: {key} has shape {_text(shape)}, by config.json it is {_text(wanted[name])}",
                hint=_HINT,
            )
    tied = (family.embedding, family.head) if settings.get("tie_word_embeddings") else ()
    if missing := sorted(wanted.keys() - names.values() - {f"{name}.weight" for name in tied}):
        raise ConfigError(f"{source} lacks {missing[0]}, which config.json asks for", hint=_HINT)


def refuse_batch_norm(source: Path, found: Mapping[str, tuple[str, Shape]]) -> None:
    """Raises ConfigError for a model with batch normalisation, which shows by the statistics that it keeps."""
    for key, (file, _) in sorted(found.items()):
        if key.endswith(".running_mean"):
            raise ConfigError(
                f"{source}: {file} has {key}: with batch normalisation, what a model learns depends on the micro-batch "
                "and on the number of processes",
                hint="take one that normalises by groups or layers: a model of type bit (a residual network) or vit",
            )


def _full_names(found: Collection[str], family: Family) -> dict[str, str]:
    """The names of weights by those that files give them.

    A model that was saved without its head has names of its own; transformers loads it all the same.
    """
    body, head = f"{family.blocks.partition('.')[0]}.", f"{family.head}."
    inside = "" if any(key.startswith(body) for key in found) else body
    return {key: key if key.startswith(head) else f"{inside}{key}" for key in found if _OLD_BUFFER not in key}


def _shapes_in(path: Path) -> dict[str, Shape]:
    size = path.stat().st_size
    with path.open("rb") as file:

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(min(length, size))  # a damaged header may ask for any length

        return {key: extent.shape for key, extent in extents(read_at, size, path.name).items()}


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))
