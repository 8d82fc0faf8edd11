"""DNS capture of layout current, with name servers that answer and forward."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from select import select
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.rules.model import DNS_PORT, RESOLVER_PORT
from tests.cases import APP, LOCALHOST, POD, POD_IPV6, PROXY, ROOT
from tests.cases_current import (
    LOCALHOST_IPV6,
    NAMESERVER,
    NAMESERVER_IPV6,
    OTHER_NAMESERVER,
    OTHER_NAMESERVER_IPV6,
    USUAL,
)
from tests.netns.dns import SIZE, TIMEOUT, NameServer, address_in, answer_to, ask, authority, forwarder, question
from tests.netns.peers import family_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Namespace, Pod

Means = tuple[tuple[str, ...], str]

SERVERS = (NAMESERVER, NAMESERVER_IPV6)
OTHERS = (OTHER_NAMESERVER, OTHER_NAMESERVER_IPV6)
LOCALHOSTS = {NAMESERVER: LOCALHOST, NAMESERVER_IPV6: LOCALHOST_IPV6}
OWN = {NAMESERVER: POD, NAMESERVER_IPV6: POD_IPV6}
FORWARDER = (2000, 2000)  # a user who is not the proxy
THE_ANSWER, THE_OTHERS_ANSWER = "192.0.2.1", "192.0.2.2"
CAPTURE = (*USUAL, "--dual-stack", "--redirect-dns")
REUSED_PORT = 40000


class NameServers(NamedTuple):
    """Two servers outside, and the proxy's resolver, which forwards to the first of them. All are of one family.

    Attributes:
        server: the one in resolv.conf.
        other: one that is not in resolv.conf.
        resolver: the proxy's.
    """

    server: NameServer
    other: NameServer
    resolver: NameServer


@contextmanager
def name_servers(pod: Pod, address: str, upstream: str = "") -> Iterator[NameServers]:
    """Run the servers; `upstream` is the server to which the proxy's resolver forwards, by default `address`."""
    with ExitStack() as stack:
        yield NameServers(
            stack.enter_context(NameServer(pod.outside, address, authority(THE_ANSWER))),
            stack.enter_context(
                NameServer(pod.outside, OTHERS[SERVERS.index(address)], authority(THE_OTHERS_ANSWER)),
            ),
            stack.enter_context(
                NameServer(pod.inside, LOCALHOSTS[address], forwarder(upstream or address), PROXY, DNS_PORT),
            ),
        )


def test_requests_to_the_servers_of_resolv_conf_are_resolved_by_the_proxy(pod: Pod, means: Means) -> None:
    pod.inside.istio_iptables(*means[0], *CAPTURE, nameservers=SERVERS)
    for address in SERVERS:
        with name_servers(pod, address) as servers:
            assert ask(pod.inside, address, "udp.example") == THE_ANSWER
            assert ask(pod.inside, address, "tcp.example", "tcp") == THE_ANSWER
        for server in (servers.resolver, servers.server):
            assert [(asked.name, asked.protocol) for asked in server.asked] == [
                ("udp.example", "udp"),
                ("tcp.example", "tcp"),
            ]
        assert servers.other.asked == []


def test_requests_to_other_servers_pass_by_the_proxys_resolver(pod: Pod, means: Means) -> None:
    pod.inside.istio_iptables(*means[0], "--dual-stack", "--redirect-dns", nameservers=SERVERS)
    for address, other in zip(SERVERS, OTHERS, strict=True):
        with name_servers(pod, address) as servers:
            assert ask(pod.inside, other, "udp.example") == THE_OTHERS_ANSWER
            assert ask(pod.inside, other, "tcp.example", "tcp") == THE_OTHERS_ANSWER
        assert servers.other.names == ["udp.example", "tcp.example"]
        assert servers.resolver.asked == []


def test_requests_to_any_server_are_resolved_by_the_proxy_when_all_are_captured(pod: Pod, means: Means) -> None:
    pod.inside.istio_iptables(*means[0], *CAPTURE, "--capture-all-dns")
    for address, other in zip(SERVERS, OTHERS, strict=True):
        with name_servers(pod, address) as servers:
            for server in (address, other):
                for protocol in ("udp", "tcp"):
                    assert ask(pod.inside, server, "any.example", protocol) == THE_ANSWER
        assert servers.resolver.names == servers.server.names == ["any.example"] * 4
        assert servers.other.asked == []


@pytest.mark.parametrize("owner", [PROXY, (2000, 1337), (1337, 2000)], ids=["user-and-group", "group", "user"])
def test_the_proxys_own_requests_go_straight_to_the_server(pod: Pod, means: Means, owner: tuple[int, int]) -> None:
    pod.inside.istio_iptables(*means[0], *CAPTURE, "--capture-all-dns")
    with name_servers(pod, NAMESERVER) as servers:
        for protocol in ("udp", "tcp"):
            assert ask(pod.inside, NAMESERVER, "own.example", protocol, owner) == THE_ANSWER
    assert servers.server.names == ["own.example"] * 2
    assert servers.resolver.asked == []


def test_a_firewall_sees_the_servers_answers_as_parts_of_the_proxys_requests(pod: Pod, means: Means) -> None:
    new = ("-i", "eth0", "-p", "udp", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    pod.inside.istio_iptables(*means[0], *CAPTURE, nameservers=SERVERS)
    for tool, address in (("iptables", NAMESERVER), ("ip6tables", NAMESERVER_IPV6)):
        pod.inside.run(f"{tool}-{means[1]}", "-A", "INPUT", *new)
        with name_servers(pod, address):
            assert ask(pod.inside, address, "guarded.example") == THE_ANSWER


@pytest.mark.parametrize("local", [LOCALHOSTS, OWN], ids=["localhost", "own-address"])
def test_a_forwarder_in_the_pod_does_not_loop(pod: Pod, means: Means, local: dict[str, str]) -> None:
    """App → proxy's resolver → forwarder, which resolv.conf names → server outside, which it does not name."""
    pod.inside.istio_iptables(*means[0], *CAPTURE, nameservers=tuple(local.values()))
    for address, own in local.items():
        with (
            name_servers(pod, address, upstream=own) as servers,
            NameServer(pod.inside, own, forwarder(address), FORWARDER) as forwarding,
        ):
            assert ask(pod.inside, own, "local.example") == THE_ANSWER
        for server in (servers.resolver, forwarding, servers.server):
            assert server.names == ["local.example"]


class Race(NamedTuple):
    """What became of a request of the proxy's from the very address and port that a request of the app's came from.

    Attributes:
        arrived: whether it reached the server, and the answer the proxy.
        returned: whether it came back to the proxy itself.
        app_got: the address in the answer that the app got, and who sent it.
    """

    arrived: bool
    returned: bool
    app_got: tuple[str, str]


def race(pod: Pod, address: str) -> Race:
    """Let the app ask, and the proxy ask on from the app's port before it answers.

    Two sockets have that port here. The kernel prefers one that is connected, so each gets the answer to its own request.
    """
    of_app, of_proxy = question(1, "app.example"), question(2, "proxy.example")
    source = (OWN[address], REUSED_PORT)
    with ExitStack() as stack:
        app, onward, resolver, server = (
            stack.enter_context(udp_socket(namespace, owner, *end))
            for namespace, owner, end in (
                (pod.inside, APP, source),
                (pod.inside, PROXY, source),
                (pod.inside, PROXY, (LOCALHOSTS[address], DNS_PORT)),
                (pod.outside, ROOT, (address, RESOLVER_PORT)),
            )
        )
        app.sendto(of_app, (address, RESOLVER_PORT))
        request, client = resolver.recvfrom(SIZE)
        assert request == of_app
        onward.connect((address, RESOLVER_PORT))
        onward.send(of_proxy)
        reached, _, _ = select([server, resolver], [], [], TIMEOUT)
        if server in reached:
            asked, asking = server.recvfrom(SIZE)
            assert asking[:2] == source
            server.sendto(answer_to(asked, THE_ANSWER), asking)
            assert address_in(onward.recv(SIZE), of_proxy) == THE_ANSWER
        onward.close()
        resolver.sendto(answer_to(of_app, THE_OTHERS_ANSWER), client)
        answer, sender = app.recvfrom(SIZE)
        return Race(server in reached, resolver in reached, (address_in(answer, of_app), sender[0]))


def udp_socket(namespace: Namespace, owner: tuple[int, int], address: str, port: int) -> socket.socket:
    made = namespace.call(lambda: socket.socket(family_of(address), socket.SOCK_DGRAM), owner)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(TIMEOUT)
    made.bind((address, port))
    return made


@pytest.mark.parametrize("flags", [(), ("--capture-all-dns",)], ids=["servers", "all"])
def test_requests_of_app_and_proxy_from_the_same_port_do_not_mix(pod: Pod, means: Means, flags: tuple[str, ...]) -> None:
    pod.inside.istio_iptables(*means[0], *CAPTURE, *flags, nameservers=SERVERS)
    for address in SERVERS:
        assert race(pod, address) == Race(arrived=True, returned=False, app_got=(THE_OTHERS_ANSWER, address))


def test_without_zones_they_would(pod: Pod) -> None:
    pod.inside.istio_iptables("--iptables-variant", "nft", *CAPTURE, nameservers=SERVERS)
    for tool, address in (("iptables-nft", NAMESERVER), ("ip6tables-nft", NAMESERVER_IPV6)):
        pod.inside.run(tool, "-t", "raw", "-F")
        assert race(pod, address) == Race(arrived=False, returned=True, app_got=(THE_OTHERS_ANSWER, address))
