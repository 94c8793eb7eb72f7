"""What the pods of a job may talk to, as the API says it."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule


class Isolation(StrEnum):
    ISOLATED = "Isolated"
    UNMANAGED = "Unmanaged"


class Protocol(StrEnum):
    TCP = "TCP"
    UDP = "UDP"


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
            "!self.cidr.endsWith('/0') && !self.cidr.startsWith('169.254.') && !self.cidr.startsWith('fe80:')",
            "cidr must not be the whole internet (/0) nor link-local (169.254., fe80:), where cloud metadata live: "
            "name the network that is needed",
            lambda self: not (self.cidr.endswith("/0") or self.cidr.startswith(("169.254.", "fe80:"))),
        ),
        Rule(
            "!self.cidr.matches('(^|[.])0[0-9]')",
            "cidr must not have leading zeros: some programs read them as octal numbers",
            lambda self: re.search("(^|[.])0[0-9]", self.cidr) is None,
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
