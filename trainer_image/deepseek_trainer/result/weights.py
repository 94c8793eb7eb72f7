"""What an export's weight file holds: the names that the family's own files have, and each weight's type."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from deepseek_trainer.base_model.source import read_source
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.export import ExportDtype
from deepseek_trainer.model.blocks import family
from deepseek_trainer.model.buffers import saved_buffers
from deepseek_trainer.model.loading import DTYPES
from deepseek_trainer.storage.tensorfile import extents
from deepseek_trainer.storage.vault import Vault

Dtypes = Mapping[str, torch.dtype]  # of weights, by their names in files

NOTHING: Final[Dtypes] = {}
_ASKED: Final = {
    ExportDtype.FP32: torch.float32,
    ExportDtype.BF16: torch.bfloat16,
    ExportDtype.FP16: torch.float16,
}


def file_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """All that the files of `model` hold, each weight under one name: loading ties tied ones again.

    In memory transformers has names and shapes of its own for some families; what it did to load them is undone.
    Parts of a weight that is divided again share its memory, where the layout lets them.
    """
    return dict(revert_weight_conversion(model, _parameters(model) | saved_buffers(model)))


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """They do not come from `state_dict`, which makes FSDP shard them again.

    Under FSDP they are copies: it frees what it has gathered, and cannot while the bytes are in use.
    """
    own, in_blocks = dict(model.named_parameters()), family(model).blocks.partition("*")[0]
    every = model.named_parameters(remove_duplicate=False)
    repeated = {name: p for name, p in every if name.startswith(in_blocks) and name not in own}
    # Blocks that share weights are no modules of FSDP, which the module around the model is.
    is_sharded = bool(repeated) or any(isinstance(module, FSDPModule) for module in model.modules())
    weights = {**own, **repeated}
    return {name: p.detach().clone() if is_sharded else p.detach() for name, p in weights.items()}


def stored_dtypes(directory: Path, vault: Vault) -> dict[str, torch.dtype]:
    """What the files of a prepared base model hold its weights in; their headers alone are read."""
    found: dict[str, torch.dtype] = {}
    for name in read_source(directory, vault).weights:
        with vault.open_reader(directory / name) as reader:
            there = extents(reader.read_at, reader.size, name)
        found |= {key: DTYPES[extent.dtype] for key, extent in there.items() if extent.dtype in DTYPES}
    return found


def export_dtypes(
    weights: Mapping[str, Tensor], asked: ExportDtype, stored: Dtypes = NOTHING, model: PreTrainedModel | None = None
) -> dict[str, torch.dtype]:
    """What each of `weights` is written in.

    As it was `stored`, one that was not as most that were; or as the job `asked`, apart from those of which the
    `model`'s own class says that they stay in FP32.
    """
    floating = [name for name, weight in weights.items() if weight.is_floating_point()]
    if asked is ExportDtype.SAME:
        usual = _most_common(stored) if stored else torch.float32
        return {name: stored.get(name, usual) for name in floating}
    dtype = _ASKED[asked]
    precise = () if model is None else tuple(model._get_dtype_plan(dtype))
    return {name: torch.float32 if _is_one(name, precise) else dtype for name in floating}


def usual_dtype(dtypes: Dtypes) -> str:
    """What most weights are stored in, as config.json names it."""
    return str(_most_common(dtypes)).removeprefix("torch.")


def refuse_overflow(weights: Mapping[str, Tensor], dtypes: Dtypes) -> None:
    """Raises NotFiniteError where a weight is too large for FP16."""
    largest = torch.finfo(torch.float16).max
    for name, dtype in dtypes.items():
        if dtype is torch.float16 and weights[name].numel() and not weights[name].abs().max() <= largest:
            raise NotFiniteError(
                f"{name} has weights beyond {largest:,.0f}, the largest that FP16 holds",
                hint="set export.dtype: BF16 or FP32",
            )


def _most_common(dtypes: Dtypes) -> torch.dtype:
    return Counter(dtypes.values()).most_common(1)[0][0]


def _is_one(name: str, parts: tuple[str, ...]) -> bool:
    return any(re.search(part.replace("*", r"\d+"), name) for part in parts)
