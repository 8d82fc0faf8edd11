# ruff: noqa: INP001 - a script, not part of a package
"""The demo: one request from app to app through two Envoys, with evidence for each hop, and traffic that bypasses them.

Exits with 0 if all evidence is as expected, else with 1. Run it as root, through scripts/demo.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from demo_picture import Note, draw
from rich.console import Console
from rich.markup import escape

from istio_init import Settings, build_plan
from istio_init.core.errors import IstioInitError
from istio_init.lab.client import Lab
from istio_init.lab.pods import SYSTEM_PATH
from istio_init.lab.settings import APP_PORT, APP_UID, LabSettings, client_pod, mesh_pods
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS
from istio_init.rules.layouts import reasons
from istio_init.rules.model import NO_REASON, PROXY_UID, Reason
from istio_init.rules.render.iptables import render_rule
from istio_init.rules.render.nft import comment_text
from istio_init.rules.render.nft_sets import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "build" / "demo.svg"
EXCLUDED_PORT = 9091
PRODUCTPAGE, REVIEWS = mesh_pods(LabSettings())
URL = f"http://{REVIEWS.service}:{APP_PORT}/"
REQUEST_ID = "one-request"
TIMEOUT = 20.0  # seconds for a program to exit, or for the access log
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}  # the user's own may configure a proxy for curl
CURL = ("curl", "-q", "-fsS")  # -q, which must be first: ignore ~/.curlrc
HOST = f"{REVIEWS.service}.{REVIEWS.domain}"

# Reasons of rules, by which their counters are found, and statistics of Envoy.
REDIRECTED = reasons.OUTBOUND_ALL_CAPTURED
OWN_TRAFFIC = reasons.PROXY_UID.of(PROXY_UID)
CAPTURED = reasons.INBOUND_ALL_CAPTURED
EXCLUDED = reasons.INBOUND_PORT_EXCLUDED.of(EXCLUDED_PORT)
TO_REVIEWS = f"outbound|{APP_PORT}||{HOST}"
OUTBOUND_CLUSTER = f"cluster.{TO_REVIEWS}.upstream_rq_total"
OUTBOUND_LISTENER = f"listener.0.0.0.0_{APP_PORT}.downstream_cx_total"
INBOUND = {  # shape of listeners → listener's statistic, cluster
    ISTIO_1_0: (
        f"listener.{REVIEWS.address}_{APP_PORT}.downstream_cx_total",
        f"inbound|{APP_PORT}||{HOST}",
    ),
    ISTIO_1_30: ("listener.0.0.0.0_15006.downstream_cx_total", f"inbound|{APP_PORT}||"),
}
SAVED = re.compile(r"\[(\d+):\d+\] (.*)")
LISTED = re.compile(r'\s*(.*?) ?counter packets (\d+) bytes \d+ (.*) comment "(.*)"')
ANY_LISTENER = re.compile(r"listener\.[\d.]+_\d+\.downstream_cx_total")  # except the admin listener
ACCEPTED = "connections accepted by Envoy's listeners"

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Rule(NamedTuple):
    """A rule in a pod: its reason, its text, and its packet counter."""

    reason: Reason
    text: str
    packets: int

    def is_there_for(self, wanted: Reason) -> bool:
        """Tell whether the reason is the wanted one: of its value, too, or of several with that among them."""
        return self.reason.id == wanted.id and wanted.value in ("", *self.reason.value.split(", "))


class Counters(NamedTuple):
    """A pod's counters: rules with their packets, and Envoy's statistics, plus the sum `ACCEPTED` over its listeners."""

    rules: tuple[Rule, ...]
    stats: dict[str, int]

    def packets(self, wanted: Reason) -> dict[str, int]:
        """Give the packets of the rules with this reason, by the rules' texts."""
        return {rule.text: rule.packets for rule in self.rules if rule.is_there_for(wanted)}


class Demo(NamedTuple):
    """The lab, and the results of the checks so far."""

    lab: Lab
    settings: LabSettings
    results: list[bool]

    def run(self, pod: str, *argv: str, uid: int = APP_UID) -> str:
        """Run a program in a pod; if it fails, exit the demo."""
        command = self.lab.command(pod, argv, uid)
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, env=ENVIRONMENT)
        except subprocess.TimeoutExpired:
            problem = f"not finished after {TIMEOUT:g} s"
        except subprocess.CalledProcessError as error:
            problem = f"status {error.returncode}: {error.stderr.strip()}"
        else:
            return done.stdout
        self.check(escape(f"{' '.join(argv)} in {pod}: {problem}"), ok=False)
        sys.exit(1)

    def counters(self, pod: str) -> Counters:
        """Read a pod's counters."""
        stats = {}
        for line in self.run(pod, *CURL, "http://127.0.0.1:15000/stats").splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdecimal():
                stats[name] = int(value)
        stats[ACCEPTED] = sum(value for name, value in stats.items() if ANY_LISTENER.fullmatch(name))
        return Counters(tuple(self._rules(pod)), stats)

    def _rules(self, pod: str) -> Iterator[Rule]:
        plan = build_plan(Settings.of(self.settings.layout, **self.settings.values))
        if self.settings.backend == "nft":
            joined = [one.rule.reason for chain in plan.chains for one in join(chain.rules)]
            told = {comment_text(str(reason)): reason for reason in joined}
            for line in self.run(pod, "nft", "list", "table", "ip", "istio-init", uid=0).splitlines():
                if found := LISTED.fullmatch(line):
                    match, packets, verdict, comment = found.groups()
                    yield Rule(told.get(comment, NO_REASON), f"{match} {verdict}".strip(), int(packets))
            return
        told = {f"-A {chain.name} {render_rule(rule)}": rule.reason for chain in plan.chains for rule in chain.rules}
        for variant in ("nft", "legacy"):
            for line in self.run(pod, f"iptables-{variant}-save", "-c", "-t", "nat", uid=0).splitlines():
                if found := SAVED.fullmatch(line):
                    yield Rule(told.get(found[2], NO_REASON), found[2], int(found[1]))

    def access_log(self, pod: str) -> dict[str, Any]:
        """Find the request in the access log of a pod's Envoy, which is flushed with a delay."""
        log = self.lab.pod(pod)["programs"]["proxy"]["log"]
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            for line in self.run(pod, "cat", log, uid=0).splitlines():
                if REQUEST_ID in line:
                    entry: dict[str, Any] = json.loads(line)
                    return entry
            time.sleep(0.2)
        return {}

    def check(self, text: str, *, ok: bool) -> None:
        """Print one check."""
        self.results.append(ok)
        console.print(f"   [green]✓[/green] {text}" if ok else f"   [bold red]✗ {text}[/bold red]", soft_wrap=True)

    def check_grown(self, names: Iterable[str], before: dict[str, int], after: dict[str, int]) -> str:
        """Check that each counter has grown, and that there is one; return them, one per line."""
        found = []
        for name in names:
            then, now = before.get(name, 0), after.get(name, 0)
            found.append(f"{name}  {then} → {now}")
            self.check(escape(found[-1]), ok=now > then)
        if not found:
            self.check("no such rule", ok=False)
        return "\n".join(found)

    def check_packets(self, reason: Reason, before: Counters, after: Counters) -> str:
        """Check that the counter of the rule with this reason has grown."""
        now = after.packets(reason)
        return self.check_grown(now, before.packets(reason), now)

    def check_same(self, whose: str, name: str, before: dict[str, int], after: dict[str, int]) -> None:
        """Check that a counter has not grown."""
        then, now = before.get(name, 0), after.get(name, 0)
        self.check(escape(f"{whose}, unchanged: {name}  {then} → {now}"), ok=then == now)


def main() -> int:
    """Run the demo; the lab is stopped in any case."""
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    settings = parse_arguments()
    results: list[bool] = []
    try:
        with lab(settings) as started:
            demo = Demo(started, settings, results)
            notes = show_request(demo)
            show_bypasses(demo)
    except IstioInitError as error:
        console.print(f"   [bold red]✗ {escape(str(error))}[/bold red]", soft_wrap=True)
        return error.exit_code
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(
        draw(((PRODUCTPAGE.name, PRODUCTPAGE.address), (REVIEWS.name, REVIEWS.address)), notes), encoding="utf-8"
    )
    console.print(f"\nPicture of the path: {PICTURE.relative_to(ROOT)}")
    console.print(
        "Everything is as expected." if all(results) else "[bold red]Not everything is as expected: see ✗ above.[/bold red]"
    )
    return 0 if all(results) else 1


def parse_arguments() -> LabSettings:
    """Parse the layout and the backend to demonstrate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default=ISTIO_1_0, help="layout of the rules and of Envoy's listeners")
    parser.add_argument(
        "--backend", choices=("auto", "restore", "libiptc", "nft"), default="auto", help="istio-init's backend"
    )
    options = parser.parse_args()
    ports = (("inbound_ports", "*"), ("inbound_exclude_ports", f"{EXCLUDED_PORT},15020,15090"))
    return LabSettings(layout=options.layout, backend=options.backend, interception=ports)


@contextmanager
def lab(settings: LabSettings) -> Iterator[Lab]:
    """Start the lab, and show progress."""
    title("Starting two pods with apps, Envoys and rules by istio-init, and a control plane")
    begun, name = time.monotonic(), f"demo-{os.getpid()}"
    ours = True
    try:
        try:
            with console.status("starting") as status:
                started = Lab.up(name, settings, _progress(status.update))
        except IstioInitError:  # already cleaned up; a lab of this name belongs to another process
            ours = False
            raise
        console.print(f"   istio-init {' '.join(word or chr(39) * 2 for word in settings.rules)}")
        console.print(f"   ready after {time.monotonic() - begun:.1f} s")
        yield started
    finally:
        if ours:
            take_down(name)


def take_down(name: str) -> None:
    """Stop the lab if it is up; found by name, because a signal can arrive before `Lab.up` returns."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the cleanup
    with suppress(ProcessLookupError, ConnectionError):  # it is already stopping
        try:
            found = Lab.find(name)
        except IstioInitError:  # it is not up
            return
        found.down()


def _progress(update: Callable[[str], None]) -> Callable[[str], None]:
    def step(text: str) -> None:
        update(text)
        console.print(f"   … {text}")

    return step


def show_request(demo: Demo) -> list[Note]:
    """Send one request, and show each hop of its path."""
    title(f"productpage's app requests {URL}")
    before = {pod: demo.counters(pod) for pod in (PRODUCTPAGE.name, REVIEWS.name)}
    answer = json.loads(demo.run(PRODUCTPAGE.name, *CURL, "-H", f"x-request-id: {REQUEST_ID}", URL))
    after = {pod: demo.counters(pod) for pod in before}
    listener, cluster = INBOUND[demo.settings.listeners]
    hops: tuple[tuple[str, str, Reason | tuple[str, str]], ...] = (
        ("the app's connection is redirected to Envoy", PRODUCTPAGE.name, REDIRECTED),
        ("productpage's Envoy accepts it: listener, cluster", PRODUCTPAGE.name, (OUTBOUND_LISTENER, OUTBOUND_CLUSTER)),
        ("Envoy's own connection is not redirected", PRODUCTPAGE.name, OWN_TRAFFIC),
        ("in reviews' pod it is redirected to Envoy", REVIEWS.name, CAPTURED),
        ("reviews' Envoy accepts it: listener, cluster", REVIEWS.name, (listener, f"cluster.{cluster}.upstream_rq_total")),
    )
    notes = []
    for number, (what, pod, grown) in enumerate(hops, start=1):
        console.print(f" [bold]{number}[/bold] {what}")
        then, now = before[pod], after[pod]
        if isinstance(grown, Reason):
            evidence = demo.check_packets(grown, then, now)
        else:
            evidence = demo.check_grown(grown, then.stats, now.stats)
        notes.append(Note(number, what, evidence))
    notes.append(Note(6, "the app responds", show_answer(demo, answer)))
    return notes


def show_answer(demo: Demo, answer: dict[str, Any]) -> str:
    """Show the request as seen by the app, and in both access logs."""
    console.print(" [bold]6[/bold] the app responds, and both access logs have the request")
    seen = f"reviews saw caller {answer['caller']}, host {answer['headers'].get('host')}, x-request-id "
    seen += str(answer["headers"].get("x-request-id"))
    demo.check(seen, ok=answer["service"] == REVIEWS.service and answer["headers"].get("x-request-id") == REQUEST_ID)
    to_app = INBOUND[demo.settings.listeners][1]
    for pod, direction, cluster in ((PRODUCTPAGE.name, "outbound", TO_REVIEWS), (REVIEWS.name, "inbound", to_app)):
        entry = demo.access_log(pod)
        way = " → ".join(str(entry.get(word)) for word in ("downstream_local_address", "upstream_cluster", "upstream_host"))
        found = entry.get("direction"), entry.get("response_code"), entry.get("upstream_cluster")
        demo.check(f"{pod} logs {found[0]} {found[1]}: {way}", ok=found == (direction, 200, cluster))
    return seen


def show_bypasses(demo: Demo) -> None:
    """Show traffic that bypasses the Envoys, and the rules responsible."""
    title("Traffic that bypasses Envoy")
    console.print(
        f" [bold]•[/bold] port {EXCLUDED_PORT} of reviews is excluded (-d); a client outside the mesh connects to it"
    )
    with server_on_excluded_port(demo):
        before = demo.counters(REVIEWS.name)
        answer = json.loads(demo.run("client", *CURL, f"http://{REVIEWS.address}:{EXCLUDED_PORT}/"))
        after = demo.counters(REVIEWS.name)
    demo.check_packets(EXCLUDED, before, after)
    demo.check_same("reviews", ACCEPTED, before.stats, after.stats)
    caller = answer["caller"].rpartition(":")[0]
    demo.check(f"the app saw {caller}, the client itself", ok=caller == client_pod(demo.settings).address)

    console.print(f" [bold]•[/bold] traffic from the proxy's user (uid {PROXY_UID}) is not redirected")
    before = demo.counters(PRODUCTPAGE.name)
    demo.run(PRODUCTPAGE.name, *CURL, f"http://{REVIEWS.address}:{APP_PORT}/", uid=PROXY_UID)
    after = demo.counters(PRODUCTPAGE.name)
    demo.check_packets(OWN_TRAFFIC, before, after)
    redirected = after.packets(REDIRECTED)
    for rule in redirected:
        demo.check_same("productpage", rule, before.packets(REDIRECTED), redirected)
    demo.check_same("productpage", ACCEPTED, before.stats, after.stats)


@contextmanager
def server_on_excluded_port(demo: Demo) -> Iterator[None]:
    """Run a second app in reviews' pod, on the excluded port."""
    argv = (sys.executable, "-m", "istio_init.lab.app", "--service", "excluded", "--port", str(EXCLUDED_PORT))
    command = demo.lab.command(REVIEWS.name, argv)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            assert server.stdout, "it was started with a pipe"  # noqa: S101 - for the type checker
            server.stdout.readline()  # wait until it listens
            yield
        finally:
            server.terminate()


def title(text: str) -> None:
    """Print a section's title."""
    console.print(f"\n[bold]{text}[/bold]")


def _end(number: int, _: object) -> NoReturn:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
