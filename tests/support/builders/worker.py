"""Small valid configurations and environments of a worker's processes."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

from support.builders.data import RUN_ID, a_config


def write_config(root: Path, text: str = "", *, nodes: int = 1, processes: int = 1) -> None:
    """The config.json of the worker whose volumes are below `root`."""
    file = root / "etc" / "dstj" / "config.json"
    file.parent.mkdir(parents=True)
    fields: dict[str, Any] = a_config().model_dump(mode="json", by_alias=True, exclude_none=True)
    file.write_text(text or json.dumps(fields | {"numNodes": nodes, "numProcPerNode": processes}))


def variables(root: Path, *, node: int = 0) -> dict[str, str]:
    """The environment of a worker that is alone on this machine; it ends with its message in `root`/termination."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "DSTJ_ROOT": str(root),
        "DSTJ_SCRATCH": str(root / "scratch"),
        "DSTJ_TERMINATION_LOG": str(root / "termination"),
        "DSTJ_RUN_ID": RUN_ID,
        "DSTJ_NODE_ADDRESS": "127.0.0.1",
        "DSTJ_RENDEZVOUS": f"127.0.0.1:{port}",
        "JOB_COMPLETION_INDEX": str(node),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }


def agent_with(ranks: str, **constants: Any) -> list[str]:
    """The command of the real agent, whose ranks run the Python code `ranks` instead of a training."""
    settings = {"RANK": ("-c", ranks)} | constants
    code = "from deepseek_trainer import agent\n" + "".join(f"agent.{k} = {v!r}\n" for k, v in settings.items())
    return [sys.executable, "-c", f"{code}from deepseek_trainer.worker.failure import run\nrun(agent.main)\n"]
