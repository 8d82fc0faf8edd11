"""Further ends of connections: a proxy that comes to its app as the client, a virtual machine, segments of no connection."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from istio_init.rules.model import INBOUND_PORT, TPROXY_MARK
from tests import cases
from tests.netns.namespaces import Namespace
from tests.netns.sockets import TIMEOUT, Answer, answer_from, make_transparent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Pod

# The network between the pod and its virtual machine.
GATEWAY, MACHINE, MACHINE_NETWORK = "10.88.0.1", "10.88.0.2", "10.88.0.0/24"
CHUNK = 4096
SYN, RST, SYN_ACK = 0x02, 0x04, 0x12


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect_from(
    namespace: Namespace,
    source: tuple[str, int],
    address: str,
    port: int,
    owner: tuple[int, int] = cases.ROOT,
) -> Answer:
    """Connect from an address and port of one's own choice; port 0 is any."""

    def exchange() -> Answer:
        with socket.socket(family_of(address)) as client:
            client.settimeout(TIMEOUT)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(source)
            client.connect((address, port))
            return answer_from(client)

    return namespace.call(exchange, owner)


class Relay:
    """A proxy's inbound side under TPROXY: it connects on to the app from the client's own address, with the mark.

    It serves one connection.

    Attributes:
        clients: the ends of the connections that it was given, in order.
        failure: why its own connection to the app did not come about.
    """

    def __init__(self, pod: Pod, owner: tuple[int, int], family: socket.AddressFamily) -> None:
        self.clients: list[str] = []
        self.failure = ""
        # As the proxy's user, who counts for rules; what needs privileges is done to the sockets here, as root.
        self._listener, self._onward = (pod.inside.call(lambda: socket.socket(family), owner) for _ in range(2))
        # What it accepts has the app's port, which is soon to be listened on again.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        make_transparent(self._listener)
        make_transparent(self._onward)
        self._onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TPROXY_MARK)
        self._onward.settimeout(TIMEOUT / 2)
        self._listener.settimeout(TIMEOUT)
        self._listener.bind(("", INBOUND_PORT))
        self._listener.listen()
        self._thread = threading.Thread(target=pod.inside.call, args=(self._serve, owner))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()
        self._onward.close()

    def _serve(self) -> None:
        connection, client = self._listener.accept()
        with connection:
            self.clients.append(f"{client[0]}:{client[1]}")
            try:
                self._onward.bind((client[0], 0))
                self._onward.connect(connection.getsockname()[:2])
                while chunk := self._onward.recv(CHUNK):
                    connection.sendall(chunk)
            except OSError as error:
                self.failure = type(error).__name__


@contextmanager
def virtual_machine(pod: Pod, interface: str) -> Iterator[Namespace]:
    """Run a machine behind the pod, on an interface of it; what the pod does not capture, it forwards."""
    with ExitStack() as stack:
        machine = Namespace()
        stack.callback(machine.close)
        to_machine = (
            f"link add {interface} type veth peer name eth0 netns {machine.path}\n"
            f"address add {GATEWAY}/24 dev {interface}\nlink set {interface} up\n"
        )
        to_pod = f"address add {MACHINE}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n"
        back = f"route add {MACHINE_NETWORK} via {cases.POD}\n"
        for namespace, commands in ((pod.inside, to_machine), (machine, to_pod), (pod.outside, back)):
            namespace.run("ip", "-batch", "-", stdin=commands)
        pod.inside.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        yield machine


def resets_after(pod: Pod, segments: list[tuple[int, int]]) -> list[int]:
    """Send bare TCP segments from outside, `(port, flags)` each, and list the ports that resets came from, in order.

    The last one must be answered by a reset. The wire keeps the order, so that all other resets come before.
    """

    def exchange() -> list[int]:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.settimeout(TIMEOUT)
            for port, flags in segments:
                raw.sendto(_segment(port, flags), (cases.POD, 0))
            seen: list[int] = []
            while segments[-1][0] not in seen:
                packet = raw.recv(CHUNK)
                source, _, _, _, _, flags = struct.unpack_from("!HHIIBB", packet, (packet[0] & 0xF) * 4)
                if flags & RST and packet[12:16] == socket.inet_aton(cases.POD):
                    seen.append(source)
            return seen

    return pod.outside.call(exchange)


def _segment(port: int, flags: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", 40000, port, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = (
        socket.inet_aton(cases.CLIENT) + socket.inet_aton(cases.POD) + struct.pack("!HH", socket.IPPROTO_TCP, len(header))
    )
    total = sum(struct.unpack(f"!{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return header[:16] + struct.pack("!H", checksum) + header[18:]
