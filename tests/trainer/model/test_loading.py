import torch

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.model.loading import count_parameters, scratch_model, trainable_parameters

ARCHITECTURE = Architecture(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, vocab_size=300)


def test_scratch_model_depends_on_its_seed_alone():
    torch.manual_seed(7)
    one = scratch_model(ARCHITECTURE, 64, seed=1)
    after_one = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after_one), "the caller's random state moved"
    same, other = scratch_model(ARCHITECTURE, 64, seed=1), scratch_model(ARCHITECTURE, 64, seed=2)
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_count_parameters_counts_tied_weights_once():
    tied, untied = (scratch_model(ARCHITECTURE.model_copy(update={"tie_embeddings": t}), 64, 0) for t in (True, False))
    assert count_parameters(untied).total - count_parameters(tied).total == 300 * 32
    assert count_parameters(tied).trainable == sum(p.numel() for p in trainable_parameters(tied))
