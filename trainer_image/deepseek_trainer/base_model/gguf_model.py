"""What a GGUF file means in transformers' terms: configuration, weight names and tokenizer.

Written for the dense decoders of the Llama and Qwen families; whatever is not understood is refused,
because a model that is silently a little wrong would be trained for days.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from deepseek_trainer.base_model.bounds import refuse_out_of_bounds
from deepseek_trainer.base_model.families import FAMILIES, family_of
from deepseek_trainer.base_model.families.family import Rotary
from deepseek_trainer.base_model.gguf_file import GgufFile, GgufTensor
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

_HINT = "give the model as a directory with config.json, safetensors files and tokenizer.json"
_FIELDS: Final = {  # GGUF metadata below the architecture's name: field of config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OUTER: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Final = {  # tokenizer.ggml.pre: what cuts text into words; the sources are llama.cpp's src/llama-vocab.cpp
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "llama-bpe": (_WORDS % "{1,3}",),
    "qwen2": (_WORDS % "",),
    "deepseek-r1-qwen": (_WORDS % "",),
}


def model_config(gguf: GgufFile) -> dict[str, Any]:
    """The content of config.json.  Raises ConfigError where the model is of a kind that we cannot convert."""
    kind = gguf.metadata.get("general.architecture")
    known = [family.model_type for family in FAMILIES.values() if family.rotary_in_gguf]
    if kind not in known:
        raise ConfigError(f"{gguf.path} holds a {shown(kind)} model: {', '.join(known)} can be converted", hint=_HINT)
    _refuse_variants(gguf, kind)
    config = {ours: _field(gguf, f"{kind}.{theirs}") for theirs, ours in _FIELDS.items()}
    refuse_out_of_bounds(config, f"{gguf.path}, as config.json,")
    heads = config["num_attention_heads"]
    config |= {
        "architectures": [family_of(kind).model_class],
        "model_type": kind,
        "num_key_value_heads": gguf.metadata.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": gguf.metadata.get(f"{kind}.attention.key_length", config["hidden_size"] // heads),
        "rope_parameters": {"rope_type": "default", "rope_theta": gguf.metadata.get(f"{kind}.rope.freq_base", 1e4)},
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "bos_token_id": gguf.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": gguf.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    refuse_out_of_bounds(config, f"{gguf.path}, as config.json,")
    return config


def weights(gguf: GgufFile) -> Iterator[tuple[str, GgufTensor]]:
    """Each tensor under its name in transformers.  Raises ConfigError at a tensor without a place there."""
    for tensor in gguf.tensors.values():
        yield _weight_name(gguf, tensor.name), tensor


def values(tensor: GgufTensor, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """A weight as transformers wants it, fp32."""
    weight = tensor.dequantized()
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    part = tensor.name.split(".")[-2]
    is_interleaved = family_of(config["model_type"]).rotary_in_gguf is Rotary.INTERLEAVED
    return _unpermuted(weight, heads[part]) if is_interleaved and part in heads else weight


def tokenizer_files(gguf: GgufFile) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, built from the metadata."""
    kind, pre = (_field(gguf, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or not isinstance(pre, str) or pre not in _SPLITS:
        known, found = ", ".join(_SPLITS), "/".join(shown(name).strip("'") for name in (kind, pre))
        raise ConfigError(f"{gguf.path} has a {found} tokenizer: gpt2 with {known} can be converted", hint=_HINT)
    tokens = _strings(gguf, "tokenizer.ggml.tokens")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _field(gguf, f"{gguf.metadata['general.architecture']}.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": gguf.metadata.get("tokenizer.chat_template"),
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token_id := gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            settings[f"{role}_token"] = _token(gguf, tokens, token_id)
    return {
        "tokenizer.json": _bpe(gguf, tokens, pre).to_str().encode(),
        "tokenizer_config.json": json_text(settings, indent=2).encode(),
    }


def _bpe(gguf: GgufFile, tokens: list[str], pre: str) -> Tokenizer:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in _strings(gguf, "tokenizer.ggml.merges"))]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step for split in _SPLITS[pre] for step in _pre_steps(split)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = gguf.metadata.get("tokenizer.ggml.token_type", [])
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    added = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    if gguf.metadata.get("tokenizer.ggml.add_bos_token"):
        bos_id = _field(gguf, "tokenizer.ggml.bos_token_id")
        begin = _token(gguf, tokens, bos_id)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, bos_id)])
    return tokenizer


def _pre_steps(split: Any) -> list[Any]:
    if not isinstance(split, str):
        return [split]
    return [
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _field(gguf: GgufFile, name: str) -> Any:
    if name not in gguf.metadata:
        raise ConfigError(f"{gguf.path} lacks the metadata {name}", hint=_HINT)
    return gguf.metadata[name]


def _strings(gguf: GgufFile, name: str) -> list[str]:
    found = _field(gguf, name)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"{gguf.path} has metadata {name} that are no list of strings", hint=_HINT)
    return found


def _token(gguf: GgufFile, tokens: list[str], token_id: Any) -> str:
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        raise ConfigError(
            f"{gguf.path} names the token {shown(token_id)}, and has those from 0 to {len(tokens) - 1}", hint=_HINT
        )
    return tokens[token_id]


def _refuse_variants(gguf: GgufFile, kind: str) -> None:
    scaling = gguf.metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in gguf.tensors:
        raise ConfigError(f"{gguf.path} scales its rotary positions, which GGUF does not fully describe", hint=_HINT)
    if "token_embd.weight" not in gguf.tensors:
        raise ConfigError(f"{gguf.path} has no token_embd.weight: it is not a complete model", hint=_HINT)


def _weight_name(gguf: GgufFile, name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{leaf}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block is None or block[2] not in _INNER:
        raise ConfigError(
            f"{gguf.path} holds the tensor {shown(name)}, which a dense decoder has no place for", hint=_HINT
        )
    return f"model.layers.{block[1]}.{_INNER[block[2]]}.{leaf}"


def _unpermuted(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
