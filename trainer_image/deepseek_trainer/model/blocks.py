"""The parts of a loaded model, found by the names that its family's entry gives them.

A model may lie inside peft, be a copy, or be sharded: its parts keep their names.
"""

from collections.abc import Iterator
from typing import Any

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
    return ((block, path) for block in blocks(model) for path in paths if _has(block, path))


def residual_layers(model: nn.Module, asked: str) -> list[nn.Module]:
    """Whose outputs blocks add to the residual stream.  Raises ConfigError as `linear_layers`."""
    paths = family(model).residual_for(asked)
    return [layer for block in blocks(model) for path in paths for layer in find(block, path)]


def own_dropout(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, name of its attribute) of each rate of dropout that the model's config.json sets."""
    inner = transformer(model)
    parts = [path.rpartition(".") for path in family(model).own_dropout]
    return [(module, name) for place, _, name in parts for module in find(inner, place)]


def routers(model: nn.Module) -> list[nn.Module]:
    """Those that choose experts, in the order in which they run; none in a model without experts."""
    path = family(model).router
    return [block.get_submodule(path) for block in blocks(model) if path and _has(block, path)]


def expert_stacks(model: nn.Module) -> list[nn.Parameter]:
    """The weights of experts, each of all experts of a block."""
    inner = transformer(model)
    endings = tuple(f".{path.rpartition('.')[2]}" for path in family(model).experts)
    return [p for name, p in inner.named_parameters() if name.endswith(endings) and p.ndim == 3] if endings else []


def find(module: nn.Module, path: str) -> list[nn.Module]:
    """The submodules of a dotted name in which a `*` stands for every child."""
    found = [module]
    for name in path.split("."):
        found = [each for parent in found for each in _children(parent, name)]
    return found


def _has(block: nn.Module, path: str) -> bool:
    """Blocks of a family may differ, as dense and sparse ones do."""
    parts: list[Any] = [block]
    for name in path.split("."):
        parts.append(getattr(parts[-1], name, None))
    return isinstance(parts[-1], nn.Module)


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return [*module.children()] if name == "*" else [module.get_submodule(name)]


def _part(model: nn.Module, path: str) -> nn.Module:
    (part,) = find(transformer(model), path)
    return part
