"""Listeners on the proxy's and other ports while paths are probed, and the connections they accept."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import ValidationFailed
from istio_init.rules.model import Family, Mode
from istio_init.rules.validation.packets import ADDRESS_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.rules.settings import Settings

BACKLOG = 512
SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h is the same
IP_TRANSPARENT = 19  # linux/in.h
IPV6_TRANSPARENT = 75  # linux/in6.h
REQUEST_BYTES = 512  # maximum for DNS over UDP (RFC 1035, 4.2.1)


class Listener(NamedTuple):
    """A socket that listens on one port in one family."""

    family: Family
    port: int
    socket: socket.socket


class Arrival(NamedTuple):
    """A connection or datagram that reached a listener.

    Attributes:
        client: the client's address.
        client_port: the client's port.
        protocol: `tcp` or `udp`.
        original: original destination, address and port; None if conntrack has none, as for datagrams.
    """

    client: str
    client_port: int
    protocol: str
    original: tuple[str, int] | None = None


@contextmanager
def listeners(settings: Settings, families: tuple[Family, ...]) -> Iterator[tuple[Listener, ...]]:
    """Listen on the proxy's ports during a block.

    Raises:
        ValidationFailed: another program listens on one of them.
    """
    ports = [(port, socket.SOCK_STREAM) for port in {settings.envoy_port, settings.inbound_capture_port}]
    if settings.redirect_dns:
        ports += [(settings.dns_port, socket.SOCK_STREAM), (settings.dns_port, socket.SOCK_DGRAM)]
    with ExitStack() as stack:
        made = []
        for family in families:
            for port, kind in ports:
                server = stack.enter_context(socket.socket(ADDRESS_FAMILIES[family], kind))
                _listen(server, port, transparent=settings.mode is Mode.TPROXY)
                made.append(Listener(family, port, server))
        yield tuple(made)


@contextmanager
def stand_ins(ends: Iterable[tuple[Family, int]]) -> Iterator[tuple[Listener, ...]]:
    """Listen in place of the pod's own servers during a block, on those ports that are free.

    This distinguishes a connection that arrives from one that a third-party rule diverts to a port without a listener.

    Args:
        ends: the ports, each with its family.
    """
    with ExitStack() as stack:
        made = []
        for family, port in ends:
            server = stack.enter_context(socket.socket(ADDRESS_FAMILIES[family], socket.SOCK_STREAM))
            with suppress(OSError):  # in use by a server of the pod, or a privileged port
                _bind(server, port)
                made.append(Listener(family, port, server))
        yield tuple(made)


def _listen(server: socket.socket, port: int, *, transparent: bool) -> None:
    if transparent:
        option = (
            (socket.SOL_IP, IP_TRANSPARENT) if server.family == socket.AF_INET else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
        )
        with suppress(PermissionError):  # without the capability, no connections from outside are probed either
            server.setsockopt(*option, 1)
    try:
        _bind(server, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        message = (
            f"nothing was validated: port {port} is in use, and validation listens on the proxy's ports itself; "
            "run it before the proxy starts, as an init container does"
        )
        raise ValidationFailed(message) from None


def _bind(server: socket.socket, port: int) -> None:
    server.settimeout(0)
    if server.family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if server.type == socket.SOCK_STREAM:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", port))
    if server.type == socket.SOCK_STREAM:
        server.listen(BACKLOG)


def arrivals(listener: Listener) -> Iterator[Arrival]:
    """Accept and yield what has arrived since the last call, without waiting."""
    while True:
        try:
            if listener.socket.type == socket.SOCK_DGRAM:
                _, (client, port, *_) = listener.socket.recvfrom(REQUEST_BYTES)
                yield Arrival(client, port, "udp")
                continue
            connection, (client, port, *_) = listener.socket.accept()
        except BlockingIOError:
            return
        except ConnectionError:
            continue  # disconnected before it was accepted
        with connection:
            yield Arrival(client, port, "tcp", _original_destination(connection))


def _original_destination(connection: socket.socket) -> tuple[str, int] | None:
    try:
        if connection.family == socket.AF_INET:
            raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            port, packed = struct.unpack("!2xH4s8x", raw)
        else:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, packed = struct.unpack("!2xH4x16s4x", raw)
    except OSError:
        return None
    return socket.inet_ntop(connection.family, packed), port
