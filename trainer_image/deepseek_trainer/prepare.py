"""Init container of every node: `python -m deepseek_trainer.prepare`.  Small run on a laptop: `dstj run FILE`."""

from deepseek_trainer.contract.names import ExitCode, Paths
from deepseek_trainer.worker.devices import require_devices
from deepseek_trainer.worker.failure import Failure, leave_with, run
from deepseek_trainer.worker.process import forbid_core_dumps, on_stop, shut_in

# A killed writer leaves nothing that a reader could see, and the next one clears up: no need to wait for it.
STOPPED = Failure(ExitCode.STOPPED, "Stopped", "asked to stop while preparing: what was complete is kept")


def main() -> None:
    on_stop(lambda: leave_with(STOPPED))
    forbid_core_dumps()
    shut_in(Paths.from_env().scratch)
    require_devices()
    from deepseek_trainer.run.preparing import prepare_node  # noqa: PLC0415 seconds of import, after the handler

    prepare_node()


if __name__ == "__main__":
    run(main)
