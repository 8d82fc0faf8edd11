"""`istio-init [apply]`: write the rules, or print them."""

from __future__ import annotations

import os
import time

from istio_init.cli.command import Subcommand, print_text
from istio_init.core.errors import InvalidInput, shorten
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.log import Level
from istio_init.core.option import read_values
from istio_init.rules.commands import APPLY, FORMAT, Run, layout_option
from istio_init.rules.environment import read_settings
from istio_init.rules.layout import CURRENT, ISTIO_1_0, find
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import Variant
from istio_init.rules.options import ENABLE_INBOUND_IPV6

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.cli.command import Given
    from istio_init.core.log import Log
    from istio_init.rules.kernel.report import Report
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings

HELP = """Divert this network namespace's connections into Envoy.

Idempotent: what is already in place is not written again, and a different plan replaces the old one in one
transaction per table. Third-party rules are not touched.
"""

EPILOG = """\b
Examples:
  istio-init -p 15001 -u 1337 -m REDIRECT -i '*' -x "" -b 9080 -d ""
  istio-init -u 1337 -m TPROXY -i '*' -b '*' -d 15020
  istio-init --dry-run --format table -u 1337 -i 10.0.0.0/8 -b 80,443

\b
Values: default < environment file < environment variable [in brackets; of several, the last one wins] < flag.
What a flag overrides is not checked.
A variable of a setting that the layout does not have is ignored; a flag is an error.
Environment files, layout istio-1.0 only: $ISTIO_CLUSTER_CONFIG (/var/lib/istio/envoy/cluster.env),
then $ISTIO_SIDECAR_CONFIG (/var/lib/istio/envoy/sidecar.env).
Variables without a flag: ENVOY_USER (the user of the default of -u); layout istio-1.0:
ENABLE_INBOUND_IPV6 (unless it is set, connections from outside over IPv6 are rejected);
layout current: ISTIO_OUTBOUND_OWNER_GROUPS, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE,
ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR.
"""


def apply(given: Given, log: Log) -> None:
    """Write or print the rules that a command line and its environment ask for."""
    started = time.perf_counter()
    run = Run.of(given, os.environ)
    values = read_values((layout_option(ISTIO_1_0), FORMAT), given)
    dry_run = bool(given.get("dry_run"))
    check_format(values["output_format"], dry_run=dry_run)
    settings = read_settings(given, os.environ, values["layout"])
    warn(log, settings)
    plan = build_plan(settings)
    if dry_run:
        print_plan(run, plan, values["output_format"])
    else:
        write_plan(run, log, plan, started)


def check_format(output_format: str | None, *, dry_run: bool) -> None:
    """Refuse a form of output for a run that prints nothing.

    Raises:
        InvalidInput: it is one.
    """
    if output_format and not dry_run:
        raise InvalidInput(FORMAT.where, "it says what --dry-run prints", "with --dry-run")


def warn(log: Log, settings: Settings) -> None:
    """Log what the user should know about values that were accepted."""
    for warning in settings.warnings:
        log.warning(warning)


def print_plan(run: Run, plan: Plan, output_format: str | None) -> None:
    """Print a plan and change nothing."""
    from istio_init.rules.kernel.registry import find
    from istio_init.rules.render import render

    text = render(plan, output_format or find(run.backend).dry_run_format, run.families, run.variant or Variant.PLAIN)
    print_text(text)


def write_plan(run: Run, log: Log, plan: Plan, started: float) -> None:
    """Apply a plan, and log what was done.

    Args:
        run: backend, variant and families.
        log: where messages go.
        plan: the desired state.
        started: when the command began, by `time.perf_counter`.

    Raises:
        IstioInitError: see `Engine.apply`.
    """
    report = run.open_engine(log.debug).apply(plan, run.families, log.warning)
    for warning in report.warnings:
        log.warning(warning)
    in_place = plan.only(tuple(family for family in run.families if family not in report.left_out))
    log.write(Level.INFO, _summary(in_place, report, time.perf_counter() - started))


def _summary(plan: Plan, report: Report, seconds: float) -> str:
    took = f"{seconds * 1000:.0f} ms"
    if plan.closes_ipv6():
        took = f"IPv6 from outside is closed ({ENABLE_INBOUND_IPV6} opens it), {took}"
    layout = find(plan.layout).name
    if not report.changed:
        return f"layout {layout} is already in place ({report.means}): nothing written, {took}"
    written = f"{report.chains} chains and {report.rules} rules written"
    return f"layout {layout} applied ({report.means}): {written}, {took}"


def _explain(words: Sequence[str]) -> InvalidInput | None:
    """Find a list of ports behind -q, and flags that only `istio-iptables` has, and say what to write instead."""
    from istio_init.rules.run_flags import RUN_FLAGS

    own = {flag for option in APPLY for flag in option.flags}
    others = {flag for option in RUN_FLAGS for flag in option.flags} - own
    for flag, value in zip(words, (*words[1:], ""), strict=True):
        if flag == "-q" and value[:1].isdigit():
            ports = shorten(value)
            allowed = f"--layout {CURRENT} --istio-outbound-ports {ports}, or `istio-init istio-iptables -q {ports}`"
            return InvalidInput(flag, f"it is --quiet in `apply`, and takes no value {ports!r}", allowed)
        name = flag.partition("=")[0]
        if name in others:
            allowed = "`istio-init istio-iptables`, which has it (--layout too)"
            return InvalidInput(name, "`apply` has no such flag", allowed)
    return None


COMMAND = Subcommand("apply", HELP, EPILOG, APPLY, apply, explain=_explain)
