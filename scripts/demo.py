# ruff: noqa: INP001 - a script, not a module of a package
"""The demonstration: one request from app to app through two Envoys, each leg with its evidence, and what goes around them.

Exits with 0 if every piece of evidence is as it should be, and with 1 if not. Run it as root, through scripts/demo.
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
from istio_init.rules.layouts import reasons
from istio_init.rules.model import NO_REASON, PROXY_UID, Reason
from istio_init.rules.options import CURRENT, ISTIO_1_0, LAYOUTS
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
PATIENCE = 20.0  # seconds
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}  # the reader's own may name a proxy for curl
CURL = ("curl", "-q", "-fsS")  # -q, which must come first: no ~/.curlrc
HOST = f"{REVIEWS.service}.{REVIEWS.domain}"

# Reasons of rules, by which their counters are found, and statistics of Envoy.
DIVERTED = reasons.OUTBOUND_ALL_CAPTURED
OWN_TRAFFIC = reasons.PROXY_UID.of(PROXY_UID)
CAPTURED = reasons.INBOUND_ALL_CAPTURED
EXCLUDED = reasons.INBOUND_PORT_EXCLUDED.of(EXCLUDED_PORT)
TO_REVIEWS = f"outbound|{APP_PORT}||{HOST}"
OUTBOUND_CLUSTER = f"cluster.{TO_REVIEWS}.upstream_rq_total"
OUTBOUND_LISTENER = f"listener.0.0.0.0_{APP_PORT}.downstream_cx_total"
INBOUND = {  # by the shape of listeners: the listener, and the cluster
    ISTIO_1_0: (
        f"listener.{REVIEWS.address}_{APP_PORT}.downstream_cx_total",
        f"inbound|{APP_PORT}||{HOST}",
    ),
    CURRENT: ("listener.0.0.0.0_15006.downstream_cx_total", f"inbound|{APP_PORT}||"),
}
SAVED = re.compile(r"\[(\d+):\d+\] (.*)")
LISTED = re.compile(r'\s*(.*?) ?counter packets (\d+) bytes \d+ (.*) comment "(.*)"')
ANY_LISTENER = re.compile(r"listener\.[\d.]+_\d+\.downstream_cx_total")  # all but that of the administration
TAKEN = "connections that any listener of Envoy took"

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Rule(NamedTuple):
    """A rule in a pod: its reason, its text, and the packets that it has counted."""

    reason: Reason
    text: str
    packets: int

    def is_there_for(self, wanted: Reason) -> bool:
        """Tell whether the reason is the wanted one: of its value, too, or of several with that among them."""
        return self.reason.id == wanted.id and wanted.value in ("", *self.reason.value.split(", "))


class Counters(NamedTuple):
    """What a pod has counted so far: packets of rules, and Envoy's statistics with `TAKEN`, the sum over its listeners."""

    rules: tuple[Rule, ...]
    stats: dict[str, int]

    def packets(self, wanted: Reason) -> dict[str, int]:
        """Give the packets of the rules with this reason, by the rules' texts."""
        return {rule.text: rule.packets for rule in self.rules if rule.is_there_for(wanted)}


class Stage(NamedTuple):
    """The lab, and the outcomes so far."""

    lab: Lab
    settings: LabSettings
    outcomes: list[bool]

    def run(self, pod: str, *argv: str, uid: int = APP_UID) -> str:
        """Run a program in a pod, and end the demonstration if it fails."""
        command = self.lab.command(pod, argv, uid)
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT)
        except subprocess.TimeoutExpired:
            problem = f"no end in {PATIENCE:g} s"
        except subprocess.CalledProcessError as error:
            problem = f"status {error.returncode}: {error.stderr.strip()}"
        else:
            return done.stdout
        self.check(escape(f"{' '.join(argv)} in {pod}: {problem}"), right=False)
        sys.exit(1)

    def counters(self, pod: str) -> Counters:
        """Read what a pod has counted."""
        stats = {}
        for line in self.run(pod, *CURL, "http://127.0.0.1:15000/stats").splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdecimal():
                stats[name] = int(value)
        stats[TAKEN] = sum(value for name, value in stats.items() if ANY_LISTENER.fullmatch(name))
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
        """Find the request in the access log of a pod's Envoy, which Envoy flushes now and then."""
        log = self.lab.pod(pod)["programs"]["proxy"]["log"]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.run(pod, "cat", log, uid=0).splitlines():
                if REQUEST_ID in line:
                    entry: dict[str, Any] = json.loads(line)
                    return entry
            time.sleep(0.2)
        return {}

    def check(self, text: str, *, right: bool) -> None:
        """Print one piece of evidence."""
        self.outcomes.append(right)
        console.print(f"   [green]✓[/green] {text}" if right else f"   [bold red]✗ {text}[/bold red]", soft_wrap=True)

    def check_grown(self, names: Iterable[str], before: dict[str, int], after: dict[str, int]) -> str:
        """Print each counter that must have grown, and give them, a line each; that there is none is a failure."""
        found = []
        for name in names:
            then, now = before.get(name, 0), after.get(name, 0)
            found.append(f"{name}  {then} → {now}")
            self.check(escape(found[-1]), right=now > then)
        if not found:
            self.check("there is no such rule", right=False)
        return "\n".join(found)

    def check_packets(self, reason: Reason, before: Counters, after: Counters) -> str:
        """Print the counter of the rule with a reason, which must have grown."""
        now = after.packets(reason)
        return self.check_grown(now, before.packets(reason), now)

    def check_same(self, whose: str, name: str, before: dict[str, int], after: dict[str, int]) -> None:
        """Print a counter that must not have grown."""
        then, now = before.get(name, 0), after.get(name, 0)
        self.check(escape(f"{whose}, not grown: {name}  {then} → {now}"), right=then == now)


def main() -> int:
    """Show everything, and take it down again whatever happens."""
    for number in ENDS:
        signal.signal(number, _end)
    settings = parse_arguments()
    outcomes: list[bool] = []
    try:
        with lab(settings) as made:
            stage = Stage(made, settings, outcomes)
            notes = show_request(stage)
            show_bypasses(stage)
    except IstioInitError as error:
        console.print(f"   [bold red]✗ {escape(str(error))}[/bold red]", soft_wrap=True)
        return error.exit_code
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(
        draw(((PRODUCTPAGE.name, PRODUCTPAGE.address), (REVIEWS.name, REVIEWS.address)), notes), encoding="utf-8"
    )
    console.print(f"\nThe picture of this path: {PICTURE.relative_to(ROOT)}")
    console.print(
        "Everything is as expected." if all(outcomes) else "[bold red]Not everything is as expected: see ✗ above.[/bold red]"
    )
    return 0 if all(outcomes) else 1


def parse_arguments() -> LabSettings:
    """Read which rules are shown, and how they are written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default=ISTIO_1_0, help="of the rules, and of Envoy's listeners")
    parser.add_argument("--backend", choices=("auto", "restore", "libiptc", "nft"), default="auto", help="of istio-init")
    options = parser.parse_args()
    ports = (("inbound_ports", "*"), ("inbound_exclude_ports", f"{EXCLUDED_PORT},15020,15090"))
    return LabSettings(layout=options.layout, backend=options.backend, interception=ports)


@contextmanager
def lab(settings: LabSettings) -> Iterator[Lab]:
    """Make the lab, and show how far it is."""
    title("Two pods with apps and real Envoys, rules by istio-init, and a control plane")
    begun, name = time.monotonic(), f"demo-{os.getpid()}"
    ours = True
    try:
        try:
            with console.status("starting") as status:
                made = Lab.up(name, settings, _progress(status.update))
        except IstioInitError:  # nothing of it is left; if there is one of this name, it is another's
            ours = False
            raise
        console.print(f"   istio-init {' '.join(word or chr(39) * 2 for word in settings.rules)}")
        console.print(f"   ready after {time.monotonic() - begun:.1f} s")
        yield made
    finally:
        if ours:
            take_down(name)


def take_down(name: str) -> None:
    """End the lab, if it is there: found by its name, for it can be up before anybody here was told."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)  # a second ctrl-C must not leave half of it
    with suppress(ProcessLookupError, ConnectionError):  # it is ending by itself
        try:
            found = Lab.find(name)
        except IstioInitError:  # it is not there
            return
        found.down()


def _progress(update: Callable[[str], None]) -> Callable[[str], None]:
    def step(text: str) -> None:
        update(text)
        console.print(f"   … {text}")

    return step


def show_request(stage: Stage) -> list[Note]:
    """Send one request, and show each leg of its way."""
    title(f"productpage's app asks for {URL}")
    before = {pod: stage.counters(pod) for pod in (PRODUCTPAGE.name, REVIEWS.name)}
    answer = json.loads(stage.run(PRODUCTPAGE.name, *CURL, "-H", f"x-request-id: {REQUEST_ID}", URL))
    after = {pod: stage.counters(pod) for pod in before}
    listener, cluster = INBOUND[stage.settings.listeners]
    legs: tuple[tuple[str, str, Reason | tuple[str, str]], ...] = (
        ("the app's connection is diverted to Envoy", PRODUCTPAGE.name, DIVERTED),
        ("productpage's Envoy takes it: listener, cluster", PRODUCTPAGE.name, (OUTBOUND_LISTENER, OUTBOUND_CLUSTER)),
        ("Envoy's own connection leaves the pod as it is", PRODUCTPAGE.name, OWN_TRAFFIC),
        ("at reviews it is diverted to Envoy", REVIEWS.name, CAPTURED),
        ("reviews' Envoy takes it: listener, cluster", REVIEWS.name, (listener, f"cluster.{cluster}.upstream_rq_total")),
    )
    notes = []
    for number, (what, pod, grown) in enumerate(legs, start=1):
        console.print(f" [bold]{number}[/bold] {what}")
        then, now = before[pod], after[pod]
        if isinstance(grown, Reason):
            evidence = stage.check_packets(grown, then, now)
        else:
            evidence = stage.check_grown(grown, then.stats, now.stats)
        notes.append(Note(number, what, evidence))
    notes.append(Note(6, "the app answers", show_answer(stage, answer)))
    return notes


def show_answer(stage: Stage, answer: dict[str, Any]) -> str:
    """Show what the app saw, and what both access logs say of the same request."""
    console.print(" [bold]6[/bold] the app answers, and both access logs have the request")
    seen = f"reviews saw caller {answer['caller']}, host {answer['headers'].get('host')}, x-request-id "
    seen += str(answer["headers"].get("x-request-id"))
    stage.check(seen, right=answer["service"] == REVIEWS.service and answer["headers"].get("x-request-id") == REQUEST_ID)
    to_app = INBOUND[stage.settings.listeners][1]
    for pod, direction, cluster in ((PRODUCTPAGE.name, "outbound", TO_REVIEWS), (REVIEWS.name, "inbound", to_app)):
        entry = stage.access_log(pod)
        way = " → ".join(str(entry.get(word)) for word in ("downstream_local_address", "upstream_cluster", "upstream_host"))
        found = entry.get("direction"), entry.get("response_code"), entry.get("upstream_cluster")
        stage.check(f"{pod} logs {found[0]} {found[1]}: {way}", right=found == (direction, 200, cluster))
    return seen


def show_bypasses(stage: Stage) -> None:
    """Show what goes around the Envoys, and by which rule."""
    title("What goes around Envoy")
    console.print(
        f" [bold]•[/bold] port {EXCLUDED_PORT} of reviews is excluded (-d), and a client outside the mesh asks there"
    )
    with server_on_excluded_port(stage):
        before = stage.counters(REVIEWS.name)
        answer = json.loads(stage.run("client", *CURL, f"http://{REVIEWS.address}:{EXCLUDED_PORT}/"))
        after = stage.counters(REVIEWS.name)
    stage.check_packets(EXCLUDED, before, after)
    stage.check_same("reviews", TAKEN, before.stats, after.stats)
    caller = answer["caller"].rpartition(":")[0]
    stage.check(f"the app saw {caller}, the client itself", right=caller == client_pod(stage.settings).address)

    console.print(f" [bold]•[/bold] what the proxy's user (uid {PROXY_UID}) sends is not diverted")
    before = stage.counters(PRODUCTPAGE.name)
    stage.run(PRODUCTPAGE.name, *CURL, f"http://{REVIEWS.address}:{APP_PORT}/", uid=PROXY_UID)
    after = stage.counters(PRODUCTPAGE.name)
    stage.check_packets(OWN_TRAFFIC, before, after)
    diverted = after.packets(DIVERTED)
    for rule in diverted:
        stage.check_same("productpage", rule, before.packets(DIVERTED), diverted)
    stage.check_same("productpage", TAKEN, before.stats, after.stats)


@contextmanager
def server_on_excluded_port(stage: Stage) -> Iterator[None]:
    """Run one more app in the pod of reviews; it ends with the lab."""
    argv = (sys.executable, "-m", "istio_init.lab.app", "--service", "excluded", "--port", str(EXCLUDED_PORT))
    command = stage.lab.command(REVIEWS.name, argv)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            assert server.stdout, "it was started with a pipe"  # noqa: S101 - for the type checker
            server.stdout.readline()  # it says where it listens
            yield
        finally:
            server.terminate()


def title(text: str) -> None:
    """Print a section's title."""
    console.print(f"\n[bold]{text}[/bold]")


def _end(number: int, _: object) -> NoReturn:
    for each in ENDS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
