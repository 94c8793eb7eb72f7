"""The result."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from deepseek_trainer.contract.rules import Model


class ExportFormat(StrEnum):
    ADAPTER = "Adapter"
    MERGED = "Merged"


class ExportSpec(Model):
    """The result: safetensors files, tokenizer, model card and run report."""

    formats: Annotated[
        tuple[ExportFormat, ...],
        Field(
            min_length=1,
            max_length=2,
            description="Merged: a complete model. Adapter: the weights of LoRA or QLoRA alone.",
        ),
    ] = (ExportFormat.MERGED,)
    sealed: Annotated[
        bool | None, Field(description="Encrypt the result. Default: yes where checkpoint.encryption is given.")
    ] = None
