"""Volumes that the pods' user may not write or read: real processes over directories of somebody else.

They are root without the right to pass over permissions, since a test machine's Python may be root's alone.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.names import ENV_ROOT, ExitCode
from deepseek_trainer.telemetry.events import EventLog
from deepseek_trainer.worker.agreement import agree, alone
from deepseek_trainer.worker.failure import Failure, exit_with
from support.builders.data import CLAIM, texts
from support.builders.vault import a_state, a_store
from support.builders.worker import variables, write_config

OTHER = 10001
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
PREPARE = (sys.executable, "-m", "deepseek_trainer.prepare")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def root() -> Iterator[Path]:
    """A pod's volumes, whose work volume belongs to the pods' user."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    write_config(root)
    records = root / "volumes" / CLAIM / "train.jsonl"
    records.parent.mkdir(parents=True)
    records.write_text("".join(json.dumps(text) + "\n" for text in texts(12)))
    for name in ("work", "scratch"):
        (root / name).mkdir()
    (root / "termination").touch()
    yield root
    shutil.rmtree(root)


def prepared(root: Path, before: tuple[str, ...] = WITHOUT_RIGHTS) -> tuple[int, str]:
    """Exit code and message of a preparation by the pods' user."""
    done = subprocess.run([*before, *PREPARE], env=os.environ | variables(root), check=False, capture_output=True)
    message = (root / "termination").read_text()
    assert b"Traceback" not in done.stderr
    return done.returncode, json.loads(message)["message"] if message else ""


def test_what_belongs_to_the_user_is_prepared(root: Path):
    code, message = prepared(root)
    assert (code, message) == (ExitCode.DONE, "")


@pytest.mark.parametrize("name", ["work", "work/prepared", "work/checkpoints", "work/export", "work/logs"])
def test_a_directory_of_another_user_ends_the_job_before_any_work_and_names_user_owner_and_the_ways_out(
    root: Path, name: str
):
    place = root / name
    place.mkdir(exist_ok=True)
    os.chown(place, OTHER, OTHER)
    code, message = prepared(root)
    assert code == ExitCode.CONFIG, message
    assert message.startswith(
        f"{place}: permission denied for user 0 (groups 0); {place} belongs to 10001:10001, mode 0755 (hint: chown "
    )


def test_a_volume_that_is_mounted_read_only_ends_the_job_with_its_own_way_out(root: Path):
    work = root / "work"
    script = f'mount --bind {work} {work} && mount -o remount,ro,bind {work} && exec "$@"'
    in_namespace = ("unshare", "--mount", "sh", "-c", script, "sh")
    if subprocess.run([*in_namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    code, message = prepared(root, in_namespace)
    assert code == ExitCode.CONFIG, message
    assert message.startswith(
        f"{work} is on a volume that is mounted read-only (hint: name a claim that can be written"
    )


def test_a_base_model_that_the_user_may_not_read_ends_the_job_with_code_64(root: Path):
    base = root / "volumes" / "models" / "base.gguf"
    base.parent.mkdir()
    base.write_bytes(b"GGUF")
    base.chmod(0o600)
    os.chown(base, OTHER, OTHER)
    config = root / "etc" / "dstj" / "config.json"
    fields = json.loads(config.read_text())
    fields["model"] = {"base": {"claimName": "models", "path": "base.gguf"}}
    config.write_text(json.dumps(fields))
    code, message = prepared(root)
    assert code == ExitCode.CONFIG, message
    assert f"{base} belongs to 10001:10001, mode 0600" in message


@contextmanager
def as_another() -> Iterator[None]:
    """As user 10001 in this process."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(OTHER)
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_checkpoints_that_cannot_be_written_any_more_end_all_ranks_with_code_64(root: Path):
    os.chown(root / "work", OTHER, OTHER)
    with as_another():
        store = a_store(root / "work", sealed=False)
        store.save(1, a_state(1), {})
    os.chown(root / "work" / "checkpoints", 0, 0)
    with as_another(), pytest.raises(ConfigError, match=r"checkpoints belongs to 0:0, mode 0755"):
        store.save(2, a_state(2), {})


def test_a_log_that_cannot_be_written_ends_the_rank_with_code_64(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENV_ROOT, str(root))
    with as_another(), pytest.raises(PermissionError) as caught:
        EventLog(root / "work" / "logs" / "events.jsonl")
    failure = Failure.of(caught.value, rank=0)
    assert (failure.exit_code, failure.reason) == (ExitCode.CONFIG, "Config")
    assert f"{root / 'work'} belongs to 0:0, mode 0755" in failure.message


def test_what_one_rank_may_not_have_is_a_wrong_configuration_for_all(monkeypatch: pytest.MonkeyPatch, root: Path):
    monkeypatch.setenv(ENV_ROOT, str(root))

    def work() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root / "work" / "x"))

    told = []
    with pytest.raises(ConfigError):
        agree(lambda outcome: told.append(outcome) or alone(outcome), work)
    assert told[0]["failure"]["code"] == ExitCode.CONFIG


def test_a_denial_outside_the_volumes_is_not_put_down_to_them(monkeypatch: pytest.MonkeyPatch, root: Path):
    monkeypatch.setenv(ENV_ROOT, str(root))
    error = PermissionError(errno.EACCES, "Permission denied", "/dev/some-gpu")
    assert Failure.of(error).reason == "PermissionError"


def test_a_termination_log_that_cannot_be_written_costs_no_exit_code(root: Path):
    failure = Failure(ExitCode.DATA, "Data", "no records")
    with pytest.raises(SystemExit) as caught:
        exit_with(failure, environ={"DSTJ_TERMINATION_LOG": str(root)})
    assert caught.value.code == ExitCode.DATA
