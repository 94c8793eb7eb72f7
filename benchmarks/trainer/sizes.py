"""Models to measure with, and what a GPU could do."""

from typing import Final

import bare_machine  # noqa: F401 first
import torch

from deepseek_trainer.budget.perf import GPUS
from deepseek_trainer.contract.model import Architecture

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


def peak_of(device: torch.device) -> float | None:
    """FLOP/s; None where we do not know."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return GPUS[name].peak if name in GPUS else None
