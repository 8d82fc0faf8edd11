#!/usr/bin/env python3

"""Measures what rules cost a pod's traffic: new connections a second, over the number of excluded CIDRs, for each backend.

    scripts/bench_rate.py --plot rate.svg

A pod and a server are network namespaces, joined by a veth pair. The client's destination is neither excluded nor captured,
so each new connection passes every rule of the list. For one backend there is a pod for each number of CIDRs, and they take
turns of a fifth of a second, so that a busy moment of the machine hits all of them. Each round has fresh namespaces.
Root only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv"
SIZES = (0, 10, 100, 1_000, 10_000)
WAYS = {
    "restore, legacy": ("--backend", "restore", "--iptables-variant", "legacy"),
    "restore, nft": ("--backend", "restore", "--iptables-variant", "nft"),
    "nft": ("--backend", "nft"),
}
SERVER, CLIENT = "10.99.0.2", "10.99.0.1"
PORT = 8080
SLICE = 0.2  # seconds for which connections are opened at a time
TURNS = 5  # slices of each pod in one round
UNPRIVILEGED = 65534
CLONE_NEWNET = 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h

libc = ctypes.CDLL(None, use_errno=True)
Rates = dict[str, dict[int, list[float]]]


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds of which the median is taken")
    parser.add_argument("--largest", metavar="N", type=int, default=max(SIZES), help="leave out longer lists of CIDRs")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the rate over excluded CIDRs, as PNG or SVG")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("scripts/bench_rate.py: only root may make network namespaces; run it with sudo")
    subprocess.run([ROOT / "scripts" / "setup"], check=True)
    if Path(sys.prefix) != TOOLS:
        python = str(TOOLS / "bin" / "python")
        os.execv(python, [python, __file__, *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    sizes = [size for size in SIZES if size <= options.largest]
    rates: Rates = {way: {size: [] for size in sizes} for way in WAYS}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)  # noqa: T201 - progress
        for way, of_way in rates.items():
            pods = {size: Pod(way, size) for size in sizes}
            for _ in range(TURNS):
                for size, pod in pods.items():
                    of_way[size].append(pod.rate())
            for pod in pods.values():
                pod.end()
    print(table(rates))  # noqa: T201 - the result
    if options.plot:
        plot(rates, options.plot)


class Pod:
    """A pod and its server, in a process of its own, which opens connections when it is asked to."""

    def __init__(self, way: str, size: int) -> None:
        """Make it and apply its rules."""
        self._name = f"{way} with {size} CIDRs"
        asked, self._ask = os.pipe()
        self._answers, answer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._ask)
            try:
                serve(way, size, asked, answer)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(answer)

    def rate(self) -> float:
        """Measure connections a second for one slice of time."""
        os.write(self._ask, b"1")
        answer = os.read(self._answers, struct.calcsize("d"))
        if not answer:
            sys.exit(f"scripts/bench_rate.py: {self._name} gave no result; its messages are above")
        (rate,) = struct.unpack("d", answer)
        return float(rate)

    def end(self) -> None:
        """End the process; its namespaces end with it."""
        os.write(self._ask, b"0")  # to close it would not do: pods that were made later have it open, too
        os.close(self._ask)
        os.close(self._answers)
        os.waitpid(self._child, 0)


def serve(way: str, size: int, asked: int, answer: int) -> None:
    """Measure whenever a 1 comes, and end with anything else, or with the process that asks."""
    # Client and server on one CPU: which of them runs where would make more of a difference than the rules.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    unshare()
    start_server()
    apply(way, size)
    os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # setresuid(2) forgets it
    while os.read(asked, 1) == b"1":
        os.write(answer, struct.pack("d", measure()))


def measure() -> float:
    """Give the connections a second."""
    begun, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < SLICE:
        with socket.create_connection((SERVER, PORT), timeout=5) as connection:
            connection.recv(1)  # the server has closed: no port lingers on this side
        count += 1
    return count / seconds


def unshare() -> None:
    """Move this process into a network namespace of its own."""
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_server() -> None:
    """Start a server in another namespace, and join the two; it ends with this process."""
    reader, writer = os.pipe()
    ours = os.getpid()
    if os.fork() == 0:
        try:
            unshare()
            ip(f"link set lo up\nlink add eth0 type veth peer name eth0 netns {ours}")
            ip(f"address add {SERVER}/24 dev eth0\nlink set eth0 up")
            with socket.create_server((SERVER, PORT), backlog=512) as listener:
                # As the same user as the client, which may not end a process of root's when it ends itself.
                os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                os.write(writer, b"1")
                while True:
                    listener.accept()[0].close()
        finally:
            os._exit(1)
    os.read(reader, 1)
    ip(f"link set lo up\naddress add {CLIENT}/24 dev eth0\nlink set eth0 up")


def ip(commands: str) -> None:
    """Give commands to the program ip, in this namespace."""
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)  # noqa: S607 - whichever is on the PATH


def apply(way: str, size: int) -> None:
    """Apply rules with so many excluded CIDRs; what the client asks for is not captured."""
    cidrs = ",".join(f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32" for number in range(size))
    words = ("-u", "1337", "-i", "192.0.2.0/24")
    environment = {"PATH": os.environ["PATH"], "ISTIO_SIDECAR_CONFIG": "/dev/stdin"}
    command = (str(TOOLS / "bin" / "istio-init"), "-q", *WAYS[way], *words)
    subprocess.run(command, input=f"ISTIO_SERVICE_EXCLUDE_CIDR={cidrs}\n", text=True, check=True, env=environment)


def table(rates: Rates) -> str:
    """Write the medians, and the median of each turn's part of the rate without any excluded CIDR in the same turn."""
    lines = ["excluded CIDRs  " + "  ".join(f"{way:>20}" for way in rates)]
    for size in next(iter(rates.values())):
        cells = []
        for of_way in rates.values():
            parts = [rate / without for rate, without in zip(of_way[size], of_way[0], strict=True)]
            cells.append(f"{statistics.median(of_way[size]):>11,.0f}/s {statistics.median(parts):>6.2f}")
        lines.append(f"{size:>14,}  " + "  ".join(cells))
    return "\n".join(lines)


def plot(rates: Rates, file: Path) -> None:
    """Draw the rates."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for way, of_way in rates.items():
        axes.plot(list(of_way), [statistics.median(found) for found in of_way.values()], marker="o", label=way)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("excluded CIDRs")
    axes.set_ylabel("new connections a second")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
