"""A pod and the world round it: two network namespaces, joined by a veth pair.

The namespaces have no names: they end with the file descriptors of this process, also when it crashes. Sockets are made in
threads that entered a namespace and took on a user; a socket keeps both, whoever uses it afterwards.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tests import cases, cases_current
from tests.netns.program import run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
LINK_TIMEOUT = 10.0  # seconds
# Raw system calls, for these change one thread only; the C library's functions change all of them.
SETRESUID, SETRESGID = {"x86_64": (117, 119), "aarch64": (147, 149)}[platform.machine()]

NSENTER = shutil.which("nsenter") or "nsenter"  # by its path: some tests give a PATH without it

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace."""

    def __init__(self) -> None:
        self.fd = in_thread(_new_namespace)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        os.close(self.fd)

    def call(self, function: Callable[[], T], owner: tuple[int, int] = cases.ROOT) -> T:
        """Call a function in this namespace, as a user and group."""

        def enter_and_call() -> T:
            _check(_libc.setns(self.fd, CLONE_NEWNET))
            uid, gid = owner
            _check(_libc.syscall(SETRESGID, gid, gid, gid))
            _check(_libc.syscall(SETRESUID, uid, uid, uid))
            return function()

        return in_thread(enter_and_call)

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str = "",
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in this namespace."""
        variables = {**os.environ, **(environment or {})}
        result = self.call(
            lambda: subprocess.run(argv, check=False, capture_output=True, text=True, input=stdin, timeout=60, env=variables)
        )
        assert not check or result.returncode == 0, f"{argv}: {result.stderr}"
        return result

    def istio_init(
        self,
        *arguments: str,
        check: bool = True,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the program under test in this namespace."""
        done = run_program(arguments, {**os.environ, **(environment or {})}, self.path)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done

    def istio_iptables(
        self,
        *arguments: str,
        check: bool = True,
        environment: dict[str, str] | None = None,
        nameservers: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run the command of layout current in this namespace, with a resolv.conf of its own."""
        with NamedTemporaryFile("w", suffix=".resolv.conf") as file:
            file.write("".join(f"nameserver {server}\n" for server in nameservers))
            file.flush()
            words = ("istio-iptables", *arguments)
            done = run_program(words, {**os.environ, **(environment or {})}, self.path, file.name)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def save(self, variant: str, family: str = "ipv4") -> str:
        """Give the rules of one variant, without comments and counters, and without tables that hold nothing."""
        tool = "iptables" if family == "ipv4" else "ip6tables"
        tables = tables_in(self.run(f"{tool}-{variant}-save").stdout)
        full = [table for table in tables if any(line[0] == "-" or line.endswith("-") for line in table)]
        return "\n".join(line for table in sorted(full) for line in table)

    def surroundings(self) -> str:
        """Give the policy rules, all routes, and the addresses of lo, of both families."""
        asked = "rule show\nroute show table all\naddress show dev lo\n"
        deadline = time.monotonic() + LINK_TIMEOUT
        while True:
            shown = "".join(self.run("ip", family, "-batch", "-", stdin=asked).stdout for family in ("-4", "-6"))
            if " tentative" not in shown:  # its route is made after this, in the kernel's own time
                break
            assert time.monotonic() < deadline, f"an address is not usable after {LINK_TIMEOUT} s: {shown}"
            time.sleep(0.01)
        return "\n".join(line for line in shown.splitlines() if "fe80:" not in line)  # the kernel adds these in its own time

    def policy_routing(self) -> str:
        """Give the policy rules and the routes of all tables but those that the system itself fills."""
        rules = self.run("ip", "rule").stdout
        routes = [line for line in self.run("ip", "route", "show", "table", "all").stdout.splitlines() if "table" in line]
        return rules + "\n".join(line for line in routes if "table local" not in line)


def tables_in(saved: str) -> list[list[str]]:
    """Give the lines of each table that iptables-save prints, without counters, and comments, which tell the time."""
    tables: list[list[str]] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            tables.append([])
        if line and not line.startswith("#"):
            tables[-1].append(line.partition(" [")[0] if line.startswith(":") else line)
    return tables


class Pod(NamedTuple):
    """The pod, and the world outside."""

    inside: Namespace
    outside: Namespace


@contextmanager
def pod() -> Iterator[Pod]:
    """Make a pod with addresses and routes, and no server yet."""
    with ExitStack() as stack:
        inside, outside = Namespace(), Namespace()
        stack.callback(inside.close)
        stack.callback(outside.close)
        outside.run("ip", "-batch", "-", stdin=_outside_commands(inside.path))
        inside.run("ip", "-batch", "-", stdin=_inside_commands())
        _await_own_route(inside)
        yield Pod(inside, outside)


def _await_own_route(inside: Namespace) -> None:
    """Wait for the route to the pod's own IPv6 address, which the kernel makes once the link is up, in its own time."""
    wanted = f"{IPv6Address(cases.POD_IPV6).packed.hex()} 80 "  # proc(5), net/ipv6_route
    deadline = time.monotonic() + LINK_TIMEOUT
    while wanted not in inside.call(Path("/proc/thread-self/net/ipv6_route").read_text):
        assert time.monotonic() < deadline, f"no route to {cases.POD_IPV6} after {LINK_TIMEOUT} s"
        time.sleep(0.01)


# Each end knows the other's card: rules that let in nothing of IPv6 keep neighbours from being found, and who is to be
# refused would wait instead. Nor does a first connection wait for the answer to a question that was asked too early.
MACS = {"outside": "02:00:00:00:00:01", "inside": "02:00:00:00:00:02"}


def _outside_commands(inside: str) -> str:
    services = "".join(f"address add {address} dev lo\n" for address in cases_current.OUTSIDE_ADDRESSES)
    services += "".join(f"address add {address} dev lo nodad\n" for address in cases_current.OUTSIDE_ADDRESSES_IPV6)
    return (
        "link set lo up\n"
        f"link add eth0 address {MACS['outside']} type veth peer name eth0 netns {inside} address {MACS['inside']}\n"
        f"address add {cases.CLIENT}/24 dev eth0\naddress add {cases.CLIENT_IPV6}/64 dev eth0 nodad\n"
        f"link set eth0 up\nneighbour add {cases.POD_IPV6} lladdr {MACS['inside']} dev eth0\n{services}"
    )


def _inside_commands() -> str:
    return (
        "link set lo up\n"
        f"address add {cases.POD}/24 dev eth0\naddress add {cases.POD_IPV6}/64 dev eth0 nodad\nlink set eth0 up\n"
        f"neighbour add {cases.CLIENT_IPV6} lladdr {MACS['outside']} dev eth0\n"
        f"route add default via {cases.CLIENT}\nroute add default via {cases.CLIENT_IPV6}\n"
    )


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and hand on what it returns or raises."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - handed on below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _new_namespace() -> int:
    _check(_libc.unshare(CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
