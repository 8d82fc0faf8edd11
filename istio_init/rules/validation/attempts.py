"""One probed connection: opens it, and records its outcome."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from istio_init.rules.validation.owners import owned_by
from istio_init.rules.validation.packets import ACK, ADDRESS_FAMILIES, RST, SYN, Segment
from istio_init.rules.validation.paths import INTERFACE, OUTSIDE

if TYPE_CHECKING:
    from istio_init.rules.validation.paths import Path
    from istio_init.rules.validation.probe_network import ProbeNetwork

SO_MARK = 36  # asm-generic/socket.h
FIRST_PORT = 20000  # of clients outside; below the ephemeral ports that clients inside get
SEQUENCE = 1_000_000
# A query for the address of a name that does not exist (RFC 1035, 4.1; RFC 6761, 6.4).
REQUEST = b"\x3a\x9a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0aistio-init\x07invalid\x00\x00\x01\x00\x01"
NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class Found(NamedTuple):
    """Where a connection ended.

    Attributes:
        port: the proxy's port; None if it bypassed the proxy.
        note: what else to report.
        wrong: whether the outcome is wrong regardless of the port.
        rejected: whether it was rejected on its way, by a message of ICMP.
    """

    port: int | None
    note: str = ""
    wrong: bool = False
    rejected: bool = False


class Verdict(NamedTuple):
    """The outcome of one path.

    Attributes:
        ok: whether the path is correct; None if it was not checked.
        text: a line for the log, without the sign.
    """

    ok: bool | None
    text: str

    def __str__(self) -> str:
        """Return the line for the log, with a sign for the outcome."""
        return self.text if self.ok is None else f"{'✓' if self.ok else '✗'} {self.text}"


class Attempt:
    """A path while it is probed.

    Attributes:
        path: the path.
        served: whether we listen at the destination.
        source_port: the client's port; 0 before it has one.
        client: the socket of a client inside; None for a client outside.
        found: where the connection ended; None while unknown.
        answered: when the connection was accepted, by `time.monotonic`; None before.
        impossible: why the path cannot be probed; "" if it can.
    """

    def __init__(self, path: Path, number: int, impossible: str = "", *, served: bool = False) -> None:
        self.path = path
        self.served = served
        self.source_port = 0 if path.packet.outbound else FIRST_PORT + number
        self.client: socket.socket | None = None
        self.found: Found | None = None
        self.answered: float | None = None
        self.impossible = impossible

    @property
    def pending(self) -> bool:
        """Whether the outcome is still unknown."""
        return self.found is None and not self.impossible

    def is_from(self, address: str) -> bool:
        """Return whether an address may be this client's; only the address of the client outside is known."""
        return (address == OUTSIDE[self.path.family]) is not self.path.packet.outbound

    def bind(self) -> None:
        """Bind a client inside to its port.

        All clients are bound before any connects: once a client is connected, and so bound to one address, the system may
        assign its port to a client with another address, but clients are identified by their ports.
        """
        packet = self.path.packet
        if not packet.outbound:
            return
        kind = socket.SOCK_STREAM if packet.protocol == "tcp" else socket.SOCK_DGRAM
        with owned_by(packet.uid, packet.gid):
            self.client = client = socket.socket(ADDRESS_FAMILIES[self.path.family], kind)
        client.settimeout(0)
        if packet.mark:
            client.setsockopt(socket.SOL_SOCKET, SO_MARK, packet.mark)
        try:
            client.bind((packet.source if packet.interface != INTERFACE else "", 0))
            self.source_port = client.getsockname()[1]
        except OSError as error:
            self.impossible = f"no connection is possible: {error.strerror}"

    def start(self, network: ProbeNetwork | None) -> None:
        """Open the connection; a client inside must be bound."""
        if self.client is None:
            self.knock(network)
            return
        try:
            self.client.connect((self.path.packet.destination, self.path.packet.port))
            if self.client.type == socket.SOCK_DGRAM:
                self.client.send(REQUEST)
        except BlockingIOError:
            return  # the session waits for the answer
        except OSError as error:
            self.failed(error.errno or 0)

    def failed(self, number: int) -> None:
        """Record the error number of a failed connection."""
        if not self.pending:
            return
        if number in NO_ROUTE:
            self.impossible = f"no connection is possible: {os.strerror(number)}"
        elif number:
            self.answered_by_another(f"refused: {os.strerror(number)}")

    def answered_by_another(self, how: str) -> None:
        """Record an answer that is not from our listeners, which is wrong if the destination cannot have sent it."""
        if self.path.leaves_pod or self.served:
            self.found = Found(None, f"but intercepted on the way: {how}", wrong=True)
        else:
            self.found = Found(None, how)

    def knock(self, network: ProbeNetwork | None) -> None:
        """Send, or send again, the first segment of a connection from outside."""
        if network is not None and self.answered is None:
            network.send(self._segment(SYN, 0))

    def _segment(self, flags: int, sequence: int) -> Segment:
        packet = self.path.packet
        ends = (packet.source, self.source_port, packet.destination, packet.port)
        return Segment(self.path.family, *ends, flags, SEQUENCE + sequence)

    def hear(self, answer: Segment, network: ProbeNetwork, now: float) -> None:
        """Continue a connection from outside after an answer to its client."""
        if answer.unreachable:
            self.found = Found(None, rejected=True)
        elif answer.flags & RST and self.pending:
            self.answered_by_another("refused: there is no listener")
        elif answer.flags & SYN and self.answered is None:
            self.answered = now
            network.send(answer.answer(ACK))

    def hang_up(self, network: ProbeNetwork | None) -> None:
        """Close the connection."""
        if self.client is not None:
            self.client.close()
        elif network is not None and self.answered is not None:
            network.send(self._segment(RST, 1))

    def verdict(self, timeout: float) -> Verdict:
        """Return the verdict, after `timeout` seconds at most."""
        path = self.path
        if self.impossible:
            return Verdict(ok=None, text=f"not checked: {path}: {self.impossible}")
        expected = f"{path}: expected {_where(path.expected, rejected=path.rejected)} ({path.why})"
        if self.found is None:
            return Verdict(ok=False, text=f"{expected}, found nothing within {timeout:g} s: the connection is lost")
        note = f" ({self.found.note})" if self.found.note else ""
        same = (self.found.port, self.found.rejected) == (path.expected, path.rejected)
        where = _where(self.found.port, rejected=self.found.rejected)
        return Verdict(ok=same and not self.found.wrong, text=f"{expected}, found {where}{note}")


def _where(port: int | None, *, rejected: bool) -> str:
    if rejected:
        return "a rejection"
    return "its original destination" if port is None else f"port {port}"
