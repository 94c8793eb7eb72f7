"""FLOPs of a token, peaks of GPUs, and how much of its peak a GPU uses (MFU, HFU).  Pure; without torch.

A multiplication and an addition are two FLOPs.  Numbers can only be compared within one convention; this is that of
arXiv:2204.02311, appendix B.  `flops_per_token` and MFU count what the model needs.  `hardware_flops` and HFU count
what the GPU does, with padding and with activations that are computed again.  Attention counts all T x T scores, as
usual, also those that the mask hides.
"""

from dataclasses import dataclass
from typing import Final

from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.contract.optimization import Recompute


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense peak of a GPU's tensor cores [FLOP/s], in BF16 if it has that, and its memory by the data sheet [bytes]."""

    peak: float
    memory: int
    has_bf16: bool = True


def _gb(gigabytes: int) -> int:
    return gigabytes * 10**9


# From the data sheets at nvidia.com, without sparsity, by the name that the driver and torch.cuda.get_device_name use.
# GeForce: with FP32 accumulation (whitepapers GA102, table 2, and AD102, table 2).
# The data sheets' gigabytes are decimal.  The chips have a few percent more, which CUDA's context takes.
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
    """The GPU called `text`, or the only one whose name contains it.  Raises ConfigError for none or several."""
    wanted = text.casefold()
    exact = [name for name in GPUS if name.casefold() in (wanted, f"nvidia {wanted}")]
    found = exact or [name for name in GPUS if wanted in name.casefold()]
    if len(found) != 1:
        known = "; ".join(found or GPUS)
        problem = "is the name of several GPUs" if found else "is no GPU whose peak and memory are known"
        raise ConfigError(f"{shown(text)} {problem}", hint=f"one of: {known}")
    return found[0]


def palm_flops(parameters: int, layers: int, width: int, length: int) -> int:
    """FLOPs to train on one token: 6 N + 12 L H Q T (arXiv:2204.02311, appendix B).

    `parameters` N are those that a token is multiplied with: the output matrix counts, an embedding that is only looked
    up does not.  `width` H Q is that of all heads.  `length` T is that of a row [tokens].
    """
    return 6 * parameters + 12 * layers * width * length


def lora_flops(frozen: int, adapters: int, layers: int, width: int, length: int) -> int:
    """FLOPs to train adapters on one token: 4 for each frozen weight, 6 for each of an adapter, attention as above."""
    return 4 * frozen + palm_flops(adapters, layers, width, length)


def flops_per_token(
    dimensions: Dimensions, length: int, lora: LoraSpec | None = None, frozen_layers: int | None = None
) -> int:
    """FLOPs to train on one token of a row of `length`, in PaLM's convention.  Frozen weights count what they need."""
    used, width = dimensions.active - dimensions.looked_up, dimensions.attention
    if lora is not None:
        return lora_flops(used, dimensions.active_adapters(lora), dimensions.layers, width, length)
    return palm_flops(used, dimensions.layers, width, length) - _spared(dimensions, length, frozen_layers or 0)


def model_flops(config: TrainingConfig, dimensions: Dimensions) -> int:
    """FLOPs to train on one token.  The job's method must be settled.  Pairs include their reference's forward pass."""
    method, length = config.method, config.data.sequence_length
    reference = flops_per_token(dimensions, length) // 3 if config.has_reference else 0
    return flops_per_token(dimensions, length, method.adapters, method.frozen_layers) + reference


def hardware_flops(config: TrainingConfig, dimensions: Dimensions) -> int:
    """FLOPs of a GPU for one position of a row.  With recompute Full, the trained layers' forward pass counts twice.

    The job's method must be settled.  Logits of pairs that a large micro-batch computes again are not counted.
    """
    method, length = config.method, config.data.sequence_length
    flops = model_flops(config, dimensions)
    if config.optimization.recompute is not Recompute.FULL:
        return flops  # Selective computes nothing again that is counted here
    frozen, adapters = method.frozen_layers or 0, dimensions.active_adapters(method.adapters)
    again = dimensions.active_after(frozen) + adapters
    return flops + 2 * again + 4 * (dimensions.layers - frozen) * dimensions.attention * length


def _spared(dimensions: Dimensions, length: int, layers: int) -> int:
    """FLOPs saved by freezing the lowest `layers` layers: their backward pass, and the gradient of a tied head."""
    if not layers:
        return 0
    embedding = dimensions.vocab * dimensions.hidden
    below = 4 * (dimensions.frozen(layers, is_active=True) - embedding) + 8 * layers * dimensions.attention * length
    return below + (2 * embedding if dimensions.tied else 0)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the speed of a run is compared with."""

    peak: float  # of all its GPUs [FLOP/s]
    of_token: int  # FLOPs that the model needs
    of_row: int  # FLOPs that a GPU does

    @classmethod
    def of(cls, gpu: str | None, config: TrainingConfig, dimensions: Dimensions) -> "Yardstick | None":
        """For a job on GPUs of this name; None if their peak is not known.  The job's method must be settled."""
        if gpu not in GPUS:
            return None
        return cls(
            peak=config.world_size * GPUS[gpu].peak,
            of_token=model_flops(config, dimensions),
            of_row=config.data.sequence_length * hardware_flops(config, dimensions),
        )

    def mfu(self, tokens_per_second: float) -> float:
        """The share of the peak that the model's FLOPs take, from the tokens of all ranks, padding left out."""
        return tokens_per_second * self.of_token / self.peak

    def hfu(self, rows_per_second: float) -> float:
        """The share of the peak that all FLOPs take, from the rows of all ranks."""
        return rows_per_second * self.of_row / self.peak
