"""What an entry of the table of families says.  Data and pure functions, without torch and transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from deepseek_trainer.base_model.decoder import Settings, Shape
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.errors import ConfigError

Windows = Mapping[str, int | None]

# Of a decoder whose layers are all alike, which takes one mask for all of them.
ALIKE: Final = ""


class Rotary(StrEnum):
    """Where GGUF files have the two rows of queries or keys that are rotated together.

    As llama.cpp's convert_hf_to_gguf.py leaves them, or permutes them.
    """

    APART = "apart"  # half a head lies between them, as in transformers
    INTERLEAVED = "interleaved"  # each is the other's neighbour


@dataclass(frozen=True, slots=True)
class Logits:
    """What a model makes of its head's outputs: `softcap` tanh(`scale` x / `softcap`), or `scale` x without one."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One entry.  Parts are named as transformers names its modules, dotted; a `*` stands for every child.

    What is left out is something that models of the family do not have, or that nobody has looked up: a job that needs
    it is refused.
    """

    model_type: str  # in config.json
    model_class: str  # of transformers
    embedding: str  # makes the first hidden states of what is read
    blocks: str  # come after it, in the order in which they run
    head: str  # makes the outputs of the last hidden states
    # In a block.  Of a family whose blocks differ, such as dense and sparse ones, one may lack some of them.
    linear: tuple[str, ...] = ()  # layers that can get an adapter and be kept in four bits
    experts: tuple[str, ...] = ()  # stacks of experts' matrices, which can get adapters and are not kept in four bits
    peft_renames: bool = False  # peft takes gate_proj, up_proj and down_proj for what each expert's were once called
    router: str = ""  # chooses a token's experts
    residual: tuple[str, ...] = ()  # layers whose outputs are added to the residual stream
    own_dropout: tuple[str, ...] = ()  # attributes that hold rates of config.json; a job sets its own
    positions: str = ""  # a learned embedding of positions, which is frozen with the other one
    embedded: str = ""  # makes the sum of both, if that is no output of `embedding`
    old_buffers: tuple[str, ...] = ()  # ends of names of buffers that old files hold, and that mean nothing
    is_transposed: bool = False  # linear layers hold their weights as inputs x outputs, as transformers' Conv1D
    switches: tuple[str, ...] = ()  # of config.json, that change the model into one that the entry is not about
    tied: bool = False  # head and embedding, where config.json is silent
    # What attention sees, and what becomes of the head's outputs: of all settings, those that config.json lacks, too.
    windows: Callable[[Settings], Windows] = lambda _: {ALIKE: None}
    logits: Callable[[Settings], Logits] = lambda _: Logits()
    moved: tuple[str, ...] = ()  # last names of buffers that training changes
    dimensions: Callable[[Settings], Dimensions] | None = None
    weights: Callable[[Settings], dict[str, Shape]] | None = None  # all that the files of a model may hold, by name
    # Prefixes of weights in files that no module takes, and what config.json says of the model without them.
    passed_over: Callable[[Settings], tuple[str, ...]] = lambda _: ()
    without: Mapping[str, int] = field(default_factory=dict)
    rotary_in_gguf: Rotary | None = None  # None: GGUF files of the family are not converted
    sees_images: bool = False  # other than tokens

    @property
    def stacks(self) -> dict[str, str]:
        """`experts` by the names that `targetModules` has for them."""
        return {path.partition(".")[2]: path for path in self.experts}

    def linear_for(self, asked: str) -> tuple[str, ...]:
        """`linear`.  Raises ConfigError where the table lists none, with what the job `asked` for."""
        if not self.linear:
            raise self._unable(asked, "linear layers of a block", "set method.type: Full")
        return self.linear

    def residual_for(self, asked: str) -> tuple[str, ...]:
        """`residual`.  Raises ConfigError as `linear_for`."""
        if not self.residual:
            raise self._unable(asked, "layers that write to the residual stream", f"drop {asked}")
        return self.residual

    def dimensions_for(self, settings: Settings) -> Dimensions:
        """Raises ConfigError where config.json lacks one, or where the table does not tell how to read them."""
        if self.dimensions is None:
            raise self._unable("memory and FLOPs", "dimensions")
        return self.dimensions(settings)

    def _unable(self, asked: str, part: str, way_out: str = "") -> ConfigError:
        return ConfigError(f"{asked}: of {self.model_type} models no {part} are known", hint=way_out)
