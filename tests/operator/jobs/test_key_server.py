"""A job whose key-encryption key a server keeps: what its pods mount, and whom they reach."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.objects.observed import Manifest
from support.builders.operator import OWNER, SETTINGS, a_profile, a_spec
from support.samples.api import BY_NAME, CA, CA_SECRET, KEY, LOGIN, TOKEN, out_to_vault, transit

Json = dict[str, Any]
ROLE = {"role": "trainer"}


def by_kind(spec: Json) -> dict[str, Manifest]:
    profile = a_profile() if spec.get("trainer") else None
    return {each["kind"]: each for each in children(Blueprint(a_spec(**spec), OWNER, profile, SETTINGS, 1, {}))}


def mounted(spec: Json) -> list[Json]:
    (keys,) = (each for each in by_kind(spec)["Job"]["spec"]["template"]["spec"]["volumes"] if each["name"] == "keys")
    assert keys["projected"]["defaultMode"] == 0o440
    sources: list[Json] = keys["projected"]["sources"]
    return sources


def egress(spec: Json) -> list[Json]:
    rules: list[Json] = by_kind(spec)["NetworkPolicy"]["spec"]["egress"]
    return rules


@pytest.mark.parametrize(
    ("login", "audience"),
    [(ROLE, "vault"), (ROLE | {"audience": "https://vault.example.org"}, "https://vault.example.org")],
)
def test_the_kubelet_makes_a_token_for_the_server_alone(login: Json, audience: str) -> None:
    token = {"audience": audience, "expirationSeconds": 600, "path": "jwt"}
    assert mounted(transit(auth={"serviceAccount": login})) == [{"serviceAccountToken": token}]


def test_one_entry_of_the_token_secret_is_mounted_and_no_token_is_made() -> None:
    item = {"key": "token", "path": "token"}
    assert mounted(transit(auth=TOKEN)) == [{"secret": {"name": "tokens", "items": [item]}}]


@pytest.mark.parametrize(("ca", "kind"), [(CA, "configMap"), (CA_SECRET, "secret")])
def test_one_entry_with_the_ca_is_mounted_beside(ca: Json, kind: str) -> None:
    _, mounted_ca = mounted(transit(caCertificate=ca | {"key": "vault.pem"}))
    assert mounted_ca == {kind: {"name": "ca", "items": [{"key": "vault.pem", "path": "ca.crt"}]}}


def test_a_job_without_a_key_server_gets_neither_a_token_nor_a_way_out() -> None:
    for spec in ({}, KEY):
        pod = by_kind(spec)["Job"]["spec"]["template"]["spec"]
        assert not any("projected" in volume for volume in pod["volumes"])
        assert egress(spec) == egress({})


def test_the_accounts_own_token_stays_unmounted() -> None:
    objects = by_kind(transit(auth=LOGIN))
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert objects["Job"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


@given(
    address=st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="2001:db8::/32"),
    port=st.integers(1, 65535),
)
def test_the_way_out_leads_to_the_address_and_port_of_the_server_alone(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    *others, to_server = egress(transit(f"https://{host}:{port}"))
    (peer,), (opened,) = to_server["to"], to_server["ports"]
    assert ipaddress.ip_network(peer["ipBlock"]["cidr"]) == ipaddress.ip_network(address)
    assert "except" not in peer["ipBlock"]
    assert opened == {"port": port, "protocol": "TCP"}
    assert others == egress({})


def test_a_name_opens_nothing_by_itself() -> None:
    way = out_to_vault()
    assert egress(way) == egress({"network": way["network"]})
    profiled = {"trainer": {"image": None, "profile": "cpu"}}
    assert egress(transit(BY_NAME) | profiled) == egress(profiled)


def test_nothing_else_of_the_job_changes_with_its_key_server() -> None:
    with_server, with_secret = by_kind(transit()), by_kind(KEY)
    for kind in ("ServiceAccount", "Service", "PersistentVolumeClaim"):
        assert with_server[kind] == with_secret[kind]
    pods = [objects["Job"]["spec"]["template"]["spec"] for objects in (with_server, with_secret)]
    (changed,) = ([a, b] for a, b in zip(*(pod.pop("volumes") for pod in pods), strict=True) if a != b)
    assert [each["name"] for each in changed] == ["keys", "keys"]
    assert pods[0] == pods[1]
