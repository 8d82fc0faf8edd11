"""Validates rules with real connections: as an app, as the proxy, and from outside.

During validation, this process listens on the proxy's ports, so that it receives diverted connections, with their original
destination. A connection that is not diverted is observed where it leaves (`probe_network`), or where it arrives, on ports
that no server of the pod uses yet.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from istio_init.core.errors import Unsupported, ValidationFailed
from istio_init.rules.environment import CAP_NET_ADMIN, CAP_NET_RAW, has_capability, local_addresses
from istio_init.rules.kernel.locks import ended_by_signals, namespace_lock
from istio_init.rules.validation.attempts import Attempt, Verdict
from istio_init.rules.validation.listeners import listeners, stand_ins
from istio_init.rules.validation.owners import may_be
from istio_init.rules.validation.paths import INTERFACE, Path, ProbeContext, choose_app, paths, unchecked
from istio_init.rules.validation.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings
    from istio_init.rules.validation.probe_network import ProbeNetwork

REMEDY = (
    "rules are missing, or third-party rules take precedence: apply them (run this without --skip-rule-apply), and look for "
    "others in iptables-save; where a CNI plugin writes the rules, recreate the pod once the plugin is ready"
)
BLIND = "opening connections from outside, and seeing which ones leave, needs the capabilities NET_ADMIN and NET_RAW"


def validate(settings: Settings, plan: Plan, probe_port: int, timeout: float, lock_wait: int) -> tuple[Verdict, ...]:
    """Probe the paths of a plan in this network namespace. Signals that would end the process are deferred until the end.

    Args:
        settings: the plan's settings, of layout current.
        plan: the plan, which also determines the families to probe.
        probe_port: the port to use where no flag names one.
        timeout: seconds for all paths together.
        lock_wait: seconds to wait for another program that changes rules here.

    Raises:
        ValidationFailed: the proxy's ports are in use.
        LockHeld: another program holds the lock.
        Unsupported: the machine's addresses cannot be read.
    """
    with ExitStack() as stack:
        stack.enter_context(namespace_lock(lock_wait))
        stack.enter_context(ended_by_signals())()  # the interfaces and rules of the probe network must be removed
        served = stack.enter_context(listeners(settings, plan.families()))
        around, blind = _network(stack, plan, settings)
        own = (os.geteuid(), os.getegid())
        context = ProbeContext(own, choose_app(settings, *own), local_addresses(), around.mark if around else 0, probe_port)
        tried = paths(settings, plan, context)
        served += stack.enter_context(stand_ins(dict.fromkeys(path.end for path in tried if path.end)))
        ends = {(listener.family, listener.port) for listener in served}
        attempts = [
            Attempt(path, number, _obstacle(path, settings, around, blind), served=path.end in ends)
            for number, path in enumerate(tried)
        ]
        session = Session(attempts, served, around)
        stack.callback(session.close)
        session.run(timeout)
        return (
            *(attempt.verdict(timeout) for attempt in attempts),
            *(Verdict(ok=None, text=f"not checked: {what}") for what in unchecked(settings)),
        )


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Return the number of correct paths.

    Raises:
        ValidationFailed: a path is wrong, or none was checked.
    """
    checked = [verdict for verdict in verdicts if verdict.ok is not None]
    wrong = [verdict.text for verdict in checked if not verdict.ok]
    if wrong:
        more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
        raise ValidationFailed(f"{len(wrong)} of {len(checked)} paths are wrong: {wrong[0]}{more}; {REMEDY}")
    if not checked:
        raise ValidationFailed(f"no path could be checked; {BLIND}, and the proxy's own user can check one path")
    return len(checked)


def _obstacle(path: Path, settings: Settings, around: ProbeNetwork | None, blind: str) -> str:
    """Return why a path cannot be probed, or "" if it can."""
    packet = path.packet
    if packet.outbound and not may_be(packet.uid, packet.gid):
        return f"opening a connection as uid {packet.uid}, gid {packet.gid} needs the capabilities SETUID and SETGID"
    if packet.interface != INTERFACE:
        return ""
    if around is not None:
        return around.missing.get(path.family, "")
    # Without a probe network, a connection that leaves through an excluded interface is not seen.
    seen_at_the_proxy = packet.outbound and path.expected is not None and not settings.exclude_interfaces
    return "" if seen_at_the_proxy else blind


def _network(stack: ExitStack, plan: Plan, settings: Settings) -> tuple[ProbeNetwork | None, str]:
    """Create the probe network; return it, or None and why this is not possible."""
    if not (has_capability(CAP_NET_ADMIN) and has_capability(CAP_NET_RAW)):
        return None, BLIND
    from istio_init.rules.validation.probe_network import probe_network

    taken = frozenset({settings.tproxy_mark, settings.tproxy_route_table})
    try:
        return stack.enter_context(probe_network(plan.families(), taken)), ""
    except (Unsupported, OSError) as error:
        return None, f"{BLIND}; {error}"
