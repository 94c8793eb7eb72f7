"""FLOPs of a token, peaks of GPUs, and how much of its peak a GPU uses (MFU).  Pure; without torch.

A multiplication and an addition are two FLOPs.  Every number names its convention, for without it none can be
compared: `palm_flops` counts what the model needs, `recomputed_flops` what the hardware does where activations are
made again in the backward pass.  Attention counts all T x T scores, as is usual, also those that the mask hides.
"""

from dataclasses import dataclass
from typing import Final

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.dimensions import Dimensions


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


def recomputed_flops(parameters: int, layers: int, width: int, length: int) -> int:
    """What the hardware does where all activations are made again: a second forward pass, 8 N + 16 L H Q T."""
    return 8 * parameters + 16 * layers * width * length


def lora_flops(frozen: int, adapters: int, layers: int, width: int, length: int) -> int:
    """Through frozen weights 2 N forward and 2 N backward; 6 for each weight of an adapter; attention as ever."""
    return 4 * frozen + palm_flops(adapters, layers, width, length)


def flops_per_token(dimensions: Dimensions, length: int, lora: LoraSpec | None = None) -> int:
    """FLOPs to train on one token of a row of `length`, in PaLM's convention."""
    used, width = dimensions.parameters - dimensions.looked_up, dimensions.attention
    if lora is None:
        return palm_flops(used, dimensions.layers, width, length)
    return lora_flops(used, dimensions.adapters(lora), dimensions.layers, width, length)


def mfu(tokens_per_second: float, flops_per_token: float, devices: int, name: str) -> float | None:
    """Share of the peak of `devices` GPUs called `name` that the model's FLOPs take; None for an unknown GPU.

    `tokens_per_second`: of all devices together.
    """
    gpu = GPUS.get(name)
    return None if gpu is None else tokens_per_second * flops_per_token / (devices * gpu.peak)
