"""Which addresses are public, and what an owner may allow besides."""

import ipaddress

import pytest

from agentflow.artifacts.addresses import Allowed, ascii_host, is_disguised, is_public
from agentflow.errors import SettingsError

PUBLIC = ["8.8.8.8", "1.1.1.1", "104.18.0.1", "2606:4700::1111", "2001:4860:4860::8888"]

NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff0e::1",
    "2606:4700::1111%eth0",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_an_ordinary_address_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_a_special_address_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0X7F.1", "127.1", "0177.0.0.1", "1.2.3.4.5", "0x"]
)
def test_a_host_ending_in_a_number_is_an_address_in_disguise(host: str) -> None:
    assert is_disguised(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.1.", "example.com", "a.0x7g"])
def test_a_plain_address_or_name_is_not_in_disguise(host: str) -> None:
    assert not is_disguised(host)


def test_an_allowed_host_is_allowed_on_its_port_only() -> None:
    allowed = Allowed.of(["LocalHost:8080", "[0:0::1]:9000", "127.0.0.1:80"])
    assert allowed.host("localhost.", 8080)
    assert allowed.host("::1", 9000)
    assert not allowed.host("localhost", 8081)
    assert not allowed.host("127.0.0.1", 8080)
    assert not allowed.address(ipaddress.ip_address("127.0.0.1"))


def test_an_allowed_network_holds_for_its_addresses_only() -> None:
    allowed = Allowed.of(["10.0.0.0/8", "fd00::/64"])
    assert allowed.address(ipaddress.ip_address("10.1.2.3"))
    assert allowed.address(ipaddress.ip_address("fd00::5"))
    assert not allowed.address(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not allowed.address(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    "entry",
    ["", ":", "localhost", "localhost:", ":80", "::1:80", "host:0", "host:65536", "host:\u0661",
     "a..b:80", "*:80", "10.0.0.1/8", "10.0.0.0/33", "http://localhost:80"],
)  # fmt: skip
def test_a_bad_entry_is_refused_with_the_way_to_mend_it(entry: str) -> None:
    with pytest.raises(SettingsError, match="Write host:port"):
        Allowed.of([entry])


def test_hosts_are_compared_in_the_form_dns_knows() -> None:
    assert ascii_host("Bücher.Example.") == "xn--bcher-kva.example"
    for bad in ["", ".", "a..b", "a b", "*", "a" * 64, "%31.com", "\uff11\uff12\uff17.0.0.1"]:
        with pytest.raises(ValueError):
            ascii_host(bad)
