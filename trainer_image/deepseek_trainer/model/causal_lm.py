"""The model that is trained: from the prepared base or from scratch, and its loss.

Shapes: B rows in a micro-batch, T tokens in a row, N learned positions of a micro-batch, D width, V vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from deepseek_trainer.base_model.gguf_model import CLASSES
from deepseek_trainer.base_model.source import CONFIG, prepared_model, read_source
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import LOGITS_BYTES
from deepseek_trainer.data.dataset import Batch
from deepseek_trainer.language.packing import block_causal_mask
from deepseek_trainer.model.cross_entropy import summed_cross_entropy
from deepseek_trainer.storage.tensorfile import View, views
from deepseek_trainer.storage.vault import Vault

# What the weights of a model may be stored in, as safetensors names it.
DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class ParameterCount:
    total: int
    trainable: int


def load_model(
    config: TrainingConfig, paths: Paths, vault: Vault, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model before training, in training mode, without adapters.

    The prepared base comes straight from the vault into memory; a model from scratch is
    initialised on the CPU from the job's seed, so that every rank and device starts alike.
    """
    if config.model.architecture is not None:
        model = scratch_model(config.model.architecture, config.data.sequence_length, config.optimization.seed)
    else:
        model = load_base(prepared_model(config, paths), vault, dtype)
    return model.to(device=device, dtype=dtype).train()


def load_base(directory: Path, vault: Vault, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A prepared model on the CPU.  Raises ConfigError where its weights do not fit its config.json."""
    settings = json.loads(bytes(vault.read(directory / CONFIG)))
    weights: dict[str, Tensor] = {}
    for name in read_source(directory, vault).weights:
        weights |= {key: _tensor(view) for key, view in views(vault.read(directory / name), name).items()}
    kind = getattr(transformers, CLASSES[settings["model_type"]])
    model, loading = kind.from_pretrained(
        None, config=kind.config_class(**settings), state_dict=weights, dtype=dtype, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[problem])):
            raise ConfigError(
                f"the base model's weights do not fit its {CONFIG}: {problem.replace('_', ' ')} {', '.join(names[:3])}",
                hint="take both from the same release of the model",
            )
    assert isinstance(model, PreTrainedModel)
    return model


def scratch_model(architecture: Architecture, max_positions: int, seed: int) -> PreTrainedModel:
    """A Llama decoder with weights drawn from `seed`; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: dropout on a GPU differs between ranks
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=architecture.vocab_size,
                hidden_size=architecture.hidden_size,
                intermediate_size=architecture.intermediate_size,
                num_hidden_layers=architecture.num_layers,
                num_attention_heads=architecture.num_heads,
                num_key_value_heads=architecture.num_key_value_heads or architecture.num_heads,
                tie_word_embeddings=architecture.tie_embeddings,
                max_position_embeddings=max_positions,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


def causal_loss(
    model: nn.Module,
    batch: Batch,
    smoothing: float = 0.0,
    decoder: Callable[..., Any] | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> tuple[Tensor, int]:
    """Sum of the next-token losses [nats, fp32 scalar with gradient] and the number of learned positions N.

    Logits are made for the N learned positions only: for instruction data that is a fraction of
    the B x T x V logits, which are most of the memory of a small model.  Divide by the N of all
    micro-batches and ranks to get a mean that does not depend on how rows were dealt out.
    `model` may be wrapped by peft; tokens of different documents of a row do not see each other.
    `decoder`: to be called in place of the model's own.
    """
    head, hidden_ND, there = learned(model, batch, decoder)
    return head_loss(head, hidden_ND, there.learned_targets_N, smoothing, logits_bytes), batch.num_targets


def row_losses(model: nn.Module, batch: Batch) -> Tensor:
    """`causal_loss` of each row by itself [nats, float64 of shape B]."""
    head, hidden_ND, there = learned(model, batch)
    return by_row(token_losses(head, hidden_ND, there.learned_targets_N), there)


def by_row(values_N: Tensor, batch: Batch) -> Tensor:
    """Sums over the learned positions of each row, of shape B."""
    rows_N = batch.learned_N // batch.targets_BT.shape[1]
    return values_N.new_zeros(len(batch.targets_BT)).index_add(0, rows_N, values_N)


def learned(model: nn.Module, batch: Batch, decoder: Callable[..., Any] | None = None) -> tuple[Any, Tensor, Batch]:
    """The head, what it takes of the learned positions, and `batch` on their device."""
    inner = transformer(model)
    there = batch.to(inner.device)
    decode = inner.get_decoder() if decoder is None else decoder
    hidden_BTD = decode(
        input_ids=there.tokens_BT,
        position_ids=there.position_ids_BT,
        attention_mask=block_causal_mask(there.document_ids_BT),
        use_cache=False,
    ).last_hidden_state
    return inner.get_output_embeddings(), hidden_BTD.flatten(0, 1)[there.learned_N], there


def head_loss(
    head: Any, hidden_ND: Tensor, targets_N: Tensor, smoothing: float = 0.0, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """Sum of the cross entropies of `head`'s logits, fp32."""
    # Not `head` itself, at each call of which ZeRO-3 expects the other ranks: they may have more or fewer parts.
    rows = _rows(head, logits_bytes)
    return summed_cross_entropy(hidden_ND, head.weight, head.bias, targets_N, smoothing=smoothing, rows=rows)


def token_losses(head: Any, hidden_ND: Tensor, targets_N: Tensor, logits_bytes: int = LOGITS_BYTES) -> Tensor:
    """The cross entropy of each position, made in fp32, as float64 of shape N: sums of many lose nothing.

    What each weighs in a loss is not known before the backward pass, which makes the logits of several parts again.
    """
    weight, bias = head.weight, head.bias  # as above

    def part(hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        return cross_entropy(linear(hidden_nD, weight, bias).float(), targets_n, reduction="none")

    rows = _rows(head, logits_bytes)
    parts = list(zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True))
    made = part if len(parts) == 1 else partial(checkpoint, part, use_reentrant=False)
    return torch.cat([made(*each) for each in parts]).double()


def _rows(head: Any, logits_bytes: int) -> int:
    """Positions of a part: all logits would be most of the memory."""
    vocab: int = head.out_features
    return max(1, logits_bytes // (4 * vocab))


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> ParameterCount:
    """Tied weights count once."""
    return ParameterCount(
        total=sum(_num_weights(parameter) for parameter in model.parameters()),
        trainable=sum(_num_weights(parameter) for parameter in trainable_parameters(model)),
    )


def _num_weights(parameter: nn.Parameter) -> int:
    quant_state = getattr(parameter, "quant_state", None)  # of bitsandbytes, which keeps two weights in a byte
    return parameter.numel() if quant_state is None else quant_state.shape.numel()


def transformer(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a peft wrapper, or the model itself."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def _tensor(view: View) -> Tensor:
    if view.dtype not in DTYPES:
        raise ConfigError(
            f"the base model has weights of type {view.dtype}", hint=f"{', '.join(DTYPES)} can be trained"
        )
    return torch.frombuffer(view.data, dtype=DTYPES[view.dtype]).view(view.shape)
