"""Where a base model lies, and how its small files are read: none from outside of its claim, and each within bounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.hub_cache import snapshot_of
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_line, shown, unambiguous
from deepseek_trainer.contract.model import BaseModelSource
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.opening import content_of

MAX_JSON: Final = 64 << 20  # [bytes] of a file of settings, or of an index
_SHOWN: Final = 20  # names


@dataclass(frozen=True, slots=True)
class Place:
    """A directory, or a GGUF file, on the claim that is mounted at `claim`."""

    path: Path
    claim: Path

    @classmethod
    def find(cls, base: BaseModelSource, paths: Paths, field: str = "model.base") -> Self:
        """In a cache of the Hugging Face hub it is the snapshot.  Raises ConfigError, of `field`, for nothing."""
        path, claim = paths.claim(base.claim_name, base.path), paths.claim(base.claim_name)
        if path.exists():
            return cls(snapshot_of(path, claim), claim)
        beside = path.parent
        while not beside.exists():
            beside = beside.parent
        raise ConfigError(
            f"{field}: claim {base.claim_name} has no {base.path or 'such volume'}: {path} does not exist",
            hint=f"{beside} holds {_names_in(beside)}",
        )

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def content(self, name: str, max_bytes: int = MAX_JSON) -> bytes:
        return content_of(self.path / name, max_bytes=max_bytes, below=self.claim)

    def json(self, name: str) -> dict[str, Any]:
        """Raises ConfigError where the file is missing, or holds no JSON object."""
        where = place(self.path / name)
        try:
            content = unambiguous(self.content(name))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} has no {name}", hint="model.base.path names a model's own directory"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"{where} is not JSON: {first_line(error)}", hint="take it from the model's own release"
            ) from None
        if not isinstance(content, dict):
            raise ConfigError(f"{where} is not a JSON object", hint="take it from the model's own release")
        return content


def _names_in(directory: Path) -> str:
    if not directory.is_dir():
        return "a file"
    names = sorted(path.name for path in directory.iterdir())[:_SHOWN]
    return ", ".join(name if name.isprintable() else shown(name) for name in names) or "nothing"
