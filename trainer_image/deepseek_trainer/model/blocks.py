"""The parts of a loaded model, found by the names that its family's entry gives them.

A model may lie inside peft, be a copy, or be sharded: its parts keep their names.
"""

from collections.abc import Iterator

from torch import nn

from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.model.loading import transformer


def family(model: nn.Module) -> Family:
    """Raises ConfigError where the table of families does not have it."""
    return family_of(transformer(model).config.model_type, "the model")


def blocks(model: nn.Module) -> list[nn.Module]:
    """In the order in which they run."""
    return find(transformer(model), family(model).blocks)


def embedding(model: nn.Module) -> nn.Module:
    """What makes the first hidden states."""
    return _part(model, family(model).embedding)


def positions(model: nn.Module) -> list[nn.Module]:
    """A learned embedding of positions, where the family has one."""
    path = family(model).positions
    return find(transformer(model), path) if path else []


def embedded(model: nn.Module) -> nn.Module:
    """What makes the sum of all embeddings, the first hidden states."""
    entry = family(model)
    return _part(model, entry.embedded or entry.embedding)


def head(model: nn.Module) -> nn.Module:
    """What makes the outputs of the last hidden states."""
    return _part(model, family(model).head)


def linear_layers(model: nn.Module, asked: str) -> Iterator[tuple[nn.Module, str]]:
    """(block, name in it) of each linear layer.  Raises ConfigError where none are known for what the job `asked`."""
    paths = family(model).linear_for(asked)
    return ((block, path) for block in blocks(model) for path in paths)


def residual_layers(model: nn.Module, asked: str) -> list[nn.Module]:
    """Whose outputs blocks add to the residual stream.  Raises ConfigError as `linear_layers`."""
    paths = family(model).residual_for(asked)
    return [layer for block in blocks(model) for path in paths for layer in find(block, path)]


def own_dropout(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, name of its attribute) of each rate of dropout that the model's config.json sets."""
    inner = transformer(model)
    parts = [path.rpartition(".") for path in family(model).own_dropout]
    return [(module, name) for place, _, name in parts for module in find(inner, place)]


def find(module: nn.Module, path: str) -> list[nn.Module]:
    """The submodules of a dotted name in which a `*` stands for every child."""
    found = [module]
    for name in path.split("."):
        found = [each for parent in found for each in _children(parent, name)]
    return found


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return [*module.children()] if name == "*" else [module.get_submodule(name)]


def _part(model: nn.Module, path: str) -> nn.Module:
    (part,) = find(transformer(model), path)
    return part
