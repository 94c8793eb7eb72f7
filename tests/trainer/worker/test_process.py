import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_trainer.worker.process import StopFlag


def test_a_stop_flag_is_set_by_sigterm_and_stays_set():
    code = (
        "import os, signal; from deepseek_trainer.worker.process import StopFlag\n"
        "flag = StopFlag.on_signal(); print(flag.is_set)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print(flag.is_set)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert not StopFlag().is_set


def test_leaving_on_a_stop_does_not_wait_for_a_native_call():
    code = (
        "import hashlib, os\n"
        "from deepseek_trainer.worker.process import on_stop\n"
        "on_stop(lambda: os._exit(143)); print('ready', flush=True)\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"  # a quarter of an hour, without the GIL
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 143


def test_a_process_dies_with_its_parent(tmp_path: Path):
    child = (
        "import sys, time, os; from pathlib import Path\n"
        "from deepseek_trainer.worker.process import die_with_parent\n"
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


def test_a_profile_flag_is_set_by_sigusr1_until_it_is_taken():
    code = (
        "import os, signal; from deepseek_trainer.worker.process import ProfileFlag\n"
        "flag = ProfileFlag.on_signal(); print(flag.take())\n"
        "os.kill(os.getpid(), signal.SIGUSR1); print(flag.take(), flag.take())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_who_ignores_a_profile_lives_through_it_as_do_its_children():
    child = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)"
    code = (
        "import os, signal, subprocess, sys; from deepseek_trainer.worker.process import ignore_profile\n"
        "ignore_profile(); os.kill(os.getpid(), signal.SIGUSR1)\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_that_forbids_core_dumps_leaves_none_in_a_file_or_a_pipe(tmp_path: Path):
    code = (
        "import os, resource; from pathlib import Path; from deepseek_trainer.worker.process import forbid_core_dumps\n"
        "_, most = resource.getrlimit(resource.RLIMIT_CORE)\n"  # a test before may have lowered it
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most)); forbid_core_dumps()\n"
        "print(Path('/proc/self/limits').read_text(), flush=True); os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    assert core_limits(done.stdout) == ["1", "1"]  # core(5): 0 stops files only, 1 what is piped to a program as well
    assert not list(tmp_path.iterdir())


def test_where_the_limit_may_not_be_raised_the_process_is_not_dumpable():
    code = (
        "import ctypes, os, resource; from deepseek_trainer.worker.process import forbid_core_dumps\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.geteuid() or os.setuid(65534)\n"
        "kernel = ctypes.CDLL(None); kernel.prctl(4, 1); print(kernel.prctl(3))\n"
        "forbid_core_dumps(); print(kernel.prctl(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


@pytest.mark.parametrize(
    ("entry", "first_import"), [("prepare", "data.preparation"), ("launch", "worker.training_config")]
)
def test_libraries_download_nothing_and_write_to_the_scratch_volume_only(
    entry: str, first_import: str, tmp_path: Path
) -> None:
    """Each entry of a pod settles that before it imports the first module that needs them."""
    code = (
        f"import json, os, sys\nfrom deepseek_trainer import {entry}\n"
        "class Libraries:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'deepseek_trainer.{first_import}':\n"
        "            early = {'transformers', 'huggingface_hub'} & {*sys.modules}\n"
        "            print(json.dumps([dict(os.environ), sorted(early)]), flush=True); os._exit(0)\n"
        f"sys.meta_path.insert(0, Libraries())\n{entry}.main()\n"
    )
    environ = {"PATH": "/usr/bin", "HOME": "/root", "DSTJ_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    variables, early = json.loads(done.stdout)
    wanted = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HOME": str(tmp_path / "tmp")}
    assert (variables | wanted, early) == (variables, [])


def core_limits(limits: str) -> list[str]:
    """Soft and hard limit of core files in the text of /proc/PID/limits."""
    (line,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    return line.split()[4:6]
