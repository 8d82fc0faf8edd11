"""What a user can ask for, validated: `Settings`, the frozen result of the table in `istio_init.rules.options`."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.core.option import Value
from istio_init.rules import values as parse
from istio_init.rules.model import (
    DNS_PORT,
    ENVOY_PORT,
    INBOUND_PORT,
    LOOP_MARK,
    LOOPBACK_CIDR,
    PROXY_UID,
    TPROXY_MARK,
    TPROXY_ROUTE_TABLE,
    TUNNEL_PORT,
    Mode,
)
from istio_init.rules.options import CURRENT, ENABLE_INBOUND_IPV6, ENVOY_USER, ISTIO_1_0, LAYOUTS, MAX_GROUPS, OPTIONS
from istio_init.rules.values import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Accounts(NamedTuple):
    """How names of users and groups become ids; each function gives None for a name that does not exist."""

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]


class HostFacts(NamedTuple):
    """What layout current asks of the machine.

    Attributes:
        nameservers: the servers of resolv.conf, IPv4 and IPv6, canonical.
        is_ipv6: whether the pod's first address, loopback and link-local ones aside, is one of IPv6.
    """

    nameservers: tuple[str, ...] = ()
    is_ipv6: bool = False


NO_ACCOUNTS = Accounts(uid=lambda _: None, gid=lambda _: None)
NO_FACTS = HostFacts()
LOOPBACK_NETWORK = "127.0.0.0/8"
LOOPBACK_PREFIX = 8


class Settings(NamedTuple):
    """Validated settings of one pod's interception. Those from `tunnel_port` on are layout current's alone.

    Attributes:
        inbound_ports: `("*",)` for all, else ports `"80"` and ranges `"8000:8100"`, or empty for none.
        inbound_exclude_ports: as `inbound_ports`, without `"*"`; so are the other lists of ports.
        service_cidrs: `("*",)` for all, else canonical CIDRs, or empty for none.
        service_exclude_cidrs: canonical CIDRs.
        close_inbound_ipv6: whether connections from outside over IPv6 are rejected (nothing could capture them).
        layout: which rules these settings are for.
        owner_groups: `("*",)` for all, else group ids.
        ipv6: whether IPv6 is captured, too.
        nameservers: those whose requests are captured with `redirect_dns`, unless `capture_all_dns` captures all.
        warnings: what the user should know about values that were accepted.
    """

    envoy_port: int = ENVOY_PORT
    inbound_capture_port: int = ENVOY_PORT
    proxy_uids: tuple[int, ...] = (PROXY_UID, 0)
    proxy_gids: tuple[int, ...] = (PROXY_UID, 0)
    mode: Mode = Mode.REDIRECT
    tproxy_mark: int = TPROXY_MARK
    tproxy_route_table: int = TPROXY_ROUTE_TABLE
    inbound_ports: tuple[str, ...] = ()
    inbound_exclude_ports: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    service_exclude_cidrs: tuple[str, ...] = ()
    close_inbound_ipv6: bool = True
    layout: str = ISTIO_1_0
    tunnel_port: int = TUNNEL_PORT
    outbound_ports: tuple[str, ...] = ()
    outbound_exclude_ports: tuple[str, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()
    redirect_dns: bool = False
    capture_all_dns: bool = False
    drop_invalid: bool = False
    ipv6: bool = False
    owner_groups: tuple[str, ...] = (ALL,)
    owner_groups_exclude: tuple[str, ...] = ()
    loopback_cidr: str = LOOPBACK_CIDR
    nameservers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, layout: str = ISTIO_1_0, **values: str) -> Settings:
        """Make settings from text, as flags would: `Settings.of(inbound_ports="9080", service_cidrs="*")`.

        Args:
            layout: `istio-1.0` or `current`.
            values: any of the names in `OPTIONS`, and `ENABLE_INBOUND_IPV6` or `ENVOY_USER`.

        Raises:
            InvalidInput: a name or a value is not allowed.
        """
        known = {option.name for option in OPTIONS} | {ENABLE_INBOUND_IPV6, ENVOY_USER}
        for name in values:
            if name not in known:
                raise InvalidInput(name, "there is no such setting", ", ".join(sorted(known)))
        return parse_settings({name: Value(text, name) for name, text in values.items()}, NO_ACCOUNTS, layout)


def parse_settings(
    values: Mapping[str, Value], accounts: Accounts, layout: str = ISTIO_1_0, facts: HostFacts = NO_FACTS
) -> Settings:
    """Validate the values that were given, and fill in the defaults of the others.

    Args:
        values: by `Option.name`; also `ENVOY_USER` and `ENABLE_INBOUND_IPV6`.
        accounts: resolves names of users and groups.
        layout: `istio-1.0` or `current`.
        facts: what layout current asks of the machine.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    if layout not in LAYOUTS:
        raise InvalidInput("--layout", f"{layout!r} is not a layout", " or ".join(LAYOUTS))
    _refuse_others(values, layout)
    warnings: list[str] = []
    cidr = _cidr_parser(layout, warnings)
    envoy_port = parse.one(values, "envoy_port", parse.port, ENVOY_PORT)
    uids = parse.owners(values, "proxy_uids", accounts.uid, "user") or _default_uids(values, accounts, layout)
    settings = Settings(
        envoy_port=envoy_port,
        inbound_capture_port=parse.one(
            values, "inbound_capture_port", parse.port, INBOUND_PORT if layout == CURRENT else envoy_port
        ),
        proxy_uids=uids,
        proxy_gids=parse.owners(values, "proxy_gids", accounts.gid, "group") or uids,
        mode=parse.one(values, "mode", parse.mode, Mode.REDIRECT),
        tproxy_mark=parse.one(values, "tproxy_mark", parse.mark, TPROXY_MARK),
        tproxy_route_table=parse.one(values, "tproxy_route_table", parse.route_table, TPROXY_ROUTE_TABLE),
        inbound_ports=parse.items(values, "inbound_ports", parse.port_range, all_allowed=True),
        inbound_exclude_ports=parse.items(values, "inbound_exclude_ports", parse.port_range),
        service_cidrs=parse.items(values, "service_cidrs", cidr, all_allowed=True),
        service_exclude_cidrs=parse.items(values, "service_exclude_cidrs", cidr),
        close_inbound_ipv6=not (ENABLE_INBOUND_IPV6 in values and values[ENABLE_INBOUND_IPV6].text),
    )
    if settings.inbound_exclude_ports and settings.inbound_ports != (ALL,):
        warnings.append(f"{values['inbound_exclude_ports'].where} has no effect: it counts only with -b '*'")
    if settings.mode is not Mode.TPROXY:
        given = [values[name].where for name in ("tproxy_mark", "tproxy_route_table") if name in values]
        warnings += [f"{where} has no effect: it counts only with -m {Mode.TPROXY}" for where in given]
    if layout == CURRENT:
        settings = _with_current(settings, values, accounts, facts, warnings)
    else:
        warnings += _ipv6_warning(values)
    return settings._replace(warnings=tuple(warnings))


def _refuse_others(values: Mapping[str, Value], layout: str) -> None:
    """Refuse what only another layout can express."""
    for option in OPTIONS:
        if option.name in values and option.layouts and layout not in option.layouts:
            problem = f"layout {layout} cannot express it"
            raise InvalidInput(values[option.name].where, problem, f"layout {' or '.join(option.layouts)} (--layout)")


def _cidr_parser(layout: str, warnings: list[str]) -> Callable[[str, str], str]:
    def cidr(text: str, where: str) -> str:
        canonical, masked = parse.parse_cidr(text, where, ipv6=layout == CURRENT)
        if masked:
            warnings.append(f"{where}: {text!r} has host bits set and is taken as {canonical}")
        return canonical

    return cidr


def _ipv6_warning(values: Mapping[str, Value]) -> list[str]:
    ipv6 = values.get(ENABLE_INBOUND_IPV6)
    if ipv6 is None or ipv6.text.strip().lower() not in ("0", "false", "no", "off"):
        return []
    return [f"{ipv6.where} is {ipv6.text!r}, but any value opens inbound IPv6; leave it out to keep IPv6 closed"]


def _with_current(
    settings: Settings, values: Mapping[str, Value], accounts: Accounts, facts: HostFacts, warnings: list[str]
) -> Settings:
    """Add what only layout current has."""

    def switch(name: str) -> bool:
        return parse.one(values, name, parse.boolean, default=False)

    def ports(name: str) -> tuple[str, ...]:
        return parse.items(values, name, parse.port_range)

    def interfaces(name: str) -> tuple[str, ...]:
        return parse.items(values, name, parse.interface)

    everywhere = switch("capture_all_dns")
    redirect_dns = switch("redirect_dns")
    if redirect_dns and not everywhere and not facts.nameservers:
        warnings.append("DNS is not captured: resolv.conf has no nameserver; --capture-all-dns captures requests to any")
        redirect_dns = False
    if everywhere and not redirect_dns:
        warnings.append(f"{values['capture_all_dns'].where} has no effect: it counts only with --redirect-dns")
    ipv6 = switch("dual_stack") or facts.is_ipv6
    if not ipv6:
        warnings += _idle_cidrs(settings, values)
    _refuse_contradictions(settings, values, redirect_dns=redirect_dns)
    return settings._replace(
        layout=CURRENT,
        close_inbound_ipv6=False,
        tunnel_port=parse.one(values, "tunnel_port", parse.port, TUNNEL_PORT),
        outbound_ports=ports("outbound_ports"),
        outbound_exclude_ports=ports("outbound_exclude_ports"),
        exclude_interfaces=interfaces("exclude_interfaces"),
        virtual_interfaces=interfaces("virtual_interfaces"),
        redirect_dns=redirect_dns,
        capture_all_dns=everywhere,
        drop_invalid=switch("drop_invalid"),
        ipv6=ipv6,
        owner_groups=_groups(values, "owner_groups", accounts) or (ALL,),
        owner_groups_exclude=_groups(values, "owner_groups_exclude", accounts),
        loopback_cidr=parse.one(values, "loopback_cidr", _loopback, LOOPBACK_CIDR),
        nameservers=facts.nameservers,
    )


def _idle_cidrs(settings: Settings, values: Mapping[str, Value]) -> list[str]:
    """Tell the lists that have CIDRs of IPv6, for where IPv6 is off."""
    lists = {"service_cidrs": settings.service_cidrs, "service_exclude_cidrs": settings.service_exclude_cidrs}
    return [
        f"{values[name].where}: IPv6 is off here, so its CIDRs of IPv6 have no effect; --dual-stack turns it on"
        for name, cidrs in lists.items()
        if any(":" in cidr for cidr in cidrs)
    ]


def _refuse_contradictions(settings: Settings, values: Mapping[str, Value], *, redirect_dns: bool) -> None:
    """Refuse values that are allowed by themselves, and take something from each other."""
    if settings.mode is Mode.TPROXY and settings.tproxy_mark == LOOP_MARK:
        problem = f"{LOOP_MARK} is the mark of what the proxy sends to its own pod"
        raise InvalidInput(values["tproxy_mark"].where, problem, "any other mark")
    for name, port in (("envoy_port", settings.envoy_port), ("inbound_capture_port", settings.inbound_capture_port)):
        if redirect_dns and port == DNS_PORT:
            problem = f"{port} is the port of the proxy's resolver, to which {values['redirect_dns'].where} leads"
            raise InvalidInput(values[name].where, problem, "any other port")


def _groups(values: Mapping[str, Value], name: str, accounts: Accounts) -> tuple[str, ...]:
    given = values.get(name)
    if given is None or not given.text.strip(" ,"):
        return ()
    if given.text.strip() == ALL and name == "owner_groups":
        return (ALL,)
    groups = parse.owners(values, name, accounts.gid, "group")
    if len(groups) > MAX_GROUPS:
        raise InvalidInput(given.where, f"{len(groups)} groups are too many", f"at most {MAX_GROUPS}")
    return tuple(map(str, groups))


def _loopback(text: str, where: str) -> str:
    canonical, masked = parse.parse_cidr(text, where, ipv6=False)
    if masked or not canonical.startswith("127.") or int(canonical.partition("/")[2]) < LOOPBACK_PREFIX:
        raise InvalidInput(
            where, f"{text!r} is not a part of loopback", f"a CIDR inside {LOOPBACK_NETWORK}, without host bits"
        )
    return canonical


def _default_uids(values: Mapping[str, Value], accounts: Accounts, layout: str) -> tuple[int, ...]:
    """Give the proxy's user; in layout istio-1.0 also root, whose agent fetches certificates in a virtual machine."""
    root = () if layout == CURRENT else (0,)
    if ENVOY_USER in values:
        return tuple(dict.fromkeys((*parse.owners(values, ENVOY_USER, accounts.uid, "user"), *root)))
    uid = accounts.uid("istio-proxy")
    return tuple(dict.fromkeys((PROXY_UID if uid is None else uid, *root)))
