"""Entries of the table of families that the trainer does not have, and models that fit them."""

import torch
from transformers import MistralConfig, MistralForCausalLM, ResNetConfig, ResNetForImageClassification

from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.base_model.families.llama import llama_like

# All that a further family takes: the default of key-value heads is transformers', which config.json may leave out.
MISTRAL = llama_like("mistral", "MistralForCausalLM", key_value_heads=8)
RESNET = Family(
    "resnet",
    "ResNetForImageClassification",
    embedding="resnet.embedder",
    blocks="resnet.encoder.stages.*.layers.*",
    head="classifier",
)


def a_mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return MistralForCausalLM(MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, head_dim=16))


def a_resnet() -> ResNetForImageClassification:
    """Two stages, of two blocks and of one."""
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    )
