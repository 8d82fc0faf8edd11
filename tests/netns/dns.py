"""Name servers, forwarders and a client for what a namespace lets through: one question, one address of IPv4."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from dnslib import QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord

from istio_init.rules.model import RESOLVER_PORT
from tests import cases
from tests.netns.peers import family_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.netns.namespaces import Namespace

TIMEOUT = 3.0  # seconds
SIZE = 512  # of a message over UDP


class Asked(NamedTuple):
    """A question that came in, over which protocol, and from where."""

    name: str
    protocol: str
    client: tuple[str, int]


class NameServer:
    """Answers questions over UDP and TCP, in a thread that runs as a user, and so do the sockets that it makes there.

    Args:
        namespace: where it runs.
        address: of its sockets; answers come from there.
        respond: makes the answer to a request, for the protocol that it came by.

    Attributes:
        asked: each question, in order.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        respond: Callable[[bytes, str], bytes],
        owner: tuple[int, int] = cases.ROOT,
        port: int = RESOLVER_PORT,
    ) -> None:
        self.asked: list[Asked] = []
        self._respond = respond
        self._stopping, self._stop = socket.socketpair()
        self._sockets: list[socket.socket] = []
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            server = namespace.call(lambda kind=kind: socket.socket(family_of(address), kind), owner)  # type: ignore[misc] # mypy infers no lambda with a default
            self._sockets.append(server)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
        self._sockets[1].listen()
        self._thread = threading.Thread(target=namespace.call, args=(self._serve, owner))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for one in (*self._sockets, self._stopping):
            one.close()

    @property
    def names(self) -> list[str]:
        """What was asked for."""
        return [asked.name for asked in self.asked]

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in (*self._sockets, self._stopping):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopping:
                        return
                    with suppress(OSError):  # a server that nobody answers stays silent, too
                        self._answer(key.fileobj)  # type: ignore[arg-type] # all are sockets

    def _answer(self, server: socket.socket) -> None:
        if server.type == socket.SOCK_DGRAM:
            request, client = server.recvfrom(SIZE)
            self.asked.append(Asked(name_of(request), "udp", client[:2]))
            server.sendto(self._respond(request, "udp"), client)
            return
        connection, client = server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            request = _receive_over_tcp(connection)
            self.asked.append(Asked(name_of(request), "tcp", client[:2]))
            _send_over_tcp(connection, self._respond(request, "tcp"))


def authority(address: str) -> Callable[[bytes, str], bytes]:
    """Answer each question with the same address."""
    return lambda request, _: answer_to(request, address)


def forwarder(server: str) -> Callable[[bytes, str], bytes]:
    """Hand each request on to a server."""
    return lambda request, protocol: exchange(server, request, protocol)


def ask(namespace: Namespace, server: str, name: str, protocol: str = "udp", owner: tuple[int, int] = cases.APP) -> str:
    """Ask a server for the address of a name, and believe no other answer than one to this question from this server."""
    request = question(len(name), name)
    return address_in(namespace.call(lambda: exchange(server, request, protocol), owner), request)


def exchange(server: str, request: bytes, protocol: str) -> bytes:
    """Send a request from this thread, and give the answer."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family_of(server), kind) as client:
        client.settimeout(TIMEOUT)
        client.connect((server, RESOLVER_PORT))  # so answers from elsewhere are not taken
        if protocol == "udp":
            client.send(request)
            return client.recv(SIZE)
        _send_over_tcp(client, request)
        return _receive_over_tcp(client)


def question(number: int, name: str) -> bytes:
    """Write a request."""
    request: bytes = DNSRecord(DNSHeader(id=number, rd=1), q=DNSQuestion(name, QTYPE.A)).pack()
    return request


def answer_to(request: bytes, address: str) -> bytes:
    """Write the answer to a request."""
    reply = DNSRecord.parse(request).reply()
    reply.add_answer(RR(reply.q.qname, QTYPE.A, rdata=A(address)))
    answer: bytes = reply.pack()
    return answer


def name_of(message: bytes) -> str:
    """Read the name that a message asks for."""
    return str(DNSRecord.parse(message).q.qname).removesuffix(".")


def address_in(message: bytes, request: bytes) -> str:
    """Read the address in an answer, which must be one to this request."""
    answer, asked = DNSRecord.parse(message), DNSRecord.parse(request)
    assert (answer.header.id, answer.questions) == (asked.header.id, asked.questions)
    (record,) = answer.rr
    return str(record.rdata)


def _send_over_tcp(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack("!H", len(message)) + message)


def _receive_over_tcp(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        (length,) = struct.unpack("!H", stream.read(2))
        return stream.read(length)
