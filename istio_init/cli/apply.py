"""`istio-init [apply]`: write the rules, or print them."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from istio_init.cli.options import CommandWithSwitches, Run, layout_option, run_options, setting_options
from istio_init.core.errors import InvalidInput
from istio_init.core.log import Level
from istio_init.rules.environment import read_settings
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import Variant
from istio_init.rules.options import CURRENT, ISTIO_1_0

if TYPE_CHECKING:
    from istio_init.rules.kernel.report import Report
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings

FORMATS = ("restore", "commands", "nft", "json", "table")

EPILOG = """\b
Examples:
  istio-init -p 15001 -u 1337 -m REDIRECT -i '*' -x "" -b 9080 -d ""
  istio-init -u 1337 -m TPROXY -i '*' -b '*' -d 15020
  istio-init --dry-run --format table -u 1337 -i 10.0.0.0/8 -b 80,443

\b
Values: default < environment file < environment variable [in brackets] < flag.
A variable of a setting that the layout does not have is ignored; a flag is an error.
Environment files, layout istio-1.0 only: $ISTIO_CLUSTER_CONFIG (/var/lib/istio/envoy/cluster.env),
then $ISTIO_SIDECAR_CONFIG (/var/lib/istio/envoy/sidecar.env).
Variables without a flag: ENVOY_USER (the user of the default of -u); layout istio-1.0:
ENABLE_INBOUND_IPV6 (unless it is set, connections from outside over IPv6 are rejected);
layout current: ISTIO_OUTBOUND_OWNER_GROUPS, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE,
ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR.
"""

format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    help="What --dry-run prints: a script for iptables-restore --noflush, shell commands, a script for nft -f, JSON, or a "
    "table with the reason of each rule. Default: restore; with --backend nft: nft.",
)


class ApplyCommand(CommandWithSwitches):
    """A command that says where today's flags are that it does not have itself."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a list of ports behind -q, and flags that only `istio-iptables` has, with what to write instead.

        Raises:
            InvalidInput: there is one.
        """
        for flag, value in pairwise(args):
            if flag == "-q" and value[:1].isdigit():
                allowed = f"--layout {CURRENT} --istio-outbound-ports {value}, or `istio-init istio-iptables -q {value}`"
                raise InvalidInput(flag, f"it is --quiet in `apply`, and takes no value {value!r}", allowed)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from istio_init.cli.steering import STEERING

            if not any(error.option_name in option.flags for option in STEERING):
                raise
            problem = "`apply` has no such flag"
            raise InvalidInput(
                error.option_name, problem, "`istio-init istio-iptables`, which has it (--layout too)"
            ) from None


@click.command(cls=ApplyCommand, epilog=EPILOG)
@layout_option(ISTIO_1_0)
@setting_options
@click.option("-n", "--dry-run", is_flag=True, help="Print the rules and change nothing; needs no privileges.")
@format_option
@run_options
def apply(**options: Any) -> None:
    """Divert this network namespace's connections into Envoy.

    Safe to run twice: what is in place already is not written again, and a different plan replaces the old one in one
    transaction a table. Rules of others are not touched.
    """
    started = time.perf_counter()
    run = Run.take(options)
    layout = options.pop("layout")
    dry_run, output_format = options.pop("dry_run"), options.pop("output_format")
    check_format(output_format, dry_run=dry_run)
    settings = read_settings(options, os.environ, layout)
    warn(run, settings)
    plan = build_plan(settings)
    if dry_run:
        print_plan(run, plan, output_format)
    else:
        write_plan(run, plan, started)


def check_format(output_format: str | None, *, dry_run: bool) -> None:
    """Refuse a form of output for a run that prints nothing.

    Raises:
        UsageError: it is one.
    """
    if output_format and not dry_run:
        raise click.UsageError("--format says what --dry-run prints; add --dry-run, or leave it out")


def warn(run: Run, settings: Settings) -> None:
    """Log what the user should know about values that were accepted."""
    for warning in settings.warnings:
        run.log.write(Level.WARNING, warning)


def print_plan(run: Run, plan: Plan, output_format: str | None) -> None:
    """Print a plan and change nothing."""
    from istio_init.rules.kernel.registry import find
    from istio_init.rules.render import render

    text = render(plan, output_format or find(run.backend).dry_run_format, run.families, run.variant or Variant.PLAIN)
    click.echo(text, nl=False)


def write_plan(run: Run, plan: Plan, started: float) -> None:
    """Bring the kernel to a plan, and log what was done.

    Args:
        run: how rules are reached.
        plan: what there should be.
        started: when the command began, by `time.perf_counter`.

    Raises:
        IstioInitError: see `Engine.apply`.
    """
    report = run.open_engine().apply(plan, run.families)
    for warning in report.warnings:
        run.log.write(Level.WARNING, warning)
    run.log.write(Level.INFO, _summary(plan, report, time.perf_counter() - started))


def _summary(plan: Plan, report: Report, seconds: float) -> str:
    took = f"{seconds * 1000:.0f} ms"
    if not report.changed:
        return f"layout {plan.layout} is already in place ({report.means}): nothing written, {took}"
    written = f"{report.chains} chains and {report.rules} rules written"
    return f"layout {plan.layout} applied ({report.means}): {written}, {took}"
