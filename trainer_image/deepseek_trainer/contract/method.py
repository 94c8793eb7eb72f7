"""How the weights are changed."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule


class MethodType(StrEnum):
    FULL = "Full"
    LORA = "LoRA"


class LoraSpec(Model):
    """Low-rank adapters on a frozen base."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank r of each update.")] = 16
    alpha: Annotated[int, Field(ge=1, le=4096, description="Updates are scaled by alpha / rank.")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapters' input.")] = 0.1
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(min_length=1, max_length=32, description="Names of the linear layers that get an adapter."),
    ] = ("q_proj", "v_proj")


class MethodSpec(Model):
    """How the weights are changed."""

    type: Annotated[MethodType, Field(description="Full: all weights. LoRA: adapters on a frozen base.")] = (
        MethodType.FULL
    )
    lora: Annotated[LoraSpec | None, Field(description="Adapter settings; only with type LoRA.")] = None

    rules: ClassVar = (
        Rule(
            "!has(self.lora) || self.type == 'LoRA'",
            "lora is only read with type LoRA: set type: LoRA or drop lora",
            lambda self: self.lora is None or self.type is MethodType.LORA,
        ),
    )
