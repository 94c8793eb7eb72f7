"""Processes are found by what they were started with, whatever they became since."""

import os
import select
import signal
import subprocess
import sys

from dstj.local import strays

NAME = "DSTJ_TEST_STRAY"
# A grandchild in a session of its own, whose parent is gone.
PROGRAM = """
import os, signal
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
signal.pause()
"""


def a_stray(value: str) -> int:
    command = [sys.executable, "-S", "-E", "-c", PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={NAME: value})
    assert process.stdout
    pid = int(process.stdout.readline())
    process.stdout.close()
    process.wait()
    return pid


def test_stray_is_found_and_ended(tmp_path):
    pid = a_stray(str(tmp_path))
    ended = os.pidfd_open(pid)
    assert strays.members(NAME, str(tmp_path)) == [pid]
    assert strays.end_all(NAME, str(tmp_path)) == 1
    assert select.select([ended], [], [], 5)[0]
    assert strays.members(NAME, str(tmp_path)) == []


def test_stray_of_another_job_is_left_alone(tmp_path):
    pid = a_stray(f"{tmp_path}/other")
    try:
        assert strays.end_all(NAME, str(tmp_path)) == 0
        assert strays.members(NAME, f"{tmp_path}/other") == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_this_process_is_never_a_stray():
    name, value = next(iter(os.environ.items()))
    assert os.getpid() not in strays.members(name, value)
