#!/usr/bin/env python3

"""Measures what rules cost a pod's traffic: new connections a second, over the number of excluded CIDRs, for each backend.

    scripts/bench_rate.py --plot rate.svg

A pod and a server are network namespaces, joined by a veth pair. The client's destination is neither excluded nor captured,
so each new connection passes every rule of the list. Backends take turns, each round in fresh namespaces. Root only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import statistics
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
SECONDS = 1.0  # for which connections are opened in one round
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
        for size in sizes:
            for way in WAYS:
                rates[way][size].append(in_child(way, size))
    print(table(rates))  # noqa: T201 - the result
    if options.plot:
        plot(rates, options.plot)


def in_child(way: str, size: int) -> float:
    """Measure one rate in a process of its own, whose namespaces end with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(measure(way, size)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    os.waitpid(child, 0)
    if not text:
        sys.exit(f"scripts/bench_rate.py: {way} with {size} CIDRs gave no result; its messages are above")
    return float(text)


def measure(way: str, size: int) -> float:
    """Give the connections a second with so many excluded CIDRs."""
    unshare()
    start_server()
    apply(way, size)
    os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    begun, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < SECONDS:
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
    """Write the medians, and each one's part of the rate without any excluded CIDR."""
    lines = ["excluded CIDRs  " + "  ".join(f"{way:>20}" for way in rates)]
    for size in next(iter(rates.values())):
        cells = []
        for of_way in rates.values():
            median = statistics.median(of_way[size])
            cells.append(f"{median:>11,.0f}/s {median / statistics.median(of_way[0]):>6.2f}")
        lines.append(f"{size:>14,}  " + "  ".join(cells))
    return "\n".join(lines)


def plot(rates: Rates, file: Path) -> None:
    """Draw the rates."""
    import matplotlib as mpl  # noqa: PLC0415 - dear to import, and only for a picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

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
