"""A small server that speaks what Vault and OpenBao document of the transit engine and of logins, over real TLS.

Sources: developer.hashicorp.com/vault/api-docs/secret/transit, /auth/kubernetes, and /system for what a sealed server
answers.
"""

import base64
import datetime as dt
import ipaddress
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

NAME = "vault.test"
Json = dict[str, Any]


class RefusedError(Exception):
    """An answer with a status and errors."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


@dataclass
class TransitKey:
    derived: bool = False
    binds: bool = True  # False: as a server of before 1.13, which overlooks associated data
    versions: list[bytes] = field(default_factory=lambda: [secrets.token_bytes(32)])
    oldest: int = 1  # min_decryption_version

    def rotate(self) -> None:
        self.versions.append(secrets.token_bytes(32))

    def encrypt(self, fields: Json) -> Json:
        nonce, version = secrets.token_bytes(12), len(self.versions)
        sealed = self._cipher(version, fields).encrypt(
            nonce, base64.b64decode(fields["plaintext"]), self._bound(fields)
        )
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(nonce + sealed).decode()}", "key_version": version}

    def decrypt(self, fields: Json) -> Json:
        prefix, version, text = fields["ciphertext"].split(":")
        number, raw = int(version.removeprefix("v")), base64.b64decode(text)
        if prefix != "vault" or not 0 < number <= len(self.versions):
            raise RefusedError(400, "invalid ciphertext: version is too new")
        if number < self.oldest:
            raise RefusedError(400, "ciphertext or signature version is disallowed by policy (too old)")
        try:
            plain = self._cipher(number, fields).decrypt(raw[:12], raw[12:], self._bound(fields))
        except InvalidTag:
            raise RefusedError(400, "cipher: message authentication failed") from None
        return {"plaintext": base64.b64encode(plain).decode()}

    def _cipher(self, version: int, fields: Json) -> AESGCM:
        key = self.versions[version - 1]
        if not self.derived:
            return AESGCM(key)
        if not fields.get("context"):
            raise RefusedError(400, "missing 'context' for key derivation; the key was created using a derived key")
        return AESGCM(HKDF(hashes.SHA256(), 32, None, base64.b64decode(fields["context"])).derive(key))

    def _bound(self, fields: Json) -> bytes | None:
        return base64.b64decode(fields["associated_data"]) if self.binds and fields.get("associated_data") else None


@dataclass
class VaultServer:
    """`instead` answers in place of the API: it writes to the connection whatever it likes."""

    port: int = 0
    certificates: Path = Path()
    keys: dict[str, TransitKey] = field(default_factory=lambda: {"training": TransitKey()})
    tokens: set[str] = field(default_factory=lambda: {"hvs.good"})
    accounts: dict[str, str] = field(default_factory=lambda: {"jwt.good": "trainer"})  # JWT: role
    is_sealed: bool = False
    requests: list[str] = field(default_factory=list)  # paths, in order
    headers: list[dict[str, str]] = field(default_factory=list)
    instead: Callable[[BaseHTTPRequestHandler, Json], None] | None = None

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.certificates / "ca.crt"

    def answer(self, path: str, token: str, fields: Json) -> Json:
        if self.is_sealed:
            raise RefusedError(503, "Vault is sealed")
        match path.removeprefix("/v1/").split("/"):
            case ["auth", "kubernetes" | "jwt", "login"]:
                return self._login(fields)
            case ["transit", action, name] if action in ("encrypt", "decrypt"):
                if token not in self.tokens:
                    raise RefusedError(403, "permission denied")
                if name not in self.keys:
                    raise RefusedError(400, "encryption key not found")
                return {"data": getattr(self.keys[name], action)(fields)}
        raise RefusedError(404, "no handler for route")

    def _login(self, fields: Json) -> Json:
        if self.accounts.get(fields["jwt"]) != fields["role"]:
            raise RefusedError(403, "permission denied")
        token = f"hvs.{secrets.token_hex(8)}"
        self.tokens.add(token)
        return {"auth": {"client_token": token, "lease_duration": 600}}


@contextmanager
def vault_server(directory: Path, *, valid_days: int = 1) -> Iterator[VaultServer]:
    """A server with a certificate of its own CA for 127.0.0.1 and `vault.test`, both below `directory`."""
    make_certificates(directory, valid_days=valid_days)
    server = VaultServer(certificates=directory)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(self.path)
            server.headers.append(dict(self.headers))
            if server.instead:
                self.close_connection = True
                server.instead(self, fields)
                return
            try:
                status, content = 200, server.answer(self.path, self.headers.get("X-Vault-Token", ""), fields)
            except RefusedError as refusal:
                status, content = refusal.status, {"errors": [refusal.error]}
            answer(self, status, json.dumps(content).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def drip(handler: BaseHTTPRequestHandler, _: Json) -> None:
    """One byte of a header now and then: no read times out, and no answer comes."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


def make_certificates(directory: Path, *, valid_days: int = 1) -> None:
    """ca.crt, and server.crt with server.key."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _certificate(
        "a CA", ca_key, "a CA", ca_key, extension=x509.BasicConstraints(ca=True, path_length=None), valid_days=1
    )
    names = x509.SubjectAlternativeName([x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = _certificate(NAME, key, "a CA", ca_key, extension=names, valid_days=valid_days)
    (directory / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / "server.crt").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    *,
    extension: x509.ExtensionType,
    valid_days: int,
) -> x509.Certificate:
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=valid_days)
    subject, signer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, dt.datetime.now(dt.UTC)) - dt.timedelta(days=1))
        .not_valid_after(end)
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .sign(by, hashes.SHA256())
    )
