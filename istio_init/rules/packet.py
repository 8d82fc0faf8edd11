"""The packet that the walk follows."""

from istio_init.core.light import NamedTuple


class Packet(NamedTuple):
    """The first packet of a connection, as rules see it.

    Attributes:
        destination: original destination address.
        port: original destination port.
        source: source address.
        protocol: `tcp` or `udp`.
        outbound: whether a process in the namespace sends it.
        interface: the interface by which it leaves or arrives.
        uid: the sending process's user, if it is outbound.
        gid: the sending process's group, if it is outbound.
        has_socket: whether a local socket already has this connection.
        ctstate: its conntrack state.
        source_port: the sender's port.
        mark: the mark that the packet bears when it begins its way.
        connmark: that of its connection.
        ctdir: its direction within the connection.
    """

    destination: str
    port: int
    source: str = ""
    protocol: str = "tcp"
    outbound: bool = True
    interface: str = "eth0"
    uid: int = 0
    gid: int = 0
    has_socket: bool = False
    ctstate: str = "NEW"
    source_port: int = 0
    mark: int = 0
    connmark: int = 0
    ctdir: str = "ORIGINAL"
