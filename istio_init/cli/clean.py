"""`istio-init clean`: remove what is ours."""

from __future__ import annotations

import os
import time

from istio_init.cli.command import Subcommand, print_text
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.log import Level
from istio_init.rules.commands import CLEAN, Run
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log
    from istio_init.rules.changes import TableChange
    from istio_init.rules.kernel.backend import Backend
    from istio_init.rules.kernel.rule_sets import RuleSet
    from istio_init.rules.model import Snapshot

HELP = """Remove the chains, jumps and routes that an apply made, whatever its flags were.

Having nothing to remove is not an error. Third-party rules are not touched.
"""

EPILOG = """\b
Examples:
  istio-init clean
  istio-init clean --family ipv6
"""

UNSEEN = (
    "what is there cannot be seen; a clean removes our chains (ISTIO_*), the jumps to them, our tables of nftables "
    "(istio-init), our policy routes, and the address ::6/128 of lo"
)


def clean(given: Given, log: Log) -> None:
    """Remove all that is ours."""
    remove_ours(Run.of(given, os.environ), log)


def remove_ours(run: Run, log: Log) -> None:
    """Remove all that is ours, and log what there was.

    Raises:
        IstioInitError: see `Engine.remove`.
    """
    started = time.perf_counter()
    report = run.open_engine(log.debug).remove(run.families, log.warning)
    for warning in report.warnings:
        log.warning(warning)
    removed = [f"{report.chains} chains"] * bool(report.chains) + ["the policy route"] * report.routed
    removed += ["the address of lo"] * report.addressed
    what = f"{' and '.join(removed)} removed" if removed else "nothing to remove"
    log.write(Level.INFO, f"clean ({report.means}): {what}, {(time.perf_counter() - started) * 1000:.0f} ms")


def show_ours(run: Run, log: Log) -> None:
    """Print the scripts that would remove all that is ours, and change nothing.

    What this user may not read is a warning, for a dry run needs no privileges.

    Raises:
        Unsupported: a third-party chain uses one of ours, so that a clean would fail, too.
    """
    from istio_init.rules.environment import CAP_NET_ADMIN, has_capability
    from istio_init.rules.handover import diverting_marks
    from istio_init.rules.kernel import surroundings
    from istio_init.rules.kernel.rule_sets import RuleSet, occupied
    from istio_init.rules.render.removal import render_istio_tables, render_removal, render_surroundings

    if not has_capability(CAP_NET_ADMIN):
        log.write(Level.WARNING, f"without the capability NET_ADMIN, {UNSEEN}")
        return
    text = ""
    marks: set[tuple[Family, int]] = set()
    for rule_set, families in occupied(run.families, ()).items():
        for family, (tables, changes) in _read(rule_set, families, run, log).items():
            if rule_set is RuleSet.ISTIO_NATIVE:
                text += render_istio_tables([name for change in changes for name in change.dropped])
                continue
            text += render_removal(rule_set, family, changes, is_native=rule_set is RuleSet.NATIVE)
            marks.update((family, mark) for mark in diverting_marks(tables))
    routes = [route for route in surroundings.find(frozenset(marks)) if route.family in run.families]
    text += render_surroundings(routes, surroundings.addresses() if Family.IPV6 in run.families else ())
    print_text(text)
    log.write(Level.INFO, f"clean, dry run: nothing was changed{'' if text else ', and there is nothing to remove'}")


def _read(
    rule_set: RuleSet, families: tuple[Family, ...], run: Run, log: Log
) -> dict[Family, tuple[Snapshot, list[TableChange]]]:
    """Read one of the kernel's rule sets: our rules by family, and the changes that would remove them."""
    from istio_init.rules.kernel.backend import Partial, Unread
    from istio_init.rules.kernel.registry import open_rule_set
    from istio_init.rules.kernel.restore import RULE_SETS, RestoreBackend

    backend: Backend
    if rule_set in RULE_SETS:  # the programs of iptables print rules that iptables-restore takes
        backend = RestoreBackend(None, run.waits, log.debug, (rule_set,))
    else:
        backend = open_rule_set(rule_set, run.waits, log.debug)
    found = {}
    for family, reading in backend.read(families).items():
        if isinstance(reading, (Unread, Partial)):
            message = f"there may be {family} rules of ours in {rule_set} that were not seen: {reading.why}"
            log.write(Level.WARNING, message)
        if not isinstance(reading, Unread):
            tables = reading.visible if isinstance(reading, Partial) else reading.tables
            found[family] = tables, backend.difference({}, tables)
    return found


COMMAND = Subcommand("clean", HELP, EPILOG, CLEAN, clean)
