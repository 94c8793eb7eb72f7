"""Which key-encryption key wraps a job's data key: one in a Secret, or one on a server that it never leaves."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule
from deepseek_trainer.contract.volume import DnsName

_NAME: Final = r"[a-zA-Z0-9_][-_.a-zA-Z0-9]*"  # never `..`, and nothing that ends a path
_HOST: Final = r"\[[0-9a-fA-F:]+\]|[0-9.]+|([-a-zA-Z0-9]+\.)*[a-zA-Z][-a-zA-Z0-9]*"
_PORT: Final = r"6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"

Entry = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
ServerPath = Annotated[str, Field(pattern=rf"^{_NAME}(/{_NAME})*$", max_length=64)]


class CaCertificate(Model):
    """Certificates in one entry of a ConfigMap or Secret, as PEM."""

    config_map_name: Annotated[DnsName | None, Field(description="ConfigMap in the job's namespace.")] = None
    secret_name: Annotated[DnsName | None, Field(description="Or Secret in the job's namespace.")] = None
    key: Annotated[Entry, Field(description="Entry of it.")] = "ca.crt"

    rules: ClassVar = (
        Rule(
            "has(self.configMapName) != has(self.secretName)",
            "give exactly one of configMapName and secretName",
            lambda self: (self.config_map_name is None) != (self.secret_name is None),
        ),
    )


class ServiceAccountLogin(Model):
    """The pods' ServiceAccount, dstj-<job>, logs in by the auth method kubernetes or jwt, with a token for it alone."""

    role: Annotated[str, Field(pattern=rf"^{_NAME}$", max_length=128, description="Role of the auth method.")]
    path: Annotated[ServerPath, Field(description="Where the auth method is mounted: auth/<path>/login.")] = (
        "kubernetes"
    )
    audience: Annotated[
        str, Field(pattern=r"^[!-~]+$", max_length=253, description="Audience of the token, as the role asks for it.")
    ] = "vault"

    rules: ClassVar = (
        Rule(
            "!self.audience.contains('kubernetes.default')",
            "audience must not be the API server's (kubernetes.default): pods get no token for that",
            lambda self: "kubernetes.default" not in self.audience,
        ),
    )


class TokenSecret(Model):
    """A token of the server, in one entry of a Secret.  It is read anew when the server refuses it."""

    secret_name: Annotated[DnsName, Field(description="Secret in the job's namespace.")]
    key: Annotated[Entry, Field(description="Entry of the Secret.")] = "token"


class VaultAuth(Model):
    """How pods show the server who they are."""

    service_account: Annotated[
        ServiceAccountLogin | None, Field(description="By a ServiceAccount token, which the kubelet renews.")
    ] = None
    token_secret: Annotated[TokenSecret | None, Field(description="Or by a token that somebody else renews.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.serviceAccount) != has(self.tokenSecret)",
            "give exactly one of serviceAccount and tokenSecret",
            lambda self: (self.service_account is None) != (self.token_secret is None),
        ),
    )


class VaultTransit(Model):
    """A key of the transit engine of HashiCorp Vault or OpenBao.  The server wraps and unwraps, and keeps the key."""

    address: Annotated[
        str,
        Field(
            pattern=rf"^https://({_HOST}):({_PORT})$",
            max_length=272,
            description="https://HOST:PORT. The job's NetworkPolicy opens an IP address by itself. A host name needs "
            "a network in network.egress or in the profile's egress, because a policy knows no names.",
        ),
    ]
    server_name: Annotated[
        DnsName | None, Field(description="Name in the server's certificate. Default: the host of address.")
    ] = None
    ca_certificate: Annotated[
        CaCertificate | None, Field(description="CA of the server. Default: those of the trainer image.")
    ] = None
    mount: Annotated[ServerPath, Field(description="Where the transit engine is mounted.")] = "transit"
    key_name: Annotated[
        str,
        Field(pattern=rf"^{_NAME}$", max_length=100, description="Its key, of a type that takes associated data."),
    ]
    auth: Annotated[VaultAuth, Field(description="How pods show who they are.")]

    @property
    def host(self) -> str:
        """A name or an IP address, without brackets."""
        return self.address.removeprefix("https://").rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def is_ip(self) -> bool:
        return ":" in self.host or self.host.replace(".", "").isdecimal()


class KeyRef(Model):
    """A key-encryption key: in a Secret, which the kubelet mounts and the operator never reads, or on a server."""

    secret_name: Annotated[
        DnsName | None, Field(description="Secret in the job's namespace, with 32 random bytes in one entry.")
    ] = None
    key: Annotated[Entry, Field(description="Entry of the Secret.")] = "kek"
    vault_transit: Annotated[
        VaultTransit | None, Field(description="Or a key of HashiCorp Vault or OpenBao, which it never leaves.")
    ] = None

    rules: ClassVar = (
        Rule(
            "has(self.secretName) != has(self.vaultTransit)",
            "give exactly one of secretName and vaultTransit",
            lambda self: (self.secret_name is None) != (self.vault_transit is None),
        ),
    )
