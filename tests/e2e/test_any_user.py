"""A run as a user whom nobody knows, as OpenShift gives one to each namespace: without a name, a home or a group."""

import os
import subprocess
from pathlib import Path

import pytest

from support.builders.local_job import Job, sealed, short

STRANGER = 1_000_650_000
# Read what this machine hides from others, such as root's Python; write nothing that is not the user's own.
READS_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", "--no-new-privs")


STRANGERS = (
    *("setpriv", "--reuid", str(STRANGER), "--regid", "0", "--clear-groups", *READS_ALL),
    *("env", "-u", "USER", "-u", "LOGNAME", "HOME=/", "PYTHONDONTWRITEBYTECODE=1"),
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_user_without_a_name_and_a_home_trains_exports_and_seals(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", lambda spec: (short(spec), sealed(spec)))
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    subprocess.run(["chown", "--recursive", f"{STRANGER}:0", tmp_path], check=True)
    done = job.run(by=STRANGERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(job.export.rglob("*.sealed"))
    assert {path.lstat().st_uid for path in job.home.rglob("*")} == {STRANGER}
