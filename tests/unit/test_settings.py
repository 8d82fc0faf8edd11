"""What a user may ask for, what it means, and how everything else is refused."""

from __future__ import annotations

import re

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.core.option import Value
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import Mode
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER, OPTIONS
from istio_init.rules.settings import NO_ACCOUNTS, NO_FACTS, Accounts, HostFacts, Settings, parse_settings
from tests.sweeps import sweep
from tests.unit.strategies import NAMES, NAMES_OF

DEFAULTS = {
    "envoy_port": 15001,
    "inbound_capture_port": 15001,
    "proxy_uids": (1337, 0),
    "proxy_gids": (1337, 0),
    "mode": Mode.REDIRECT,
    "tproxy_mark": 1337,
    "tproxy_route_table": 133,
    "inbound_ports": (),
    "inbound_exclude_ports": (),
    "inbound_exclude_cidrs": (),
    "outbound_exclude_ports_for_uids": (),
    "service_cidrs": (),
    "service_exclude_cidrs": (),
    "jump": "last",
}
DEFAULTS_OF_CURRENT = DEFAULTS | {
    "inbound_capture_port": 15006,
    "proxy_uids": (1337,),
    "proxy_gids": (1337,),
    "tunnel_port": 15008,
    "outbound_ports": (),
    "outbound_exclude_ports": (),
    "exclude_interfaces": (),
    "virtual_interfaces": (),
    "redirect_dns": False,
    "dns_port": 15053,
    "capture_all_dns": False,
    "forward_dns": False,
    "drop_invalid": False,
    "dual_stack": False,
    "owner_groups": ("*",),
    "owner_groups_exclude": (),
    "loopback_cidr": "127.0.0.1/32",
}
FIELDS = {"dual_stack": "ipv6"}  # the others have the option's name
PORTS = ("envoy_port", "inbound_capture_port", "tunnel_port", "dns_port")
PORT_LISTS = ("inbound_ports", "inbound_exclude_ports", "outbound_ports", "outbound_exclude_ports")
CIDR_LISTS = ("inbound_exclude_cidrs", "service_cidrs", "service_exclude_cidrs")
OWNERS = ("proxy_uids", "proxy_gids")
GROUPS = ("owner_groups", "owner_groups_exclude")
INTERFACES = ("exclude_interfaces", "virtual_interfaces")
SWITCHES = ("redirect_dns", "capture_all_dns", "forward_dns", "drop_invalid", "dual_stack")

# A machine with one user and one group.
ACCOUNTS = Accounts(uid={"istio-proxy": 1234, "envoy": 101}.get, gid={"envoy": 102}.get)


def parse(
    accounts: Accounts = NO_ACCOUNTS, layout: str = ISTIO_1_0, facts: HostFacts = NO_FACTS, /, **texts: str
) -> Settings:
    return parse_settings({name: Value(text, f"--{name}") for name, text in texts.items()}, accounts, layout, facts)


def current(**texts: str) -> Settings:
    return parse(NO_ACCOUNTS, ISTIO_1_30, **texts)


def test_a_plan_of_a_layout_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'ambient' is not a layout \(allowed: istio-1\.0 or istio-1\.30 or current\)"):
        build_plan(Settings(layout="ambient"))


def refusal(name: str, text: str, layout: str = ISTIO_1_0) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(NO_ACCOUNTS, layout, **{name: text})
    return caught.value


def test_every_option_has_a_default_here() -> None:
    assert set(DEFAULTS) == set(NAMES_OF[ISTIO_1_0])
    assert set(DEFAULTS_OF_CURRENT) == set(NAMES_OF[ISTIO_1_30]) == set(NAMES)


@sweep("name", NAMES_OF[ISTIO_1_0])
def test_what_is_not_given_has_its_default(name: str) -> None:
    assert getattr(parse(), name) == DEFAULTS[name]
    assert getattr(Settings(), name) == DEFAULTS[name]


@sweep("name", NAMES_OF[ISTIO_1_30])
def test_what_is_not_given_has_its_default_in_layout_current(name: str) -> None:
    assert getattr(current(), FIELDS.get(name, name)) == DEFAULTS_OF_CURRENT[name]


def test_without_values_there_is_nothing_to_warn_of() -> None:
    assert parse() == Settings()
    assert parse().warnings == current().warnings == ()


@sweep(
    ("name", "text", "value"),
    [
        ("envoy_port", "1", 1),
        ("envoy_port", "65535", 65535),
        ("envoy_port", "0080", 80),
        ("inbound_capture_port", "15006", 15006),
        ("proxy_uids", "1337", (1337,)),
        ("proxy_uids", "0,4294967294", (0, 4294967294)),
        ("proxy_uids", " 5 , , 5,05, 6 ", (5, 6)),
        ("proxy_gids", "7", (7,)),
        ("mode", "REDIRECT", Mode.REDIRECT),
        ("mode", "TPROXY", Mode.TPROXY),
        ("tproxy_mark", "1", 1),
        ("tproxy_mark", "4294967295", 4294967295),
        ("tproxy_mark", "0x539", 1337),
        ("tproxy_mark", "0xFFFFffff", 4294967295),
        ("tproxy_route_table", "252", 252),
        ("tproxy_route_table", "256", 256),
        ("tproxy_route_table", "4294967295", 4294967295),
        ("inbound_ports", "*", ("*",)),
        ("inbound_ports", " * ,", ("*",)),
        ("inbound_ports", "", ()),
        ("inbound_ports", " , ,", ()),
        ("inbound_ports", "80", ("80",)),
        ("inbound_ports", " 80, ,443,80 , 080", ("80", "443")),
        ("inbound_ports", "8000-8100,9000:9100", ("8000:8100", "9000:9100")),
        ("inbound_ports", "80-80,80:80", ("80",)),
        ("inbound_ports", "1-65535", ("1:65535",)),
        ("inbound_exclude_ports", "22,8000-8001", ("22", "8000:8001")),
        ("inbound_exclude_cidrs", "10.1.2.3, 10.2.0.0/16,10.2.3.4/16", ("10.1.2.3/32", "10.2.0.0/16")),
        ("outbound_exclude_ports_for_uids", "tcp:80:5", (("tcp", "80", 5),)),
        ("outbound_exclude_ports_for_uids", " tcp:80-90:5,,tcp:80:90:5,tcp:443:6", (("tcp", "80:90", 5), ("tcp", "443", 6))),
        ("outbound_exclude_ports_for_uids", "", ()),
        ("service_cidrs", "*", ("*",)),
        ("service_cidrs", "", ()),
        ("service_cidrs", "10.0.0.0/8, 192.168.0.0/16,10.0.0.0/8", ("10.0.0.0/8", "192.168.0.0/16")),
        ("service_cidrs", "10.1.2.3", ("10.1.2.3/32",)),
        ("service_cidrs", "0.0.0.0/0", ("0.0.0.0/0",)),
        ("service_exclude_cidrs", "10.1.2.3,10.1.2.3/32", ("10.1.2.3/32",)),
        ("service_exclude_cidrs", "", ()),
    ],
)
def test_a_value_that_is_allowed_is_taken(name: str, text: str, value: object) -> None:
    assert getattr(parse(**{name: text}), name) == value
    assert getattr(current(**{name: text}), name) == value


@sweep(
    ("name", "text", "value"),
    [
        ("service_cidrs", "10.0.0.0/8,fd00::/8", ("10.0.0.0/8", "fd00::/8")),
        ("service_cidrs", "FD00:0::1", ("fd00::1/128",)),
        ("service_exclude_cidrs", "::/0,::1/128", ("::/0", "::1/128")),
        ("tunnel_port", "15008", 15008),
        ("dns_port", "15153", 15153),
        ("inbound_exclude_cidrs", "fd00::1,10.0.0.0/8", ("fd00::1/128", "10.0.0.0/8")),
        ("outbound_exclude_ports_for_uids", "udp:53:0", (("udp", "53", 0),)),
        ("outbound_ports", "80,8000-8001", ("80", "8000:8001")),
        ("outbound_exclude_ports", " 25, ,25", ("25",)),
        ("exclude_interfaces", "eth0, net1,eth0.100,tap+,", ("eth0", "net1", "eth0.100", "tap+")),
        ("virtual_interfaces", "fifteen-bytes-1", ("fifteen-bytes-1",)),
        ("virtual_interfaces", "", ()),
        *((name, "true", True) for name in SWITCHES if name not in FIELDS),
        *(("drop_invalid", text, True) for text in ("1", "t", "T", "TRUE", "True")),
        *(("drop_invalid", text, False) for text in ("0", "f", "F", "false", "FALSE", "False")),
        ("owner_groups", "5,6,5", ("5", "6")),
        ("owner_groups", " * ", ("*",)),
        ("owner_groups", "", ()),
        ("owner_groups_exclude", "5", ("5",)),
        ("owner_groups_exclude", " , ", ()),
        ("loopback_cidr", "127.0.0.0/8", "127.0.0.0/8"),
        ("loopback_cidr", "127.1.2.3", "127.1.2.3/32"),
        ("loopback_cidr", "127.0.0.1/8", "127.0.0.0/8"),
    ],
)
def test_a_value_that_layout_current_allows_is_taken(name: str, text: str, value: object) -> None:
    wanted = {name: text} | ({"redirect_dns": "true"} if name == "capture_all_dns" else {})
    wanted |= {"capture_all_dns": "true"} if name == "redirect_dns" else {}
    assert getattr(current(**wanted), name) == value


@sweep("name", [name for name in NAMES if name not in NAMES_OF[ISTIO_1_0]])
def test_what_only_another_layout_has_is_refused(name: str) -> None:
    error = refusal(name, "true")
    assert error.problem == "layout istio-1.0 does not support it"
    assert error.allowed == "layout istio-1.30 (--layout)"


def test_a_layout_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'istio-2' is not a layout") as caught:
        parse(NO_ACCOUNTS, "istio-2")
    assert (caught.value.where, caught.value.allowed) == ("--layout", "istio-1.0 or istio-1.30 or current")


@pytest.mark.parametrize("flag", ["true", "false"])
@pytest.mark.parametrize(
    ("facts", "ipv6"),
    [
        (HostFacts(is_ipv6=True), {"true", "false"}),
        (HostFacts(), {"true"}),
        (HostFacts(has_ipv6=False), set()),
    ],
    ids=["ipv6 only", "both", "ipv4 only"],
)
def test_ipv6_is_captured_where_the_machine_has_it_alone_or_has_it_and_it_was_asked_for(
    flag: str, facts: HostFacts, ipv6: set[str]
) -> None:
    settings = parse(NO_ACCOUNTS, ISTIO_1_30, facts, dual_stack=flag)
    assert settings.ipv6 is (flag in ipv6)
    assert not settings.close_inbound_ipv6


def test_dual_stack_without_an_ipv6_address_is_a_warning() -> None:
    facts = HostFacts(has_ipv6=False)
    settings = parse(NO_ACCOUNTS, ISTIO_1_30, facts, dual_stack="true", service_cidrs="10.0.0.0/8,fd00::/8")
    assert settings.warnings == (
        "--service_cidrs: its IPv6 CIDRs have no effect, because IPv6 is not captured here",
        "--dual_stack has no effect: this pod has no IPv6 address",
    )
    assert parse(NO_ACCOUNTS, ISTIO_1_30, facts, dual_stack="false").warnings == ()


def test_layout_istio_1_0_does_not_look_at_the_machine() -> None:
    assert parse(NO_ACCOUNTS, ISTIO_1_0, HostFacts(("10.0.0.1",), is_ipv6=True)) == parse()


def test_dns_without_a_nameserver_is_left_alone_with_a_warning() -> None:
    settings = current(redirect_dns="true")
    assert not settings.redirect_dns
    assert settings.warnings == (
        "DNS is not captured, because resolv.conf has no nameserver; --capture-all-dns captures requests to any server",
    )
    known = parse(NO_ACCOUNTS, ISTIO_1_30, HostFacts(("10.0.0.1",)), redirect_dns="true")
    assert (known.redirect_dns, known.nameservers, known.warnings) == (True, ("10.0.0.1",), ())
    assert current(redirect_dns="true", capture_all_dns="true").redirect_dns


def test_all_dns_without_dns_is_a_warning() -> None:
    (warning,) = current(capture_all_dns="true").warnings
    assert warning == "--capture_all_dns has no effect: it applies only with --redirect-dns"


def test_there_is_a_limit_of_groups_to_capture() -> None:
    groups = [str(gid) for gid in range(65)]
    assert current(owner_groups=",".join(groups[:64])).owner_groups == tuple(groups[:64])
    error = refusal("owner_groups", ",".join(groups), ISTIO_1_30)
    assert (error.problem, error.allowed) == ("65 groups are too many", "at most 64")
    assert current(owner_groups_exclude=",".join(groups)).owner_groups_exclude == tuple(groups)


@pytest.mark.parametrize(("captured", "count"), [("*", 1), ("202,203", 0), ("", 0)])
def test_groups_to_exclude_count_only_where_all_are_captured_and_a_warning_says_so(captured: str, count: int) -> None:
    settings = current(owner_groups=captured, owner_groups_exclude="203")
    assert len(settings.owner_groups_exclude) == count
    assert settings.warnings == (
        ("--owner_groups_exclude has no effect: --owner_groups says which are captured",) if count == 0 else ()
    )


BAD_NUMBERS = (
    "",
    " ",
    "-1",
    "+80",
    "8_0",
    " 80",
    "80 ",
    "8.0",
    "\u0668\u0660",
    "\uff18\uff10",
    "\u00b2",
    "0x50",
    "abc",
    "80;reboot",
    "80\n81",
    "1" * 11,
)
BAD_VALUES = {
    **dict.fromkeys(PORTS, ("0", "65536", "80,abc", "80,81", "80-81", "*", *BAD_NUMBERS)),
    **dict.fromkeys(
        PORT_LISTS,
        (
            "0",
            "65536",
            "80,abc",
            "80;reboot",
            "+80",
            "8_0",
            "\u0668\u0660",
            "80-",
            "-80",
            ":",
            "90-80",
            "0-80",
            "80-65536",
            "1-2-3",
            "80:90:100",
            "80 81",
            "80,*,81",
            "`reboot`",
            "$(reboot)",
            "1" * 11,
        ),
    ),
    **dict.fromkeys(
        OWNERS,
        ("", " , ", "nobody-of-this-name", "4294967295", "-1", "+5", "1_0", "\u0665", "1;reboot", "*", "1" * 11),
    ),
    "outbound_exclude_ports_for_uids": (
        *("tcp:80", "80:1000", "tcp::1000", "tcp:80:", "sctp:80:1000", ":80:1000", "TCP:80:1000", "tcp:0:1000"),
        *("tcp:90-80:1000", "tcp:80:4294967295", "tcp:80:nobody-of-this-name", "tcp:80:-1", "tcp:80:1;reboot", "*"),
    ),
    "jump": ("", "head", "FIRST", "first,last", " first"),
    "mode": ("", "REDIRCT", "redirect", "NONE", "TPROXY ", "REDIRECT,TPROXY", "__class__"),
    "tproxy_mark": (
        "0",
        "4294967296",
        "0x",
        "0x0",
        "0xg",
        "0x100000000",
        "0X1",
        "-0x1",
        "0x_1",
        "0x1/0xff",
        *(text for text in BAD_NUMBERS if text != "0x50"),
    ),
    "tproxy_route_table": ("0", "253", "254", "255", "4294967296", "main", *BAD_NUMBERS),
    **dict.fromkeys(GROUPS, ("no-group-of-this-name", "4294967295", "-1", "+5", "1;reboot", "5,*")),
    **dict.fromkeys(
        INTERFACES,
        (
            *("sixteen-bytes-16", "-eth0", "+", "a/b", "a b", "a\tb", "a\nb", "a\u00a0b", "a\0", "\u00e9" * 8),
            *(f"a{special}b" for special in "\"'`\\$&|;<>()*?[]{}!#~"),
        ),
    ),
    **dict.fromkeys(SWITCHES, ("", "yes", "on", "2", "TrUe", " true", "true;reboot")),
    "loopback_cidr": ("127.0.0.1/7", "126.0.0.0/8", "128.0.0.1", "10.0.0.0/8", "::1", "127.0.0.1/33", "localhost", "*", ""),
    **dict.fromkeys(
        CIDR_LISTS,
        (
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0",
            "256.0.0.1",
            "1.2.3.4.5",
            "010.0.0.1",
            "\uff110.0.0.0/8",
            "10.0.0.0/\u0668",
            "/8",
            "example.org",
            "10.0.0.0/8;reboot",
            "10.0.0.0/8 -j ACCEPT",
            "10.0.0.0 /8",
            "10.0.0.0/8,*",
        ),
    ),
}


def test_every_option_has_bad_values_here() -> None:
    assert set(BAD_VALUES) == set(NAMES)


BAD_IPV6 = ("fd00::/129", "fd00::/", "fd00::/-1", "fd00", "fd00:::1", "fe80::1%eth0", "::1;reboot", "[::1]", "::1 /128")


@sweep(
    ("name", "text", "layout"),
    [
        *((name, text, layout) for layout in LAYOUTS for name in NAMES_OF[layout] for text in BAD_VALUES[name]),
        *((name, text, ISTIO_1_0) for name in CIDR_LISTS for text in ("fd00::/8", "::1", "::ffff:10.0.0.1")),
        *((name, text, ISTIO_1_30) for name in CIDR_LISTS for text in BAD_IPV6),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name_with_what_is_allowed(name: str, text: str, layout: str) -> None:
    error = refusal(name, text, layout)
    assert error.where == f"--{name}"
    assert error.allowed
    assert error.exit_code == 2
    bad = [word.strip() for word in text.split(",") if word.strip() and repr(word.strip()) in error.problem]
    assert bad or repr(text) in error.problem
    assert "\n" not in str(error)


@sweep(
    ("name", "text", "problem"),
    [
        ("inbound_ports", "80,abc", "'abc' is not a port or range"),
        ("inbound_ports", "80;reboot", "'80;reboot' is not a port or range"),
        ("inbound_ports", "*,80", "'*,80' has '*' among other items"),
        ("inbound_exclude_ports", "*", "'*' is not a port or range"),
        ("service_cidrs", "10.0.0.0/33", "'10.0.0.0/33' has no valid prefix length"),
        ("service_cidrs", "fd00::/8", "'fd00::/8' is an IPv6 CIDR, but layout istio-1.0 captures only IPv4"),
        ("service_cidrs", "*,10.0.0.0/8", "'*,10.0.0.0/8' has '*' among other items"),
        ("service_exclude_cidrs", "*", "'*' is not allowed here"),
        ("mode", "REDIRCT", "'REDIRCT' is not a mode; did you mean REDIRECT?"),
        ("mode", "tproxy", "'tproxy' is not a mode; did you mean TPROXY?"),
        ("mode", "xyzzy", "'xyzzy' is not a mode"),
        ("proxy_uids", "1337,nobody-here", "there is no user 'nobody-here'"),
        ("proxy_gids", "nobody-here", "there is no group 'nobody-here'"),
        ("proxy_uids", "", "'' names no user, so the proxy's own traffic would loop"),
    ],
)
def test_a_refusal_says_what_is_wrong(name: str, text: str, problem: str) -> None:
    assert refusal(name, text).problem == problem


def test_the_capture_port_follows_the_port_of_envoy() -> None:
    assert parse(envoy_port="15101").inbound_capture_port == 15101
    assert parse(envoy_port="15101", inbound_capture_port="15006").inbound_capture_port == 15006


def test_groups_follow_users() -> None:
    assert parse(proxy_uids="5,6").proxy_gids == (5, 6)
    assert parse(proxy_uids="5,6", proxy_gids="7").proxy_gids == (7,)
    assert parse(ACCOUNTS).proxy_gids == (1234, 0)


def test_root_is_added_to_default_users_only() -> None:
    assert parse(ACCOUNTS).proxy_uids == (1234, 0)
    assert parse(ACCOUNTS, ENVOY_USER="envoy").proxy_uids == (101, 0)
    assert parse(ACCOUNTS, proxy_uids="envoy", ENVOY_USER="istio-proxy").proxy_uids == (101,)
    assert parse(ACCOUNTS, proxy_gids="envoy").proxy_gids == (102,)


def test_root_stands_once_among_default_users() -> None:
    assert parse(ENVOY_USER="0").proxy_uids == (0,)
    assert parse(Accounts(uid=lambda _: 0, gid=lambda _: None)).proxy_uids == (0,)


def test_names_are_resolved_users_apart_from_groups() -> None:
    settings = parse(ACCOUNTS, proxy_uids="envoy,5", proxy_gids="envoy,5")
    assert (settings.proxy_uids, settings.proxy_gids) == ((101, 5), (102, 5))


def test_an_unknown_user_of_envoy_is_refused() -> None:
    assert refusal(ENVOY_USER, "nobody-here").problem == "there is no user 'nobody-here'"


@pytest.mark.parametrize(("text", "closed"), [("", True), ("1", False), ("true", False), ("anything", False)])
def test_inbound_ipv6_is_closed_until_the_variable_has_a_value(text: str, *, closed: bool) -> None:
    assert parse(**{ENABLE_INBOUND_IPV6: text}).close_inbound_ipv6 is closed


def test_host_bits_of_ipv6_are_masked_with_a_warning() -> None:
    settings = current(service_cidrs="fd00::1/8,fd00::/8", service_exclude_cidrs="::1/128", dual_stack="true")
    assert settings.service_cidrs == ("fd00::/8",)
    assert settings.warnings == ("--service_cidrs: 'fd00::1/8' has host bits set and is read as fd00::/8",)


def test_cidrs_of_ipv6_where_ipv6_is_off_are_a_warning() -> None:
    (warning,) = current(service_cidrs="10.0.0.0/8", service_exclude_cidrs="10.1.0.0/16,fd00::/8").warnings
    assert warning == (
        "--service_exclude_cidrs: its IPv6 CIDRs have no effect, because IPv6 is not captured here; --dual-stack turns it on"
    )


def test_values_that_take_something_from_each_other_are_refused() -> None:
    with pytest.raises(InvalidInput, match="--tproxy_mark: 1338 is reserved for the proxy's traffic to its own pod"):
        current(mode="TPROXY", tproxy_mark="1338")
    assert current(tproxy_mark="1338").tproxy_mark == 1338
    for name in ("envoy_port", "inbound_capture_port"):
        with pytest.raises(InvalidInput, match=f"--{name}: 15053 is the port of the proxy's resolver"):
            current(**{name: "15053"}, redirect_dns="true", capture_all_dns="true")


def test_host_bits_are_masked_with_a_warning() -> None:
    (warning,) = current(loopback_cidr="127.0.0.1/8").warnings
    assert warning == "--loopback_cidr: '127.0.0.1/8' has host bits set and is read as 127.0.0.0/8"
    settings = parse(service_cidrs="10.1.2.3/8,10.0.0.0/8", service_exclude_cidrs="10.9.9.9/16")
    assert settings.service_cidrs == ("10.0.0.0/8",)
    assert settings.service_exclude_cidrs == ("10.9.0.0/16",)
    assert settings.warnings == (
        "--service_cidrs: '10.1.2.3/8' has host bits set and is read as 10.0.0.0/8",
        "--service_exclude_cidrs: '10.9.9.9/16' has host bits set and is read as 10.9.0.0/16",
    )


def test_users_of_ports_are_resolved() -> None:
    settings = parse(ACCOUNTS, outbound_exclude_ports_for_uids="tcp:80:envoy,tcp:80:101")
    assert settings.outbound_exclude_ports_for_uids == (("tcp", "80", 101),)


def test_ports_of_udp_are_refused_where_none_is_captured_and_without_dns_are_a_warning() -> None:
    error = refusal("outbound_exclude_ports_for_uids", "tcp:80:5,udp:53:5")
    assert error.problem == "it lists ports of UDP, of which layout istio-1.0 captures nothing"
    assert error.allowed == "tcp:PORT:UID; layout istio-1.30 takes udp:PORT:UID, too"
    (warning,) = current(outbound_exclude_ports_for_uids="udp:53:5").warnings
    assert warning.endswith("its ports of UDP have no effect: UDP is captured only with --redirect-dns")


def test_senders_to_leave_alone_and_a_port_of_dns_have_no_effect_where_nothing_is_captured() -> None:
    (warning,) = parse(inbound_exclude_cidrs="10.0.0.0/8").warnings
    assert warning == "--inbound_exclude_cidrs has no effect: nothing inbound is captured (-b)"
    assert parse(inbound_exclude_cidrs="10.0.0.0/8", inbound_ports="80").warnings == ()
    (warning,) = current(forward_dns="true").warnings
    assert warning == "--forward_dns has no effect: it applies only with --redirect-dns"
    assert current(dns_port="15153").warnings == ("--dns_port has no effect: it applies only with --redirect-dns",)


def test_the_port_of_dns_must_be_free() -> None:
    dns = {"redirect_dns": "true", "capture_all_dns": "true"}
    with pytest.raises(InvalidInput, match="--envoy_port: 15153 is the port of the proxy's resolver"):
        current(envoy_port="15153", dns_port="15153", **dns)
    for port in ("15001", "15006"):
        with pytest.raises(InvalidInput, match=f"--dns_port: {port} is the port of the proxy's listener"):
            current(dns_port=port, **dns)
    assert current(envoy_port="15053", dns_port="15153", **dns).envoy_port == 15053


@pytest.mark.parametrize("inbound", ["", "80", "80,443"])
def test_excluded_inbound_ports_without_all_ports_are_a_warning(inbound: str) -> None:
    (warning,) = parse(inbound_ports=inbound, inbound_exclude_ports="22").warnings
    assert warning == "--inbound_exclude_ports has no effect: it applies only with -b '*'"


def test_excluded_inbound_ports_with_all_ports_and_empty_ones_are_no_warning() -> None:
    assert parse(inbound_ports="*", inbound_exclude_ports="22").warnings == ()
    assert parse(inbound_ports="80", inbound_exclude_ports="").warnings == ()


def test_settings_of_takes_text_by_name() -> None:
    settings = Settings.of(proxy_uids="1337", inbound_ports="9080", service_cidrs="*", ENABLE_INBOUND_IPV6="1")
    assert settings == Settings(
        proxy_uids=(1337,),
        proxy_gids=(1337,),
        inbound_ports=("9080",),
        service_cidrs=("*",),
        close_inbound_ipv6=False,
    )


def test_settings_of_names_the_setting_that_is_wrong() -> None:
    with pytest.raises(InvalidInput, match=r"^envoy_port: '0' is not a port"):
        Settings.of(envoy_port="0")


def test_settings_of_refuses_a_name_that_it_does_not_know_and_lists_those_it_knows() -> None:
    with pytest.raises(InvalidInput, match="there is no such setting") as caught:
        Settings.of(envoy_prot="15001")
    assert caught.value.where == "envoy_prot"
    assert caught.value.allowed.split(", ") == sorted([*NAMES, ENVOY_USER, ENABLE_INBOUND_IPV6])


def test_rows_of_the_option_table_do_not_collide() -> None:
    for column in (
        [o.name for o in OPTIONS],
        [f for o in OPTIONS for f in o.flags],
        [v for o in OPTIONS for v in o.variables],
    ):
        assert len(column) == len(set(column))
    for option in OPTIONS:
        *short, long = option.flags or ("--none",)
        assert option.flags or option.variables
        assert [flag for flag in short if not re.fullmatch(r"-[a-z]", flag)] == []
        assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", long)
        assert FIELDS.get(option.name, option.name) in Settings._fields
        assert "Default: " in option.help
        assert any(layout.has(option) for layout in LAYOUTS.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mark_and_a_route_table_without_tproxy_have_no_effect_and_say_so(layout: str) -> None:
    given = {"tproxy_mark": "1337", "tproxy_route_table": "133"}
    assert Settings.of(layout, **given).warnings == (
        "tproxy_mark has no effect: it applies only with -m TPROXY",
        "tproxy_route_table has no effect: it applies only with -m TPROXY",
    )
    assert Settings.of(layout, mode="TPROXY", **given).warnings == ()
    assert Settings.of(layout, mode="REDIRECT").warnings == ()
