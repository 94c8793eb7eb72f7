"""What can be learned.  Here, and only here, a job's task is chosen."""

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
    from deepseek_trainer.tasks.language.preparation import LanguagePreparer  # noqa: PLC0415 one task of several

    return LanguagePreparer(config)


def of(config: "TrainingConfig", paths: "Paths", vault: "Vault", directory: Path) -> "Task[Any]":
    """The job's task, with the prepared data in `directory`."""
    from deepseek_trainer.tasks.language.task import LanguageTask  # noqa: PLC0415 as above

    return LanguageTask(config, paths, vault, directory)
