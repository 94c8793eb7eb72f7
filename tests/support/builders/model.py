"""Small models, tokenizers and batches for tests."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.tokenizer import trained_tokenizer
from support.builders.data import put_key

VOCAB = 288
TEXTS = ["the pump runs at 3.5 bar", "what runs at 12 bar? the pump does", "a valve is no pump, and 12 is not 3"] * 4
_MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def a_config(**changes: Any) -> TrainingConfig:
    """A small LoRA job; tests name only the parts they are about, in the job file's own words."""
    parts: dict[str, Any] = {
        "job": {"namespace": "ml", "name": "pumps"},
        "numNodes": 1,
        "numProcPerNode": 1,
        "model": {"base": {"claimName": "models", "path": "base"}},
        "data": {"train": {"claimName": "data"}, "format": "Instruction", "sequenceLength": 64},
        "method": {"type": "LoRA", "lora": {"rank": 4}},
        "optimization": {},
        "checkpoint": {},
        "evaluation": {},
        "export": {},
    }
    return TrainingConfig.model_validate(parts | changes)


def sealed(paths: Paths) -> dict[str, Any]:
    """The `checkpoint` part of a job that seals, with its key where the kubelet would mount it."""
    put_key(paths)
    return {"encryption": {"keyRef": {"secretName": "kek"}}}


def tiny_model(kind: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Two layers, four heads over two key-value heads, weights large enough to have opinions."""
    settings, model = _MODELS[kind]
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    return model(settings(**shape | changes)).eval()


def a_tokenizer() -> PreTrainedTokenizerFast:
    return trained_tokenizer(TEXTS, VOCAB)


def a_batch(num_rows: int = 3, length: int = 16, seed: int = 0) -> TokenBatch:
    """Random tokens, one document a row, about half of the positions learned."""
    torch.manual_seed(seed)
    tokens_BT = torch.randint(VOCAB, (num_rows, length))
    targets_BT = torch.full_like(tokens_BT, -100)
    targets_BT[:, :-1] = torch.where(torch.rand(num_rows, length - 1) < 0.5, tokens_BT[:, 1:], -100)
    positions_BT = torch.arange(length).expand(num_rows, length)
    return TokenBatch(tokens_BT, targets_BT, positions_BT, torch.zeros_like(tokens_BT))


def a_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **metadata: Any) -> None:
    """`model` as llama.cpp's converter writes it; matrices in Q8_0.  `metadata` adds string fields."""
    config = model.config
    kind = config.model_type
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, tokenizer)
    for name, value in metadata.items():
        writer.add_string(name, value)
    _add_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paths_with_base(root: Path) -> tuple[Paths, Path]:
    """Paths below `root`, and the place of the base model that `a_config` names."""
    paths = Paths(root, root / "tmp")
    base = paths.claim("models", "base")
    base.parent.mkdir(parents=True)
    return paths, base


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def _add_tensors(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, model.config.model_type.upper()), 2)
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = tensor.numpy()
        for part, heads in (("q_proj", model.config.num_attention_heads), ("k_proj", model.config.num_key_value_heads)):
            if part in name and model.config.model_type == "llama":
                values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 1:
            writer.add_tensor(target, values.copy())
        else:
            quants = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, quants, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its matrices rounded as `a_gguf` stores them."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            quants = gguf.quants.quantize(parameter.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(quants, gguf.GGMLQuantizationType.Q8_0))
    return model
