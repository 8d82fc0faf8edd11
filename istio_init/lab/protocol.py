"""The protocol between commands and the lab's supervisor: one line of JSON each way, on an abstract Unix socket.

An abstract socket has no file, so nothing is left behind however the supervisor exits (unix(7)).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from istio_init.core.errors import IstioInitError

NAME = "istio-init-lab"
DEFAULT_NAME = "lab"
RESPONSE_TIMEOUT = 30.0  # seconds
CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7)
Message = dict[str, Any]


def down(name: str) -> str:
    """Return the command line that stops a lab."""
    return "istio-init lab down" if name == DEFAULT_NAME else f"istio-init lab down --name {name}"


def listen(name: str) -> socket.socket:
    """Claim the name of a lab.

    Raises:
        IstioInitError: the name is in use.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(_address(name))
    except OSError as error:
        server.close()
        message = (
            f"lab {name!r} is already up or starting ({error.strerror}); stop it with `{down(name)}`, or start another "
            "with --name"
        )
        raise IstioInitError(message) from None
    return server


def connect(name: str) -> socket.socket:
    """Connect to a lab.

    Raises:
        IstioInitError: there is no such lab.
    """
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(RESPONSE_TIMEOUT)
    try:
        client.connect(_address(name))
    except OSError:
        client.close()
        message = f"no lab {name!r} is up in this network namespace; start one with `istio-init lab up`"
        raise IstioInitError(message) from None
    if peer(client)[1] != os.geteuid():
        client.close()
        message = f"lab {name!r} belongs to another user"
        raise IstioInitError(message)
    return client


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process ID and the user ID of the peer."""
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def encode(message: Message) -> bytes:
    """Encode a message."""
    return json.dumps(message).encode() + b"\n"


def send(connection: socket.socket, message: Message) -> None:
    """Send a message."""
    connection.sendall(encode(message))


def receive(connection: socket.socket) -> Message:
    """Receive a message.

    Raises:
        IstioInitError: the peer has closed the connection.
    """
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        message = "the lab has exited"
        raise IstioInitError(message)
    received: Message = json.loads(line)
    return received


def _address(name: str) -> str:
    return f"\0{NAME}/{name}"
