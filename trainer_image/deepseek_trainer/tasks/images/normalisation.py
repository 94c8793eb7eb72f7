"""By what numbers pixels become what a model takes, and the file by which plain transformers does the same.

Without torch, so that preparation can check those of a base model.
"""

from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any, Final, Self

from deepseek_trainer.base_model.directory import PREPROCESSOR
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import number, shown
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.storage.vault import Vault

BYTE: Final = 1 / 255
_BILINEAR: Final = 2  # of Pillow's filters


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Of each channel: its values, in [0, 1], less `mean`, over `std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def plain(cls, channels: int) -> Self:
        """From -1 to 1."""
        return cls((0.5,) * channels, (0.5,) * channels)

    @classmethod
    def of_base(cls, directory: Path, vault: Vault, channels: int) -> Self:
        """As the prepared base says; from -1 to 1 where it says nothing.  Raises ConfigError for what is not done."""
        settings: dict[str, Any] = vault.document(directory / PREPROCESSOR, dict)
        factor = settings.get("rescale_factor", BYTE) if settings.get("do_rescale", True) else 1
        if number(factor) is None or not isclose(factor, BYTE, rel_tol=1e-3):
            raise _unusable(f"rescale_factor {shown(factor)}", "pixels must be divided by 255")
        if not settings.get("do_normalize", True):
            return cls((0.0,) * channels, (1.0,) * channels)
        mean, std = settings.get("image_mean", [0.5] * channels), settings.get("image_std", [0.5] * channels)
        if not (_fit(mean, channels) and _fit(std, channels) and min(std) > 0):
            raise _unusable(
                f"image_mean {shown(mean)} and image_std {shown(std)}", f"each needs {channels} numbers, std above 0"
            )
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def preprocessor(self, images: ImagesSpec) -> bytes:
        """preprocessor_config.json."""
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": images.height, "width": images.width},
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": BYTE,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
            "do_convert_rgb": images.channels == 3,
        }
        return json_text(settings, indent=2).encode()


def _fit(values: Any, channels: int) -> bool:
    return isinstance(values, list) and len(values) == channels and None not in map(number, values)


def _unusable(what: str, rule: str) -> ConfigError:
    return ConfigError(
        f"the base model's {PREPROCESSOR} has {what}: {rule}",
        hint="correct it, or leave the file out: then mean and std are 0.5",
    )
