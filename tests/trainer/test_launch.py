"""The launcher over the real agent, where no rank gets to start."""

import json
import subprocess
import sys
from pathlib import Path

from deepseek_trainer.contract.names import ExitCode


def launched(tmp_path: Path, config: str | None) -> tuple[int, dict[str, object]]:
    """Exit code and termination message of a worker with this config.json."""
    (tmp_path / "etc" / "dstj").mkdir(parents=True)
    if config is not None:
        (tmp_path / "etc" / "dstj" / "config.json").write_text(config)
    log = tmp_path / "termination"
    variables = {
        "DSTJ_ROOT": str(tmp_path),
        "DSTJ_SCRATCH": str(tmp_path / "scratch"),
        "DSTJ_TERMINATION_LOG": str(log),
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "deepseek_trainer.launch"]
    done = subprocess.run(command, env=variables, capture_output=True, check=False)
    return done.returncode, json.loads(log.read_text())


def test_a_config_of_a_newer_operator_ends_the_worker_with_code_64_and_names_the_field(tmp_path: Path):
    code, message = launched(tmp_path, '{"turbo": true}')
    assert code == ExitCode.CONFIG
    assert "turbo: unknown field" in str(message["message"])
    assert message["reason"] == "Config"
