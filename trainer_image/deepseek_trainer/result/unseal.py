"""Writes a result out in the clear, for people who hold the key."""

from pathlib import Path

from deepseek_trainer.checkpoints.unseal import new_private_directory, write_private
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.result.manifest import Result
from deepseek_trainer.storage.streams import Advance, unwatched


def decrypt_result(result: Result, target: Path, advance: Advance = unwatched) -> None:
    """Write the files of a result, with its subdirectories, into the new directory `target`, for its owner only.

    `advance` is called with the size of each piece [bytes].  Raises ConfigError if `target` exists; nothing remains
    of it after any other error.
    """
    if not result.records:
        raise DataError(f"no result in {result.directory}", hint="it is there when the job has succeeded")
    with new_private_directory(target):
        for name in result.records:
            (target / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(target / name, result.pieces(name), advance)
