"""The ways to rotate by position that a config.json may ask transformers for, and what each needs."""

from collections.abc import Mapping
from typing import Any, Final

from deepseek_trainer.contract.foreign import number

_PER_PAIR: Final = ("short_factor", "long_factor")  # a number for each pair that is rotated
ROTARY: Final[Mapping[str, tuple[str, ...]]] = {  # the kinds of rotation, and what each needs
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": _PER_PAIR,
    "su": _PER_PAIR,  # what Phi-3 called longrope
    "proportional": (),
}
POSITIONS: Final = "an object whose rope_type is " + ", ".join(
    f"{kind} with {' and '.join(needs)}" if needs else kind for kind, needs in ROTARY.items()
)


def are_positions(value: object) -> bool:
    """Whether it is what transformers rotates by, for all layers or for each type of layer."""
    if not isinstance(value, dict):
        return False
    nested = [inner for inner in value.values() if isinstance(inner, dict)]
    return all(map(_is_rotary, nested or [value]))


def _is_rotary(value: Mapping[str, Any]) -> bool:
    kind = value.get("rope_type", value.get("type", "default"))
    theta = value.get("rope_theta")
    if not isinstance(kind, str) or kind not in ROTARY or (theta is not None and not _is_above_0(theta)):
        return False
    if set(_PER_PAIR) <= value.keys():  # Phi-3's first releases called this yarn
        return all(_are_above_0(value[name]) for name in _PER_PAIR)
    return all(_is_above_0(value.get(name)) for name in ROTARY[kind])


def _is_above_0(value: object) -> bool:
    return (number(value) or 0) > 0


def _are_above_0(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_above_0, value))
