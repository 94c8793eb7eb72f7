"""Models to measure with, and the operations that a token costs."""

from typing import Final

import bare_machine  # noqa: F401 first
import torch

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.model import ParameterCount

VOCAB: Final = 50_304  # GPT-2's 50,257, padded to a multiple of 128


def size(hidden: int, layers: int, heads: int, wide: int, vocab: int = VOCAB, **more: object) -> Architecture:
    return Architecture(
        hidden_size=hidden, num_layers=layers, num_heads=heads, intermediate_size=wide, vocab_size=vocab, **more
    )


SIZES: Final = {
    "tiny": size(64, 2, 2, 128, 512),
    "10m": size(256, 8, 4, 704, 16_384),  # 10.6 M
    "article-002": size(768, 6, 12, 2048, tie_embeddings=False),  # 119.8 M
    "gpt2": size(768, 12, 12, 2048),  # 123.6 M
    "1b": size(2048, 16, 32, 8192, num_key_value_heads=8),  # 1.08 B
    "3b": size(3072, 28, 24, 8192, num_key_value_heads=8),
    "7b": size(4096, 32, 32, 11_008),
    "13b": size(5120, 40, 40, 13_824),
}

PEAKS: Final = {"H100": 989e12, "H200": 989e12}  # dense BF16 [FLOP/s] of the SXM modules; NVIDIA's data sheets


def flop_per_token(model: Architecture, count: ParameterCount, length: int) -> float:
    """6N + 12 L H Q T, as arXiv:2204.02311, appendix B: N all parameters, full attention, nothing done twice.

    A frozen weight costs 4 instead of 6: it has no gradient of its own.
    """
    head = model.hidden_size // model.num_heads
    attention = 12 * model.num_layers * model.num_heads * head * length
    return 4.0 * count.total + 2.0 * count.trainable + attention


def peak_of(device: torch.device) -> float | None:
    """FLOP/s; None where we do not know."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    is_other = "PCIe" in name or "NVL" in name  # other clocks under the same names
    return None if is_other else next((peak for key, peak in PEAKS.items() if key in name), None)
