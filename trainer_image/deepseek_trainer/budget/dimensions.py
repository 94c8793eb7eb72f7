"""A decoder's dimensions: all that its size, memory and FLOPs follow from.  Without torch and numpy.

`base_model/families/` reads them from a config.json.  All blocks of a decoder are taken to be alike.
"""

from dataclasses import dataclass
from typing import Final

from deepseek_trainer.contract.method import ALL_LINEAR, LoraSpec

ATTENDED: Final = "attended"  # what a linear layer reads that reads the result of attention, which is kept anyway


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block: its dotted name there, its widths [elements], and which tensor it reads."""

    path: str
    inputs: int
    outputs: int
    reads: str  # layers that read the same tensor share it
    has_bias: bool = False

    @property
    def name(self) -> str:
        """As `targetModules` has it."""
        return self.path.rpartition(".")[2]

    @property
    def elements(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Widths [elements] and counts; `linear`, `norms` and `head_norms` are the layers of one block."""

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

    @property
    def attention(self) -> int:
        """Width of all heads side by side."""
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Tied weights count once."""
        biases = sum(layer.outputs for layer in self.linear if layer.has_bias)
        norms = len(self.norms) * self.hidden + len(self.head_norms) * self.head_dim
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return self.in_blocks + self.layers * (biases + norms + self.others) + self.hidden + self.ends + embeddings

    @property
    def multiplied(self) -> int:
        """Elements of the matrices that a token is multiplied with: those of all blocks and of the output."""
        return self.in_blocks + self.vocab * self.hidden

    @property
    def looked_up(self) -> int:
        """Parameters that are only ever looked up: an input embedding of its own."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def in_blocks(self) -> int:
        """Elements of the matrices of all blocks."""
        return self.layers * sum(layer.elements for layer in self.linear)

    def targets(self, lora: LoraSpec) -> tuple[Linear, ...]:
        """The linear layers of a block that get an adapter."""
        is_all = ALL_LINEAR in lora.target_modules
        return tuple(layer for layer in self.linear if is_all or layer.name in lora.target_modules)

    def adapters(self, lora: LoraSpec | None) -> int:
        """Parameters of the adapters: a rank times (inputs + outputs) in each block, for each target."""
        if lora is None:
            return 0
        return self.layers * sum(lora.rank * (layer.inputs + layer.outputs) for layer in self.targets(lora))

    def frozen(self, layers: int) -> int:
        """Parameters of the input embedding, of a head that is tied to it, and of the first `layers` blocks."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        of_block = (self.parameters - self.hidden - self.ends - embeddings) // self.layers
        return self.vocab * self.hidden + layers * of_block
