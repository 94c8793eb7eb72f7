"""Names what a directory is that is no model to train: an adapter, a checkpoint, a model in another form.

Found by the names of its files alone.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.hub_cache import is_cache
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_of, named

_OWN: Final = "model.base.path names a model's own directory: config.json, *.safetensors and tokenizer.json"
_SAFETENSORS: Final = "take its release in safetensors files with transformers' config.json"
_SHOWN: Final = 5  # names
_MOST: Final = 1000  # directories that are looked into
_CONFIG: Final = "config.json"
_ADAPTER: Final = "adapter_config.json"

Kind = tuple[tuple[str, ...], str, str]  # patterns of names of files, what they tell, and the way out
_FIRST: Final[tuple[Kind, ...]] = (
    (
        (_ADAPTER, "adapter_model.*"),
        "is a LoRA adapter, not a model",
        "set model.base.path to the model that it was trained on (base_model_name_or_path in adapter_config.json); "
        "model.adapter names an adapter to go on from",
    ),
    (
        ("*.sealed",),
        "holds files that a job has sealed",
        "`dstj result decrypt` with the job's key writes them in the clear; copy the merged model to the claim",
    ),
    (
        ("zero_to_fp32.py", "global_step*", "mp_rank_*_model_states.pt", "*_optim_states.pt"),
        "is a checkpoint of DeepSpeed",
        "`python zero_to_fp32.py . OUT --safe_serialization` in it writes weights; copy config.json and the "
        "tokenizer's files to them",
    ),
    (
        ("*.distcp", "pytorch_model_fsdp*"),
        "is a checkpoint of FSDP, in pieces",
        "`accelerate merge-weights IN OUT` writes weights; copy config.json and the tokenizer's files to them",
    ),
)
_FURTHER: Final[tuple[Kind, ...]] = (
    (("*.gguf",), "holds GGUF files", "set model.base.path to one of them, by its name with .gguf"),
    (
        ("consolidated*.safetensors", "tekken.json"),
        "holds weights under the names of Mistral's own programs (consolidated.safetensors)",
        "take model*.safetensors and config.json of the same release",
    ),
    (
        ("consolidated.*.pth", "params.json"),
        "holds weights under the names of Meta's own programs (consolidated.*.pth, params.json)",
        "take the release for transformers, or convert it with convert_llama_weights_to_hf.py of transformers",
    ),
    (("*.onnx", "*.onnx_data", "onnx"), "is a model in ONNX, which is not for training", _SAFETENSORS),
    (("*.npz",), "is a model of MLX or NumPy (*.npz)", _SAFETENSORS),
    (("tf_model*.h5", "*.h5", "saved_model.pb"), "is a model of TensorFlow", _SAFETENSORS),
    (("flax_model*.msgpack", "*.msgpack"), "is a model of Flax", _SAFETENSORS),
    (("*.nemo",), "is a model of NeMo", _SAFETENSORS),
    (("*.mlpackage", "*.mlmodel*"), "is a model of Core ML", _SAFETENSORS),
    (("model_index.json",), "is a pipeline of diffusers, which makes images", _OWN),
    (("*.engine", "*.plan"), "is an engine of TensorRT, which is not for training", _SAFETENSORS),
)
_REMAINS: Final[tuple[Kind, ...]] = (
    (
        ("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt"),
        "is a checkpoint of HF Trainer without the model's weights in safetensors files",
        "trainer.save_model(path) of transformers writes them",
    ),
)
_TOKENIZER: Final[Kind] = (
    ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    "holds a tokenizer alone, and no model",
    _OWN,
)
_PICKLES: Final = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weights_of(names: Sequence[str]) -> tuple[str, ...]:
    """The names of safetensors files, without copies of the same weights for Mistral's own programs."""
    return tuple(name for name in names if name.endswith(".safetensors") and not name.startswith("consolidated"))


def refuse_lookalike(directory: Path) -> None:
    """Raises ConfigError where a directory without config.json or weights is something that is known."""
    names = sorted(path.name for path in directory.iterdir())
    if _CONFIG in names and weights_of(names):
        return
    _refuse_kinds(directory, names, _FIRST)
    _refuse_outer(directory)
    _refuse_kinds(directory, names, _FURTHER)
    if _matching(names, _PICKLES):
        return  # told by whoever looks for weights
    _refuse_kinds(directory, names, _REMAINS)
    if _CONFIG not in names and not weights_of(names):
        _refuse_kinds(directory, names, (_TOKENIZER,))


def _refuse_kinds(directory: Path, names: Sequence[str], kinds: Sequence[Kind]) -> None:
    for patterns, what, hint in kinds:
        if found := _matching(names, patterns):
            raise ConfigError(f"{place(directory)} {what}: it has {first_of(found, 3, named)}", hint=hint)


def _refuse_outer(directory: Path) -> None:
    """Raises ConfigError where models lie one level deeper."""
    below = [path for path in sorted(directory.iterdir())[:_MOST] if path.is_dir()]
    if models := [path.name for path in below if _is_model(path)]:
        raise ConfigError(
            f"{place(directory)} is no model, but holds {'some' if len(models) > 1 else 'one'}: "
            f"{first_of(models, _SHOWN, named)}",
            hint=f"did you mean model.base.path: .../{named(directory.name)[1:-1]}/{named(models[0])[1:-1]}?",
        )


def _is_model(path: Path) -> bool:
    names = [each.name for each in path.iterdir()]
    return is_cache(path) or (_CONFIG in names and bool(weights_of(names)))


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
