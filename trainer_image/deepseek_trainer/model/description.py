"""What an export says of a model beside its weights: its base's own words, but for what training has changed."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from transformers import PreTrainedModel

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.export import ExportDtype

Tokens = Mapping[str, int | None]  # numbers of special tokens, by their names in config.json

_DTYPE: Final = ("dtype", "torch_dtype")  # as config.json has it now, and as it did before transformers 5


def config_json(
    model: PreTrainedModel, base: Settings | None, dtype: str, asked: ExportDtype, changes: Mapping[str, Any]
) -> bytes:
    """The content of config.json.  `base`: that of the base model's, None from scratch.

    `dtype`: what most weights are stored in.  What the base says of that stays if the job `asked` for the same.
    """
    changed = {"architectures": [type(model).__name__], **changes}
    if base is None:
        model.config.update({**changed, "dtype": dtype})
        return str(model.config.to_json_string(use_diff=False)).encode()
    known = [name for name in _DTYPE if base.get(name) is not None]
    if asked is not ExportDtype.SAME or not known:
        changed |= dict.fromkeys(known or _DTYPE[:1], dtype)
    return _json({**base, **changed})


def generation_json(base: Settings, special: Tokens, stops: Iterable[int]) -> bytes:
    """The content of generation_config.json: the base model's, which also stops at `stops`.

    Of `special` tokens it has those that the base has none for.
    """
    said = dict(base) | lacking(base, special)
    ends = said.get("eos_token_id")
    known = ends if isinstance(ends, list) else [ends]
    if more := [stop for stop in stops if stop not in known]:
        said["eos_token_id"] = [*known, *more]
    return _json(said)


def lacking(base: Settings, special: Tokens) -> dict[str, int]:
    """Those of `special` that the base does not name."""
    return {name: token for name, token in special.items() if token is not None and base.get(name) is None}


def _json(said: Mapping[str, Any]) -> bytes:
    return (json_text(said, indent=2, ensure_ascii=False) + "\n").encode()
