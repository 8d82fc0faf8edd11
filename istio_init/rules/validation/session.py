"""Probes all paths in parallel, so that together they take no longer than the slowest."""

from __future__ import annotations

import selectors
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from istio_init.rules.validation.attempts import Attempt, Found
from istio_init.rules.validation.listeners import Arrival, Listener, arrivals
from istio_init.rules.validation.packets import ACK, SYN, UDP
from istio_init.rules.validation.paths import OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_init.rules.model import Family
    from istio_init.rules.validation.packets import Segment
    from istio_init.rules.validation.probe_network import ProbeNetwork

RETRY_INTERVAL = 0.05  # seconds after which a client outside retries
GRACE = 0.5  # seconds within which an accepted connection must have reached our listener if it is diverted there


class Session:
    """Opens the connections of all paths, and observes where they end.

    Args:
        attempts: the paths to probe.
        served: the listeners at which they may end.
        network: the probe network, by which they may leave or arrive; None if there is none.
    """

    def __init__(self, attempts: Sequence[Attempt], served: Sequence[Listener], network: ProbeNetwork | None) -> None:
        self._attempts = attempts
        self._network = network
        self._selector = selectors.DefaultSelector()
        self._clients: dict[tuple[Family, str, int], Attempt] = {}
        for listener in served:
            self._watch(listener.socket, partial(self._arrived, listener))
        if network is not None:
            self._watch(network.far, partial(self._seen, network))

    def run(self, timeout: float) -> None:
        """Open all connections, and record where they end, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for attempt in filter(lambda attempt: attempt.pending, self._attempts):
            attempt.bind()
            self._clients[(attempt.path.family, attempt.path.packet.protocol, attempt.source_port)] = attempt
        for attempt in filter(lambda attempt: attempt.pending, self._attempts):
            attempt.start(self._network)
            if attempt.client is not None and attempt.pending:
                tcp = attempt.client.type == socket.SOCK_STREAM
                events = selectors.EVENT_WRITE if tcp else selectors.EVENT_READ
                self._selector.register(attempt.client, events, partial(self._answered, attempt))
        while any(attempt.pending for attempt in self._attempts):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            for key, _ in self._selector.select(min(RETRY_INTERVAL, remaining)):
                key.data()
            self._retry(time.monotonic())

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        for attempt in self._attempts:
            attempt.hang_up(self._network)

    def _watch(self, file: socket.socket, react: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, react)

    def _arrived(self, listener: Listener) -> None:
        """Record a connection that reached a listener."""
        for arrival in arrivals(listener):
            attempt = self._clients.get((listener.family, arrival.protocol, arrival.client_port))
            if attempt is not None and attempt.is_from(arrival.client):
                is_direct = attempt.path.end == (listener.family, listener.port)
                attempt.found = Found(None if is_direct else listener.port, *_original(arrival, attempt))

    def _seen(self, network: ProbeNetwork) -> None:
        """Record connections that leave the pod, and handle answers to clients outside."""
        for segment in network.received():
            protocol = "udp" if segment.protocol == UDP else "tcp"
            if segment.destination == OUTSIDE[segment.family]:
                attempt = self._clients.get((segment.family, protocol, segment.port))
                if attempt is not None and not attempt.path.packet.outbound:
                    attempt.hear(segment, network, time.monotonic())
            elif protocol == "udp" or segment.flags & (SYN | ACK) == SYN:
                self._left(segment, self._clients.get((segment.family, protocol, segment.source_port)))

    def _left(self, segment: Segment, attempt: Attempt | None) -> None:
        if attempt is None or not attempt.pending:
            return
        asked = (attempt.path.packet.destination, attempt.path.packet.port)
        if (segment.destination, segment.port) == asked:
            attempt.found = Found(None)

    def _answered(self, attempt: Attempt) -> None:
        """Record the outcome of a client inside."""
        client = attempt.client
        if client is None:
            return
        self._selector.unregister(client)
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        attempt.failed(error)
        if not error:
            attempt.answered = time.monotonic()

    def _retry(self, now: float) -> None:
        for attempt in self._attempts:
            if not attempt.pending:
                continue
            if attempt.answered is not None:
                if now - attempt.answered > GRACE:
                    attempt.answered_by_another("another server answered")
            elif not attempt.path.packet.outbound:
                attempt.knock(self._network)


def _original(arrival: Arrival, attempt: Attempt) -> tuple[str, bool]:
    """Return a note on a wrong original destination, and whether it is wrong; datagrams have none."""
    asked = (attempt.path.packet.destination, attempt.path.packet.port)
    if arrival.protocol == "udp" or arrival.original == asked:
        return "", False
    actual = f"{arrival.original[0]} port {arrival.original[1]}" if arrival.original else "none"
    return f"but with the original destination: {actual}", True
