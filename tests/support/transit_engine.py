"""The transit engine of a real HashiCorp Vault, built from its Go module and kept until the sources change."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deepseek_trainer.storage.https import Answer, Server
from support.fakes.vault_server import make_certificates

SOURCE = Path(__file__).resolve().parents[1] / "e2e" / "transit"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstj" / "transit"


def built() -> Path:
    """The program.  A first build takes one to three minutes on two cores and, besides Go, nothing but modules."""
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum")))
    program = CACHE / digest.hexdigest()[:16] / "engine"
    if not program.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        program.parent.mkdir(parents=True)
        environment = os.environ | {"GOFLAGS": "-mod=readonly -buildvcs=false"}
        command = ["nice", "-n", "5", "go", "build", "-ldflags=-s -w", "-o", program.with_name("new"), "."]
        subprocess.run(command, check=True, cwd=SOURCE, env=environment)
        program.with_name("new").replace(program)
    return program


class Engine:
    """A running engine.  It asks for no token: Vault's core, which is not here, would."""

    def __init__(self, port: int, certificates: Path) -> None:
        self.port, self.ca = port, certificates / "ca.crt"
        self._server = Server("127.0.0.1", port, "127.0.0.1", self.ca)

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def tell(self, path: str, fields: Mapping[str, str] | None = None) -> Answer:
        """What an administrator asks for: POST below /v1/transit/."""
        answer = self._server.post(f"/v1/transit/{path}", fields or {}, {})
        assert answer.status == 200, answer
        return answer


@contextmanager
def running(directory: Path) -> Iterator[Engine]:
    make_certificates(directory)
    command = [built(), directory / "server.crt", directory / "server.key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Engine(int(process.stdout.readline()), directory)
        finally:
            process.kill()
