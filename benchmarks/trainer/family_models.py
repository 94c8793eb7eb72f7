"""Random base models of about 10 M parameters, one of each kind of family: `family_models.py DIRECTORY`.

bench_finetune.py trains them beside Hugging Face's Trainer.  The tokenizer is trained on the texts of the examples.
"""

import sys
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deepseek_trainer.base_model.tokenizer_files import files_of
from deepseek_trainer.tasks.language.tokenizer import trained_tokenizer

TEXTS = Path(__file__).resolve().parents[2] / "examples" / "texts" / "train"
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
VOCAB: Final = 2048
SHAPE: Final = {
    "vocab_size": VOCAB, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6,
    "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 1024,
}  # fmt: skip
WINDOW: Final = {"sliding_window": 128}
EXPERTS: Final = {"moe_intermediate_size": 216, "num_experts_per_tok": 2}
LATENT: Final = {
    "kv_lora_rank": 64, "q_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 64,
    "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {}),
    "mistral, windows": ("mistral", WINDOW),
    "qwen3": ("qwen3", {"head_dim": 64}),
    "gemma2": ("gemma2", {"head_dim": 64} | WINDOW),
    "gemma3_text": ("gemma3_text", {"head_dim": 64} | WINDOW),
    "phi3": ("phi3", {"pad_token_id": 2}),
    "glm4": ("glm4", {"head_dim": 64, "pad_token_id": 2}),
    "gpt2": ("gpt2", {"n_embd": 320, "n_layer": 6, "n_head": 5, "n_positions": 1024}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"num_experts": 8, "shared_expert_intermediate_size": 216}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"head_dim": 64, "num_experts": 8}),
    "deepseek_v2": ("deepseek_v2", EXPERTS | LATENT),
    "deepseek_v3": ("deepseek_v3", EXPERTS | LATENT),
}


def main() -> None:
    root = Path(sys.argv[1])
    tokenizer = trained_tokenizer((file.read_text() for file in sorted(TEXTS.iterdir())), VOCAB)
    tokenizer.chat_template = TEMPLATE
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, (model_type, changes) in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SHAPE | changes | ends)))
        model.save_pretrained(root / name)
        for file, content in files_of(tokenizer).items():
            (root / name / file).write_bytes(content)
        print(f"{name}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
