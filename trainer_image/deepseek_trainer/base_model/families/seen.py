"""What the attention of a family's decoders sees: the whole text, or a window of it, in all layers or in some."""

from typing import Any, Final

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families.family import ALIKE, Windows
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

FULL, SLIDING = "full_attention", "sliding_attention"  # as `layer_types` of config.json names them


def everywhere(settings: Settings) -> Windows:
    """One window for all layers, if config.json has one."""
    return {ALIKE: settings.get("sliding_window")}


def by_layer(settings: Settings) -> Windows:
    """A window for some of the layers.  Raises ConfigError for a kind of layer that the trainer does not know."""
    known = {FULL: None, SLIDING: settings.get("sliding_window")}
    kinds = settings.get("layer_types") or ()
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ConfigError(
            f"the base model's config.json has layer_types {shown(unknown[0])}: the trainer does not know what such a "
            "layer sees of a text",
            hint=f"models with layers of {', '.join(known)} can be trained",
        )
    return {kind: window for kind, window in known.items() if kind in (kinds or known)}


TWO_MASKS: Final[dict[str, Any]] = {"mask_bytes": 2}


def cost_by_layer(settings: Settings) -> dict[str, Any]:
    """What `Dimensions` says of a decoder of which some layers have a window."""
    return TWO_MASKS if SLIDING in (settings.get("layer_types") or ()) else {}
