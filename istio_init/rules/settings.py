"""Validated settings: `Settings`, the immutable result of the table in `istio_init.rules.options`."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple
from istio_init.core.option import Value, read_chosen
from istio_init.rules import values as parse
from istio_init.rules.layout import ISTIO_1_0, Layout, find, names_with
from istio_init.rules.model import (
    DNS_PORT,
    ENVOY_PORT,
    LOOP_MARK,
    LOOPBACK_CIDR,
    PROXY_UID,
    TPROXY_MARK,
    TPROXY_ROUTE_TABLE,
    TUNNEL_PORT,
    Jump,
    Mode,
)
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER, MAX_GROUPS, OPTIONS
from istio_init.rules.values import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


class AccountKind(NamedTuple):
    """Users or groups.

    Attributes:
        noun: `user` or `group`, for errors.
        resolve: returns the id of a name, or None if the name does not exist.
    """

    noun: str
    resolve: Callable[[str], int | None]

    @property
    def allowed(self) -> str:
        """What a list of them may contain, for errors."""
        return f"ids 0..{parse.ID_MAX} and names of existing {self.noun}s, comma-separated"


class Accounts(NamedTuple):
    """Resolves names of users and groups to ids; each function returns None for a name that does not exist."""

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]

    @property
    def users(self) -> AccountKind:
        """The users, with this resolver."""
        return AccountKind("user", self.uid)

    @property
    def groups(self) -> AccountKind:
        """The groups, with this resolver."""
        return AccountKind("group", self.gid)


class HostFacts(NamedTuple):
    """Facts about the pod that layouts with `asks_host_facts` depend on.

    Attributes:
        nameservers: the servers of resolv.conf, IPv4 and IPv6, canonical.
        is_ipv6: whether the pod's first address, loopback and link-local ones aside, is one of IPv6.
        has_ipv6: whether any such address is one of IPv6; where the pod's addresses are not known, dual stack is taken at
            its word.
    """

    nameservers: tuple[str, ...] = ()
    is_ipv6: bool = False
    has_ipv6: bool = True


NO_ACCOUNTS = Accounts(uid=lambda _: None, gid=lambda _: None)
NO_FACTS = HostFacts()
CIDRS = ("inbound_exclude_cidrs", "service_cidrs", "service_exclude_cidrs")
# Settings that are the values of their rows, and depend on nothing else.
AS_READ = (
    *("envoy_port", "mode", "tproxy_mark", "tproxy_route_table", "inbound_ports", "inbound_exclude_ports", "tunnel_port"),
    *("outbound_ports", "outbound_exclude_ports", "exclude_interfaces", "virtual_interfaces", "capture_all_dns"),
    *("drop_invalid", "dns_port", "forward_dns", "jump"),
)


class Settings(NamedTuple):
    """Validated settings for one pod's interception. Settings that the layout does not support have their defaults.

    Attributes:
        inbound_ports: `("*",)` for all, else ports `"80"` and ranges `"8000:8100"`; empty for none.
        inbound_exclude_ports: as `inbound_ports`, without `"*"`; so are the other lists of ports.
        inbound_exclude_cidrs: canonical CIDRs of senders.
        service_cidrs: `("*",)` for all, else canonical CIDRs, or empty for none.
        service_exclude_cidrs: canonical CIDRs.
        close_inbound_ipv6: whether connections from outside over IPv6 are rejected (nothing could capture them).
        layout: which rules these settings are for; never an alias.
        owner_groups: `("*",)` for all, else group ids, or empty for none.
        owner_groups_exclude: group ids; empty unless all groups are captured.
        ipv6: whether IPv6 is captured, too.
        outbound_exclude_ports_for_uids: with ids, not names.
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
    inbound_exclude_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    service_exclude_cidrs: tuple[str, ...] = ()
    close_inbound_ipv6: bool = True
    layout: str = ISTIO_1_0
    tunnel_port: int = TUNNEL_PORT
    outbound_ports: tuple[str, ...] = ()
    outbound_exclude_ports: tuple[str, ...] = ()
    outbound_exclude_ports_for_uids: tuple[parse.PortsOfUser, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()
    redirect_dns: bool = False
    dns_port: int = DNS_PORT
    capture_all_dns: bool = False
    forward_dns: bool = False
    drop_invalid: bool = False
    ipv6: bool = False
    owner_groups: tuple[str, ...] = (ALL,)
    owner_groups_exclude: tuple[str, ...] = ()
    loopback_cidr: str = LOOPBACK_CIDR
    jump: str = Jump.LAST
    nameservers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, layout: str = ISTIO_1_0, **values: str) -> Settings:
        """Create settings from text, like flags: `Settings.of(inbound_ports="9080", service_cidrs="*")`.

        Names of users and groups are not resolved; only ids are accepted.

        Args:
            layout: name or alias of the layout.
            values: by `Option.name` of `OPTIONS`, and `ENABLE_INBOUND_IPV6` and `ENVOY_USER`.

        Raises:
            InvalidInput: a name or a value is not allowed.
        """
        find(layout, "layout")
        known = {option.name for option in OPTIONS} | {ENABLE_INBOUND_IPV6, ENVOY_USER}
        for name in values:
            if name not in known:
                raise InvalidInput(name, "there is no such setting", ", ".join(sorted(known)))
        return parse_settings({name: Value(text, name) for name, text in values.items()}, NO_ACCOUNTS, layout)


def parse_settings(
    values: Mapping[str, Value], accounts: Accounts, layout: str = ISTIO_1_0, facts: HostFacts = NO_FACTS
) -> Settings:
    """Validate the given values, and fill in defaults for the others.

    Args:
        values: by `Option.name`; also `ENVOY_USER` and `ENABLE_INBOUND_IPV6`.
        accounts: resolves names of users and groups.
        layout: name or alias of the layout.
        facts: facts about the pod; ignored if the layout does not depend on them.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    chosen = find(layout)
    _reject_unsupported(values, chosen)
    found = read_chosen(OPTIONS, values)
    facts = facts if chosen.asks_host_facts else NO_FACTS
    uids = _ids(found, values, "proxy_uids", accounts.users) or _default_uids(values, accounts, chosen)
    groups, excluded_groups = _groups(found, values, accounts)
    cidrs: dict[str, Any] = {name: tuple(dict.fromkeys(map(_canonical, found[name]))) for name in CIDRS}
    settings = Settings(
        **{name: found[name] for name in AS_READ},
        **cidrs,
        inbound_capture_port=found["inbound_capture_port"] or chosen.inbound_port or found["envoy_port"],
        proxy_uids=uids,
        proxy_gids=_ids(found, values, "proxy_gids", accounts.groups) or uids,
        outbound_exclude_ports_for_uids=_ports_of_users(found, values, accounts),
        close_inbound_ipv6=not (chosen.captures_ipv6 or _is_set(values, ENABLE_INBOUND_IPV6)),
        layout=layout,
        redirect_dns=found["redirect_dns"] and bool(found["capture_all_dns"] or facts.nameservers),
        ipv6=facts.is_ipv6 or (found["dual_stack"] and facts.has_ipv6),
        owner_groups=groups,
        owner_groups_exclude=excluded_groups,
        loopback_cidr=_canonical(found["loopback_cidr"]),
        nameservers=facts.nameservers,
    )
    _reject_contradictions(settings, values, chosen)
    _reject_ipv6(found, values, chosen)
    _reject_udp(found, values, chosen)
    return settings._replace(warnings=tuple(_warnings(settings, found, values, chosen)))


def _is_set(values: Mapping[str, Value], name: str) -> bool:
    return name in values and bool(values[name].text)


def _reject_unsupported(values: Mapping[str, Value], layout: Layout) -> None:
    """Reject settings that only another layout supports."""
    for option in OPTIONS:
        if option.name in values and not layout.has(option):
            others = " or ".join(names_with(lambda other: other.has(option)))  # noqa: B023 - called here
            problem = f"layout {layout.name} does not support it"
            raise InvalidInput(values[option.name].where, problem, f"layout {others} (--layout)")


def _reject_ipv6(found: Mapping[str, Any], values: Mapping[str, Value], layout: Layout) -> None:
    """Reject IPv6 CIDRs if the layout does not capture IPv6."""
    for name in CIDRS:
        for one in () if layout.captures_ipv6 else found[name]:
            if ":" in _canonical(one):
                others = " or ".join(names_with(lambda other: other.captures_ipv6))
                problem = f"{one.written!r} is an IPv6 CIDR, but layout {layout.name} captures only IPv4"
                raise InvalidInput(values[name].where, problem, f"{parse.IPV4_CIDR}; layout {others} also captures IPv6")


def _reject_udp(found: Mapping[str, Any], values: Mapping[str, Value], layout: Layout) -> None:
    """Reject ports of UDP where nothing of it is captured."""
    name = "outbound_exclude_ports_for_uids"
    if not layout.captures_udp and any(one.protocol == "udp" for one in found[name]):
        others = " or ".join(names_with(lambda other: other.captures_udp))
        problem = f"it lists ports of UDP, of which layout {layout.name} captures nothing"
        raise InvalidInput(values[name].where, problem, f"tcp:PORT:UID; layout {others} takes udp:PORT:UID, too")


def _reject_contradictions(settings: Settings, values: Mapping[str, Value], layout: Layout) -> None:
    """Reject values that are each valid but conflict with each other."""
    if layout.reserves_loop_mark and settings.mode is Mode.TPROXY and settings.tproxy_mark == LOOP_MARK:
        problem = f"{LOOP_MARK} is reserved for the proxy's traffic to its own pod"
        raise InvalidInput(values["tproxy_mark"].where, problem, "any other mark")
    for name, port in (("envoy_port", settings.envoy_port), ("inbound_capture_port", settings.inbound_capture_port)):
        if settings.redirect_dns and port == settings.dns_port:
            problem = f"{port} is the port of the proxy's resolver, which {values['redirect_dns'].where} uses"
            if name not in values:
                problem = f"{port} is the port of the proxy's listener"
            raise InvalidInput(values[name if name in values else "dns_port"].where, problem, "any other port")


def _warnings(settings: Settings, found: Mapping[str, Any], values: Mapping[str, Value], layout: Layout) -> Iterator[str]:
    """Yield what the user should know about accepted values."""
    yield from _cidr_warnings(settings, found, values, layout)
    if settings.inbound_exclude_ports and settings.inbound_ports != (ALL,):
        yield f"{values['inbound_exclude_ports'].where} has no effect: it applies only with -b '*'"
    if settings.mode is not Mode.TPROXY:
        given = [values[name].where for name in ("tproxy_mark", "tproxy_route_table") if name in values]
        yield from (f"{where} has no effect: it applies only with -m {Mode.TPROXY}" for where in given)
    if found["owner_groups_exclude"] and settings.owner_groups != (ALL,):
        yield f"{values['owner_groups_exclude'].where} has no effect: {values['owner_groups'].where} says which are captured"
    if found["dual_stack"] and not settings.ipv6:
        yield f"{values['dual_stack'].where} has no effect: this pod has no IPv6 address"
    if not settings.redirect_dns:
        yield from _dns_warnings(settings, found, values)
    if settings.inbound_exclude_cidrs and not settings.inbound_ports:
        yield f"{values['inbound_exclude_cidrs'].where} has no effect: nothing inbound is captured (-b)"
    ipv6 = values.get(ENABLE_INBOUND_IPV6)
    if ipv6 and not layout.captures_ipv6 and ipv6.text.strip().lower() in ("0", "false", "no", "off"):
        yield f"{ipv6.where} is {ipv6.text!r}, but any value allows inbound IPv6; leave it unset to reject inbound IPv6"


def _dns_warnings(settings: Settings, found: Mapping[str, Any], values: Mapping[str, Value]) -> Iterator[str]:
    """Tell of what is asked for of DNS, which is not captured."""
    if found["redirect_dns"]:
        yield "DNS is not captured, because resolv.conf has no nameserver; --capture-all-dns captures requests to any server"
        return
    given = [values[name].where for name in ("capture_all_dns", "dns_port", "forward_dns") if name in values and found[name]]
    yield from (f"{where} has no effect: it applies only with --redirect-dns" for where in given)
    if any(one.protocol == "udp" for one in settings.outbound_exclude_ports_for_uids):
        where = values["outbound_exclude_ports_for_uids"].where
        yield f"{where}: its ports of UDP have no effect: UDP is captured only with --redirect-dns"


def _cidr_warnings(
    settings: Settings, found: Mapping[str, Any], values: Mapping[str, Value], layout: Layout
) -> Iterator[str]:
    """Tell of host bits, and of lists that have CIDRs of IPv6 where IPv6 is off."""
    for name in (*CIDRS, "loopback_cidr"):
        for one in (found[name],) if isinstance(found[name], parse.Cidr) else found[name]:
            if one != ALL and one.masked:
                yield f"{values[name].where}: {one.written!r} has host bits set and is read as {one.canonical}"
    for name in CIDRS if layout.captures_ipv6 and not settings.ipv6 else ():
        if any(":" in cidr for cidr in getattr(settings, name)):
            remedy = "" if found["dual_stack"] else "; --dual-stack turns it on"
            yield f"{values[name].where}: its IPv6 CIDRs have no effect, because IPv6 is not captured here{remedy}"


def _canonical(cidr: parse.Cidr | str) -> str:
    return cidr if isinstance(cidr, str) else cidr.canonical


def _ids(found: Mapping[str, Any], values: Mapping[str, Value], name: str, kind: AccountKind) -> tuple[int, ...]:
    """Return the ids for a list of ids and names; () if the list was not given. A given list must not be empty."""
    if name not in values:
        return ()
    if not found[name]:
        problem = f"{values[name].text!r} names no {kind.noun}, so the proxy's own traffic would loop"
        raise InvalidInput(values[name].where, problem, kind.allowed)
    return _resolved(found[name], values[name].where, kind)


def _resolved(owners: Iterable[int | str], where: str, kind: AccountKind) -> tuple[int, ...]:
    ids = []
    for owner in owners:
        found = kind.resolve(owner) if isinstance(owner, str) else owner
        if found is None:
            raise InvalidInput(where, f"there is no {kind.noun} {owner!r}", kind.allowed)
        ids.append(found)
    return tuple(dict.fromkeys(ids))


def _ports_of_users(
    found: Mapping[str, Any], values: Mapping[str, Value], accounts: Accounts
) -> tuple[parse.PortsOfUser, ...]:
    """Return ports of single users with the users' ids.

    Raises:
        InvalidInput: a user does not exist.
    """
    name = "outbound_exclude_ports_for_uids"
    items: dict[parse.PortsOfUser, None] = {}
    for one in found[name]:
        try:
            (uid,) = _resolved((one.user,), values[name].where, accounts.users)
        except InvalidInput as error:
            raise InvalidInput(error.where, f"{str(one)!r}: {error.problem}", error.allowed) from None
        items[one._replace(user=uid)] = None
    return tuple(items)


def _groups(
    found: Mapping[str, Any], values: Mapping[str, Value], accounts: Accounts
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the groups to capture and those to leave alone; the latter count only where all are captured.

    Raises:
        InvalidInput: a group does not exist, or more are to be captured than one rule can name.
    """
    names = ("owner_groups", "owner_groups_exclude")
    captured, excluded = (
        tuple(found[name])
        if found[name] in ((), (ALL,))
        else tuple(map(str, _resolved(found[name], values[name].where, accounts.groups)))
        for name in names
    )
    if captured == (ALL,):
        return captured, excluded
    if len(captured) > MAX_GROUPS:
        raise InvalidInput(values["owner_groups"].where, f"{len(captured)} groups are too many", f"at most {MAX_GROUPS}")
    return captured, ()


def _default_uids(values: Mapping[str, Value], accounts: Accounts, layout: Layout) -> tuple[int, ...]:
    """Return the proxy's user, and root if the layout's proxy has programs that run as root."""
    root = (0,) if layout.is_root_proxy else ()
    if ENVOY_USER in values:
        text, where = values[ENVOY_USER]
        named = parse.listed(parse.owner)(text, where)
        return tuple(dict.fromkeys((*_ids({ENVOY_USER: named}, values, ENVOY_USER, accounts.users), *root)))
    uid = accounts.uid("istio-proxy")
    return tuple(dict.fromkeys((PROXY_UID if uid is None else uid, *root)))
