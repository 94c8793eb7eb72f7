"""A key-encryption key of the transit engine of HashiCorp Vault or OpenBao, which never leaves the server.

The server wraps and unwraps data keys: POST /v1/<mount>/encrypt/<key> and /decrypt/<key>.  The context goes along as
`associated_data`, to which the ciphertext is bound, and as `context`, from which a derived key is derived.  A wrapped
key names the version of the server's key (`vault:v1:...`), so one that is rotated there still unwraps.

Sources: developer.hashicorp.com/vault/api-docs/secret/transit, /auth/kubernetes, /auth/jwt, and openbao.org/api-docs.
"""

import base64
import binascii
import os
import random
import re
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.errors import IntegrityError, JobError, TryAgainError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.key_ref import VaultTransit
from deepseek_trainer.contract.names import ACCOUNT_TOKEN, SERVER_CA, SERVER_TOKEN
from deepseek_trainer.storage.https import Answer, Server
from deepseek_trainer.storage.kek import UnwrapError
from deepseek_trainer.storage.opening import opened

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0)  # a server that elects a leader or is restarted needs about as long
_MAX_TOKEN: Final = 1 << 14  # [bytes]
_WRAPPED: Final = re.compile(r"vault:v[1-9][0-9]{0,8}:[A-Za-z0-9+/]{1,3000}={0,2}")
_TEMPORARY: Final = frozenset({412, 429, 472, 473})  # a standby behind its leader, a rate limit, a standby
_DENIED: Final = 403
_OK: Final = 200
_SECRET: Final = frozenset({"plaintext", "jwt", "X-Vault-Token"})
_SHORTEST: Final = 8  # [characters] of a secret: a shorter one could be a part of any word


class TransitKek:
    """A KEK (storage/kek.py) on a server.

    It is asked as seldom as can be: a data key that was unwrapped once is remembered, as its keyring does anyway.
    """

    def __init__(self, transit: VaultTransit, directory: Path) -> None:
        """`directory` holds what the pod shows the server, and the server's CA."""
        ca = directory / SERVER_CA if transit.ca_certificate else None
        self._transit, self._directory = transit, directory
        self._server = Server(transit.host, transit.port, transit.server_name or transit.host, ca)
        self._token = ""
        self._unwrapped: dict[tuple[bytes, bytes], bytes] = {}

    @property
    def id(self) -> str:
        """It has no address: a server that moves keeps its keys."""
        return f"vault-transit:{self._transit.mount}/{self._transit.key_name}"

    def __repr__(self) -> str:
        return f"TransitKek({self.id} at {self._server})"

    def wrap(self, dek: bytes, context: bytes) -> bytes:
        """Once per job, so it also proves what the server could get wrong: that it unwraps, and here alone."""
        answer = self._ask("encrypt", {"plaintext": _text(dek)} | _bound_to(context))
        wrapped = _field(answer, "data", "ciphertext")
        if not _WRAPPED.fullmatch(wrapped):
            raise IntegrityError(f"{self._server} answers without a wrapped key", hint=_STRANGER)
        if self.unwrap(wrapped.encode(), context) != dek:
            raise IntegrityError(f"{self.id} does not unwrap what it has wrapped", hint=_STRANGER)
        self._refuse_if_unbound(wrapped.encode(), context)
        return wrapped.encode()

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if (known := self._unwrapped.get((wrapped, context))) is not None:
            return known
        text = wrapped.decode("ascii", "replace")
        if not _WRAPPED.fullmatch(text):
            raise UnwrapError
        answer = self._ask("decrypt", {"ciphertext": text} | _bound_to(context))
        self._unwrapped[wrapped, context] = dek = self._decoded(_field(answer, "data", "plaintext"))
        return dek

    def _refuse_if_unbound(self, wrapped: bytes, context: bytes) -> None:
        try:
            self.unwrap(wrapped, context + b"?")
        except UnwrapError:
            return
        raise IntegrityError(
            f"{self.id} unwraps a key of one job for another one",
            hint="Vault from 1.13 on and OpenBao bind keys to jobs",
        )

    def _decoded(self, plaintext: str) -> bytes:
        with suppress(binascii.Error):
            if dek := base64.b64decode(plaintext, validate=True):
                return dek
        raise IntegrityError(f"{self._server} unwraps a key and answers without it", hint=_STRANGER)

    def _ask(self, action: str, fields: Mapping[str, str]) -> Answer:
        """The answer of the transit engine.  A token that is refused may be old, so a new one is tried."""
        path = f"{self._transit.mount}/{action}/{self._transit.key_name}"
        for is_last in (False, True):
            token = self._token = self._token or self._new_token()
            answer = self._post(path, fields, {"X-Vault-Token": token})
            if answer.status == _OK:
                return answer
            self._token = ""
            if answer.status != _DENIED or is_last:
                break
        raise self._refusal(answer, f"to {action} with {self.id}", action)

    def _new_token(self) -> str:
        login = self._transit.auth.service_account
        given = self._directory / SERVER_TOKEN
        if login is None or given.exists():
            return _read_token(given)
        path = f"auth/{login.path}/login"
        answer = self._post(path, {"role": login.role, "jwt": _read_token(self._directory / ACCOUNT_TOKEN)}, {})
        if answer.status != _OK:
            raise self._refusal(answer, f"to log in at {path} as {login.role}", "login")
        token = _field(answer, "auth", "client_token")
        if not _is_token(token):
            raise IntegrityError(f"{self._server} lets us log in at {path} and gives no token", hint=_STRANGER)
        return token

    def _post(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        """Tries for a while before the attempt of the whole job is given up."""
        for pause in PAUSES_S:
            try:
                return self._post_once(path, fields, headers)
            except TryAgainError:
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  so that ranks do not come all at once
        return self._post_once(path, fields, headers)

    def _post_once(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        answer = self._server.post(f"/v1/{path}", fields, {"X-Vault-Request": "true", **headers})
        answer = _without([sent[name] for sent in (fields, headers) for name in _SECRET & sent.keys()], answer)
        if answer.status >= 500 or answer.status in _TEMPORARY:
            state = "is sealed or in maintenance" if answer.status == 503 else f"has no answer now ({answer.status})"
            raise TryAgainError(f"{self._server} {state}: {_errors(answer)}", hint="unseal or repair it; see its log")
        return answer

    def _refusal(self, answer: Answer, what: str, action: str) -> JobError | UnwrapError:
        """What an answer means that no retry makes better."""
        errors = _errors(answer)
        if answer.status == 400 and action == "decrypt" and not any(known in errors for known in _NOT_ITS_FAULT):
            return UnwrapError(errors)
        problem, hint = _REFUSALS.get(answer.status, (f"answers {answer.status}", _STRANGER))
        if 300 <= answer.status < 400:
            problem, hint = "redirects, which is not followed, a request", "address: the leader's or a load balancer's"
        elif action == "login" and answer.status in (400, 403):
            hint = _LOGIN
        return IntegrityError(f"{self._server} {problem} {what}: {errors}", hint=hint)


_STRANGER: Final = "is address that of Vault or OpenBao?"
_NOT_ITS_FAULT: Final = ("not found", "disallowed by policy", "non-AEAD")  # but the fault of the server's key
_LOGIN: Final = (
    "the role must take the job's namespace, its ServiceAccount dstj-<job> and the audience; the auth method must have "
    "the cluster's keys, or reach its API server"
)
_REFUSALS: Final = {
    400: (
        "refuses",
        "the key must exist and take associated data (aes256-gcm96, chacha20-poly1305), and its min_decryption_version "
        "must let old versions unwrap",
    ),
    403: (
        "denies",
        "the policy of the role or token must allow update on <mount>/encrypt/<key> and <mount>/decrypt/<key>; a token "
        "may have expired",
    ),
    404: ("has no path", "enable the transit engine at vaultTransit.mount, and the auth method at its path"),
}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bound_to(context: bytes) -> dict[str, str]:
    return {"context": _text(context), "associated_data": _text(context)}


def _field(answer: Answer, part: str, name: str) -> str:
    """A text of an answer; empty where it is not there."""
    inner = answer.content.get(part)
    value = inner.get(name) if isinstance(inner, dict) else None
    return value if isinstance(value, str) else ""


def _errors(answer: Answer) -> str:
    """What the server says is wrong."""
    return shown(str(answer.content.get("errors") or "no reason given"), 200)


def _without(secrets: Iterable[str], answer: Answer) -> Answer:
    """`answer` with errors that repeat nothing of what it answers: it had a token or a key in it."""
    errors = answer.content.get("errors")
    text = "; ".join(str(error) for error in errors[:5]) if isinstance(errors, list) else ""
    for secret in secrets:
        text = text.replace(secret, "...") if len(secret) >= _SHORTEST else text
    return replace(answer, content=answer.content | {"errors": text})


def _read_token(path: Path) -> str:
    """Raises IntegrityError where others can read the token, or there is none."""
    try:
        with opened(path, max_bytes=_MAX_TOKEN, refusal=IntegrityError) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(_MAX_TOKEN).decode("ascii", "replace").strip()
    except OSError as error:
        raise IntegrityError(
            f"no token for the key server: {path}: {os.strerror(error.errno or 0)}",
            hint="see vaultTransit.auth; on a machine without a cluster: dstj run --vault-token FILE",
        ) from None
    if mode & 0o007:
        raise IntegrityError(f"{path} has mode {mode:04o}: everybody can reach the token", hint=f"chmod 600 {path}")
    if not _is_token(token):
        raise IntegrityError(f"{path} holds no token: one line of ASCII", hint="see vaultTransit.auth")
    return token


def _is_token(text: str) -> bool:
    return re.fullmatch(r"[!-~]+", text) is not None and len(text) <= _MAX_TOKEN
