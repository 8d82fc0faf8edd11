# ruff: noqa: INP001 - a script, not a module of a package
"""The demonstration: a pod and a client in two network namespaces, the rules, and a connection in each direction.

Exits with 0 if each connection reached whom it should, and with 1 if not. Run it as root, through scripts/demo.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from istio_init.model import ENVOY_PORT, PROXY_UID

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

APP_UID = 1000
APP_PORT = 9080
SERVICE_PORT = 80
POD_ADDRESS = "10.77.0.1"
CLIENT_ADDRESS = "10.77.0.2"
SERVICE_ADDRESS = "10.96.0.10"
LOCALHOST = "127.0.0.1"
ENVOY = f"envoy:{ENVOY_PORT}"
FLAGS = f"-p {ENVOY_PORT} -u {PROXY_UID} -m REDIRECT -i '*' -x '' -b {APP_PORT} -d ''"

# The rules that decide about the connections below, as iptables-save writes them.
DECIDING_RULES = (
    f"ISTIO_INBOUND -p tcp -m tcp --dport {APP_PORT} -j ISTIO_IN_REDIRECT",
    f"ISTIO_OUTPUT -m owner --uid-owner {PROXY_UID} -j RETURN",
    "ISTIO_OUTPUT -j ISTIO_REDIRECT",
)

# What the reader's shell has set (ISTIO_SERVICE_CIDR, a PATH without sbin) must not change what is shown.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
ISTIO_INIT = str(Path(sys.executable).with_name("istio-init"))

CLONE_NEWNET = 0x40000000  # linux/sched.h
SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
TIMEOUT = 3.0  # seconds, for one connection
BOLD, RED, GREEN = "1", "31", "32"  # console_codes(4)

# Forked, not started anew: a child that became another user need not be able to read this checkout.
processes = multiprocessing.get_context("fork")
libc = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """A network namespace, and the user that a process there runs as."""

    namespace: str
    uid: int = 0

    def as_user(self, uid: int) -> Place:
        """Give the same namespace for another user."""
        return self._replace(uid=uid)

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in this namespace as root."""
        return run("nsenter", f"--net=/run/netns/{self.namespace}", *argv, stdin=stdin, check=check)

    def set_up(self, *commands: str) -> None:
        """Run commands of ip(8) in this namespace, in one batch."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands))

    def start(self, function: Callable[[Connection], None]) -> Connection:
        """Call a function here, in a process of its own, with one end of a pipe; give the other end."""
        ours, theirs = processes.Pipe()
        processes.Process(target=self._enter_and_call, args=(function, theirs), daemon=True).start()
        theirs.close()
        return ours

    def _enter_and_call(self, function: Callable[[Connection], None], pipe: Connection) -> None:
        # An interrupt reaches the whole group of processes; the parent is the one that cleans up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with Path("/run/netns", self.namespace).open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)
        function(pipe)


class Leg(NamedTuple):
    """One connection: who opens it, where to, and the server that should receive it."""

    who: str
    origin: Place
    address: str
    port: int
    receiver: str

    @property
    def destination(self) -> str:
        """The address and port that are asked for."""
        return f"{self.address}:{self.port}"

    @property
    def expected(self) -> str:
        """The answer of the right receiver."""
        if self.receiver == ENVOY:
            return f"{ENVOY}, which reads original destination {self.destination}"
        return f"{self.receiver} itself"


def main() -> int:
    """Show everything, and take it down again whatever happens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    pod, client = (Place(f"istio-init-demo-{os.getpid()}-{role}") for role in ("pod", "client"))
    try:
        make_pod_and_client(pod, client)
        start_servers(pod, client)
        show_rules(pod)
        as_expected = show_connections(pod, client)
        as_expected &= show_counters(pod)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        # A second interrupt must not stop the cleaning up. The servers end with this process.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for place in (pod, client):
            run("ip", "netns", "delete", place.namespace, check=False)
    say("\nEverything is as expected." if as_expected else "\nNot everything is as expected: see above.")
    return 0 if as_expected else 1


def make_pod_and_client(pod: Place, client: Place) -> None:
    """Make both namespaces and join them."""
    title("1. A pod and a client, each in a network namespace of its own")
    say(f"  pod     {POD_ADDRESS:10}  an app on port {APP_PORT} (uid {APP_UID})")
    say(f"  {'':18}  a stand-in for Envoy on port {ENVOY_PORT} (uid {PROXY_UID})")
    say(f"  client  {CLIENT_ADDRESS:10}  a service at {SERVICE_ADDRESS}:{SERVICE_PORT}")
    for place in (pod, client):
        run("ip", "netns", "add", place.namespace)
    client.set_up(
        "link set lo up",
        f"link add eth0 type veth peer name eth0 netns {pod.namespace}",
        f"address add {CLIENT_ADDRESS}/24 dev eth0",
        f"address add {SERVICE_ADDRESS}/32 dev lo",
        "link set eth0 up",
    )
    pod.set_up(
        "link set lo up",
        f"address add {POD_ADDRESS}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CLIENT_ADDRESS}",
    )


def start_servers(pod: Place, client: Place) -> None:
    """Start each server in a process of its own, and wait until it listens."""
    for place, name, port in (
        (pod.as_user(PROXY_UID), ENVOY, ENVOY_PORT),
        (pod.as_user(APP_UID), f"app:{APP_PORT}", APP_PORT),
        (client, f"service:{SERVICE_PORT}", SERVICE_PORT),
    ):
        place.start(functools.partial(serve, name, port)).recv()


def show_rules(pod: Place) -> None:
    """Apply the pod's arguments, and print what was written and why."""
    title("2. The rules that istio-init writes in the pod, each with its reason")
    say(f"  $ istio-init {FLAGS}")
    say(indented(pod.run(ISTIO_INIT, *shlex.split(FLAGS)).stderr))
    say(f"\n  $ istio-init --dry-run --format table {FLAGS}")
    say(indented(pod.run(ISTIO_INIT, "--dry-run", "--format", "table", *shlex.split(FLAGS)).stdout))


def show_connections(pod: Place, client: Place) -> bool:
    """Open a connection in each direction, and the one on from Envoy, which no rule may send back to it."""
    app, envoy, stranger = pod.as_user(APP_UID), pod.as_user(PROXY_UID), client.as_user(APP_UID)
    directions = {
        "out of the pod, and on from Envoy": (
            Leg("app", app, SERVICE_ADDRESS, SERVICE_PORT, ENVOY),
            Leg("envoy", envoy, SERVICE_ADDRESS, SERVICE_PORT, f"service:{SERVICE_PORT}"),
        ),
        "into the pod, and on from Envoy": (
            Leg("client", stranger, POD_ADDRESS, APP_PORT, ENVOY),
            Leg("envoy", envoy, LOCALHOST, APP_PORT, f"app:{APP_PORT}"),
        ),
    }
    title("3. Connections, and who receives them")
    as_expected = True
    for direction, legs in directions.items():
        say(f"  {direction}")
        for leg in legs:
            answer = leg.origin.start(functools.partial(connect, leg.address, leg.port)).recv()
            text = f"{leg.who} (uid {leg.origin.uid}) → {leg.destination} … received by {answer}"
            as_expected &= verdict(text, right=answer == leg.expected, expected=f"received by {leg.expected}")
    return as_expected


def show_counters(pod: Place) -> bool:
    """Print the kernel's own rules, with how many of the connections each of them decided."""
    title("4. The same rules in the kernel, and the connections that each has counted (iptables-save -c)")
    # One of the variants holds the rules, the other has nothing or does not work here.
    saved = "".join(
        pod.run(f"iptables-{variant}-save", "-c", "-t", "nat", check=False).stdout for variant in ("nft", "legacy")
    )
    rules = {text: int(packets) for packets, text in re.findall(r"^\[(\d+):\d+\] -A (.+)$", saved, re.MULTILINE)}
    for text, packets in rules.items():
        say(f"  {packets:4}  {text}")
    missing = [text for text in DECIDING_RULES if not rules.get(text)]
    for text in missing:
        verdict(text, right=False, expected="this rule, and a connection that it has counted")
    return not missing


def serve(name: str, port: int, ready: Connection) -> None:
    """Tell each client who received it; Envoy also tells where the client wanted to go."""
    with socket.create_server(("", port)) as server:
        ready.send("listening")
        while True:
            connection, _ = server.accept()
            with connection:
                known = (
                    f", which reads original destination {original_destination(connection)}" if name == ENVOY else " itself"
                )
                connection.sendall(f"{name}{known}".encode())


def original_destination(connection: socket.socket) -> str:
    """Ask conntrack for the destination before the redirect, as Envoy's listener filter `original_dst` does."""
    port, address = struct.unpack("!2xH4s8x", connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    return f"{socket.inet_ntoa(address)}:{port}"


def connect(address: str, port: int, answer: Connection) -> None:
    """Open a connection, and send what the one who received it says."""
    try:
        with socket.create_connection((address, port), TIMEOUT) as connection, connection.makefile() as lines:
            answer.send(lines.read())
    except OSError as error:
        answer.send(f"nobody: {error}")


def run(*argv: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program; where it may not fail, end with what it said."""
    result = subprocess.run(argv, check=False, capture_output=True, text=True, input=stdin, env=ENVIRONMENT)
    if check and result.returncode:
        sys.exit(f"scripts/demo: `{shlex.join(argv)}` exited with status {result.returncode}: {result.stderr.strip()}")
    return result


def verdict(text: str, *, right: bool, expected: str) -> bool:
    """Print one outcome, and what it should have been if it is wrong."""
    say(f"    {styled('✓', GREEN)} {text}" if right else f"    {styled('✗', RED)} {text}\n      expected: {expected}")
    return right


def title(text: str) -> None:
    """Print a section's title."""
    say(f"\n{styled(text, BOLD)}\n")


def styled(text: str, style: str) -> str:
    """Add a style where a terminal shows it."""
    return f"\033[{style}m{text}\033[0m" if sys.stdout.isatty() else text


def indented(text: str) -> str:
    """Set program output off from the demo's own words."""
    return textwrap.indent(text.rstrip(), "  ")


def say(text: str) -> None:
    """Print at once: the reader of a pipe waits, too."""
    print(text, flush=True)  # noqa: T201 - the demonstration


if __name__ == "__main__":
    sys.exit(main())
