"""DNS of containers in the pod, such as those of Docker in Docker: the pod translates and forwards what they ask."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from tests.cases import APP, POD, PROXY, ROOT
from tests.cases_current import NAMESERVER, OTHER_NAMESERVER
from tests.netns.changes import MEANS
from tests.netns.dns import SIZE, NameServer, address_in, ask, authority, question
from tests.netns.peers import MACHINE, MACHINE_NETWORK, virtual_machine
from tests.netns.test_dns import (
    CAPTURE,
    FORWARDER,
    REUSED_PORT,
    SERVERS,
    THE_ANSWER,
    THE_OTHERS_ANSWER,
    Race,
    name_servers,
    race,
    udp_socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Namespace, Pod

FORWARD = (*CAPTURE, "--forward-dns")
ANY = "--capture-all-dns"
WAYS = {**{name: flags for name, (flags, _) in MEANS.items()}, "nft": ("--backend", "nft")}
# Docker's rules are where ours are.
TOOLS = {"restore-legacy": "iptables-legacy", "libiptc": "iptables-legacy"}
each_extent = pytest.mark.parametrize("extent", [(), (ANY,)], ids=["servers", "all"])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def container(pod: Pod, way: str) -> Iterator[Namespace]:
    """Run a container in the pod, and translate what it sends, as Docker does."""
    with virtual_machine(pod, "docker0") as machine:
        masquerade = ("-s", MACHINE_NETWORK, "!", "-o", "docker0", "-j", "MASQUERADE")
        pod.inside.run(TOOLS.get(way, "iptables-nft"), "-t", "nat", "-A", "POSTROUTING", *masquerade)
        yield machine


def apply(pod: Pod, way: str, *flags: str) -> None:
    pod.inside.istio_iptables(*WAYS[way], *flags, nameservers=SERVERS)


@each_extent
def test_containers_get_answers_and_the_pods_own_requests_stay_captured(
    pod: Pod, container: Namespace, way: str, extent: tuple[str, ...]
) -> None:
    apply(pod, way, *FORWARD, *extent)
    with name_servers(pod, NAMESERVER) as servers:
        assert ask(container, NAMESERVER, "inner.example") == THE_ANSWER
        assert ask(container, OTHER_NAMESERVER, "inner.example") == THE_OTHERS_ANSWER
        assert servers.resolver.asked == []
        assert ask(pod.inside, NAMESERVER, "app.example") == THE_ANSWER
        assert servers.resolver.names == ["app.example"]
        assert ask(pod.inside, NAMESERVER, "proxy.example", owner=PROXY) == THE_ANSWER
        assert servers.resolver.names == ["app.example"]


def test_without_the_flag_they_get_none(pod: Pod, container: Namespace, way: str) -> None:
    apply(pod, way, *CAPTURE)
    with name_servers(pod, NAMESERVER) as servers, pytest.raises(TimeoutError):
        ask(container, NAMESERVER, "inner.example")
    assert servers.server.names == ["inner.example"]


@each_extent
def test_requests_of_app_and_proxy_from_the_same_port_do_not_mix(pod: Pod, way: str, extent: tuple[str, ...]) -> None:
    apply(pod, way, *FORWARD, *extent)
    for address in SERVERS:
        assert race(pod, address) == Race(arrived=True, returned=False, app_got=(THE_OTHERS_ANSWER, address))


@pytest.mark.parametrize("order", list(permutations(("container", "app", "proxy"))), ids="-".join)
@pytest.mark.parametrize("way", ["restore-nft", "nft"], indirect=True)
def test_each_gets_its_answer_where_container_app_and_proxy_ask_from_the_same_port(
    pod: Pod, container: Namespace, way: str, order: tuple[str, ...]
) -> None:
    apply(pod, way, *FORWARD)
    ends = {"container": (container, ROOT, MACHINE), "app": (pod.inside, APP, POD), "proxy": (pod.inside, PROXY, POD)}
    with name_servers(pod, NAMESERVER) as servers:
        for number, name in enumerate(order):
            namespace, owner, address = ends[name]
            with udp_socket(namespace, owner, address, REUSED_PORT) as client:
                client.connect((NAMESERVER, 53))
                client.send(question(number, f"{name}.example"))
                assert address_in(client.recv(SIZE), question(number, f"{name}.example")) == THE_ANSWER
    assert servers.resolver.names == ["app.example"]
    assert sorted(servers.server.names) == sorted(f"{name}.example" for name in order)


@each_extent
def test_a_name_server_in_the_pod_answers_clients_outside(pod: Pod, way: str, extent: tuple[str, ...]) -> None:
    apply(pod, way, *FORWARD, *extent)
    with NameServer(pod.inside, POD, authority(THE_ANSWER), FORWARDER):
        assert ask(pod.outside, POD, "served.example") == THE_ANSWER


def test_a_name_server_in_a_container_answers_clients_outside(pod: Pod, container: Namespace, way: str) -> None:
    published = ("-d", POD, "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", MACHINE)
    pod.inside.run(TOOLS.get(way, "iptables-nft"), "-t", "nat", "-A", "PREROUTING", *published)
    apply(pod, way, *FORWARD, ANY)
    with NameServer(container, MACHINE, authority(THE_ANSWER)):
        assert ask(pod.outside, POD, "served.example") == THE_ANSWER
