"""`istio-init clean`: remove what is ours."""

from __future__ import annotations

import os
import time

from istio_init.cli.command import Subcommand
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.log import Level
from istio_init.rules.commands import CLEAN, Run

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log

HELP = """Remove the chains, jumps and routes that an apply made, whatever its flags were.

Having nothing to remove is not an error. Third-party rules are not touched.
"""

EPILOG = """\b
Examples:
  istio-init clean
  istio-init clean --family ipv6
"""


def clean(given: Given, log: Log) -> None:
    """Remove all that is ours."""
    remove_ours(Run.of(given, os.environ), log)


def remove_ours(run: Run, log: Log) -> None:
    """Remove all that is ours, and log what there was.

    Raises:
        IstioInitError: see `Engine.remove`.
    """
    started = time.perf_counter()
    report = run.open_engine(log.debug).remove(run.families)
    for warning in report.warnings:
        log.write(Level.WARNING, warning)
    removed = [f"{report.chains} chains"] * bool(report.chains) + ["the policy route"] * report.routed
    removed += ["the address of lo"] * report.addressed
    what = f"{' and '.join(removed)} removed" if removed else "nothing to remove"
    log.write(Level.INFO, f"clean ({report.means}): {what}, {(time.perf_counter() - started) * 1000:.0f} ms")


COMMAND = Subcommand("clean", HELP, EPILOG, CLEAN, clean)
