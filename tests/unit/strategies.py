"""Settings and text that hypothesis makes up for the property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from istio_init.model import UINT32_MAX, Mode
from istio_init.options import ENABLE_INBOUND_IPV6, ENVOY_USER, OPTIONS
from istio_init.settings import NO_ACCOUNTS, Settings, parse_settings
from istio_init.values import ALL, ID_MAX, PORT_MAX, RESERVED_ROUTE_TABLES, Value

NAMES = tuple(option.name for option in OPTIONS)

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

port_lists = lists(ports.map(str) | port_ranges)
cidr_lists = lists(addresses | cidrs)

# What is allowed for each setting.
VALUES: dict[str, st.SearchStrategy[str]] = {
    "envoy_port": ports.map(str),
    "inbound_capture_port": ports.map(str),
    "proxy_uids": lists(ids.map(str), min_size=1),
    "proxy_gids": lists(ids.map(str), min_size=1),
    "mode": st.sampled_from(Mode).map(str),
    "tproxy_mark": st.integers(1, UINT32_MAX).flatmap(lambda mark: st.sampled_from((str(mark), hex(mark)))),
    "tproxy_route_table": st.integers(1, UINT32_MAX).filter(lambda table: table not in RESERVED_ROUTE_TABLES).map(str),
    "inbound_ports": st.just(ALL) | port_lists,
    "inbound_exclude_ports": port_lists,
    "service_cidrs": st.just(ALL) | cidr_lists,
    "service_exclude_cidrs": cidr_lists,
}
WITHOUT_FLAG: dict[str, st.SearchStrategy[str]] = {ENVOY_USER: ids.map(str), ENABLE_INBOUND_IPV6: st.sampled_from(("", "1"))}


def _parse(texts: dict[str, str]) -> Settings:
    return parse_settings({name: Value(text, name) for name, text in texts.items()}, NO_ACCOUNTS)


valid_settings = st.fixed_dictionaries({}, optional=VALUES | WITHOUT_FLAG).map(_parse)

# Text that comes close to being allowed finds more than text of any kind.
nearly_valid = st.text(alphabet="0123456789,:-/.* xaf", max_size=20)
hostile = st.builds(
    lambda value, place, insertion: value[:place] + insertion + value[place:],
    st.one_of(*VALUES.values()),
    st.integers(0, 20),
    st.sampled_from(
        (";reboot", "$(reboot)", "`reboot`", "\n-A INPUT -j ACCEPT", " -j ACCEPT", "\\", '"', "'", "|", "&", "\0")
    ),
)
any_text = st.text() | nearly_valid | hostile | st.one_of(*VALUES.values())
