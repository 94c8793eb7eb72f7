"""The buffers of a model that belong to what it has learned: tensors beside its parameters, without a gradient."""

from torch import Tensor, nn

from deepseek_trainer.model.blocks import family


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that the files of a model hold, by name; the others follow from its config.json."""
    return {
        f"{place}.{name}".lstrip("."): buffer
        for place, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def moved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that training changes, always in place, by name: a checkpoint holds them as it holds weights."""
    moved = family(model).moved
    return {name: buffer for name, buffer in saved_buffers(model).items() if name.rpartition(".")[2] in moved}
