"""LoRA adapters (arXiv:2106.09685) on a frozen base, through peft."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import transformers_weight_conversion
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepseek_trainer.base_model.families import last_names
from deepseek_trainer.budget.dimensions import target_names
from deepseek_trainer.contract.errors import ConfigError, NotFiniteError
from deepseek_trainer.contract.method import ALL_LINEAR, LoraSpec
from deepseek_trainer.model.blocks import family, linear_layers, routers
from deepseek_trainer.model.dropout import drop_by_row
from deepseek_trainer.model.nf4 import compute_dtype, dequantise

_PROBE = 32  # [tokens] compared before and after merging
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit


def with_adapters(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """`model` frozen, with fresh adapters drawn from `seed`; its answers are at first unchanged (B = 0).

    Raises ConfigError where a target module names no linear layer of the model.
    """
    stacks = family(model).stacks
    targets = _targets(model, spec, stacks)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.rank_stabilized,
        use_dora=spec.dora,
        lora_dropout=spec.dropout,
        target_modules=[name for name in targets if name not in stacks],
        target_parameters=[stacks[name] for name in targets if name in stacks] or None,
        fan_in_fan_out=family(model).is_transposed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, as it is forked
        with _names_as_they_are():
            adapted = get_peft_model(model, config)
    drop_by_row(module.lora_dropout for module in adapted.modules() if isinstance(module, LoraLayer))
    return adapted


@contextmanager
def _names_as_they_are() -> Iterator[None]:
    """Inside of it, peft adapts the layers that have the names that it is given.

    By itself it takes `gate_proj`, `up_proj` and `down_proj` of a model with experts for what transformers 4 called so,
    each expert's own matrices, and passes by the shared experts and dense layers that have these names.
    """
    usual = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = usual


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapters' weights under the names of peft's adapter_model.safetensors."""
    # By default peft asks the hub whether the vocabulary was changed.
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return dict(get_peft_model_state_dict(model, weights, save_embedding_layers=False))


def adapter_settings(model: PeftModel) -> dict[str, Any]:
    """The content of peft's adapter_config.json; without a name of the base, which only the job knows."""
    settings = model.peft_config[model.active_adapter].to_dict()
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    return plain | {"inference_mode": True, "base_model_name_or_path": None}


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapters added into its weights; `model` is used up.

    A base in NF4 is de-quantised first: what was trained is the sum with these weights, not with the original ones.
    Raises NotFiniteError where the sum is not finite, or does not answer as base and adapters did.
    """
    model.eval()
    before = _probe(model)
    dtype = compute_dtype(model)
    dequantise(model)
    complete = model.merge_and_unload()
    difference = _difference(_probe(complete), before, has_experts=bool(routers(complete)))
    limit = _TOLERANCE[dtype or complete.dtype] * before.abs().max()
    if not difference <= limit:  # also where it is NaN
        raise NotFiniteError(
            f"merging the adapters changed the model's logits by {difference:.3g}, more than {limit:.3g}",
            hint="export the adapter alone: export.formats: [Adapter]",
        )
    assert isinstance(complete, PreTrainedModel)
    return complete


def _difference(after: Tensor, before: Tensor, *, has_experts: bool) -> Tensor:
    """The largest, or with experts that of the median token: one between two experts may come to the other one."""
    of_tokens = (after - before).abs().amax(-1).flatten()
    return of_tokens.nanmedian() if has_experts and of_tokens.isfinite().all() else of_tokens.max()


def _probe(model: nn.Module) -> Tensor:
    """Logits for a few tokens of the vocabulary, fp32."""
    device = next(model.parameters()).device
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(_PROBE, device=device)[None]).logits
    return logits.float().cpu()


def _targets(model: PreTrainedModel, spec: LoraSpec, stacks: Collection[str]) -> list[str]:
    """Last names of linear layers; the head is none of them: it is often tied to the embedding, and a merge would
    change both.  `stacks` are the names of those of experts, which `all-linear` leaves out.
    """
    known = last_names(path for _, path in linear_layers(model, "method.type LoRA"))
    if spec.target_modules == (ALL_LINEAR,):
        return known
    wanted = target_names(spec, known)
    if spec.dora and (of_experts := [name for name in wanted if name in stacks]):
        raise ConfigError(
            f"method.lora.dora: {', '.join(of_experts)} are stacks of experts, whose rows have no length of their own",
            hint="drop them from method.lora.targetModules, or drop dora",
        )
    if unknown := [name for name in wanted if name not in (*known, *stacks)]:
        raise ConfigError(
            f"method.lora.targetModules: the model has no linear layer {', '.join(unknown)}",
            hint=f"it has {', '.join(known)}; [{ALL_LINEAR}] names them all",
        )
    return list(wanted)
