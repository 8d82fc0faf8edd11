"""What a user can ask for: the table of settings, their validation, and the frozen result.

One row of `OPTIONS` is one setting: the command line, the look-up of environment variables, the help text and the README's
table all come from it. Names, variables and defaults are those of Istio 1.0.5's `istio-iptables.sh` (short flags) and of
today's `pilot-agent istio-iptables` (long flags).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from istio_init.errors import InvalidInput
from istio_init.model import ENVOY_PORT, PROXY_UID, TPROXY_MARK, TPROXY_ROUTE_TABLE, UINT32_MAX, Mode

T = TypeVar("T")

ALL = "*"
PORT_MAX = 65535
ID_MAX = 4294967294  # 2^32 - 1 is the kernel's "no such id"
IPV4_BITS = 32
RESERVED_ROUTE_TABLES = range(253, 256)  # default, main and local: iproute2's /etc/iproute2/rt_tables


class Option(NamedTuple):
    """One setting as users see it.

    Attributes:
        name: the field of `Settings`.
        flags: the command-line names, the short one first.
        variables: environment variables; the first one that is set wins.
        metavar: what `--help` shows for the value.
        help: what it does, its default included.
        is_list: whether an empty value means something ("none"). For the others an empty *variable* counts as not
            set, as `${VAR:-default}` did in the old script.
    """

    name: str
    flags: tuple[str, str]
    variables: tuple[str, ...]
    metavar: str
    help: str
    is_list: bool = False


OPTIONS = (
    Option("envoy_port", ("-p", "--envoy-port"), ("ENVOY_PORT",), "PORT",
           f"Port that Envoy accepts outbound connections on. Default: {ENVOY_PORT}."),
    Option("inbound_capture_port", ("-z", "--inbound-capture-port"), ("INBOUND_CAPTURE_PORT",), "PORT",
           "Port that Envoy accepts inbound connections on. Default: the value of -p."),
    Option("proxy_uids", ("-u", "--proxy-uid"), ("PROXY_UID",), "UIDS",
           "Users (ids or names) whose traffic is not redirected: the proxy's own. Default: the user that ENVOY_USER "
           f"names, else istio-proxy, else {PROXY_UID}; and 0."),
    Option("proxy_gids", ("-g", "--proxy-gid"), ("PROXY_GID",), "GIDS",
           "Groups (ids or names) whose traffic is not redirected. Default: the value of -u."),
    Option("mode", ("-m", "--istio-inbound-interception-mode"), ("ISTIO_INBOUND_INTERCEPTION_MODE",), "MODE",
           "How inbound connections reach Envoy: REDIRECT, or TPROXY, which keeps the client's address. "
           "Default: REDIRECT."),
    Option("tproxy_mark", ("-t", "--istio-inbound-tproxy-mark"), ("ISTIO_INBOUND_TPROXY_MARK",), "MARK",
           f"Mark of packets that TPROXY diverts. Default: {TPROXY_MARK}."),
    Option("tproxy_route_table", ("-r", "--istio-inbound-tproxy-route-table"), ("ISTIO_INBOUND_TPROXY_ROUTE_TABLE",),
           "TABLE", f"Routing table that delivers marked packets to this host. Default: {TPROXY_ROUTE_TABLE}."),
    Option("inbound_ports", ("-b", "--istio-inbound-ports"), ("ISTIO_INBOUND_PORTS",), "PORTS",
           "Inbound ports to capture: a list of ports and ranges, '*' for all, empty for none. Default: none.",
           is_list=True),
    Option("inbound_exclude_ports", ("-d", "--istio-local-exclude-ports"),
           ("ISTIO_LOCAL_EXCLUDE_PORTS", "ISTIO_INBOUND_EXCLUDE_PORTS"), "PORTS",
           "Inbound ports to leave alone; counts only with -b '*'. Default: none.", is_list=True),
    Option("service_cidrs", ("-i", "--istio-service-cidr"), ("ISTIO_SERVICE_CIDR",), "CIDRS",
           "Destinations whose outbound connections to capture: a list of CIDRs, '*' for all, empty for none. "
           "Default: none.", is_list=True),
    Option("service_exclude_cidrs", ("-x", "--istio-service-exclude-cidr"), ("ISTIO_SERVICE_EXCLUDE_CIDR",), "CIDRS",
           "Destinations to leave alone, checked before -i. Default: none.", is_list=True),
)  # fmt: skip

# Variables without a flag. Both are those of Istio 1.0.5's script.
ENVOY_USER = "ENVOY_USER"
ENABLE_INBOUND_IPV6 = "ENABLE_INBOUND_IPV6"


class Value(NamedTuple):
    """A value as text, and where it came from in the user's words (`-p`, `$ENVOY_PORT (/etc/x.env:3)`)."""

    text: str
    where: str


class Accounts(NamedTuple):
    """How names of users and groups become ids; each function gives None for a name that does not exist."""

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]


NO_ACCOUNTS = Accounts(uid=lambda _: None, gid=lambda _: None)


class Settings(NamedTuple):
    """Validated settings of one pod's interception.

    Attributes:
        inbound_ports: `("*",)` for all, else ports `"80"` and ranges `"8000:8100"`, or empty for none.
        inbound_exclude_ports: as `inbound_ports`, without `"*"`.
        service_cidrs: `("*",)` for all, else canonical IPv4 CIDRs, or empty for none.
        service_exclude_cidrs: canonical IPv4 CIDRs.
        close_inbound_ipv6: whether connections from outside over IPv6 are rejected (nothing could capture them).
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
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, **values: str) -> "Settings":
        """Make settings from text, as flags would: `Settings.of(inbound_ports="9080", service_cidrs="*")`.

        Args:
            values: any of the names in `OPTIONS`, and `ENABLE_INBOUND_IPV6` or `ENVOY_USER`.

        Raises:
            InvalidInput: a name or a value is not allowed.
        """
        known = {option.name for option in OPTIONS} | {ENABLE_INBOUND_IPV6, ENVOY_USER}
        for name in values:
            if name not in known:
                raise InvalidInput(name, "there is no such setting", ", ".join(sorted(known)))
        return parse_settings({name: Value(text, name) for name, text in values.items()}, NO_ACCOUNTS)


def parse_settings(values: Mapping[str, Value], accounts: Accounts) -> Settings:
    """Validate the values that were given, and fill in the defaults of the others.

    Args:
        values: by `Option.name`; also `ENVOY_USER` and `ENABLE_INBOUND_IPV6`.
        accounts: resolves names of users and groups.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    warnings: list[str] = []
    envoy_port = _one(values, "envoy_port", _port, ENVOY_PORT)
    uids = _owners(values, "proxy_uids", accounts.uid, "user") or _default_uids(values, accounts)
    ports = _items(values, "inbound_ports", _port_range, all_allowed=True)
    excluded_ports = _items(values, "inbound_exclude_ports", _port_range)
    if excluded_ports and ports != (ALL,):
        warnings.append(f"{values['inbound_exclude_ports'].where} has no effect: it counts only with -b '*'")

    ipv6 = values.get(ENABLE_INBOUND_IPV6)
    if ipv6 is not None and ipv6.text.strip().lower() in ("0", "false", "no", "off"):
        warnings.append(f"{ipv6.where} is {ipv6.text!r}, but any value opens inbound IPv6; leave it out to keep IPv6 closed")

    def cidr(text: str, where: str) -> str:
        canonical, masked = parse_ipv4_cidr(text, where)
        if masked:
            warnings.append(f"{where}: {text!r} has host bits set and is taken as {canonical}")
        return canonical

    return Settings(
        envoy_port=envoy_port,
        inbound_capture_port=_one(values, "inbound_capture_port", _port, envoy_port),
        proxy_uids=uids,
        proxy_gids=_owners(values, "proxy_gids", accounts.gid, "group") or uids,
        mode=_one(values, "mode", _mode, Mode.REDIRECT),
        tproxy_mark=_one(values, "tproxy_mark", _mark, TPROXY_MARK),
        tproxy_route_table=_one(values, "tproxy_route_table", _route_table, TPROXY_ROUTE_TABLE),
        inbound_ports=ports,
        inbound_exclude_ports=excluded_ports,
        service_cidrs=_items(values, "service_cidrs", cidr, all_allowed=True),
        service_exclude_cidrs=_items(values, "service_exclude_cidrs", cidr),
        close_inbound_ipv6=not (ENABLE_INBOUND_IPV6 in values and values[ENABLE_INBOUND_IPV6].text),
        warnings=tuple(warnings),
    )


def parse_ipv4_cidr(text: str, where: str) -> tuple[str, bool]:
    """Give the canonical form of an IPv4 CIDR or bare address, and whether host bits had to be masked for it.

    Raises:
        InvalidInput: `text` is neither.
    """
    from ipaddress import AddressValueError, IPv4Address  # noqa: PLC0415 - a pod's usual arguments have no CIDR

    address_text, slash, prefix_text = text.partition("/")
    allowed = "an IPv4 address with a prefix length of 0..32, such as 10.0.0.0/8"
    if ":" in address_text:
        raise InvalidInput(where, f"{text!r} is an IPv6 CIDR, and layout istio-1.0 captures IPv4 only", allowed)
    if address_text == ALL:
        raise InvalidInput(where, f"{text!r} is not possible here", allowed)
    try:
        address = int(IPv4Address(address_text))
    except AddressValueError:
        raise InvalidInput(where, f"{text!r} is not a CIDR", allowed) from None
    prefix = _number(prefix_text) if slash else IPV4_BITS
    if prefix is None or prefix > IPV4_BITS:
        raise InvalidInput(where, f"{text!r} has no valid prefix length", allowed)
    network = address >> (IPV4_BITS - prefix) << (IPV4_BITS - prefix)
    # Formatting is the dear part for thousands of CIDRs, and most are canonical already.
    canonical = address_text if network == address else str(IPv4Address(network))
    return f"{canonical}/{prefix}", network != address


def _one(values: Mapping[str, Value], name: str, parse: Callable[[str, str], T], default: T) -> T:
    return parse(*values[name]) if name in values else default


def _items(
    values: Mapping[str, Value],
    name: str,
    parse: Callable[[str, str], str],
    *,
    all_allowed: bool = False,
) -> tuple[str, ...]:
    """Split a comma-separated list, validate its items, and drop repetitions."""
    if name not in values:
        return ()
    text, where = values[name]
    words = [word for word in map(str.strip, text.split(",")) if word]
    if ALL in words and all_allowed:
        if len(words) > 1:
            raise InvalidInput(where, f"{text!r} has '*' among other items", "'*' alone, or a list without it")
        return (ALL,)
    return tuple(dict.fromkeys(parse(word, where) for word in words))


def _owners(
    values: Mapping[str, Value],
    name: str,
    resolve: Callable[[str], int | None],
    noun: str,
) -> tuple[int, ...]:
    """Read a list of ids and names; a list that is given has at least one."""
    if name not in values:
        return ()
    text, where = values[name]
    allowed = f"ids 0..{ID_MAX} and names of existing {noun}s, comma-separated"

    def owner(word: str, where: str) -> str:
        number = _number(word)
        if number is None:
            number = resolve(word)
        if number is None:
            raise InvalidInput(where, f"there is no {noun} {word!r}", allowed)
        if number > ID_MAX:
            raise InvalidInput(where, f"{word!r} is too large for an id", allowed)
        return str(number)

    ids = _items(values, name, owner)
    if not ids:
        raise InvalidInput(where, f"{text!r} names no {noun}, and without one the proxy would loop", allowed)
    return tuple(int(one) for one in ids)


def _default_uids(values: Mapping[str, Value], accounts: Accounts) -> tuple[int, ...]:
    """Give the proxy's user, and root: in a virtual machine its agent fetches certificates (Istio 1.0.5)."""
    if ENVOY_USER in values:
        return tuple(dict.fromkeys((*_owners(values, ENVOY_USER, accounts.uid, "user"), 0)))
    uid = accounts.uid("istio-proxy")
    return tuple(dict.fromkeys((PROXY_UID if uid is None else uid, 0)))


def _number(text: str) -> int | None:
    """Read plain decimal digits; `int` alone would also take signs, underscores, spaces and other scripts' digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(UINT32_MAX)) else None


def _port(text: str, where: str) -> int:
    port = _number(text)
    if port is None or not 1 <= port <= PORT_MAX:
        raise InvalidInput(where, f"{text!r} is not a port", f"1..{PORT_MAX}")
    return port


def _port_range(text: str, where: str) -> str:
    first, dash, last = text.replace("-", ":", 1).partition(":")
    low = _number(first)
    high = _number(last) if dash else low
    if low is None or high is None or not 1 <= low <= high <= PORT_MAX:
        allowed = f"ports 1..{PORT_MAX} and ranges such as 8000-8100, comma-separated"
        raise InvalidInput(where, f"{text!r} is not a port or range", allowed)
    return str(low) if low == high else f"{low}:{high}"


def _mode(text: str, where: str) -> Mode:
    if text not in Mode.__members__:
        raise InvalidInput(where, f"{text!r} is not a mode{_nearest(text)}", " or ".join(Mode))
    return Mode[text]


def _nearest(text: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only for an error, and dear to import

    close = get_close_matches(text.upper(), list(Mode), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _mark(text: str, where: str) -> int:
    mark = int(text, 16) if _is_hexadecimal(text) else _number(text)
    if mark is None or not 1 <= mark <= UINT32_MAX:
        raise InvalidInput(where, f"{text!r} is not a packet mark", f"1..{UINT32_MAX}, or 0x1..0xffffffff")
    return mark


def _is_hexadecimal(text: str) -> bool:
    digits = text.removeprefix("0x")
    return digits != text and 0 < len(digits) <= len("ffffffff") and all(c in "0123456789abcdefABCDEF" for c in digits)


def _route_table(text: str, where: str) -> int:
    table = _number(text)
    if table is None or not 1 <= table <= UINT32_MAX or table in RESERVED_ROUTE_TABLES:
        allowed = f"1..{UINT32_MAX}, but not 253..255, which the system uses"
        raise InvalidInput(where, f"{text!r} is not a routing table of our own", allowed)
    return table
