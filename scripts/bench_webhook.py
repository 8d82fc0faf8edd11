#!/usr/bin/env python3

"""Measures the admission webhook over HTTPS: how long reviews take at a steady rate, and how many a second it can answer.

    scripts/bench_webhook.py --rate 200 --seconds 10

Each review is that of another pod, and each answer is looked at. At a steady rate the time counts from the moment at which
a review was due, so that a server that falls behind cannot hide it. `kept` is as an API server does it: connections stay
open; `fresh` is a new TLS connection for each review. The server is one process, and this client shares the machine with
it; its own CPU time hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

    Ask = Callable[[int], Awaitable[float]]

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv"
ADDRESS = "127.0.0.1"
CONNECTIONS = 16  # an API server opens as many as it has reviews under way
WARM_UP = 200  # reviews
TIMEOUT = 20.0  # seconds for the webhook to start


class Figures(NamedTuple):
    """What was measured: how many reviews, how many a second, and the seconds that one took."""

    reviews: int
    rate: float
    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: list[float], whole: float) -> Figures:
        """Sum up the times of all reviews of a run that took so long."""
        count = len(seconds)
        return cls(count, count / whole, statistics.median(seconds), statistics.quantiles(seconds, n=100)[98], max(seconds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", metavar="N", type=int, default=200, help="reviews a second of the steady runs")
    parser.add_argument("--seconds", metavar="N", type=float, default=10.0, help="how long each run takes")
    parser.add_argument("--layout", default="istio-1.0", choices=["istio-1.0", "current"], help="what is injected")
    options = parser.parse_args()
    subprocess.run([ROOT / "scripts" / "setup"], check=True)
    if Path(sys.prefix) != TOOLS:
        python = str(TOOLS / "bin" / "python")
        os.execv(python, [python, __file__, *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    with tempfile.TemporaryDirectory() as directory:
        make = ROOT / "docker" / "kubernetes" / "webhook" / "make-certificates"
        subprocess.run([make, "--name", ADDRESS, directory], check=True)
        files = ("--tls-cert", f"{directory}/tls.crt", "--tls-key", f"{directory}/tls.key")
        places = ("--webhook-address", ADDRESS, "--webhook-port", "0", "--webhook-status-port", "0")
        program = [TOOLS / "bin" / "istio-init", "inject", "--webhook", "--layout", options.layout, *files, *places]
        log = Path(directory, "log")
        with log.open("w", encoding="utf-8") as output, subprocess.Popen(program, stderr=output) as server:
            try:
                trust = ssl.create_default_context(cafile=f"{directory}/ca.crt")
                asyncio.run(measure(server, f"https://{ADDRESS}:{port_of(server, log)}", trust, options))
            finally:
                server.terminate()


def port_of(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the webhook says where it serves."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := re.search(r"https://[\d.]+:(\d+)/", log.read_text(encoding="utf-8"))):
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"scripts/bench_webhook.py: the webhook does not serve: {log.read_text(encoding='utf-8')}")
        time.sleep(0.02)
    return found[1]


async def measure(server: subprocess.Popen[bytes], url: str, trust: ssl.SSLContext, options: argparse.Namespace) -> None:
    """Measure each way and print a line for each run."""
    print(f"{'run':<24}{'reviews/s':>10}{'median':>11}{'p99':>11}{'longest':>11}{'CPU a review':>14}")  # noqa: T201 - the result
    for way, fresh in (("kept", False), ("fresh", True)):
        async with session(url, trust, fresh=fresh) as client:
            ask = asker(client)
            for number in range(WARM_UP):
                await ask(number)
            for run, figures in (
                (f"{way}, steady {options.rate}/s", partial(steady, ask, options.rate, options.seconds)),
                (f"{way}, {CONNECTIONS} at once", partial(at_once, ask, options.seconds)),
            ):
                before = cpu_seconds(server.pid)
                found = await figures()
                show(run, found, (cpu_seconds(server.pid) - before) / found.reviews)


def cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process has used: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def session(url: str, trust: ssl.SSLContext, *, fresh: bool) -> aiohttp.ClientSession:
    """Make a client that keeps its connections, or opens one for each review."""
    import aiohttp

    connector = aiohttp.TCPConnector(ssl=trust, limit=0 if fresh else CONNECTIONS, force_close=fresh)
    return aiohttp.ClientSession(url, connector=connector)


def asker(client: aiohttp.ClientSession) -> Ask:
    """Make a function that asks about one more pod, looks at the answer, and gives the seconds that took."""
    # The scripts are not a package, and the tests have the pod already.
    sys.path.insert(0, str(ROOT))
    from tests.webhook.reviews import POD, review

    pod: dict[str, Any] = copy.deepcopy(POD)

    async def ask(number: int) -> float:
        pod["metadata"]["labels"]["app"] = f"app-{number}"
        body = json.dumps(review(pod, uid=f"uid-{number}")).encode()
        begun = time.perf_counter()
        async with client.post("/inject", data=body, headers={"Content-Type": "application/json"}) as reply:
            answered = await reply.read()
        seconds = time.perf_counter() - begun
        response = json.loads(answered)["response"]
        if (response["uid"], response["allowed"], bool(response.get("patch"))) != (f"uid-{number}", True, True):
            sys.exit(f"scripts/bench_webhook.py: a wrong answer: {answered.decode()}")
        return seconds

    return ask


async def steady(ask: Ask, rate: int, seconds: float) -> Figures:
    """Ask at a steady rate, whatever the answers take."""
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def one(number: int) -> float:
        due = begun + number / rate
        await asyncio.sleep(due - loop.time())
        await ask(number)
        return loop.time() - due

    found = await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    return Figures.of(found, loop.time() - begun)


async def at_once(ask: Ask, seconds: float) -> Figures:
    """Ask as fast as answers come, so many at a time."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    found: list[float] = []

    async def one(number: int) -> None:
        while loop.time() < begun + seconds:
            found.append(await ask(number))

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return Figures.of(found, loop.time() - begun)


def show(run: str, figures: Figures, cpu: float) -> None:
    """Print one line."""
    times = "".join(f"{1000 * value:>8.1f} ms" for value in (figures.median, figures.p99, figures.longest))
    print(f"{run:<24}{figures.rate:>10.0f}{times}{1000 * cpu:>11.2f} ms", flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
