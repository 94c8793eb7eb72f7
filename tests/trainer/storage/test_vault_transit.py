"""A key that a server keeps, asked over real TLS; tests/support/fakes/vault_server.py is the server."""

import base64
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import ConfigError, IntegrityError, JobError, TryAgainError
from deepseek_trainer.contract.key_ref import VaultTransit
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.storage import https, vault_transit
from deepseek_trainer.storage.kek import UnwrapError
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.rotation import grant, rotate
from deepseek_trainer.storage.vault_transit import TransitKek
from support.builders.vault import JOB, KEK
from support.fakes.vault_server import (
    NAME,
    RefusedError,
    TransitKey,
    VaultServer,
    answer,
    drip,
    make_certificates,
    vault_server,
)

DEK, HERE, THERE = b"0123456789abcdef" * 2, b"lab/demo", b"lab/other"
TOKEN = {"tokenSecret": {"secretName": "tokens"}}
Json = dict[str, Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VaultServer]:
    with vault_server(tmp_path / "certificates") as running:
        yield running


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_transit, "PAUSES_S", (0.0, 0.0))


def mounted(directory: Path, server: VaultServer, **files: str) -> Path:
    """What a pod mounts at the place of its keys."""
    directory.mkdir(exist_ok=True)
    for name, content in ({"token": "hvs.good\n", "ca.crt": server.ca.read_text()} | files).items():
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
    return directory


def kek(
    server: VaultServer, tmp_path: Path, *, auth: Json = TOKEN, files: dict[str, str] | None = None, **fields: Any
) -> TransitKek:
    given = {"address": server.address, "keyName": "training", "auth": auth, "caCertificate": {"configMapName": "ca"}}
    return TransitKek(VaultTransit.model_validate(given | fields), mounted(tmp_path / "keys", server, **(files or {})))


def logging_in(server: VaultServer, tmp_path: Path, jwt: str = "jwt.good", **login: str) -> TransitKek:
    made = kek(server, tmp_path, auth={"serviceAccount": {"role": "trainer"} | login}, files={"jwt": jwt})
    (tmp_path / "keys" / "token").unlink()
    return made


def replying(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler, Json], None]:
    return lambda handler, _: answer(handler, status, body, **headers)


@pytest.mark.parametrize("key", [TransitKey(), TransitKey(derived=True)])
def test_what_the_server_wraps_it_unwraps_for_that_job_alone(
    server: VaultServer, tmp_path: Path, key: TransitKey
) -> None:
    server.keys["training"] = key
    wrapped = kek(server, tmp_path).wrap(DEK, HERE)
    assert wrapped.startswith(b"vault:v1:")
    assert DEK not in base64.b64decode(wrapped.split(b":")[2])
    assert kek(server, tmp_path).unwrap(wrapped, HERE) == DEK
    with pytest.raises(UnwrapError):
        kek(server, tmp_path).unwrap(wrapped, THERE)


def test_no_changed_wrapped_key_unwraps(server: VaultServer, tmp_path: Path) -> None:
    one = kek(server, tmp_path)
    wrapped = one.wrap(DEK, HERE)

    @settings(deadline=None, max_examples=25)
    @given(place=st.integers(0, len(wrapped) - 1), bits=st.integers(1, 255))
    def stays_closed(place: int, bits: int) -> None:
        changed = bytearray(wrapped)
        changed[place] ^= bits
        with pytest.raises((UnwrapError, IntegrityError)):
            one.unwrap(bytes(changed), HERE)

    stays_closed()


def test_a_key_that_was_rotated_on_the_server_opens_what_its_older_versions_wrapped(
    server: VaultServer, tmp_path: Path
) -> None:
    old = kek(server, tmp_path).wrap(DEK, HERE)
    server.keys["training"].rotate()
    new = kek(server, tmp_path).wrap(DEK, HERE)
    assert new.startswith(b"vault:v2:")
    assert [kek(server, tmp_path).unwrap(wrapped, HERE) for wrapped in (old, new)] == [DEK, DEK]


def test_a_version_that_the_server_retired_is_named_as_such(server: VaultServer, tmp_path: Path) -> None:
    old = kek(server, tmp_path).wrap(DEK, HERE)
    server.keys["training"].rotate()
    server.keys["training"].oldest = 2
    with pytest.raises(IntegrityError, match=r"disallowed by policy.*min_decryption_version"):
        kek(server, tmp_path).unwrap(old, HERE)


def test_a_keyring_opens_by_a_key_that_stays_on_the_server(server: VaultServer, tmp_path: Path) -> None:
    path = tmp_path / KEYRING
    made = Keyring.create(path, JOB, kek(server, tmp_path))
    opened = Keyring.open(path, JOB, [kek(server, tmp_path)])
    assert opened.keys[0].material == made.keys[0].material
    assert made.keys[0].material.hex() not in path.read_text()


def test_a_job_moves_from_a_key_in_a_file_to_one_on_a_server_and_back(server: VaultServer, tmp_path: Path) -> None:
    path, remote = tmp_path / KEYRING, kek(server, tmp_path)
    dek = Keyring.create(path, JOB, KEK).keys[0].material
    assert rotate(path, [KEK], remote)
    with pytest.raises(IntegrityError, match="wrong key"):
        Keyring.open(path, JOB, [KEK])
    assert grant(path, [remote], KEK)
    for one in (KEK, remote):
        assert Keyring.open(path, JOB, [one]).keys[0].material == dek


def test_a_server_that_unwraps_another_key_is_refused(server: VaultServer, tmp_path: Path) -> None:
    path = tmp_path / KEYRING
    Keyring.create(path, JOB, kek(server, tmp_path))
    for other in (os.urandom(32), b"short"):
        body = json.dumps({"data": {"plaintext": base64.b64encode(other).decode()}}).encode()
        server.instead = replying(200, body)
        with pytest.raises(IntegrityError, match="it was changed"):
            Keyring.open(path, JOB, [kek(server, tmp_path)])


def test_a_server_that_does_not_unwrap_what_it_wraps_gets_nothing_to_seal(server: VaultServer, tmp_path: Path) -> None:
    def wrap_something_else(handler: BaseHTTPRequestHandler, fields: Json) -> None:
        fields["plaintext"] = base64.b64encode(os.urandom(32)).decode() if "plaintext" in fields else ""
        action = handler.path.split("/")[3]
        answer(handler, 200, json.dumps({"data": getattr(server.keys["training"], action)(fields)}).encode())

    server.instead = wrap_something_else
    with pytest.raises(IntegrityError, match="does not unwrap what it has wrapped"):
        Keyring.create(tmp_path / KEYRING, JOB, kek(server, tmp_path))
    assert not (tmp_path / KEYRING).exists()


def test_a_server_too_old_to_bind_a_key_to_its_job_is_refused(server: VaultServer, tmp_path: Path) -> None:
    server.keys["training"] = TransitKey(binds=False)
    with pytest.raises(IntegrityError, match="unwraps a key of one job for another one"):
        kek(server, tmp_path).wrap(DEK, HERE)


def test_a_token_of_the_service_account_is_exchanged_and_is_shown_nowhere_else(
    server: VaultServer, tmp_path: Path
) -> None:
    wrapped = logging_in(server, tmp_path).wrap(DEK, HERE)
    assert logging_in(server, tmp_path, path="jwt").unwrap(wrapped, HERE) == DEK
    assert server.requests[0] == "/v1/auth/kubernetes/login"
    assert server.requests[-2:] == ["/v1/auth/jwt/login", "/v1/transit/decrypt/training"]
    assert not any("jwt.good" in value for headers in server.headers for value in headers.values())


def test_a_process_asks_once_for_what_it_needs_often(server: VaultServer, tmp_path: Path) -> None:
    wrapped = kek(server, tmp_path).wrap(DEK, HERE)
    server.requests.clear()
    one = logging_in(server, tmp_path)
    assert [one.unwrap(wrapped, HERE) for _ in range(5)] == 5 * [DEK]
    assert server.requests == ["/v1/auth/kubernetes/login", "/v1/transit/decrypt/training"]


def test_a_token_that_was_renewed_meanwhile_is_read_anew(server: VaultServer, tmp_path: Path) -> None:
    one = kek(server, tmp_path)
    wrapped = one.wrap(DEK, HERE)
    server.tokens = {"hvs.next"}
    (tmp_path / "keys/token").write_text("hvs.next")
    assert one.wrap(DEK, HERE) != wrapped
    by_login = logging_in(server, tmp_path)
    by_login.wrap(DEK, HERE)
    server.tokens, server.accounts = set(), {"jwt.next": "trainer"}
    (tmp_path / "keys/jwt").write_text("jwt.next")
    assert by_login.unwrap(wrapped, HERE) == DEK


REFUSALS: list[tuple[str, Callable[[VaultServer], object], type[JobError], str]] = [
    (
        "sealed",
        lambda s: setattr(s, "is_sealed", True),
        TryAgainError,
        "sealed or in maintenance.*Vault is sealed.*unseal",
    ),
    (
        "busy",
        lambda s: setattr(s, "instead", replying(429, b'{"errors": ["rate limit"]}')),
        TryAgainError,
        "429.*rate limit",
    ),
    ("proxy", lambda s: setattr(s, "instead", replying(502, b"<html>")), TryAgainError, "no answer now .502."),
    ("replica", lambda s: setattr(s, "instead", replying(412, b"")), TryAgainError, "412"),
    ("denied", lambda s: s.tokens.clear(), IntegrityError, "denies to encrypt.*permission denied.*policy"),
    ("no key", lambda s: s.keys.clear(), IntegrityError, "refuses to encrypt.*key not found.*must exist"),
    (
        "no engine",
        lambda s: setattr(s, "instead", replying(404, b'{"errors": []}')),
        IntegrityError,
        "has no path to encrypt.*mount",
    ),
    (
        "redirect",
        lambda s: setattr(s, "instead", replying(307, b"", Location="https://elsewhere.test/")),
        IntegrityError,
        "redirects",
    ),
    ("a page", lambda s: setattr(s, "instead", replying(200, b"<html>")), IntegrityError, "is address that of Vault"),
    (
        "null",
        lambda s: setattr(s, "instead", replying(200, b'{"data": {"ciphertext": null}}')),
        IntegrityError,
        "is address",
    ),
    ("a list", lambda s: setattr(s, "instead", replying(200, b"[" * 5000)), IntegrityError, "is address"),
    (
        "huge",
        lambda s: setattr(s, "instead", replying(200, b" " * (https.MAX_ANSWER + 1))),
        IntegrityError,
        "more than 65,536 bytes",
    ),
    ("teapot", lambda s: setattr(s, "instead", replying(418, b"{}")), IntegrityError, "answers 418"),
]


@pytest.mark.parametrize(("what", "change", "kind", "message"), REFUSALS, ids=[what for what, *_ in REFUSALS])
def test_each_refusal_is_retried_or_not_and_says_the_way_out(
    server: VaultServer,
    tmp_path: Path,
    *,
    what: str,
    change: Callable[[VaultServer], object],
    kind: type[JobError],
    message: str,
) -> None:
    change(server)
    with pytest.raises(kind, match=message) as caught:
        kek(server, tmp_path).wrap(DEK, HERE)
    assert caught.value.code == (ExitCode.TRY_AGAIN if kind is TryAgainError else ExitCode.INTEGRITY)
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_a_refused_login_names_the_role_and_what_it_must_know(server: VaultServer, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"denies to log in at auth/kubernetes/login as trainer.*dstj-<job>"):
        logging_in(server, tmp_path, "jwt.of.another").wrap(DEK, HERE)


def test_a_server_that_comes_back_within_the_pauses_costs_no_attempt(server: VaultServer, tmp_path: Path) -> None:
    server.is_sealed = True

    def unseal(handler: BaseHTTPRequestHandler, fields: Json) -> None:
        server.is_sealed, server.instead = False, None
        answer(handler, 503, b'{"errors": ["Vault is sealed"]}')

    server.instead = unseal
    assert kek(server, tmp_path).wrap(DEK, HERE)


def test_nothing_that_is_secret_is_in_a_message_even_if_the_server_repeats_it(
    server: VaultServer, tmp_path: Path
) -> None:
    def repeat(status: int) -> Callable[[BaseHTTPRequestHandler, Json], None]:
        def told(handler: BaseHTTPRequestHandler, fields: Json) -> None:
            said = f"{json.dumps(fields)} {handler.headers.get('X-Vault-Token')} \x1b[2J\n"
            answer(handler, status, json.dumps({"errors": [said]}).encode())

        return told

    for status in (400, 403, 503):
        server.instead = repeat(status)
        for one in (kek(server, tmp_path), logging_in(server, tmp_path)):
            with pytest.raises(JobError) as caught:
                one.wrap(DEK, HERE)
            said = f"{caught.value} {one!r}"
            assert not any(secret in said for secret in ("hvs.good", "jwt.good", base64.b64encode(DEK).decode()))
            assert said.isprintable()


def test_no_redirect_is_followed(server: VaultServer, tmp_path: Path) -> None:
    with vault_server(tmp_path / "elsewhere") as elsewhere:
        server.instead = replying(307, b"", Location=f"{elsewhere.address}/v1/transit/encrypt/training")
        with pytest.raises(IntegrityError, match="redirects"):
            kek(server, tmp_path).wrap(DEK, HERE)
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("host", "name", "is_proved"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.1", NAME, True),
        ("localhost", NAME, True),
        ("localhost", None, False),
        ("127.0.0.1", "other.test", False),
    ],
)
def test_the_server_proves_the_name_that_the_job_gives(
    server: VaultServer, tmp_path: Path, host: str, name: str | None, is_proved: bool
) -> None:
    one = kek(server, tmp_path, address=f"https://{host}:{server.port}", **({"serverName": name} if name else {}))
    if is_proved:
        assert one.wrap(DEK, HERE)
        assert server.headers[0]["Host"] == f"{name or host}:{server.port}"
    else:
        with pytest.raises(IntegrityError, match=r"does not prove it is.*caCertificate.*serverName"):
            one.wrap(DEK, HERE)
        assert server.requests == []


def test_a_certificate_of_another_ca_or_one_that_ended_is_refused(server: VaultServer, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    with pytest.raises(IntegrityError, match="certificate"):
        kek(server, tmp_path, files={"ca.crt": (tmp_path / "other/ca.crt").read_text()}).wrap(DEK, HERE)
    with pytest.raises(IntegrityError, match="certificate"):
        kek(server, tmp_path, caCertificate=None).wrap(DEK, HERE)
    with vault_server(tmp_path / "expired", valid_days=-1) as expired, pytest.raises(IntegrityError, match="expired"):
        kek(expired, tmp_path).wrap(DEK, HERE)
    assert server.requests == []


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\xff"]
)
def test_a_ca_that_is_none_is_refused_before_anything_is_sent(
    server: VaultServer, tmp_path: Path, content: str
) -> None:
    with pytest.raises(ConfigError, match=r"ca.crt holds no certificate of a CA"):
        kek(server, tmp_path, files={"ca.crt": content}).wrap(DEK, HERE)
    assert server.requests == []


def test_a_server_without_tls_is_refused_and_sees_no_token(server: VaultServer, tmp_path: Path) -> None:
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk() -> None:
            connection, _ = plain.accept()
            with connection:
                seen.extend(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(IntegrityError, match="speaks no TLS"):
            kek(server, tmp_path, address=f"https://127.0.0.1:{plain.getsockname()[1]}").wrap(DEK, HERE)
        thread.join()
    assert b"hvs.good" not in seen


def test_the_environment_chooses_neither_a_proxy_nor_a_log_of_keys(
    server: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "log"))
    assert kek(server, tmp_path).wrap(DEK, HERE)
    assert not (tmp_path / "log").exists()


def test_a_server_that_is_down_is_tried_again(server: VaultServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TryAgainError, match=r"out of reach: Connection refused.*egress"):
        kek(server, tmp_path, address=f"https://127.0.0.1:{port}").wrap(DEK, HERE)


def hang_up(handler: BaseHTTPRequestHandler, _: Json) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def no_http(handler: BaseHTTPRequestHandler, _: Json) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def silence(handler: BaseHTTPRequestHandler, _: Json) -> None:
    threading.Event().wait(1)


@pytest.mark.parametrize(
    ("instead", "kind", "message"),
    [
        (hang_up, TryAgainError, "closed before the answer was whole"),
        (no_http, IntegrityError, "speaks no HTTP"),
        (silence, TryAgainError, "no answer in time"),
        (drip, TryAgainError, "no answer in time"),
    ],
)
def test_whatever_a_server_sends_the_question_ends_in_time(
    server: VaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    instead: Callable[[BaseHTTPRequestHandler, Json], None],
    kind: type[JobError],
    message: str,
) -> None:
    monkeypatch.setattr(https, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(https, "ANSWER_S", 0.4)
    monkeypatch.setattr(vault_transit, "PAUSES_S", ())
    server.instead = instead
    with pytest.raises(kind, match=message):
        kek(server, tmp_path).wrap(DEK, HERE)


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "a b", "\x1b[2J", "x" * 20_000, "é"])
def test_a_token_that_is_none_is_never_shown(server: VaultServer, tmp_path: Path, content: str) -> None:
    with pytest.raises(IntegrityError, match=r"keys/token") as caught:
        kek(server, tmp_path, files={"token": content}).wrap(DEK, HERE)
    assert not content.strip() or content.strip() not in str(caught.value)
    assert server.requests == []


def test_a_token_that_everybody_can_read_or_that_is_no_file_is_refused(server: VaultServer, tmp_path: Path) -> None:
    one, token = kek(server, tmp_path), tmp_path / "keys/token"
    token.chmod(0o604)
    with pytest.raises(IntegrityError, match=r"everybody can reach the token.*chmod 600"):
        one.wrap(DEK, HERE)
    token.unlink()
    with pytest.raises(IntegrityError, match="no token for the key server"):
        one.wrap(DEK, HERE)
    os.mkfifo(token)
    with pytest.raises(IntegrityError, match="is a FIFO"):
        one.wrap(DEK, HERE)


def test_its_id_stays_when_the_server_moves(server: VaultServer, tmp_path: Path) -> None:
    moved = kek(server, tmp_path, address="https://vault.example.org:8200")
    assert moved.id == kek(server, tmp_path).id == "vault-transit:transit/training"


def test_old_tls_is_refused(server: VaultServer, tmp_path: Path) -> None:
    assert https.Server("h", 1, "h")._verifying().minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_fake_refuses_as_documented(server: VaultServer) -> None:
    with pytest.raises(RefusedError, match="key not found"):
        server.answer("/v1/transit/encrypt/none", "hvs.good", {})
