"""Established connections through a proxy: echoes that go on while rules change, and a count of those that die.

The proxy stands for Envoy: it accepts what was diverted to it, connects to the app at the original destination, and passes
each word there and the answer back. Under TPROXY it connects from the client's own address with its mark (Envoy's
`original_src` filter), so that both legs depend on rules: from the client to the proxy, and the app's answers to the proxy.
"""

from __future__ import annotations

import ctypes
import platform
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from tests import cases
from tests.netns.sockets import BACKLOG, make_transparent, original_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.netns.namespaces import Namespace, Pod

# Raw system calls, for these change one thread only, and the threads that it starts.
SETFSUID, SETFSGID = {"x86_64": (122, 123), "aarch64": (151, 152)}[platform.machine()]
PROXY_SOURCE = "127.0.0.6"
ECHO_TIMEOUT = 5.0  # seconds
LAST_TIMEOUT = 20.0  # seconds that a thread may take to end; a proxy waits longer for its app than a client for its echo
APP_PORT = 9080
GREETING_PORT = 9081  # where each connection is greeted and closed
PROXY_PORTS = (15001, 15006)
WORD = b"12345678"

_libc = ctypes.CDLL(None, use_errno=True)


class Threads:
    """Threads in a namespace, one for each connection, until they are told to stop.

    Args:
        namespace: where their sockets are.
        owner: to whom rules shall see these belong; the threads keep root's capabilities, as Envoy has them for TPROXY.
    """

    def __init__(self, namespace: Namespace, owner: tuple[int, int] = cases.ROOT) -> None:
        self.stopping = threading.Event()
        self._namespace = namespace
        self._owner = owner
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._namespace.call, args=(lambda: self._own(function),), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _own(self, function: Callable[[], None]) -> None:
        uid, gid = self._owner
        _libc.syscall(SETFSGID, gid)
        _libc.syscall(SETFSUID, uid)
        function()

    def close(self) -> None:
        self.stopping.set()
        deadline = time.monotonic() + LAST_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class Server(Threads):
    """Accepts connections on some ports and hands each to a thread of its own."""

    greeting: bytes  # of one byte

    def __init__(self, namespace: Namespace, ports: tuple[int, ...], owner: tuple[int, int]) -> None:
        super().__init__(namespace, owner)
        self._listeners = [_listener(namespace, port) for port in ports]
        for listener in self._listeners:
            self.start(lambda listener=listener: self._accept(listener))  # type: ignore[misc]

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                accepted, client = listener.accept()
                accepted.settimeout(ECHO_TIMEOUT * 2)
                if original_destination(accepted).endswith(f":{GREETING_PORT}"):
                    with accepted, suppress(OSError):
                        accepted.sendall(self.greeting)
                    continue
                self.start(lambda accepted=accepted, client=client: self._serve(accepted, client))  # type: ignore[misc]
        listener.close()

    def _serve(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        with accepted, suppress(OSError):
            self.serve(accepted, client)

    def serve(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        """Serve a connection until its client closes it."""
        raise NotImplementedError


class App(Server):
    """Sends back what it gets."""

    greeting = b"-"

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace, (APP_PORT, GREETING_PORT), cases.APP)

    def serve(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        del client
        while word := accepted.recv(64):
            accepted.sendall(word)


class Proxy(Server):
    """Passes words on to where they were sent, and answers back.

    Args:
        namespace: the pod's.
        mark: of its connections to the app, which then come from the client's address; 0: they come from 127.0.0.6.
    """

    greeting = b"+"

    def __init__(self, namespace: Namespace, mark: int) -> None:
        self._mark = mark
        super().__init__(namespace, PROXY_PORTS, cases.PROXY)

    def serve(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        address, _, port = original_destination(accepted).rpartition(":")
        with socket.socket() as upstream:
            upstream.settimeout(ECHO_TIMEOUT * 2)
            if address == cases.POD and self._mark:
                make_transparent(upstream)
                upstream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
                upstream.bind((client[0], 0))
            elif address == cases.POD:
                address = cases.LOCALHOST
                upstream.bind((PROXY_SOURCE, 0))
            upstream.connect((address, int(port)))
            while word := accepted.recv(64):
                upstream.sendall(b"+" + word)
                accepted.sendall(upstream.recv(64))


def _listener(namespace: Namespace, port: int) -> socket.socket:
    made = namespace.call(socket.socket)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    make_transparent(made)
    made.bind(("", port))
    made.listen(BACKLOG)
    made.settimeout(0.2)
    return made


def _connected(address: str, port: int) -> socket.socket:
    made = socket.socket()
    made.settimeout(ECHO_TIMEOUT)
    try:
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    return made


class Echoes(Threads):
    """Clients that have words sent back, each over one connection, until they are told to stop.

    Attributes:
        died: what became of each connection that did not live on.
        escaped: number of echoes that did not come through the proxy.
        count: number of echoes of each client.
    """

    def __init__(self, namespace: Namespace, address: str, number: int) -> None:
        super().__init__(namespace, cases.APP)
        self._address = address
        self.died: list[str] = []
        self.escaped = 0
        self.count = [0] * number

    def __enter__(self) -> Self:
        for place in range(len(self.count)):
            self.start(lambda place=place: self._talk(place))  # type: ignore[misc]
        self.await_round()
        assert not self.died
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def await_round(self) -> None:
        """Wait until each connection that lives has had an echo that was asked for after this call."""
        wanted = [number + 2 for number in self.count]
        deadline = time.monotonic() + ECHO_TIMEOUT * 2
        while sum(have < want for have, want in zip(self.count, wanted, strict=True)) > len(self.died):
            assert time.monotonic() < deadline, "echoes neither come nor fail"
            time.sleep(0.01)

    def _talk(self, place: int) -> None:
        try:
            with _connected(self._address, APP_PORT) as connection:
                while not self.stopping.is_set():
                    connection.sendall(WORD)
                    word = connection.recv(64)
                    if not word:
                        raise ConnectionError("closed")
                    self.escaped += word != b"+" + WORD
                    self.count[place] += 1
        except OSError as error:
            self.died.append(f"after {self.count[place]} echoes: {error!r}")


class Openings(Threads):
    """Clients that open one connection after the other to be greeted, until they are told to stop.

    Attributes:
        count: number of connections of each client.
        bad: what became of those that the proxy did not greet, with their number.
    """

    def __init__(self, namespace: Namespace, address: str, number: int) -> None:
        super().__init__(namespace, cases.APP)
        self.bad: Counter[str] = Counter()
        self.count = [0] * number
        self._address = address

    def __enter__(self) -> Self:
        for place in range(len(self.count)):
            self.start(lambda place=place: self._open(place))  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, place: int) -> None:
        while not self.stopping.is_set():
            self.count[place] += 1
            try:
                with _connected(self._address, GREETING_PORT) as connection:
                    greeting = connection.recv(1)
            except OSError as error:
                self.bad[repr(error)] += 1
                continue
            if greeting != Proxy.greeting:
                self.bad[f"greeted with {greeting!r}"] += 1


@contextmanager
def echoes(pod: Pod, mark: int, number: int) -> Iterator[tuple[Echoes, Echoes]]:
    """Establish connections through a proxy in the pod, keep them busy, and yield the inbound and the outbound ones."""
    servers = App(pod.inside), App(pod.outside), Proxy(pod.inside, mark)
    try:
        inbound, outbound = Echoes(pod.outside, cases.POD, number), Echoes(pod.inside, cases.SERVICE, number)
        with inbound, outbound:
            yield inbound, outbound
    finally:
        for server in servers:
            server.close()
