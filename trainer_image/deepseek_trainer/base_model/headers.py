"""What a base model's weight files say of themselves, held against its config.json before any of it is read.

Without torch.  Names and shapes are those of transformers for the families of the table of `families/`.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from deepseek_trainer.base_model.decoder import Settings, Shape, is_tied
from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.base_model.quantised import refuse_quantised_weights
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.tensorfile import Extent, extents

_HINT: Final = "take config.json and all weights, and nothing else, from one release of the model"
_MAX_NAME: Final = 200  # [characters] in a message
_TRAINABLE: Final = ("F32", "BF16", "F16")
_COUNTER: Final = ".num_batches_tracked"  # beside the statistics of batch normalisation
_OLD_BUFFER: Final = "rotary_emb.inv_freq"  # that old releases of transformers saved, and all pass over


def weights_in(directory: Path, names: Iterable[str], claim: Path | None = None) -> dict[str, tuple[str, Shape]]:
    """File and shape of each tensor in these safetensors files, by name; reads their headers alone.

    Raises ConfigError where links lead out of the `claim`, and for a tensor that lies in two files.
    """
    found: dict[str, tuple[str, Shape]] = {}
    for name in names:
        for key, shape in _shapes_in(directory / name, claim).items():
            if key in found:
                raise ConfigError(f"{directory}: {shown(key)} is both in {found[key][0]} and in {name}", hint=_HINT)
            found[key] = (name, shape)
    return found


def refuse_other_weights(source: Path, found: Mapping[str, tuple[str, Shape]], settings: Settings) -> None:
    """Raises ConfigError where the weights that were found are not those that a config.json with `settings` asks for.

    Of a family whose weights the table does not list, nothing is refused: loading them will tell.
    """
    refuse_quantised_weights(found, source)
    family = family_of(settings.get("model_type"), str(source))
    if family.weights is None:
        _refuse_larger(source, found, settings)
        return
    wanted, names = family.weights(settings), full_names(found, family, family.passed_over(settings))
    for key, name in sorted(names.items()):
        file, shape = found[key]
        if name not in wanted:
            raise ConfigError(
                f"{source}: {file} has {shown(key, _MAX_NAME)[1:-1]}, of which config.json knows nothing", hint=_HINT
            )
        if shape != wanted[name]:
            raise ConfigError(
                f"{source}: {file}: {key} has shape {_text(shape)}, by config.json it is {_text(wanted[name])}",
                hint=_HINT,
            )
    tied = (family.embedding, family.head) if is_tied(settings, by_default=family.tied) else ()
    if missing := sorted(wanted.keys() - names.values() - {f"{name}.weight" for name in tied}):
        raise ConfigError(f"{source} lacks {missing[0]}, which config.json asks for", hint=_HINT)


def _refuse_larger(source: Path, found: Mapping[str, tuple[str, Shape]], settings: Settings) -> None:
    """Raises ConfigError where config.json asks for more than the weights can be of: building that would take it."""
    widest = max((size for _, shape in found.values() for size in shape), default=0)
    for name in ("hidden_size", "intermediate_size", "embedding_size", "hidden_sizes", "patch_size"):
        value = settings.get(name) or 0
        if max(value if isinstance(value, list) else [value]) > widest:
            raise ConfigError(
                f"{source}: by config.json {name} is {value}, and no weight is wider than {widest}", hint=_HINT
            )
    blocks = sum(settings.get("depths") or [settings.get("num_hidden_layers") or 0])
    if blocks > len(found):
        raise ConfigError(
            f"{source}: by config.json there are {blocks} blocks, and only {len(found)} weights", hint=_HINT
        )


def refuse_batch_norm(source: Path, found: Mapping[str, tuple[str, Shape]]) -> None:
    """Raises ConfigError for a model with batch normalisation, which shows by the statistics that it keeps."""
    for key, (file, _) in sorted(found.items()):
        if key.endswith(".running_mean"):
            raise ConfigError(
                f"{source}: {file} has {shown(key, _MAX_NAME)[1:-1]}: with batch normalisation, what a model learns "
                "depends on the micro-batch "
                "and on the number of processes",
                hint="take one that normalises by groups or layers: a model of type bit (a residual network) or vit",
            )


def full_names(found: Collection[str], family: Family, passed_over: tuple[str, ...]) -> dict[str, str]:
    """The names of weights by those that files give them.

    A model that was saved without its head has names of its own; transformers loads it all the same.
    """
    body, head = f"{family.blocks.partition('.')[0]}.", f"{family.head}."
    inside = "" if any(key.startswith(body) for key in found) else body
    kept = (key for key in found if _OLD_BUFFER not in key and not key.endswith(family.old_buffers))
    names = {key: key if key.startswith(head) else f"{inside}{key}" for key in kept}
    return {key: name for key, name in names.items() if not name.startswith(passed_over)}


def _shapes_in(path: Path, claim: Path | None) -> dict[str, Shape]:
    with opened(path, below=claim) as file:
        size = os.fstat(file.fileno()).st_size

        def read_at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(min(length, size))  # a damaged header may ask for any length

        found = extents(read_at, size, path.name)
        _refuse_other_types(path, found)
        return {key: extent.shape for key, extent in found.items()}


def _refuse_other_types(path: Path, found: Mapping[str, Extent]) -> None:
    """Raises ConfigError for weights of types that loading the model would refuse, as those of quantised ones are."""
    refuse_quantised_weights(found, path.parent)
    for key, extent in sorted(found.items()):
        if extent.dtype not in _TRAINABLE and not key.endswith(_COUNTER):
            raise ConfigError(
                f"{path.parent}: {path.name}: {shown(key, _MAX_NAME)[1:-1]} is of type {extent.dtype}: weights of "
                f"{', '.join(_TRAINABLE)} can be trained",
                hint="take the release of the model that is not quantised, or store it in one of these types",
            )


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))
