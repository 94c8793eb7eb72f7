"""The shape of sparse blocks: routed experts, of which a token uses a few, and what all tokens use beside them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deepseek_trainer.base_model.bounds import WHERE, size
from deepseek_trainer.base_model.decoder import Settings, Shape
from deepseek_trainer.budget.dimensions import Dimensions, Linear
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

ROUTER: Final = "mlp.gate"
EXPERTS: Final = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")  # stacks of matrices, as transformers keeps them
HINT: Final = "take it from the model's own release"


@dataclass(frozen=True, slots=True)
class FileNames:
    """How a family's files call what transformers stacks: each expert's matrices by themselves."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def of_stack(self, layer: Linear) -> Iterator[tuple[str, Shape]]:
        """Names in a block, and shapes, of the matrices that `layer` stacks."""
        for expert in range(layer.experts or 0):
            name = f"{self.block}.experts.{expert}"
            if layer.path == EXPERTS[1]:
                yield f"{name}.{self.down}.weight", (layer.outputs, layer.inputs)
            else:
                yield from (
                    (f"{name}.{part}.weight", (layer.outputs // 2, layer.inputs)) for part in (self.gate, self.up)
                )


def routed(hidden: int, experts: int, used: int, intermediate: int) -> tuple[Linear, ...]:
    """The router, and the experts' stacks of matrices.  Raises ConfigError where a token uses more than there are."""
    if used > experts:
        raise ConfigError(f"{WHERE} has {experts} experts, of which each token uses {used}", hint=HINT)
    up, down = EXPERTS
    return (
        Linear(ROUTER, hidden, experts, "feed-forward", is_gate=True),
        Linear(up, hidden, 2 * intermediate, "dispatched", experts=experts, used=used),
        Linear(down, intermediate, hidden, "routed product", experts=experts, used=used),
    )


def feed_forward(place: str, hidden: int, intermediate: int, *, has_bias: bool = False) -> tuple[Linear, ...]:
    """Gate, up and down of a module `place` of a block."""
    return (
        Linear(f"{place}.gate_proj", hidden, intermediate, "feed-forward", has_bias),
        Linear(f"{place}.up_proj", hidden, intermediate, "feed-forward", has_bias),
        Linear(f"{place}.down_proj", intermediate, hidden, f"product of {place}", has_bias),
    )


def weights(d: Dimensions, names: FileNames, buffers: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """All that the files of such a model may hold; `buffers` are those of a sparse block."""
    embeddings = (d.vocab, d.hidden)
    made: dict[str, Shape] = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": embeddings,
        "model.norm.weight": (d.hidden,),
    }
    norms = [(f"{name}.weight", (d.hidden,)) for name in d.norms]
    norms += [(f"{name}.weight", (d.head_dim,)) for name in d.head_norms]
    norms += [(f"{name}.weight", (width,)) for name, width in d.latent_norms]
    dense = dict([*norms, *_of_block(d.linear, names)])
    sparse = dict([*norms, *_of_block(d.sparse_linear, names)]) | dict(buffers or {})
    for number in range(d.layers):
        block = sparse if number in d.sparse else dense
        made |= {f"model.layers.{number}.{name}": shape for name, shape in block.items()}
    return made


def _of_block(linear: Iterable[Linear], names: FileNames) -> Iterator[tuple[str, Shape]]:
    for layer in linear:
        if layer.experts is not None:
            yield from names.of_stack(layer)
            continue
        path = f"{names.block}.{layer.path.removeprefix('mlp.')}" if layer.path.startswith("mlp.") else layer.path
        yield f"{path}.weight", (layer.outputs, layer.inputs)
        if layer.has_bias:
            yield f"{path}.bias", (layer.outputs,)


def first_of(settings: Settings, *names: str) -> int:
    """The first of these fields that config.json has.  Raises ConfigError where it has none."""
    found = next((name for name in names if settings.get(name) is not None), names[0])
    return size(settings, found)


def refuse_uneven_groups(settings: Settings) -> None:
    """Raise ConfigError where experts do not lie in equal groups of two or more, from which those of a token come."""
    count, used = size(settings, "n_routed_experts"), size(settings, "num_experts_per_tok")
    groups, chosen = size(settings, "n_group"), size(settings, "topk_group")
    if count % groups or count // groups < 2 or chosen > groups or used > chosen * (count // groups):
        raise ConfigError(
            f"{WHERE} has {count} experts in n_group {groups}, of which topk_group {chosen} give each token {used}: "
            "groups are equal, have two experts or more, and together as many as a token uses",
            hint=HINT,
        )


def refuse_unlike(settings: Settings, name: str, known: tuple[Any, ...]) -> None:
    """Raise ConfigError where a field says that the model computes otherwise than transformers does, in silence."""
    if (value := settings.get(name)) is not None and value not in known:
        raise ConfigError(
            f"{WHERE} has {name} {shown(value)}: transformers computes such a model with {known[0]} whatever it says",
            hint="take another base: this one would learn, and answer, by another model's rules",
        )
