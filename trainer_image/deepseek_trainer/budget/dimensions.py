"""A decoder's dimensions: all that its size, memory and FLOPs follow from.  Without torch and numpy.

`base_model/families/` reads them from a config.json.  Blocks are of at most two kinds: dense ones, and sparse ones with
a mixture of experts in the place of the feed-forward.  Those of a kind are alike.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from deepseek_trainer.contract.method import ALL_LINEAR, LoraSpec

ATTENDED: Final = "attended"  # what a linear layer reads that reads the result of attention, which is kept anyway
USUAL_TARGETS: Final[tuple[str, ...]] = LoraSpec().target_modules
_QUERIES_AND_VALUES: Final = ("q_proj", "q_b_proj", "kv_b_proj", "v_proj", "qkv_proj", "c_attn")


def target_names(lora: LoraSpec, known: Collection[str]) -> tuple[str, ...]:
    """`targetModules`.  The default means queries and values, whatever a model calls the layers that make them."""
    if lora.target_modules != USUAL_TARGETS:
        return lora.target_modules
    return tuple(name for name in _QUERIES_AND_VALUES if name in known) or lora.target_modules


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block: its dotted name there, its widths [elements], and which tensor it reads.

    Of experts it is a stack of such layers, one of each, of which a token uses a few.
    """

    path: str
    inputs: int
    outputs: int
    reads: str  # layers that read the same tensor share it
    has_bias: bool = False
    experts: int | None = None  # in the stack; None: it is no stack
    used: int = 1  # of them by a token
    is_gate: bool = False  # it weighs what others make: it is neither adapted nor kept in four bits

    @property
    def name(self) -> str:
        """As `targetModules` has it."""
        return ".".join(self.path.split(".")[-1 if self.experts is None else -2 :])

    @property
    def elements(self) -> int:
        return (self.experts or 1) * self.inputs * self.outputs

    @property
    def active(self) -> int:
        """Elements that a token is multiplied with."""
        return self.used * self.inputs * self.outputs

    @property
    def biases(self) -> int:
        return self.outputs if self.has_bias else 0

    @property
    def is_plain(self) -> bool:
        """Whether `all-linear` means it, and QLoRA keeps it in four bits."""
        return self.experts is None and not self.is_gate

    def adapter(self, lora: LoraSpec) -> int:
        """Parameters of its adapter, which has a part for each expert; by DoRA also the lengths of its rows."""
        lengths = self.outputs if lora.dora else 0
        return (self.experts or 1) * lora.rank * (self.inputs + self.outputs) + lengths

    def active_adapter(self, lora: LoraSpec) -> int:
        """Parameters of its adapter that a token is multiplied with."""
        return self.used * lora.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class Kind:
    """Blocks that are alike: how many, the layers of each, and the width between up and down that a token uses."""

    count: int
    linear: tuple[Linear, ...]
    intermediate: int
    routed: int = 0  # experts that a token uses

    @property
    def elements(self) -> int:
        return sum(layer.elements for layer in self.linear)

    @property
    def active(self) -> int:
        return sum(layer.active for layer in self.linear)

    @property
    def biases(self) -> int:
        return sum(layer.biases for layer in self.linear)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Widths [elements] and counts; `linear`, `norms` and `head_norms` are the layers of one dense block."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    linear: tuple[Linear, ...]
    norms: tuple[str, ...]
    head_norms: tuple[str, ...] = ()  # of the queries and of the keys of each head
    others: int = 0  # parameters of one block beside these and the biases of linear layers
    ends: int = 0  # parameters outside of blocks beside embeddings, head and the weight of the last norm
    mask_bytes: int = 1  # of the masks of attention, for each pair of positions
    keeps_scores: bool = False  # of attention, which then is not computed in one go
    value_dim: int | None = None  # of a head, if that is not `head_dim`
    latent_norms: tuple[tuple[str, int], ...] = ()  # of what attention compresses: names and widths
    sparse: tuple[int, ...] = ()  # the numbers of sparse blocks
    sparse_linear: tuple[Linear, ...] = ()  # the layers of each
    sparse_intermediate: int = 0  # what `intermediate` is there, for all experts that a token uses
    is_repeated: bool = False  # all blocks have the same weights

    @property
    def attention(self) -> int:
        """Width of all heads side by side: the mean of those of keys and values, if they differ."""
        return self.heads * (self.head_dim + (self.value_dim or self.head_dim)) // 2

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of which a decoder has blocks; repeated ones as often as they run."""
        dense = Kind(self.layers - len(self.sparse), self.linear, self.intermediate)
        used = max((layer.used for layer in self.sparse_linear), default=0)
        sparse = Kind(len(self.sparse), self.sparse_linear, self.sparse_intermediate, used)
        return tuple(kind for kind in (dense, sparse) if kind.count)

    @property
    def parameters(self) -> int:
        """Tied weights, and those that blocks share, count once."""
        of_blocks = sum(kind.count * (kind.elements + kind.biases) for kind in self.kinds) + self.layers * self._norms
        return of_blocks // self._runs + self.hidden + self.ends + self._embeddings

    @property
    def active(self) -> int:
        """Parameters with which a token is computed, as often as that happens, and the input embedding."""
        of_blocks = sum(kind.count * (kind.active + kind.biases) for kind in self.kinds) + self.layers * self._norms
        return of_blocks + self.hidden + self.ends + self._embeddings

    @property
    def multiplied(self) -> int:
        """Elements of all matrices that tokens are multiplied with: those of all blocks and of the output."""
        return self.in_blocks + self.vocab * self.hidden

    @property
    def looked_up(self) -> int:
        """Parameters that are only ever looked up: an input embedding of its own."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def in_blocks(self) -> int:
        """Elements of the matrices of all blocks."""
        return sum(kind.count * kind.elements for kind in self.kinds) // self._runs

    @property
    def in_linear(self) -> int:
        """Elements of the linear layers of all blocks; experts and gates are none."""
        plain = (kind.count * sum(layer.elements for layer in kind.linear if layer.is_plain) for kind in self.kinds)
        return sum(plain) // self._runs

    @property
    def in_experts(self) -> int:
        """Elements of the stacks of all routed experts."""
        stacks = (layer.elements for kind in self.kinds for layer in kind.linear * kind.count if layer.experts)
        return sum(stacks)

    @property
    def largest_block(self) -> int:
        """Elements of its matrices."""
        return max(kind.elements for kind in self.kinds)

    def with_sparse(self, numbers: tuple[int, ...], linear: tuple[Linear, ...], intermediate: int) -> "Dimensions":
        """These, but with a mixture of experts in the blocks of these numbers."""
        return replace(self, sparse=numbers, sparse_linear=linear, sparse_intermediate=intermediate)

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The names of all layers that can get an adapter."""
        layers = (layer for kind in self.kinds for layer in kind.linear if not layer.is_gate)
        return tuple(sorted({layer.name for layer in layers}))

    def targets(self, lora: LoraSpec, linear: Sequence[Linear] | None = None) -> tuple[Linear, ...]:
        """Those of a block's layers, by default a dense one's, that get an adapter."""
        is_all, names = ALL_LINEAR in lora.target_modules, target_names(lora, self.adaptable)
        layers = self.linear if linear is None else linear
        return tuple(each for each in layers if (each.is_plain if is_all else each.name in names))

    def adapters(self, lora: LoraSpec | None) -> int:
        """Parameters of the adapters: a rank times (inputs + outputs) in each block, for each target."""
        return self._adapters(lora, Linear.adapter)

    def active_adapters(self, lora: LoraSpec | None) -> int:
        """Parameters of the adapters that a token is multiplied with."""
        return self._adapters(lora, Linear.active_adapter)

    def frozen(self, layers: int, *, is_active: bool = False) -> int:
        """Parameters of the input embedding, of a head that is tied to it, and of the first `layers` blocks.

        `is_active`: of the blocks those that a token is computed with.
        """
        dense, sparse = self._kind(self.linear), self._kind(self.sparse_linear)
        blocks = [sparse if number in self.sparse else dense for number in range(layers)]
        of_blocks = sum((kind.active if is_active else kind.elements) + kind.biases for kind in blocks)
        return self.vocab * self.hidden + of_blocks + layers * self._norms

    def active_after(self, frozen: int) -> int:
        """Elements of the matrices of the blocks after the first `frozen` that a token is multiplied with."""
        sparse = sum(number >= frozen for number in self.sparse)
        dense, experts = self._kind(self.linear).active, self._kind(self.sparse_linear).active
        return (self.layers - frozen - sparse) * dense + sparse * experts

    def _adapters(self, lora: LoraSpec | None, size: Callable[[Linear, LoraSpec], int]) -> int:
        if lora is None:
            return 0
        return sum(
            kind.count * sum(size(layer, lora) for layer in self.targets(lora, kind.linear)) for kind in self.kinds
        )

    def _kind(self, linear: tuple[Linear, ...]) -> Kind:
        return Kind(1, linear, 0)

    @property
    def _norms(self) -> int:
        """Parameters of a block's norms, and of what is neither norm nor linear layer."""
        of_heads, of_latents = len(self.head_norms) * self.head_dim, sum(width for _, width in self.latent_norms)
        return len(self.norms) * self.hidden + of_heads + of_latents + self.others

    @property
    def _embeddings(self) -> int:
        return (1 if self.tied else 2) * self.vocab * self.hidden

    @property
    def _runs(self) -> int:
        """How many blocks have the same weights."""
        return self.layers if self.is_repeated else 1
