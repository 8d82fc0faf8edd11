"""`istio-init istio-iptables`: layout current, under the flags of today's `pilot-agent istio-iptables`."""

from __future__ import annotations

import os
import time

from istio_init.cli.apply import check_format, print_plan, warn, write_plan
from istio_init.cli.clean import remove_ours, show_ours
from istio_init.cli.command import Subcommand, read_log
from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.log import Level
from istio_init.core.option import read_values
from istio_init.rules.commands import FORMAT, IPTABLES_COMMAND, ISTIO_IPTABLES, Run, layout_option
from istio_init.rules.environment import read_settings
from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan
from istio_init.rules.run_flags import LOG_FLAGS, RunFlags

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings

HELP = """Write today's rules: as `apply --layout current`, with the flags of today's `istio-iptables`.

Idempotent: what is already in place is not written again, and a different plan replaces the old one in one
transaction per table. Third-party rules are not touched.
"""

EPILOG = """\b
Examples:
  istio-init istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020
  istio-init istio-iptables --dry-run --format table -i '*' -b '*' --redirect-dns --dual-stack
  istio-init istio-iptables -i '*' -b '*' --skip-rule-apply --run-validation

\b
Values: default < environment variable [in brackets; of several, the last one wins] < flag. What a flag overrides is
not checked. There are environment files with --layout istio-1.0 only.
A switch alone means true; a value stands behind =, as in --redirect-dns=false.
Variables without a flag: ENVOY_USER (the user of the default of -u), ISTIO_OUTBOUND_OWNER_GROUPS,
ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE, ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR; with --layout istio-1.0 also ENABLE_INBOUND_IPV6.

\b
--run-validation opens connections as an app, as the proxy and from outside, and looks where they arrive.
It listens on the proxy's ports itself, so the proxy must not run yet. With the capabilities NET_ADMIN and
NET_RAW a pair of interfaces, istio-probe, stands for the network outside, and nothing leaves the pod; without them,
and without SETUID and SETGID where another user's connection is needed, some paths are not checked, and
a warning says which and why.
"""


def istio_iptables(given: Given, log: Log) -> None:
    """Write, print, validate or remove the rules that a command line and its environment ask for."""
    started = time.perf_counter()
    values = read_values((layout_option(CURRENT), FORMAT), given)
    flags = RunFlags.of(given, os.environ, values["layout"])
    run = _take_run(given, flags)
    check_format(values["output_format"], dry_run=flags.dry_run)
    if flags.cleanup_only and values["output_format"]:
        raise InvalidInput(
            FORMAT.where, f"it is for rules to write, not for {flags.wheres['cleanup_only']}", "one of the two"
        )
    for warning in flags.warnings:
        log.write(Level.WARNING, warning)
    if flags.network_namespace:
        from istio_init.rules.kernel.namespaces import enter_network_namespace

        enter_network_namespace(flags.network_namespace, flags.wheres["network_namespace"])
    settings = read_settings(given, os.environ, values["layout"])
    if flags.cleanup_only:
        (show_ours if flags.dry_run else remove_ours)(run, log)
        return
    warn(log, settings)
    if flags.network_namespace and settings.redirect_dns and not settings.capture_all_dns:
        message = "the nameservers are those of this machine's resolv.conf, not the pod's; --capture-all-dns does without"
        log.write(Level.WARNING, message)
    plan = build_plan(settings)
    if flags.dry_run:
        print_plan(run, plan, values["output_format"])
        return
    if flags.skip_rule_apply:
        if flags.run_validation:  # it may add a pair of interfaces
            run.open_engine(log.debug).refuse_host(run.families)
        log.write(Level.INFO, f"no rule is written ({flags.wheres['skip_rule_apply']})")
    else:
        write_plan(run, log, plan, started)
    if flags.run_validation:
        _validate(run, log, settings, plan, flags)


def _take_run(given: Given, flags: RunFlags) -> Run:
    """Take the options that all commands have, and those of today's tool that mean the same."""
    run = Run.of(given, os.environ)
    return run._replace(backend=flags.backend(run.backend), variant=flags.variant(run.variant))


def _log(command: Subcommand, given: Given) -> Log:
    """Make the log; today's tool has flags of its own for it."""
    log = read_log(command, given)
    values = read_values(LOG_FLAGS, given)
    level = values["log_output_level"]
    return log._replace(json=log.json or bool(values["log_as_json"]), level=log.level if level is None else level)


def _validate(run: Run, log: Log, settings: Settings, plan: Plan, flags: RunFlags) -> None:
    """Probe the paths of a plan, and log a line for each.

    Raises:
        ValidationFailed: a connection went elsewhere, or nothing could be checked.
    """
    from istio_init.rules.validation import conclude, validate

    started = time.perf_counter()
    plan = plan.only(run.families)
    verdicts = validate(settings, plan, flags.probe_port, flags.probe_timeout, run.waits.lock)
    for verdict in verdicts:
        level = Level.WARNING if verdict.ok is None else Level.INFO if verdict.ok else Level.ERROR
        log.write(level, str(verdict))
    checked = conclude(verdicts)
    took = f"{(time.perf_counter() - started) * 1000:.0f} ms"
    log.write(Level.INFO, f"validation passed: {checked} of {len(verdicts)} paths checked, {took}")


COMMAND = Subcommand(IPTABLES_COMMAND, HELP, EPILOG, ISTIO_IPTABLES, istio_iptables, log=_log)
