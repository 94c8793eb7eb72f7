import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from deepseek_trainer.process import RankFiles, StopFlag


def test_a_stop_flag_is_set_by_sigterm_and_stays_set():
    code = (
        "import os, signal; from deepseek_trainer.process import StopFlag\n"
        "flag = StopFlag.on_signal(); print(flag.is_set)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print(flag.is_set)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert not StopFlag().is_set


def test_rank_files_tell_the_pids_and_how_often_a_rank_was_restarted(tmp_path: Path):
    ranks = RankFiles(tmp_path)
    assert ranks.pids() == ()
    assert [ranks.record(0), ranks.record(0), ranks.record(1)] == [0, 1, 0]
    assert set(ranks.pids()) == {os.getpid()}
    ranks.clear()
    assert ranks.pids() == ()


def test_a_process_dies_with_its_parent(tmp_path: Path):
    child = (
        "import sys, time, os; from pathlib import Path\n"
        "from deepseek_trainer.process import die_with_parent\n"
        "die_with_parent(); Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])"
    pid_file = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", parent, str(pid_file)])
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    child_pid = int(pid_file.read_text())
    while Path(f"/proc/{child_pid}/stat").exists() and " Z " not in Path(f"/proc/{child_pid}/stat").read_text():
        time.sleep(0.01)
