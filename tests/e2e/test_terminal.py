"""`dstj` on a real pseudo-terminal: what is on the screen, and what it leaves behind."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from support.builders.cli import WORKER, job_file
from support.builders.vault import a_state, a_store

STANDIN = Path(__file__).parents[1] / "support" / "fakes" / "dstj_standin.py"
ROWS, COLUMNS = 40, 100
LOCAL_MODES = 3  # index into what tcgetattr gives
ANSI = re.compile(r"\x1b\[(?P<number>[?\d;]*)(?P<code>[A-Za-z])|(?P<text>[^\x1b\r\n]+)|(?P<move>[\r\n])")

# Tells step 1, 2 and 3, one for each question, and ends.  A new stage is shown at once, a step once a second.
COUNTS = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    step = 0
    def do_GET(self):
        Handler.step += 1
        self.send_response(200)
        self.end_headers()
        told = {"stage": f"stage {Handler.step}", "step": Handler.step, "maxSteps": 9, "loss": 1.5}
        self.wfile.write(json.dumps(told).encode())
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["DSTJ_METRICS_PORT"])), Handler)
while Handler.step < 3: server.handle_request()
"""
# Answers SIGTERM as the trainer does; anything else, Ctrl-C among it, would end it with another code.
WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.pause()
"""


class Terminal:
    """A program with a terminal of its own, as in a shell."""

    def __init__(self, *command: str, **environ: str) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._before = termios.tcgetattr(self._slave)
        self._before[LOCAL_MODES] |= termios.NOFLSH  # Ctrl-C must not drop what this test has not read yet
        termios.tcsetattr(self._slave, termios.TCSANOW, self._before)
        self.output = ""
        ends: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self._slave)
        self._program = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | {"TERM": "xterm-256color"} | environ,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads here
            **ends,
        )

    def until(self, text: str) -> None:
        """Read until `text` was shown; the test's own timeout ends it."""
        while text not in self.output:
            self.output += os.read(self._master, 65536).decode()

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def ended(self) -> int:
        """Exit code, after the last byte of output was read."""
        os.set_blocking(self._master, False)
        while self._program.poll() is None or self._has_more():
            select.select([self._master], [], [], 0.05)
            self._has_more()
        return self._program.returncode

    def _has_more(self) -> bool:
        try:
            self.output += os.read(self._master, 65536).decode()
        except BlockingIOError:
            return False
        return True

    @property
    def is_as_before(self) -> bool:
        """Whether echo, line mode and the cursor are as a shell wants them."""
        cursor = re.findall(r"\x1b\[\?25[lh]", self.output)
        return termios.tcgetattr(self._slave) == self._before and cursor[-1] == "\x1b[?25h"

    def close(self) -> None:
        self._program.kill()
        self._program.wait()
        os.close(self._master)
        os.close(self._slave)


def screen(output: str) -> list[str]:
    """The lines that stay visible once `output` was drawn, by the few codes that rich draws with."""
    lines, row, column = [""], 0, 0
    for match in ANSI.finditer(output):
        if text := match["text"]:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif match["move"] == "\r":
            column = 0
        elif match["move"] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif match["code"] == "A":
            row -= int(match["number"] or 1)
        elif match["code"] == "K":
            lines[row] = ""
    return [line.rstrip() for line in lines]


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    opened = []
    monkeypatch.chdir(tmp_path)

    def start(worker: str, *words: object) -> Terminal:
        command = words or ("run", job_file(tmp_path))
        opened.append(Terminal(str(STANDIN), *map(str, command), **{WORKER: worker}))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_panel_counts_the_steps_and_is_gone_at_the_end(terminal):
    shown = terminal(COUNTS)
    for step in (1, 2, 3):
        shown.until(f"step {step}/9")
    assert any("tokens/s" in line for line in screen(shown.output))
    assert shown.ended() == 0
    assert shown.is_as_before
    rest = screen(shown.output)
    assert not any("tokens/s" in line or "step 3/9" in line for line in rest)
    assert any(line.endswith("Running, attempt 1: all 1 workers are ready") for line in rest)
    assert any(line.startswith("tiny: Succeeded: ") for line in rest)


def test_ctrl_c_suspends_the_job_and_gives_the_terminal_back(terminal):
    shown = terminal(WAITS)
    shown.until("all 1 workers are ready")
    shown.press(b"\x03")
    assert shown.ended() == 130
    assert shown.is_as_before
    rest = screen(shown.output)
    assert any("stopping: nothing is trained yet; Ctrl-C again to stop at once" in line for line in rest)
    assert any(line.startswith("tiny: suspended; to go on: dstj run ") for line in rest)
    assert not any("tokens/s" in line for line in rest)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("verify",), "verifying"),
        (("decrypt", "--to", "clear"), "decrypting"),
        (("prune", "--keep-last", 1), "verifying"),
    ],
)
def test_what_reads_every_byte_shows_a_bar_that_is_gone_at_the_end(terminal, tmp_path, words, what):
    store = a_store(tmp_path / "work", sealed=False)
    for step in (1, 2):
        store.save(step, a_state(step, floats=1_000_000), {})
    shown = terminal("", "checkpoint", *words, "--directory", tmp_path / "work")
    assert shown.ended() == 0
    assert shown.is_as_before
    assert re.search(rf"{what} .*MiB", shown.output)
    assert not any(what in line for line in screen(shown.output))
