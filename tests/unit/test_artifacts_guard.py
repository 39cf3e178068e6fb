"""The guard judges before it connects; here the network is a list of connects."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpcore
import httpx
import pytest

from agentflow.artifacts import AddressRefused, guarded_client
from agentflow.artifacts.addresses import Allowed
from agentflow.artifacts.guard import GuardedBackend


class Network(httpcore.AsyncNetworkBackend):
    """Remembers connects; addresses in `dead` refuse."""

    def __init__(self, dead: Sequence[str] = ()) -> None:
        self.dead, self.connects = dead, list[tuple[str, int]]()

    async def connect_tcp(self, host: str, port: int, *_: Any) -> httpcore.AsyncNetworkStream:
        self.connects.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError("refused")
        return httpcore.AsyncMockStream([])


def answers(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolver


async def connect(
    host: str, port: int = 443, *, dns: Sequence[str] = (), allow: Sequence[str] = ()
) -> list[tuple[str, int]]:
    network = Network()
    try:
        await GuardedBackend(Allowed.of(allow), answers(*dns), network).connect_tcp(host, port)
    except AddressRefused:
        assert network.connects == []
        raise
    return network.connects


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2130706433", "0x7f000001", "017700000001", "127.1",
     "127.0.0.1.", "0"],
)  # fmt: skip
async def test_an_address_that_is_not_public_gets_no_connect(host: str) -> None:
    with pytest.raises(AddressRefused):
        await connect(host, dns=["8.8.8.8"])


@pytest.mark.parametrize(
    "dns",
    [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"],
     ["fe80::1%eth0"]],
)  # fmt: skip
async def test_one_address_that_is_not_public_spoils_the_name(dns: list[str]) -> None:
    with pytest.raises(AddressRefused):
        await connect("files.example", dns=dns)


async def test_the_connection_goes_to_the_judged_address() -> None:
    assert await connect("files.example", dns=["8.8.8.8"]) == [("8.8.8.8", 443)]


async def test_a_name_is_resolved_once_per_connection() -> None:
    answered = [["8.8.8.8"], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answered.pop(0)

    network = Network()
    await GuardedBackend(Allowed(), rebinding, network).connect_tcp("files.example", 443)
    assert network.connects == [("8.8.8.8", 443)]
    assert answered == [["127.0.0.1"]]


async def test_the_next_address_is_tried_when_one_is_dead() -> None:
    network = Network(dead=["2606:4700::1"])
    backend = GuardedBackend(Allowed(), answers("2606:4700::1", "8.8.8.8"), network)
    await backend.connect_tcp("files.example", 443, timeout=5)
    assert network.connects == [("2606:4700::1", 443), ("8.8.8.8", 443)]


async def test_all_dead_addresses_are_a_connect_error() -> None:
    network = Network(dead=["8.8.8.8", "8.8.4.4"])
    backend = GuardedBackend(Allowed(), answers("8.8.8.8", "8.8.4.4"), network)
    with pytest.raises(httpcore.ConnectError):
        await backend.connect_tcp("files.example", 443)
    assert len(network.connects) == 2


async def test_an_allowed_host_may_be_private_on_its_port_only() -> None:
    allow = ["127.0.0.1:8080", "sim.local:8080"]
    assert await connect("127.0.0.1", 8080, allow=allow) == [("127.0.0.1", 8080)]
    assert await connect("sim.local", 8080, dns=["10.0.0.1"], allow=allow) == [("10.0.0.1", 8080)]
    with pytest.raises(AddressRefused):
        await connect("127.0.0.1", 22, allow=allow)


async def test_another_name_for_an_allowed_address_is_not_allowed() -> None:
    for host in ["evil.example", "localhost", "2130706433", "::ffff:127.0.0.1"]:
        with pytest.raises(AddressRefused):
            await connect(host, 8080, dns=["127.0.0.1"], allow=["127.0.0.1:8080"])


async def test_an_allowed_network_may_be_reached_by_name() -> None:
    assert await connect("minio", 9000, dns=["10.1.0.5"], allow=["10.0.0.0/8"])
    with pytest.raises(AddressRefused):
        await connect("minio", 9000, dns=["10.1.0.5", "127.0.0.1"], allow=["10.0.0.0/8"])


async def test_a_name_without_addresses_is_a_connect_error() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("Name or service not known")

    for resolver in (unknown, answers()):
        with pytest.raises(httpcore.ConnectError, match="has no address"):
            await GuardedBackend(Allowed(), resolver, Network()).connect_tcp("no.example", 443)


async def test_a_slow_resolver_is_a_connect_timeout() -> None:
    async def slow(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(30)
        return ["8.8.8.8"]

    with pytest.raises(httpcore.ConnectTimeout):
        await GuardedBackend(Allowed(), slow, Network()).connect_tcp("a.example", 443, timeout=0.01)


async def test_ports_and_sockets_that_are_none_are_refused() -> None:
    with pytest.raises(AddressRefused):
        await connect("8.8.8.8", 99999)
    with pytest.raises(AddressRefused):
        await GuardedBackend(Allowed()).connect_unix_socket("/run/docker.sock")


async def test_the_client_refuses_and_explains() -> None:
    async with guarded_client(resolver=answers("10.0.0.1")) as client:
        with pytest.raises(AddressRefused, match=r"files\.example has an address"):
            await client.get("https://files.example/secret?signature=x")


async def test_the_client_raises_the_errors_of_httpx() -> None:
    async with guarded_client(resolver=answers()) as client:
        with pytest.raises(httpx.ConnectError, match="has no address") as caught:
            await client.get("https://files.example/")
    assert caught.value.request.url.host == "files.example"


def test_every_httpcore_error_has_a_namesake_in_httpx() -> None:
    for name in httpcore.__all__:
        kind = getattr(httpcore, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name == "ConnectionNotAvailable" or issubclass(
                getattr(httpx, name), httpx.TransportError
            )


async def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:3128")
    async with guarded_client(resolver=answers("10.0.0.1")) as client:
        assert not client.trust_env
        with pytest.raises(AddressRefused, match=r"files\.example"):
            await client.get("https://files.example/")
