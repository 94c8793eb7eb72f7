"""One JSON request to a server over TLS, in bounded time and memory.

The server may be slow, broken or somebody else.  Its certificate is always verified, redirects are not followed, no
proxy is asked, and neither a request's content nor its headers are in a message.
"""

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import Any, Final

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError, IntegrityError, JobError, TryAgainError
from deepseek_trainer.contract.foreign import parsed, shown
from deepseek_trainer.storage.opening import content_of

TIMEOUT_S: Final = 10.0  # until it is connected, and for each part of an answer
ANSWER_S: Final = 20.0  # for a whole answer
MAX_ANSWER: Final = 1 << 16  # [bytes]
_MAX_CA: Final = 1 << 20  # [bytes]
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "RECORD_LAYER_FAILURE"})
_REACH: Final = "is it up, and does a rule of the job's egress lead there? See docs/security.md, key servers"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content: dict[str, Any]  # empty where it is no JSON object


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens, and who it must be."""

    host: str
    port: int
    name: str  # in its certificate
    ca: Path | None = None  # PEM; None: the CAs of this machine

    def __str__(self) -> str:
        return f"{self._bracketed(self.host)}:{self.port}"

    def post(self, path: str, content: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        """Raises TryAgainError where it is out of reach or too slow, IntegrityError where it is not who it must be."""
        body = json_text(content).encode()
        sent = {"Host": f"{self._bracketed(self.name)}:{self.port}", "Content-Type": "application/json", **headers}
        with self._failures_told(), self._connected() as connection:
            connection.request("POST", path, body, sent)
            response = connection.getresponse()
            received = response.read(MAX_ANSWER + 1)
            if len(received) > MAX_ANSWER:
                raise IntegrityError(f"{self} answers with more than {MAX_ANSWER:,} bytes", hint=_STRANGER)
            if response.length:  # that are still to come
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed before the answer was whole")
            return Answer(response.status, _object(received))

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        context = self._verifying()
        with (
            socket.create_connection((self.host, self.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=self.name) as tls,
        ):
            connection = http.client.HTTPConnection(self.host, self.port)
            connection.sock = tls
            with _ended_in_time(tls):
                yield connection

    def _verifying(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name, and knows no SSLKEYLOGFILE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is None:
            context.load_default_certs()
            return context
        try:
            context.load_verify_locations(cadata=content_of(self.ca, max_bytes=_MAX_CA).decode("ascii"))
        except (ValueError, ssl.SSLError, OSError):
            raise ConfigError(
                f"{self.ca} holds no certificate of a CA as PEM", hint="see vaultTransit.caCertificate"
            ) from None
        return context

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError | http.client.HTTPException) -> JobError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return IntegrityError(
                f"{self} has a certificate that does not prove it is {self.name}: {shown(error.verify_message, 120)}",
                hint="vaultTransit.caCertificate must be its CA, vaultTransit.serverName a name in the certificate",
            )
        if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
            return IntegrityError(f"{self} speaks no TLS from 1.2 on", hint="is it the right port of the server?")
        if isinstance(error, OSError):
            return TryAgainError(f"{self} is out of reach: {_reason(error)}", hint=_REACH)
        return IntegrityError(f"{self} speaks no HTTP: {type(error).__name__}", hint=_STRANGER)

    @staticmethod
    def _bracketed(host: str) -> str:
        return f"[{host}]" if ":" in host else host


@contextmanager
def _ended_in_time(connection: socket.socket) -> Iterator[None]:
    """Cut a connection whose answer does not end.  A socket's timeout begins anew with each byte that arrives."""
    is_late = Event()

    def cut() -> None:
        is_late.set()
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of ssl is for the thread that reads

    timer = Timer(ANSWER_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_late.is_set():
            raise TimeoutError


_STRANGER: Final = "is address that of the key server?"


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or "the connection was closed before an answer came"


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = parsed(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
