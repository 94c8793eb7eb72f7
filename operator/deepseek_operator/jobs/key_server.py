"""A key server in the spec of a job: what its pods mount to reach it, which way out of the job's network, which rules.

The pods get one projected volume with an identity and the server's CA.  The operator reads neither, and makes no
identity: the kubelet asks for the token, for the ServiceAccount that the job has anyway.
"""

from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from deepseek_operator.api.isolation import EgressRule, Isolation, Protocol
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract import names
from deepseek_trainer.contract.key_ref import CaCertificate, KeyRef, VaultAuth, VaultTransit
from deepseek_trainer.contract.rules import Rule

if TYPE_CHECKING:
    from deepseek_operator.jobs.spec import JobSpec

TOKEN_SECONDS: Final = 600  # the shortest that Kubernetes knows; the kubelet renews it after four fifths
_READABLE: Final = 0o440


def key_volume(key_ref: KeyRef) -> Manifest:
    """The source of the volume at KEY_MOUNT."""
    if transit := key_ref.vault_transit:
        sources = [_identity(transit.auth), *([_ca(transit.ca_certificate)] if transit.ca_certificate else [])]
        return {"projected": {"sources": sources, "defaultMode": _READABLE}}
    # All entries are mounted.  An older key beside the one that the job names opens what was not rotated yet.
    return {"secret": {"secretName": key_ref.secret_name, "defaultMode": _READABLE}}


def _identity(auth: VaultAuth) -> Manifest:
    if login := auth.service_account:
        token = {"audience": login.audience, "expirationSeconds": TOKEN_SECONDS, "path": names.ACCOUNT_TOKEN}
        return {"serviceAccountToken": token}
    assert auth.token_secret, "a rule asks for one of the two"
    return {"secret": _entry(auth.token_secret.secret_name, auth.token_secret.key, names.SERVER_TOKEN)}


def _ca(ca: CaCertificate) -> Manifest:
    if ca.config_map_name:
        return {"configMap": _entry(ca.config_map_name, ca.key, names.SERVER_CA)}
    return {"secret": _entry(str(ca.secret_name), ca.key, names.SERVER_CA)}


def _entry(name: str, key: str, path: str) -> Manifest:
    return {"name": name, "items": [{"key": key, "path": path}]}


def egress_to(transit: VaultTransit | None) -> tuple[EgressRule, ...]:
    """The way to the server alone.  There is none to a host name, which no NetworkPolicy knows."""
    return (EgressRule(cidr=_cidr(transit), ports=(transit.port,)),) if transit and transit.is_ip else ()


def _cidr(transit: VaultTransit) -> str:
    return f"{transit.host}/{128 if ':' in transit.host else 32}"


def key_server_of(spec: "JobSpec") -> VaultTransit | None:
    encryption = spec.checkpoint.encryption
    return encryption.key_ref.vault_transit if encryption else None


def _may_be_opened(spec: "JobSpec") -> bool:
    """Whether an egress rule may open the address."""
    try:
        egress_to(key_server_of(spec))
    except ValidationError:
        return False
    return True


def _has_a_way(spec: "JobSpec") -> bool:
    transit = key_server_of(spec)
    if transit is None or transit.is_ip or spec.network.isolation is Isolation.UNMANAGED or spec.trainer.profile:
        return True
    return any(rule.protocol is Protocol.TCP and transit.port in rule.ports for rule in spec.network.egress)


_REF: Final = "self.checkpoint.encryption.keyRef"
_ADDRESS: Final = f"{_REF}.vaultTransit.address"
_NONE: Final = f"!has(self.checkpoint.encryption) || !has({_REF}.vaultTransit)"
_IS_IPV4: Final = f"{_ADDRESS}.matches('^https://[0-9.]+:')"
_IS_IPV6: Final = f"{_ADDRESS}.startsWith('https://[')"
_IPV4: Final = f"({_ADDRESS}.split(':')[1].split('/')[2] + '/32')"
_IPV6: Final = f"({_ADDRESS}.split('[')[1].split(']')[0] + '/128')"


def _rules_of_egress(cidr: str) -> str:
    return " && ".join(f"({rule.cel.replace('self.cidr', cidr)})" for rule in EgressRule.rules)


KEY_SERVER_RULES: Final = (
    Rule(
        f"{_NONE} || ({_IS_IPV4} ? {_rules_of_egress(_IPV4)} : !({_IS_IPV6}) || ({_rules_of_egress(_IPV6)}))",
        "checkpoint.encryption.keyRef.vaultTransit.address must hold a host name or an IP address that network.egress "
        "could open: without leading zeros, outside of ::/8, and not of cloud metadata (169.254.0.0/16, fe80::/10, "
        "fd00:ec2::254, 2002:a9fe::/32)",
        _may_be_opened,
    ),
    Rule(
        f"{_NONE} || {_IS_IPV4} || {_IS_IPV6} || self.network.isolation != 'Isolated' || has(self.trainer.profile)"
        " || (has(self.network.egress) && self.network.egress.exists(e, e.protocol == 'TCP'"
        f" && e.ports.exists(p, string(p) == {_ADDRESS}.split(':')[2])))",
        "checkpoint.encryption.keyRef.vaultTransit.address with a host name needs a way out, because a NetworkPolicy "
        "knows no names: give an IP address and the name as serverName, or the server's network and port in "
        "network.egress, or a profile that has them",
        _has_a_way,
    ),
)
