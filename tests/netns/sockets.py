"""Servers that tell what reached them, and a client: real packets between real sockets."""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from tests import cases, cases_current

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.netns.namespaces import Namespace, Pod

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
IP6T_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv6/ip6_tables.h
IP_TRANSPARENT = 19  # linux/in.h
IPV6_TRANSPARENT = 75  # linux/in6.h
LOCALHOSTS = {socket.AF_INET: cases.LOCALHOST, socket.AF_INET6: cases_current.LOCALHOST_IPV6}
TIMEOUT = 3.0  # seconds
BACKLOG = 512
RESET = "reset"


class Answer(NamedTuple):
    """What a server tells of a connection.

    Attributes:
        server: `envoy:PORT` or `direct`; `rejected` stands for a connection that nobody accepted, `reset` for one that
            was cut.
        original: the destination before a redirect (SO_ORIGINAL_DST), empty where conntrack knows none.
        local: the server's end.
        client: the client's end, as the server sees it.
    """

    server: str
    original: str = ""
    local: str = ""
    client: str = ""


class Servers:
    """Answers each connection and datagram with what it knows of it, in one thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stopping, self._stop = socket.socketpair()
        self._selector.register(self._stopping, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve)

    def listen(
        self,
        namespace: Namespace,
        name: str,
        ports: Iterable[int],
        family: int = socket.AF_INET,
        *,
        owner: tuple[int, int] = cases.ROOT,
        host: str = "",
    ) -> None:
        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                # Rules look at who made the socket; what needs privileges is done to it here, as root.
                server = namespace.call(lambda kind=kind: socket.socket(family, kind), owner)  # type: ignore[misc]
                _bind(server, port, host)
                self._selector.register(server, selectors.EVENT_READ, name)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        if self._thread.is_alive():
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopping:
                    return
                server: socket.socket = key.fileobj  # type: ignore[assignment]
                with suppress(OSError):  # a client that went away: its own test will tell
                    _answer(server, key.data)


def _bind(server: socket.socket, port: int, host: str) -> None:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    make_transparent(server)
    if server.family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, port))
    if server.type == socket.SOCK_STREAM:
        server.listen(BACKLOG)


def make_transparent(made: socket.socket) -> None:
    """Let a socket have addresses that are not this host's, as Envoy does for TPROXY."""
    if made.family == socket.AF_INET:
        made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


def _answer(server: socket.socket, name: str) -> None:
    if server.type == socket.SOCK_DGRAM:
        _, client = server.recvfrom(64)
        server.sendto(json.dumps(Answer(name, client=_text(client))).encode(), client)
        return
    connection, client = server.accept()
    with connection:
        answer = Answer(name, original_destination(connection), _text(connection.getsockname()), _text(client))
        connection.sendall(json.dumps(answer).encode())


def original_destination(connection: socket.socket) -> str:
    """Ask conntrack where a connection went before a redirect; empty where it knows none."""
    ipv6 = connection.family == socket.AF_INET6
    option = (socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, 28) if ipv6 else (socket.SOL_IP, SO_ORIGINAL_DST, 16)
    try:
        raw = connection.getsockopt(*option)
    except OSError:
        return ""
    port, address = struct.unpack("!2xH4x16s4x" if ipv6 else "!2xH4s8x", raw)
    return f"{socket.inet_ntop(connection.family, address)}:{port}"


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def connect(pod: Pod, connection: cases.Connection) -> Answer:
    """Open a connection as its owner, and give the answer of whoever accepted it."""
    namespace = pod.outside if connection.inbound else pod.inside
    return namespace.call(lambda: exchange(connection), connection.owner)


def exchange(connection: cases.Connection) -> Answer:
    """Connect from this thread's namespace and user."""
    family = socket.AF_INET6 if ":" in connection.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if connection.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as client:
        client.settimeout(TIMEOUT)
        try:
            if kind == socket.SOCK_DGRAM:
                client.sendto(b"?", (connection.address, connection.port))
                return Answer(*json.loads(client.recvfrom(512)[0]))
            client.connect((connection.address, connection.port))
            return answer_from(client)
        except ConnectionResetError:
            return Answer(RESET)
        except (ConnectionRefusedError, PermissionError, TimeoutError):
            return Answer(cases.REJECTED)


def answer_from(client: socket.socket) -> Answer:
    """Read what a server tells of a connection, until it closes it."""
    return Answer(*json.loads(b"".join(iter(lambda: client.recv(512), b""))))


@contextmanager
def servers_for(pod: Pod, connections: Iterable[cases.Connection]) -> Iterator[Servers]:
    """Run each server that the connections can reach, rightly or wrongly."""
    wanted = list(connections)
    envoy = {15001} | {int(one.outcome.split(":")[1]) for one in wanted if ":" in one.outcome}
    servers = Servers()
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            ours = [one for one in wanted if (":" in one.address) == (family == socket.AF_INET6)]
            inside = {one.port for one in ours if one.address in cases_current.OWN_ADDRESSES}
            outside = {one.port for one in ours if one.address not in cases_current.OWN_ADDRESSES}
            servers.listen(pod.inside, cases.DIRECT, {9080, *inside} - envoy, family)
            servers.listen(pod.outside, cases.DIRECT, outside, family)
            for port in envoy:
                # The resolver of today's agent listens on localhost alone, and so answers from where requests came to it.
                host = LOCALHOSTS[family] if f"envoy:{port}" in cases_current.RESOLVERS else ""
                servers.listen(pod.inside, f"envoy:{port}", {port}, family, owner=cases.PROXY, host=host)
        servers.start()
        yield servers
    finally:
        servers.close()
