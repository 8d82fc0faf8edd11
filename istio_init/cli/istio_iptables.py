"""`istio-init istio-iptables`: layout current, under the flags of today's `pilot-agent istio-iptables`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from istio_init.cli.apply import check_format, format_option, print_plan, warn, write_plan
from istio_init.cli.clean import remove_ours
from istio_init.cli.options import CommandWithSwitches, Function, Run, flag_options, layout_option, run_options
from istio_init.cli.steering import STEERING, Steering
from istio_init.core.log import Level
from istio_init.rules.environment import read_settings
from istio_init.rules.layouts import build_plan
from istio_init.rules.options import CURRENT, OPTIONS

if TYPE_CHECKING:
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings

EPILOG = """\b
Examples:
  istio-init istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020
  istio-init istio-iptables --dry-run --format table -i '*' -b '*' --redirect-dns --dual-stack
  istio-init istio-iptables -i '*' -b '*' --skip-rule-apply --run-validation

\b
Values: default < environment variable [in brackets] < flag. There are environment files with --layout istio-1.0 only.
A switch alone means true; a value stands behind =, as in --redirect-dns=false.
Variables without a flag: ENVOY_USER (the user of the default of -u), ISTIO_OUTBOUND_OWNER_GROUPS,
ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE, ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR; with --layout istio-1.0 also ENABLE_INBOUND_IPV6.

\b
--run-validation opens connections as an app, as the proxy and from outside, and looks where they arrive.
It listens on the proxy's ports itself, so the proxy must not run yet. With the capabilities NET_ADMIN and
NET_RAW a pair of interfaces, istio-probe, stands for the world, and nothing leaves the pod; without them,
and without SETUID and SETGID where another user's connection is needed, some paths are not checked, and
a warning says which and why.
"""


def _flags(command: Function) -> Function:
    command = format_option(run_options(command, quiet=("--quiet",)))
    return layout_option(CURRENT)(flag_options(flag_options(command, STEERING), OPTIONS))


@click.command("istio-iptables", cls=CommandWithSwitches, epilog=EPILOG)
@_flags
def istio_iptables(**options: Any) -> None:
    """Write today's rules: as `apply --layout current`, with the flags of today's `istio-iptables`.

    Safe to run twice: what is in place already is not written again, and a different plan replaces the old one in one
    transaction a table. Rules of others are not touched.
    """
    started = time.perf_counter()
    steering = Steering.take(options, os.environ)
    run = _take_run(options, steering)
    layout, output_format = options.pop("layout"), options.pop("output_format")
    check_format(output_format, dry_run=steering.dry_run)
    for warning in steering.warnings:
        run.log.write(Level.WARNING, warning)
    if steering.network_namespace:
        from istio_init.rules.kernel.namespaces import enter_network_namespace

        enter_network_namespace(steering.network_namespace, steering.wheres["network_namespace"])
    settings = read_settings(options, os.environ, layout)
    if steering.cleanup_only:
        remove_ours(run)
        return
    warn(run, settings)
    if steering.network_namespace and settings.redirect_dns and not settings.capture_all_dns:
        message = "the nameservers are those of this machine's resolv.conf, not the pod's; --capture-all-dns does without"
        run.log.write(Level.WARNING, message)
    plan = build_plan(settings)
    if steering.dry_run:
        print_plan(run, plan, output_format)
        return
    if steering.skip_rule_apply:
        run.log.write(Level.INFO, f"no rule is written ({steering.wheres['skip_rule_apply']})")
    else:
        write_plan(run, plan, started)
    if steering.run_validation:
        _validate(run, settings, plan, steering)


def _take_run(options: dict[str, Any], steering: Steering) -> Run:
    """Take the options that all commands have, and those of today's tool that mean the same."""
    options["backend"] = steering.backend(options["backend"])
    options["iptables_variant"] = steering.variant(options["iptables_variant"])
    run = Run.take(options)
    log = run.log._replace(
        json=run.log.json or steering.log_as_json,
        level=run.log.level if steering.log_level is None else steering.log_level,
    )
    click.get_current_context().find_root().obj = log
    return run._replace(log=log)


def _validate(run: Run, settings: Settings, plan: Plan, steering: Steering) -> None:
    """Try the paths of a plan, and log a line for each.

    Raises:
        ValidationFailed: a connection went elsewhere, or nothing could be checked.
    """
    from istio_init.rules.validation import conclude, validate

    started = time.perf_counter()
    plan = plan.only(run.families)
    verdicts = validate(settings, plan, steering.probe_port, steering.probe_timeout, run.lock_wait)
    for verdict in verdicts:
        level = Level.WARNING if verdict.ok is None else Level.INFO if verdict.ok else Level.ERROR
        run.log.write(level, str(verdict))
    checked = conclude(verdicts)
    took = f"{(time.perf_counter() - started) * 1000:.0f} ms"
    run.log.write(Level.INFO, f"validation passed: {checked} of {len(verdicts)} paths checked, {took}")
