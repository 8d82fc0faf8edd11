"""`istio-init clean`: remove what is ours."""

from __future__ import annotations

import time
from typing import Any

import click

from istio_init.cli.options import Run, run_options
from istio_init.core.log import Level

EPILOG = """\b
Examples:
  istio-init clean
  istio-init clean --family ipv6
"""


@click.command(epilog=EPILOG)
@run_options
def clean(**options: Any) -> None:
    """Remove the chains, jumps and routes that an apply made, whatever its flags were.

    It is no error when there are none. Rules of others are not touched.
    """
    remove_ours(Run.take(options))


def remove_ours(run: Run) -> None:
    """Remove all that is ours, and log what there was.

    Raises:
        IstioInitError: see `Engine.remove`.
    """
    started = time.perf_counter()
    report = run.open_engine().remove(run.families)
    for warning in report.warnings:
        run.log.write(Level.WARNING, warning)
    removed = [f"{report.chains} chains"] * bool(report.chains) + ["the policy route"] * report.routed
    removed += ["the address of lo"] * report.addressed
    what = f"{' and '.join(removed)} removed" if removed else "nothing to remove"
    run.log.write(Level.INFO, f"clean ({report.means}): {what}, {(time.perf_counter() - started) * 1000:.0f} ms")
