"""`istio-init [apply]`: write the rules, or print them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from istio_init.cli.log import Level
from istio_init.cli.options import Run, run_options, setting_options
from istio_init.environment import read_settings
from istio_init.layouts import build_plan
from istio_init.model import Variant

if TYPE_CHECKING:
    from istio_init.backends.base import Report
    from istio_init.model import Plan

FORMATS = ("restore", "commands", "json", "table")

EPILOG = """\b
Examples:
  istio-init -p 15001 -u 1337 -m REDIRECT -i '*' -x "" -b 9080 -d ""
  istio-init -u 1337 -m TPROXY -i '*' -b '*' -d 15020
  istio-init --dry-run --format table -u 1337 -i 10.0.0.0/8 -b 80,443

\b
Values: default < environment file < environment variable [in brackets] < flag.
Environment files: $ISTIO_CLUSTER_CONFIG (/var/lib/istio/envoy/cluster.env), then
$ISTIO_SIDECAR_CONFIG (/var/lib/istio/envoy/sidecar.env).
Variables without a flag: ENVOY_USER (the user of the default of -u), ENABLE_INBOUND_IPV6
(unless it is set, connections from outside over IPv6 are rejected).
"""


@click.command(epilog=EPILOG)
@setting_options
@click.option("-n", "--dry-run", is_flag=True, help="Print the rules and change nothing; needs no privileges.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    help="What --dry-run prints: a script for iptables-restore --noflush, shell commands, JSON, or a table with the "
    "reason of each rule. Default: restore.",
)
@run_options
def apply(**options: Any) -> None:  # noqa: ANN401 - click passes each option by its name
    """Divert this network namespace's connections into Envoy.

    Safe to run twice: what is in place already is not written again, and a different plan replaces the old one in one
    transaction a table. Rules of others are not touched.
    """
    started = time.perf_counter()
    run = Run.take(options)
    dry_run, output_format = options.pop("dry_run"), options.pop("output_format")
    if output_format and not dry_run:
        raise click.UsageError("--format says what --dry-run prints; add --dry-run, or leave it out")
    settings = read_settings(options, os.environ)
    for warning in settings.warnings:
        run.log.write(Level.WARNING, warning)
    plan = build_plan(settings)
    if dry_run:
        _print(plan, output_format or "restore", run)
        return
    report = run.open_backend().apply(plan, run.families)
    for warning in report.warnings:
        run.log.write(Level.WARNING, warning)
    run.log.write(Level.INFO, _summary(plan, report, time.perf_counter() - started))


def _print(plan: Plan, output_format: str, run: Run) -> None:
    from istio_init.render import render  # noqa: PLC0415 - an apply does without

    click.echo(render(plan, output_format, run.families, run.variant or Variant.PLAIN), nl=False)


def _summary(plan: Plan, report: Report, seconds: float) -> str:
    took = f"{seconds * 1000:.0f} ms"
    if not report.changed:
        return f"layout {plan.layout} is already in place ({report.means}): nothing written, {took}"
    written = f"{report.chains} chains and {report.rules} rules written"
    return f"layout {plan.layout} applied ({report.means}): {written}, {took}"
