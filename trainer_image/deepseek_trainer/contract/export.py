"""The result."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from deepseek_trainer.contract.rules import Model


class ExportFormat(StrEnum):
    ADAPTER = "Adapter"
    MERGED = "Merged"


class ExportDtype(StrEnum):
    """What the weights of a result are stored in."""

    SAME = "Same"
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"


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
    dtype: Annotated[
        ExportDtype,
        Field(
            description="What weights are stored in. Same: as in the base model's files, FP32 of a model from scratch "
            "and of a GGUF file; weights of an adapter alone are FP32."
        ),
    ] = ExportDtype.SAME
    sealed: Annotated[
        bool | None, Field(description="Encrypt the result. Default: yes where checkpoint.encryption is given.")
    ] = None
