"""Settings and text that hypothesis makes up for the property tests."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import assume
from hypothesis import strategies as st

from istio_init.core.option import Value
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS
from istio_init.rules.model import DNS_PORT, ENVOY_PORT, INBOUND_PORT, UINT32_MAX, Jump, Mode
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER, MAX_GROUPS, OPTIONS
from istio_init.rules.settings import NO_ACCOUNTS, HostFacts, Settings, parse_settings
from istio_init.rules.values import ALL, BOOLS, ID_MAX, INTERFACE_BYTES, PORT_MAX, RESERVED_ROUTE_TABLES

NAMES = tuple(option.name for option in OPTIONS)
NAMES_OF = {layout: tuple(option.name for option in OPTIONS if LAYOUTS[layout].has(option)) for layout in LAYOUTS}

ports = st.integers(1, PORT_MAX)
ids = st.integers(0, ID_MAX)


def lists(items: st.SearchStrategy[str], *, min_size: int = 0) -> st.SearchStrategy[str]:
    """Write items as a user may: spaces round them, and items that are empty or there twice."""
    separator = st.sampled_from((",", ", ", " ,", ",,"))
    return st.builds(lambda words, comma: comma.join(words), st.lists(items, min_size=min_size, max_size=5), separator)


port_ranges = st.builds(
    lambda first, last, dash: f"{min(first, last)}{dash}{max(first, last)}",
    ports,
    ports,
    st.sampled_from("-:"),
)
addresses = st.ip_addresses(v=4).map(str)
cidrs = st.builds(lambda address, prefix: f"{address}/{prefix}", addresses, st.integers(0, 32))

ipv6_addresses = st.ip_addresses(v=6).map(str)
ipv6_cidrs = st.builds(lambda address, prefix: f"{address}/{prefix}", ipv6_addresses, st.integers(0, 128))
loopback_cidrs = st.builds(
    lambda host, prefix: f"{IPv4Address((127 << 24 | host) >> (32 - prefix) << (32 - prefix))}/{prefix}",
    st.integers(0, (1 << 24) - 1),
    st.integers(8, 32),
)
letters = st.characters(codec="ascii", categories=("L", "N"), include_characters="_.-:@")
interfaces = st.builds(
    lambda name, end: name + end,
    st.text(letters, min_size=1, max_size=INTERFACE_BYTES - 1).filter(lambda name: name[0] != "-"),
    st.sampled_from(("", "+")),
)
booleans = st.sampled_from(tuple(BOOLS))

port_lists = lists(ports.map(str) | port_ranges)
cidr_lists = lists(addresses | cidrs)
cidr_lists_of_both = lists(addresses | cidrs | ipv6_addresses | ipv6_cidrs)
group_lists = lists(ids.map(str))


def ports_of_users(*protocols: str) -> st.SearchStrategy[str]:
    """Make ports of single users."""
    one = st.builds(lambda *words: ":".join(words), st.sampled_from(protocols), ports.map(str) | port_ranges, ids.map(str))
    return lists(one)


assert MAX_GROUPS >= 5, "lists have up to five items"

# What is allowed for each setting of layout istio-1.0.
VALUES: dict[str, st.SearchStrategy[str]] = {
    "envoy_port": ports.map(str),
    "inbound_capture_port": ports.map(str),
    "proxy_uids": lists(ids.map(str), min_size=1),
    "proxy_gids": lists(ids.map(str), min_size=1),
    "mode": st.sampled_from(list(Mode)).map(str),
    "tproxy_mark": st.integers(1, UINT32_MAX).flatmap(lambda mark: st.sampled_from((str(mark), hex(mark)))),
    "tproxy_route_table": st.integers(1, UINT32_MAX).filter(lambda table: table not in RESERVED_ROUTE_TABLES).map(str),
    "inbound_ports": st.just(ALL) | port_lists,
    "inbound_exclude_ports": port_lists,
    "inbound_exclude_cidrs": cidr_lists,
    "outbound_exclude_ports_for_uids": ports_of_users("tcp"),
    "service_cidrs": st.just(ALL) | cidr_lists,
    "service_exclude_cidrs": cidr_lists,
    "jump": st.sampled_from(list(Jump)).map(str),
}
# And of layout current.
VALUES_OF_CURRENT: dict[str, st.SearchStrategy[str]] = VALUES | {
    "service_cidrs": st.just(ALL) | cidr_lists_of_both,
    "service_exclude_cidrs": cidr_lists_of_both,
    "inbound_exclude_cidrs": cidr_lists_of_both,
    "outbound_exclude_ports_for_uids": ports_of_users("tcp", "udp"),
    "dns_port": ports.map(str),
    "tunnel_port": ports.map(str),
    "outbound_ports": port_lists,
    "outbound_exclude_ports": port_lists,
    "exclude_interfaces": lists(interfaces),
    "virtual_interfaces": lists(interfaces),
    "redirect_dns": booleans,
    "capture_all_dns": booleans,
    "forward_dns": booleans,
    "drop_invalid": booleans,
    "dual_stack": booleans,
    "owner_groups": st.just(ALL) | group_lists,
    "owner_groups_exclude": group_lists,
    "loopback_cidr": loopback_cidrs,
}
WITHOUT_FLAG: dict[str, st.SearchStrategy[str]] = {ENVOY_USER: ids.map(str), ENABLE_INBOUND_IPV6: st.sampled_from(("", "1"))}


machines = st.builds(
    lambda nameservers, families: HostFacts(tuple(dict.fromkeys(nameservers)), *families),
    st.lists(addresses | ipv6_addresses, max_size=3),
    st.sampled_from(((False, False), (False, True), (True, True))),  # IPv4, both, IPv6
)


def _parse(texts: dict[str, str], layout: str, facts: HostFacts) -> Settings:
    # The proxy's listeners and its resolver cannot share a port.
    envoy, inbound = texts.get("envoy_port", str(ENVOY_PORT)), texts.get("inbound_capture_port", str(INBOUND_PORT))
    assume(texts.get("dns_port", str(DNS_PORT)) not in (envoy, inbound))
    return parse_settings({name: Value(text, name) for name, text in texts.items()}, NO_ACCOUNTS, layout, facts)


settings_of_1_0 = st.builds(_parse, st.fixed_dictionaries({}, optional=VALUES | WITHOUT_FLAG), st.just(ISTIO_1_0), machines)
settings_of_current = st.builds(
    _parse,
    st.fixed_dictionaries({}, optional=VALUES_OF_CURRENT | {ENVOY_USER: WITHOUT_FLAG[ENVOY_USER]}),
    st.just(ISTIO_1_30),
    machines,
)
valid_settings = settings_of_1_0 | settings_of_current

# Text that comes close to being allowed finds more than text of any kind.
nearly_valid = st.text(alphabet="0123456789,:-/.* xaf", max_size=20)
hostile = st.builds(
    lambda value, place, insertion: value[:place] + insertion + value[place:],
    st.one_of(*VALUES_OF_CURRENT.values()),
    st.integers(0, 20),
    st.sampled_from(
        (";reboot", "$(reboot)", "`reboot`", "\n-A INPUT -j ACCEPT", " -j ACCEPT", "\\", '"', "'", "|", "&", "\0")
    ),
)
any_text = st.text() | nearly_valid | hostile | st.one_of(*VALUES_OF_CURRENT.values())
