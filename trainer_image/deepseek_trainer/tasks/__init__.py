"""What a job can teach a model: a room for each task, and in `task` the seam behind which tasks work.

A task makes records into rows (its `Preparer`) and rows into batches, and supplies model, loss and scores (its `Task`).
The training loop, the order of the data and the checkpoints see only these two, and know no task by name.  The
functions below, and nothing else, choose a job's task.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_trainer.contract.config import TrainingConfig
    from deepseek_trainer.contract.names import Paths
    from deepseek_trainer.data.preparer import Preparer
    from deepseek_trainer.storage.vault import Vault
    from deepseek_trainer.tasks.task import Task


def preparer(config: "TrainingConfig") -> "Preparer[Any]":
    """How the job's records become rows."""
    if _is_of_images(config):
        from deepseek_trainer.tasks.images.preparation import ImagePreparer  # noqa: PLC0415 the other task's is spared

        return ImagePreparer(config)
    from deepseek_trainer.tasks.language.preparation import LanguagePreparer  # noqa: PLC0415 as above

    return LanguagePreparer(config)


def of(config: "TrainingConfig", paths: "Paths", vault: "Vault", directory: Path) -> "Task[Any]":
    """The job's task, with the prepared data in `directory`."""
    if _is_of_images(config):
        from deepseek_trainer.tasks.images.task import ImageTask  # noqa: PLC0415 as above

        return ImageTask(config, paths, vault, directory)
    from deepseek_trainer.tasks.language.task import LanguageTask  # noqa: PLC0415 as above

    return LanguageTask(config, paths, vault, directory)


def _is_of_images(config: "TrainingConfig") -> bool:
    return config.data.images is not None
