"""What all contestants share: model, batch, optimizer, precision, and how a lap is timed."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import bare_machine  # noqa: F401 first
import torch
from corpora import Corpus
from torch import nn

from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.budget.perf import flops_per_token
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.loading import scratch_model, trainable_parameters
from deepseek_trainer.worker.distributed import World

RATE, DECAY, BETAS, MAX_NORM = 3e-4, 0.01, (0.9, 0.95), 1.0
LORA = LoraSpec(dropout=0.0)


@dataclass(frozen=True, slots=True)
class Setting:
    size: Architecture
    length: int  # tokens of a row
    rows: int  # a step takes, over all ranks
    micro: int  # of them in one pass
    world: World
    bf16: bool  # compute; weights are FP32
    compiled: bool = False
    lora: bool = False

    @property
    def passes(self) -> int:
        """Of a rank in a step."""
        return -(-self.rows // (self.world.size * self.micro))

    @property
    def autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @property
    def flops(self) -> int:
        """Of a token, in PaLM's convention."""
        return flops_per_token(scratch_dimensions(self.size), self.length, LORA if self.lora else None)

    def documents(self, corpus: Corpus) -> int:
        """In a pass: as many as our rows hold on average."""
        return max(1, round(self.rows / self.world.size / self.passes * corpus.documents_per_row))

    def model(self) -> nn.Module:
        """The same weights each time."""
        torch.manual_seed(0)
        with self.world.device:  # billions of weights are drawn faster where they are needed
            model = scratch_model(self.size, self.length, seed=0).train()
            return with_adapters(model, LORA, seed=0) if self.lora else model


def adamw(model: nn.Module, fused: bool) -> torch.optim.AdamW:
    """As a job's, which the weights after some steps prove."""
    trainable = trainable_parameters(model)
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=RATE, betas=BETAS, fused=fused)


class Moment(NamedTuple):
    wall_s: float
    cpu_s: float  # of all threads of this process


@dataclass(frozen=True, slots=True)
class Lap:
    tokens: int  # of documents: padding is none
    start: Moment
    end: Moment

    @property
    def seconds(self) -> float:
        return self.end.wall_s - self.start.wall_s

    @property
    def rate(self) -> float:
        """tokens/s."""
        return self.tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Tokens per second of this process on a CPU: what others do there at the same time matters less."""
        return self.tokens / (self.end.cpu_s - self.start.cpu_s)


def now(device: torch.device) -> Moment:
    """Once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Moment(time.perf_counter(), time.process_time())
