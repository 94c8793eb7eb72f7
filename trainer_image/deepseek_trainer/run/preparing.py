"""What a node does to prepare a run: node 0 prepares model and data, and the others wait for it."""

import logging
import os

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.lines import guard_logs
from deepseek_trainer.contract.names import ENV_NODE_INDEX, ENV_RUN_ID, Paths
from deepseek_trainer.data.inputs import TRAIN
from deepseek_trainer.data.pointer import wait
from deepseek_trainer.data.preparation import prepare
from deepseek_trainer.data.shards import read_manifest
from deepseek_trainer.storage.access import refuse_unwritable
from deepseek_trainer.storage.commit import with_room
from deepseek_trainer.training.schedule import refuse_endless_warmup
from deepseek_trainer.worker.failure import discreet
from deepseek_trainer.worker.training_config import load_config
from deepseek_trainer.worker.vaults import data_vault, follow_rotation


def prepare_node() -> None:
    """Returns when the base model and the data are complete, and the same for all nodes.  Raises JobError."""
    guard_logs()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths, run_id = Paths.from_env(), os.environ[ENV_RUN_ID]
    config = load_config(paths.config)
    with discreet(config.is_private):
        _prepare(config, paths, run_id)


def _prepare(config: TrainingConfig, paths: Paths, run_id: str) -> None:
    refuse_unwritable(paths)
    follow_rotation(config, paths)
    vault = data_vault(config, paths)
    if int(os.environ[ENV_NODE_INDEX]) == 0:
        # A rank that was killed while it saved may have filled the disk.  Unless this makes room, no rank ever will.
        made = with_room(paths.checkpoints, lambda: prepare(config, paths, vault, run_id, tasks.preparer(config)))
        refuse_endless_warmup(config.optimization, read_manifest(made, vault).counts[TRAIN].rows)
    else:
        wait(paths, run_id, vault)
