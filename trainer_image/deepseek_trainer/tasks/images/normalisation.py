"""How pixels become what a model takes, and the file by which plain transformers does the same.

Without torch's own import, so that preparation can check a base model's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.images import ImagesSpec

if TYPE_CHECKING:
    from torch import Tensor

PREPROCESSOR: Final = "preprocessor_config.json"
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
    def of_base(cls, settings: Mapping[str, Any], channels: int) -> Self:
        """As the base model's preprocessor_config.json has it.  Raises ConfigError for one that says something else."""
        if settings.get("do_normalize") is False:
            return cls((0.0,) * channels, (1.0,) * channels)
        mean, std = (settings.get(name) for name in ("image_mean", "image_std"))
        made = cls(*(_numbers(values, channels) for values in (mean, std)))
        if len(made.mean) != channels or len(made.std) != channels or not all(value > 0 for value in made.std):
            raise ConfigError(
                f"the base model's {PREPROCESSOR} has image_mean {mean} and image_std {std}: each needs a number for "
                f"each of data.images.channels={channels}",
                hint="take it from the release of the model, or leave it out",
            )
        return made

    def __call__(self, images_BCHW: "Tensor") -> "Tensor":
        """float32 of the same shape."""
        from torch import stack  # noqa: PLC0415 see above

        channels = zip(images_BCHW.unbind(1), self.mean, self.std, strict=True)
        return stack([(values - mean) / std for values, mean, std in channels], dim=1)

    def preprocessor(self, images: ImagesSpec) -> bytes:
        """preprocessor_config.json."""
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": images.height, "width": images.width},
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
            "do_convert_rgb": images.channels == 3,
        }
        return json.dumps(settings, indent=2).encode()


def _numbers(values: Any, channels: int) -> tuple[float, ...]:
    listed = values if isinstance(values, list) else [0.5 if values is None else values] * channels
    return tuple(float(value) for value in listed if isinstance(value, int | float))
