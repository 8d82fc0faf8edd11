"""Servers that tell what reached them, and a client: real packets between real sockets."""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from tests import cases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.netns.namespaces import Namespace, Pod

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
IP_TRANSPARENT = 19  # linux/in.h
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

    def listen(self, namespace: Namespace, name: str, ports: Iterable[int], family: int = socket.AF_INET) -> None:
        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                server = namespace.call(lambda kind=kind, port=port: _bound(family, kind, port))  # type: ignore[misc]
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


def _bound(family: int, kind: int, port: int) -> socket.socket:
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET:
        server.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)  # as Envoy does, for TPROXY
    else:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(("", port))
    if kind == socket.SOCK_STREAM:
        server.listen(BACKLOG)
    return server


def _answer(server: socket.socket, name: str) -> None:
    if server.type == socket.SOCK_DGRAM:
        _, client = server.recvfrom(64)
        server.sendto(json.dumps(Answer(name, client=_text(client))).encode(), client)
        return
    connection, client = server.accept()
    with connection:
        answer = Answer(name, _original_destination(connection), _text(connection.getsockname()), _text(client))
        connection.sendall(json.dumps(answer).encode())


def _original_destination(connection: socket.socket) -> str:
    try:
        raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    except OSError:
        return ""
    port, address = struct.unpack("!2xH4s8x", raw)
    return f"{socket.inet_ntoa(address)}:{port}"


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
    pod_addresses = (cases.POD, cases.POD_IPV6, cases.LOCALHOST)
    servers = Servers()
    try:
        servers.listen(pod.inside, cases.DIRECT, {one.port for one in wanted if one.address in pod_addresses})
        servers.listen(pod.inside, cases.DIRECT, {9080}, socket.AF_INET6)
        servers.listen(pod.outside, cases.DIRECT, {one.port for one in wanted if one.address not in pod_addresses})
        for port in {15001} | {int(one.outcome.split(":")[1]) for one in wanted if ":" in one.outcome}:
            servers.listen(pod.inside, f"envoy:{port}", {port})
        servers.start()
        yield servers
    finally:
        servers.close()
