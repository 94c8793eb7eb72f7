"""The files of a base model that training does not need, and that its result carries on: generation settings, licence.

Without torch.
"""

from typing import Final

from deepseek_trainer.base_model.bounds import refuse_out_of_bounds
from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

GENERATION: Final = "generation_config.json"
_LEGAL: Final = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")  # how names of such files begin
_MOST: Final = 20  # files
_MAX_TEXT: Final = 4 << 20  # [bytes]


def kept_files(source: Place) -> dict[str, bytes]:
    """Their content by name.  Raises ConfigError where generation settings are malformed, or where it is a lot."""
    legal = sorted(path.name for path in source.path.iterdir() if is_legal(path.name) and path.is_file())
    if len(legal) > _MOST:
        raise ConfigError(
            f"{source.path} has {len(legal)} files of licences and notices: {_MOST} at most are kept",
            hint="leave the model's own",
        )
    for name in legal:
        if not name.isprintable():
            raise ConfigError(f"{source.path} has a file {shown(name)}, which is no name", hint="name it otherwise")
    texts = {name: source.content(name, _MAX_TEXT) for name in legal}
    if not source.has(GENERATION):
        return texts
    refuse_out_of_bounds(source.json(GENERATION), place(source.path / GENERATION))
    return texts | {GENERATION: source.content(GENERATION)}


def is_legal(name: str) -> bool:
    """Whether a file of this name says under what terms a model is given."""
    return name.upper().startswith(_LEGAL)
