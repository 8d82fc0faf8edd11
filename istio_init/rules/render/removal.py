"""What a clean would do, as text: the scripts that remove what is ours, and commands of ip(8) for the rest. Pure."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.model import NO_MARK, Family, TproxyRoute
from istio_init.rules.render.iptables import render_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.rules.changes import TableChange


def render_removal(where: str, family: Family, changes: Sequence[TableChange], *, is_native: bool) -> str:
    """Write the script that removes our rules of one family from one of the kernel's rule sets.

    Args:
        where: the rule set, for the comment that the script begins with.
        family: whose rules.
        changes: those that leave nothing of ours; empty for an empty script.
        is_native: whether the rules are in tables of nftables' own, so that the script is one for `nft -f`.
    """
    if not changes:
        return ""
    if is_native:
        from istio_init.rules.render.nft import render_tables

        return f"# {where}, {family}\n{render_tables({family: [change._replace(chains={}) for change in changes]})}"
    return f"# {where}, {family}\n{render_changes(changes)}"


def render_istio_tables(names: Sequence[str]) -> str:
    """Write the script for `nft -f` that removes tables of nftables that today's istio-iptables made."""
    lines = [f"delete table inet {name}" for name in names]
    return "".join(f"{line}\n" for line in ("# nft of istio-iptables", *lines)) if names else ""


def render_surroundings(routes: Iterable[TproxyRoute], addresses: Iterable[str]) -> str:
    """Write the commands that remove policy routes, and addresses of lo."""
    lines = [line for route in routes for line in _route_lines(route)]
    lines += [f"ip -6 addr del {address} dev lo" for address in addresses]
    return "".join(f"{line}\n" for line in ("# policy routes and addresses", *lines)) if lines else ""


def _route_lines(route: TproxyRoute) -> Iterator[str]:
    ip = "ip" if route.family is Family.IPV4 else "ip -6"
    if route.mark != NO_MARK:
        yield f"{ip} rule del fwmark {route.mark:#x} lookup {route.table}"
    yield f"{ip} route del local default dev lo table {route.table}"
