"""FLOPs of a token, peaks of GPUs, and how much of its peak a GPU uses (MFU, HFU).  Pure; without torch.

A multiplication and an addition are two FLOPs.  Every number names its convention, for without it none can be
compared, both as arXiv:2204.02311, appendix B: `flops_per_token` and MFU count what the model needs, `hardware_flops`
and HFU what the GPU does, padding and activations that are made again included.  Attention counts all T x T scores,
as is usual, also those that the mask hides.
"""

from dataclasses import dataclass
from typing import Final

from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.contract.optimization import Recompute


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense peak of its tensor cores [FLOP/s], in BF16 where it has it; memory [bytes] as the data sheet says."""

    peak: float
    memory: int
    has_bf16: bool = True


def _gb(gigabytes: int) -> int:
    return gigabytes * 10**9


# Data sheets at nvidia.com, without sparsity, by the name that the driver and torch.cuda.get_device_name give.
# GeForce: with FP32 accumulation (whitepapers GA102, table 2, and AD102, table 2).
# The data sheets' gigabytes are decimal and the chips have a few percent more: CUDA's context takes that.
GPUS: Final = {
    "NVIDIA B200": Gpu(2250e12, _gb(180)),
    "NVIDIA H200": Gpu(989e12, _gb(141)),
    "NVIDIA H100 80GB HBM3": Gpu(989e12, _gb(80)),  # SXM
    "NVIDIA H100 PCIe": Gpu(756e12, _gb(80)),
    "NVIDIA A100-SXM4-80GB": Gpu(312e12, _gb(80)),
    "NVIDIA A100-SXM4-40GB": Gpu(312e12, _gb(40)),
    "NVIDIA A100 80GB PCIe": Gpu(312e12, _gb(80)),
    "NVIDIA A100-PCIE-40GB": Gpu(312e12, _gb(40)),
    "NVIDIA L40S": Gpu(362e12, _gb(48)),
    "NVIDIA L4": Gpu(121e12, _gb(24)),
    "NVIDIA GeForce RTX 4090": Gpu(165e12, _gb(24)),
    "NVIDIA GeForce RTX 3090": Gpu(71e12, _gb(24)),
    "Tesla V100-SXM2-32GB": Gpu(125e12, _gb(32), has_bf16=False),  # FP16
    "Tesla V100-SXM2-16GB": Gpu(125e12, _gb(16), has_bf16=False),
}


def gpu_named(text: str) -> str:
    """The GPU called `text`, or the only one whose name has it.  Raises ConfigError for none or several."""
    wanted = text.casefold()
    exact = [name for name in GPUS if name.casefold() in (wanted, f"nvidia {wanted}")]
    found = exact or [name for name in GPUS if wanted in name.casefold()]
    if len(found) != 1:
        known = "; ".join(found or GPUS)
        problem = "is the name of several GPUs" if found else "is no GPU whose peak and memory are known"
        raise ConfigError(f"{text!r} {problem}", hint=f"one of: {known}")
    return found[0]


def palm_flops(parameters: int, layers: int, width: int, length: int) -> int:
    """FLOPs to train on one token: 6 N + 12 L H Q T (arXiv:2204.02311, appendix B).

    `parameters` N: those that a token is multiplied with, the output matrix too, an embedding that is only looked up
    not; `width` H Q: of all heads; `length` T: of a row [tokens].
    """
    return 6 * parameters + 12 * layers * width * length


def lora_flops(frozen: int, adapters: int, layers: int, width: int, length: int) -> int:
    """Through frozen weights 2 N forward and 2 N backward; 6 for each weight of an adapter; attention as ever."""
    return 4 * frozen + palm_flops(adapters, layers, width, length)


def flops_per_token(
    dimensions: Dimensions, length: int, lora: LoraSpec | None = None, frozen_layers: int | None = None
) -> int:
    """FLOPs to train on one token of a row of `length`, in PaLM's convention; of frozen weights what they need."""
    used, width = dimensions.parameters - dimensions.looked_up, dimensions.attention
    if lora is not None:
        return lora_flops(used, dimensions.adapters(lora), dimensions.layers, width, length)
    return palm_flops(used, dimensions.layers, width, length) - _spared(dimensions, length, frozen_layers or 0)


def model_flops(config: TrainingConfig, dimensions: Dimensions) -> int:
    """FLOPs to train on one token of a job whose method is settled; of pairs with their reference's forward pass."""
    method, length = config.method, config.data.sequence_length
    reference = flops_per_token(dimensions, length) // 3 if config.preference else 0
    return flops_per_token(dimensions, length, method.adapters, method.frozen_layers) + reference


def hardware_flops(config: TrainingConfig, dimensions: Dimensions) -> int:
    """What a GPU does for one position of a row: with recompute Full the trained layers' forward pass twice.

    Of a job whose method is settled.  Not counted: logits of pairs, made again where a micro-batch has many.
    """
    method, length = config.method, config.data.sequence_length
    flops = model_flops(config, dimensions)
    if config.optimization.recompute is not Recompute.FULL:
        return flops  # Selective keeps all that is counted here
    of_layer = (dimensions.in_blocks + dimensions.adapters(method.adapters)) // dimensions.layers
    again = dimensions.layers - (method.frozen_layers or 0)
    return flops + again * (2 * of_layer + 4 * dimensions.attention * length)


def _spared(dimensions: Dimensions, length: int, layers: int) -> int:
    """FLOPs that the lowest `layers` layers, frozen, do without: their backward pass; and a tied head its gradient."""
    if not layers:
        return 0
    embedding = dimensions.vocab * dimensions.hidden
    below = 4 * (dimensions.frozen(layers) - embedding) + 8 * layers * dimensions.attention * length
    return below + (2 * embedding if dimensions.tied else 0)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the speed of a run is held against."""

    peak: float  # of all its GPUs [FLOP/s]
    of_token: int  # FLOPs that the model needs
    of_row: int  # FLOPs that a GPU does

    @classmethod
    def of(cls, gpu: str | None, config: TrainingConfig, dimensions: Dimensions) -> "Yardstick | None":
        """Of a job whose method is settled, on GPUs of this name; None where their peak is not known."""
        if gpu not in GPUS:
            return None
        return cls(
            peak=config.world_size * GPUS[gpu].peak,
            of_token=model_flops(config, dimensions),
            of_row=config.data.sequence_length * hardware_flops(config, dimensions),
        )

    def mfu(self, tokens_per_second: float) -> float:
        """Share of the peak that the model's FLOPs take; tokens of all ranks, padding left out."""
        return tokens_per_second * self.of_token / self.peak

    def hfu(self, rows_per_second: float) -> float:
        """Share of the peak that all FLOPs take; rows of all ranks."""
        return rows_per_second * self.of_row / self.peak
