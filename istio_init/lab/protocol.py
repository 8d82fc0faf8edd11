"""How commands and the lab's supervisor talk: one line of JSON each way, on an abstract Unix socket.

Such a socket has no file, so it ends with the supervisor, however that ends (unix(7)).
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
PATIENCE = 30.0  # seconds for an answer
CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7)
Message = dict[str, Any]


def down(name: str) -> str:
    """Give the command that ends a lab."""
    return "istio-init lab down" if name == DEFAULT_NAME else f"istio-init lab down --name {name}"


def listen(name: str) -> socket.socket:
    """Take the name of a lab.

    Raises:
        IstioInitError: a lab has it.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(_address(name))
    except OSError as error:
        server.close()
        message = (
            f"a lab {name!r} is up already, or being made ({error.strerror}); `{down(name)}` ends it, --name makes another"
        )
        raise IstioInitError(message) from None
    return server


def connect(name: str) -> socket.socket:
    """Reach a lab.

    Raises:
        IstioInitError: there is none.
    """
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    try:
        client.connect(_address(name))
    except OSError:
        client.close()
        message = (
            f"no lab {name!r} is up here; `istio-init lab up` makes one (in the network namespace that it is called from)"
        )
        raise IstioInitError(message) from None
    if peer(client)[1] != os.geteuid():
        client.close()
        message = f"the lab {name!r} is another user's"
        raise IstioInitError(message)
    return client


def peer(connection: socket.socket) -> tuple[int, int]:
    """Give the process id and the user id of the other end."""
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def encode(message: Message) -> bytes:
    """Write one message."""
    return json.dumps(message).encode() + b"\n"


def send(connection: socket.socket, message: Message) -> None:
    """Send one message."""
    connection.sendall(encode(message))


def receive(connection: socket.socket) -> Message:
    """Receive one message.

    Raises:
        IstioInitError: the other end has gone.
    """
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        message = "the lab has ended"
        raise IstioInitError(message)
    received: Message = json.loads(line)
    return received


def _address(name: str) -> str:
    return f"\0{NAME}/{name}"
