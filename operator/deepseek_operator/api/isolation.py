"""The part of the API that says what the pods of a job may talk to."""

import ipaddress
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Isolation(StrEnum):
    ISOLATED = "Isolated"
    UNMANAGED = "Unmanaged"


class Protocol(StrEnum):
    TCP = "TCP"
    UDP = "UDP"


# Cloud metadata services hand out the credentials of the machine at these addresses, so no egress rule may open them.
# The last network is the first one as 6to4 spells it.
METADATA_NETWORKS: Final = tuple(
    ipaddress.ip_network(cidr) for cidr in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "2002:a9fe::/32")
)
# IPv6 spells IPv4 addresses in this network, mapped ones in ::ffff:0:0/96 and those of NAT64 in 64:ff9b::/96.  The
# addresses of metadata services are among them.
_SPELT_IPV4: Final = ipaddress.ip_network("::/8")


def _is_cidr(text: str) -> bool:
    """Whether Kubernetes' isCIDR accepts `text`.  It accepts no IPv4-mapped address."""
    try:
        address = ipaddress.ip_interface(text).ip
    except ValueError:
        return False
    return not (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped)


def _is_open(cidr: str) -> bool:
    """Whether `cidr` lies in no metadata network, and so may be opened.  `network.py` leaves out those inside it."""
    network = ipaddress.ip_network(cidr, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.overlaps(_SPELT_IPV4):
        return False
    return network.prefixlen > 0 and not any(_contains(closed, network) for closed in METADATA_NETWORKS)


def _contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and outer.overlaps(inner) and outer.prefixlen <= inner.prefixlen


class EgressRule(Model):
    """Addresses outside the job that its pods may reach."""

    cidr: Annotated[
        str, Field(pattern=r"^[0-9a-fA-F.:]+/(0|[1-9][0-9]{0,2})$", max_length=49, description="Destination network.")
    ]
    ports: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65535)], ...],
        Field(min_length=1, max_length=32, description="Destination ports."),
    ]
    protocol: Annotated[Protocol, Field(description="TCP or UDP.")] = Protocol.TCP

    rules: ClassVar = (
        Rule(
            "isCIDR(self.cidr)",
            "cidr must be an IPv4 or IPv6 network such as 10.0.0.0/8, without leading zeros and with no IPv4-mapped "
            "address in it",
            lambda self: _is_cidr(self.cidr),
        ),
        Rule(
            "!isCIDR(self.cidr) || !self.cidr.endsWith('/0')"
            + "".join(
                f" && !cidr('{network}').containsCIDR(self.cidr)" for network in (*METADATA_NETWORKS, _SPELT_IPV4)
            )
            + f" && !cidr(self.cidr).containsCIDR('{_SPELT_IPV4}')",
            "cidr must not be the whole internet (/0), nor lie where cloud metadata live (169.254.0.0/16, fe80::/10, "
            "fd00:ec2::254, 2002:a9fe::/32), nor touch ::/8, which spells IPv4 addresses (mapped, NAT64): name the "
            "network that is needed",
            lambda self: not _is_cidr(self.cidr) or _is_open(self.cidr),
        ),
    )


class NetworkSpec(Model):
    """What the job's pods may talk to."""

    isolation: Annotated[
        Isolation,
        Field(description="Isolated: each other, DNS and egress only, by NetworkPolicy. Unmanaged: no policy is made."),
    ] = Isolation.ISOLATED
    egress: Annotated[tuple[EgressRule, ...], Field(max_length=32, description="Further destinations.")] = ()

    rules: ClassVar = (
        Rule(
            "!has(self.egress) || size(self.egress) == 0 || self.isolation == 'Isolated'",
            "egress is only enforced with isolation: Isolated",
            lambda self: not self.egress or self.isolation is Isolation.ISOLATED,
        ),
    )
