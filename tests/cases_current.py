"""The case table of layout current, used as that of `tests/cases.py` is: golden text, expected traces, real packets.

Besides, all pairs of flags: `PAIRS` has each value of each flag together with each value of every other one.
"""

from __future__ import annotations

from ipaddress import ip_address

from istio_init.rules.layout import CURRENT
from istio_init.rules.settings import HostFacts
from istio_init.rules.walk import Packet
from tests.cases import (
    APP,
    CLIENT,
    CLIENT_IPV6,
    DATABASE,
    DIRECT,
    ENVOY,
    INTERNET,
    LOCALHOST,
    POD,
    POD_IPV6,
    PROXY,
    PROXY_GROUP,
    ROOT,
    SERVICE,
    Case,
    Connection,
    into,
    out,
)
from tests.pairs import cover_pairs

SERVICE_IPV6 = "fd96::10"
DATABASE_IPV6 = "fd01::3"
INTERNET_IPV6 = "2001:db8::7"
LOCALHOST_IPV6 = "::1"
SECOND_LOCALHOST = "127.0.0.2"
NAMESERVER = "10.96.0.53"
NAMESERVER_IPV6 = "fd96::53"
OTHER_NAMESERVER = "203.0.113.53"
OTHER_NAMESERVER_IPV6 = "2001:db8::53"
OWN_ADDRESSES = (POD, POD_IPV6, LOCALHOST, LOCALHOST_IPV6, SECOND_LOCALHOST)
OUTSIDE_ADDRESSES = (SERVICE, DATABASE, INTERNET, NAMESERVER, OTHER_NAMESERVER)
OUTSIDE_ADDRESSES_IPV6 = (SERVICE_IPV6, DATABASE_IPV6, INTERNET_IPV6, NAMESERVER_IPV6, OTHER_NAMESERVER_IPV6)

INBOUND = "envoy:15006"
RESOLVER, OTHER_RESOLVER = RESOLVERS = ("envoy:15053", "envoy:15153")
SECOND_PROXY = (1338, 4000)
THIRD_PROXY_GROUP = (2000, 3000)
SERVERS = HostFacts(nameservers=(NAMESERVER,))
BOTH_SERVERS = HostFacts(nameservers=(NAMESERVER, NAMESERVER_IPV6))

# What the injector of today's meshes writes into a pod.
USUAL = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"),
    *("-d", "15090,15021,15020"),
)

# What holds whatever is captured: the proxy does not loop, localhost stays local, UDP passes by.
ALWAYS = (
    out(SERVICE, 80, DIRECT, PROXY),
    out(LOCALHOST, 9080, DIRECT),
    out(LOCALHOST, 9080, DIRECT, PROXY),
    out(SERVICE, 5000, DIRECT, protocol="udp"),
    into(9080, DIRECT, protocol="udp"),
)
ALWAYS_IPV6 = (
    out(SERVICE_IPV6, 80, DIRECT, PROXY),
    out(LOCALHOST_IPV6, 9080, DIRECT),
    out(LOCALHOST_IPV6, 9080, DIRECT, PROXY),
    out(SERVICE_IPV6, 5000, DIRECT, protocol="udp"),
    into(9080, DIRECT, POD_IPV6, protocol="udp"),
)
# An app's calls to its own pod are not captured; the proxy's calls to a service of its own pod are captured as inbound.
SELF_CALL = (out(POD, 9080, DIRECT), out(POD, 9080, INBOUND, PROXY))
SELF_CALL_IPV6 = (out(POD_IPV6, 9080, DIRECT), out(POD_IPV6, 9080, INBOUND, PROXY))
TUNNEL = (out(POD, 15008, DIRECT, PROXY), into(15008, DIRECT))
TUNNEL_IPV6 = (out(POD_IPV6, 15008, DIRECT, PROXY), into(15008, DIRECT, POD_IPV6))
NOT_IPV6 = (out(SERVICE_IPV6, 80, DIRECT), into(9080, DIRECT, POD_IPV6))
# The kernel takes IPv6's `REDIRECT` and `TPROXY` under the same conditions as IPv4's.
CAPTURED_IPV6 = (out(SERVICE_IPV6, 80, ENVOY), out(INTERNET_IPV6, 443, ENVOY), into(9080, INBOUND, POD_IPV6))

ENVIRONMENT = {
    "ENVOY_PORT": "tcp://10.96.0.20:80",  # of the other layout: not looked at
    "INBOUND_CAPTURE_PORT": "15206",
    "INBOUND_TUNNEL_PORT": "15208",
    "PROXY_UID": "1337",
    "PROXY_GID": "3000",
    "ISTIO_INBOUND_INTERCEPTION_MODE": "TPROXY",
    "ISTIO_INBOUND_TPROXY_MARK": "7",
    "ISTIO_INBOUND_TPROXY_ROUTE_TABLE": "77",
    "ISTIO_INBOUND_PORTS": "*",
    "ISTIO_LOCAL_EXCLUDE_PORTS": "9081",
    "ISTIO_SERVICE_CIDR": "10.0.0.0/8,fd00::/8",
    "ISTIO_SERVICE_EXCLUDE_CIDR": "10.1.0.0/16",
    "ISTIO_OUTBOUND_PORTS": "443",
    "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE": "9999",
    "ISTIO_EXCLUDE_INTERFACES": "eth9",
    "KUBE_VIRT_INTERFACES": "vm0",
    "REDIRECT_DNS": "true",
    "CAPTURE_ALL_DNS": "true",
    "DROP_INVALID": "true",
    "DUAL_STACK": "true",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "4000",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.0/30",
    "ISTIO_INBOUND_EXCLUDE_PORTS": "none",  # of the other layout, as the next one
    "ENABLE_INBOUND_IPV6": "",
}


def case(
    name: str,
    flags: tuple[str, ...],
    *connections: Connection,
    environment: dict[str, str] | None = None,
    facts: HostFacts = HostFacts(),  # noqa: B008 - frozen, and never written to
) -> Case:
    return Case(f"current-{name}", flags, connections, environment or {}, CURRENT, facts)


CASES_CURRENT = (
    case(
        "pod",
        USUAL,
        *ALWAYS,
        *SELF_CALL,
        *NOT_IPV6,
        out(SERVICE, 80, DIRECT, PROXY_GROUP),
        out(SERVICE, 80, ENVOY),
        out(INTERNET, 443, ENVOY),
        out(SERVICE, 80, ENVOY, ROOT),
        out(SECOND_LOCALHOST, 9080, DIRECT),
        out(SERVICE, 53, ENVOY),
        out(POD, 9080, INBOUND, (0, 1337)),
        into(9080, INBOUND),
        into(22, INBOUND),
        *TUNNEL,
        into(15020, DIRECT),
        into(15090, DIRECT),
    ),
    case("defaults", (), *ALWAYS, *SELF_CALL, out(SERVICE, 80, DIRECT), into(9080, DIRECT)),
    case("envoy-port", ("-p", "15101", "-i", "*"), *ALWAYS, *SELF_CALL, out(SERVICE, 80, "envoy:15101"), into(9080, DIRECT)),
    case(
        "capture-port",
        ("-z", "15106", "-b", "9080"),
        *ALWAYS,
        out(POD, 9080, "envoy:15106", PROXY),
        out(SERVICE, 80, DIRECT),
        into(9080, "envoy:15106"),
        into(9081, DIRECT),
    ),
    case(
        "tunnel-port",
        ("-e", "15108", "-b", "*"),
        *ALWAYS,
        out(POD, 15108, DIRECT, PROXY),
        out(POD, 15008, INBOUND, PROXY),
        into(15108, DIRECT),
        into(15008, INBOUND),
    ),
    case(
        "several-owners",
        ("-u", "1337,1338", "-g", "1337,3000", "-i", "*"),
        *ALWAYS,
        *SELF_CALL,
        *(out(SERVICE, 80, DIRECT, owner) for owner in (PROXY_GROUP, SECOND_PROXY, THIRD_PROXY_GROUP)),
        *(out(POD, 9080, INBOUND, owner) for owner in (PROXY_GROUP, SECOND_PROXY, THIRD_PROXY_GROUP)),
        out(SERVICE, 80, ENVOY),
        out(SERVICE, 80, ENVOY, ROOT),
    ),
    case(
        "group-alone",
        ("-g", "3000", "-i", "*"),
        *ALWAYS,
        out(SERVICE, 80, ENVOY, (2000, 1337)),
        out(SERVICE, 80, DIRECT, THIRD_PROXY_GROUP),
    ),
    case(
        "inbound-list",
        ("-b", " 9080, ,8000:8100,22, 9080", "-d", "8001"),
        *ALWAYS,
        into(9080, INBOUND),
        into(8000, INBOUND),
        into(8001, INBOUND),
        into(8101, DIRECT),
        into(22, INBOUND),
    ),
    case(
        "outbound-list",
        ("-i", "10.96.0.0/16,fd96::/64"),
        *ALWAYS,
        *NOT_IPV6,
        out(SERVICE, 80, ENVOY),
        out(DATABASE, 1, DIRECT),
    ),
    case(
        "exclusion-before-inclusion",
        ("-i", "10.0.0.0/8", "-x", "10.1.2.0/24,fd01::/64"),
        *ALWAYS,
        out(SERVICE, 80, ENVOY),
        out(DATABASE, 3306, DIRECT),
        out(INTERNET, 443, DIRECT),
    ),
    case(
        "outbound-ports",
        ("-q", "80,9000-9010"),
        *ALWAYS,
        *SELF_CALL,
        out(INTERNET, 80, ENVOY),
        out(SERVICE, 9005, ENVOY),
        out(SERVICE, 9011, DIRECT),
    ),
    case(
        "outbound-ports-and-exclusions",
        ("-q", "80", "-x", "10.1.0.0/16", "-i", "203.0.113.0/24"),
        *ALWAYS,
        out(SERVICE, 80, ENVOY),
        out(DATABASE, 80, DIRECT),
        out(INTERNET, 443, ENVOY),
        out(SERVICE, 443, DIRECT),
    ),
    case(
        "outbound-exclude-ports",
        ("-i", "*", "-o", "3306,9000:9010"),
        *ALWAYS,
        out(DATABASE, 3306, DIRECT),
        out(DATABASE, 3307, ENVOY),
        out(SERVICE, 9003, DIRECT),
        out(POD, 3306, DIRECT, PROXY),
    ),
    case(
        "excluded-senders",
        (*USUAL, "--dual-stack", "--exclude-inbound-cidrs", f"{CLIENT_IPV6},198.51.100.0/24"),
        *ALWAYS,
        *ALWAYS_IPV6,
        into(9080, INBOUND),
        into(9080, DIRECT, POD_IPV6),
    ),
    case(
        "excluded-senders-tproxy",
        ("-m", "TPROXY", "-b", "*", "--exclude-inbound-cidrs", f"{CLIENT}/24"),
        *ALWAYS,
        *SELF_CALL[:1],
        into(9080, DIRECT),
    ),
    case(
        "excluded-ports-of-users",
        (*USUAL, "--redirect-dns", "--exclude-outbound-ports-for-uids", "tcp:5432-5433:1000,tcp:443:0,udp:53:0"),
        *ALWAYS,
        out(DATABASE, 5432, DIRECT),
        out(DATABASE, 5434, ENVOY),
        out(DATABASE, 5432, ENVOY, ROOT),
        out(INTERNET, 443, DIRECT, ROOT),
        out(NAMESERVER, 53, DIRECT, ROOT, "udp"),
        out(NAMESERVER, 53, RESOLVER, ROOT),
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        facts=SERVERS,
    ),
    case(
        "dns-port",
        (*USUAL, "--redirect-dns", "--dns-port", "15153"),
        *ALWAYS,
        out(NAMESERVER, 53, OTHER_RESOLVER, protocol="udp"),
        out(NAMESERVER, 53, OTHER_RESOLVER),
        out(NAMESERVER, 53, DIRECT, PROXY, "udp"),
        facts=SERVERS,
    ),
    case(
        "forwarded-dns",
        (*USUAL, "--redirect-dns", "--forward-dns"),
        *ALWAYS,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(NAMESERVER, 53, DIRECT, PROXY, "udp"),
        out(OTHER_NAMESERVER, 53, DIRECT, protocol="udp"),
        into(53, DIRECT, protocol="udp"),
        facts=SERVERS,
    ),
    case(
        "forwarded-dns-of-any-server",
        ("--redirect-dns", "--capture-all-dns", "--forward-dns", "--dual-stack"),
        *ALWAYS,
        *ALWAYS_IPV6,
        out(OTHER_NAMESERVER, 53, RESOLVER, protocol="udp"),
        into(53, DIRECT, protocol="udp"),
        into(53, DIRECT, POD_IPV6, protocol="udp"),
    ),
    case(
        "exclude-interfaces",
        (*USUAL, "-c", "eth0,net+"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, DIRECT),
        into(9080, DIRECT),
    ),
    case(
        "exclude-other-interface",
        (*USUAL, "-m", "TPROXY", "-c", "eth1"),
        *ALWAYS,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
    ),
    case(
        "virtual-interfaces",
        ("-i", "10.0.0.0/8,203.0.113.0/24", "-b", "*", "-k", "vm0,vm1"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
    ),
    case(
        "jump-first",
        (*USUAL, "-m", "TPROXY", "-c", "eth1", "-k", "vm0", "--redirect-dns", "--drop-invalid", "--jump", "first"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY),
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        into(9080, INBOUND),
        facts=SERVERS,
    ),
    case(
        "virtual-interfaces-tproxy",
        ("-m", "TPROXY", "-i", "10.0.0.0/8", "-b", "*", "-k", "vm0,vm1"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
    ),
    case("virtual-interfaces-all", (*USUAL, "-k", "vm+"), *ALWAYS, out(SERVICE, 80, ENVOY), into(9080, INBOUND)),
    case("flag-with-an-equals-sign", ("-u", "1337", "-i", "*", "-c=eth1"), *ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY)),
    case("drop-invalid", (*USUAL, "--drop-invalid"), *ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY), into(9080, INBOUND)),
    case(
        "tproxy",
        ("-m", "TPROXY", "-i", "*", "-b", "*", "-d", "9081"),
        *ALWAYS,
        *SELF_CALL,
        *NOT_IPV6,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
        into(9081, DIRECT),
    ),
    case(
        "tproxy-list",
        ("-m", "TPROXY", "-b", "9080,9100-9105", "-t", "0x2a", "-r", "4242", "-u", "1337,1338"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, DIRECT),
        into(9080, INBOUND),
        into(9102, INBOUND),
        into(9081, DIRECT),
    ),
    case(
        "tproxy-without-inbound",
        ("-m", "TPROXY", "-i", "*"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY),
        into(9080, DIRECT),
    ),
    case(
        "dns-servers",
        (*USUAL, "--redirect-dns"),
        *ALWAYS,
        *SELF_CALL,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(NAMESERVER, 53, RESOLVER),
        out(NAMESERVER, 53, DIRECT, PROXY, "udp"),
        out(NAMESERVER, 53, DIRECT, PROXY),
        out(OTHER_NAMESERVER, 53, DIRECT, protocol="udp"),
        out(OTHER_NAMESERVER, 53, ENVOY),
        out(NAMESERVER, 54, DIRECT, protocol="udp"),
        out(NAMESERVER_IPV6, 53, DIRECT, protocol="udp"),
        facts=BOTH_SERVERS,
    ),
    case(
        "dns-all",
        ("--redirect-dns", "--capture-all-dns", "-u", "1337,1338", "-g", "1337"),
        *ALWAYS,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(OTHER_NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(OTHER_NAMESERVER, 53, RESOLVER),
        out(OTHER_NAMESERVER, 53, DIRECT, SECOND_PROXY, "udp"),
        out(OTHER_NAMESERVER, 53, DIRECT, PROXY_GROUP, "udp"),
        out(LOCALHOST, 53, RESOLVER, protocol="udp"),
        out(POD, 53, RESOLVER, protocol="udp"),
        out(POD, 53, RESOLVER),
        out(POD, 53, DIRECT, PROXY),
    ),
    case(
        "dns-dual-stack",
        (*USUAL, "--redirect-dns", "--dual-stack"),
        *ALWAYS,
        *ALWAYS_IPV6,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(NAMESERVER_IPV6, 53, RESOLVER, protocol="udp"),
        out(NAMESERVER_IPV6, 53, RESOLVER),
        out(NAMESERVER_IPV6, 53, DIRECT, PROXY, "udp"),
        out(OTHER_NAMESERVER_IPV6, 53, DIRECT, protocol="udp"),
        facts=BOTH_SERVERS,
    ),
    case(
        "dns-one-family",
        ("--redirect-dns", "--dual-stack", "-i", "*"),
        *ALWAYS,
        *ALWAYS_IPV6,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(NAMESERVER_IPV6, 53, DIRECT, protocol="udp"),
        out(NAMESERVER_IPV6, 53, ENVOY),
        facts=SERVERS,
    ),
    case("dns-without-servers", (*USUAL, "--redirect-dns"), *ALWAYS, out(NAMESERVER, 53, DIRECT, protocol="udp")),
    case(
        "dual-stack",
        (*USUAL, "--dual-stack"),
        *ALWAYS,
        *SELF_CALL,
        *ALWAYS_IPV6,
        *SELF_CALL_IPV6,
        *CAPTURED_IPV6,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
        into(15020, DIRECT, POD_IPV6),
        *TUNNEL_IPV6,
    ),
    case(
        "dual-stack-without-ipv6",
        ("-u", "1337", "-i", "*", "-b", "*", "--dual-stack"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY),
        into(9080, INBOUND),
        facts=HostFacts(has_ipv6=False),
    ),
    case(
        "dual-stack-lists",
        (
            *("--dual-stack", "-b", "9080", "-i", "10.96.0.0/16,fd96::/64,2001:db8::7", "-x", "fd96::53,10.96.0.53"),
            *("-q", "8443", "-o", "3306"),
        ),
        *ALWAYS_IPV6,
        out(SERVICE, 80, ENVOY),
        out(SERVICE_IPV6, 80, ENVOY),
        out(INTERNET_IPV6, 443, ENVOY),
        out(NAMESERVER_IPV6, 53, DIRECT),
        out(DATABASE_IPV6, 80, DIRECT),
        out(DATABASE_IPV6, 8443, ENVOY),
        out(SERVICE_IPV6, 3306, DIRECT),
        into(9080, INBOUND, POD_IPV6),
        into(9081, DIRECT, POD_IPV6),
    ),
    case(
        "dual-stack-tproxy",
        ("--dual-stack", "-m", "TPROXY", "-i", "*", "-b", "*", "-d", "9081"),
        *ALWAYS,
        *ALWAYS_IPV6,
        *SELF_CALL_IPV6,
        *CAPTURED_IPV6,
        into(9080, INBOUND),
        into(9081, DIRECT, POD_IPV6),
    ),
    case(
        "ipv6-only",
        USUAL,
        *ALWAYS_IPV6,
        *SELF_CALL_IPV6,
        *CAPTURED_IPV6,
        out(LOCALHOST, 9080, DIRECT),
        facts=HostFacts(is_ipv6=True),
    ),
    case(
        "owner-groups",
        ("-i", "*"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY, (2000, 2000)),
        out(SERVICE, 80, ENVOY, (0, 3000)),
        out(SERVICE, 80, DIRECT, APP),
        environment={"ISTIO_OUTBOUND_OWNER_GROUPS": "2000,3000"},
    ),
    case(
        "owner-groups-exclude",
        ("-i", "*"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, DIRECT, (2000, 2000)),
        out(SERVICE, 80, DIRECT, (0, 3000)),
        out(SERVICE, 80, ENVOY, APP),
        environment={"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "2000,3000"},
    ),
    case(
        "owner-groups-before-exclude",
        ("-u", "1337", "-i", "*"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, ENVOY, (2000, 202)),
        out(SERVICE, 80, ENVOY, (2000, 203)),
        out(SERVICE, 80, DIRECT, APP),
        environment={"ISTIO_OUTBOUND_OWNER_GROUPS": "202,203", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "203"},
    ),
    case(
        "owner-groups-none",
        (*USUAL, "--redirect-dns"),
        *ALWAYS,
        *SELF_CALL,
        out(SERVICE, 80, DIRECT),
        out(SERVICE, 80, DIRECT, ROOT),
        out(NAMESERVER, 53, DIRECT, protocol="udp"),
        into(9080, INBOUND),
        environment={"ISTIO_OUTBOUND_OWNER_GROUPS": ""},
        facts=SERVERS,
    ),
    case(
        "later-variable",
        ("-u", "1337", "-i", "*"),
        *ALWAYS,
        out(NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(OTHER_NAMESERVER, 53, DIRECT, protocol="udp"),
        environment={"ISTIO_META_DNS_CAPTURE": "true", "REDIRECT_DNS": "false"},
        facts=SERVERS,
    ),
    case(
        "later-variables",
        (*USUAL, "--capture-all-dns"),
        *ALWAYS,
        *NOT_IPV6,
        out(NAMESERVER, 53, DIRECT, protocol="udp"),
        environment={
            "REDIRECT_DNS": "true",
            "ISTIO_META_DNS_CAPTURE": "false",
            "DROP_INVALID": "false",
            "INVALID_DROP": "true",
            "DUAL_STACK": "true",
            "ISTIO_DUAL_STACK": "false",
        },
    ),
    case(
        "loopback-cidr-with-host-bits",
        ("-u", "1337", "-i", "*"),
        *ALWAYS,
        out(SERVICE, 80, ENVOY),
        out(SECOND_LOCALHOST, 9080, DIRECT),
        out(SECOND_LOCALHOST, 9080, DIRECT, PROXY),
        environment={"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"},
    ),
    case(
        "loopback-cidr",
        USUAL,
        *ALWAYS,
        out(SECOND_LOCALHOST, 9080, DIRECT),
        out(SECOND_LOCALHOST, 9080, DIRECT, PROXY),
        environment={"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.0/8"},
    ),
    case(
        "included-loopback",
        ("-i", "127.0.0.0/8,10.96.0.0/16"),
        *ALWAYS,
        out(SECOND_LOCALHOST, 9080, ENVOY),
        out(SECOND_LOCALHOST, 9080, INBOUND, PROXY),
        out(POD, 9080, DIRECT),
        out(SERVICE, 80, ENVOY),
    ),
    case(
        "environment",
        (),
        *ALWAYS,
        *ALWAYS_IPV6,
        out(SERVICE, 80, ENVOY),
        out(SERVICE_IPV6, 80, ENVOY),
        out(DATABASE, 3306, DIRECT),
        out(INTERNET, 443, ENVOY),
        out(SERVICE, 9999, DIRECT),
        out(SERVICE, 80, DIRECT, (1000, 4000)),
        out(OTHER_NAMESERVER, 53, RESOLVER, protocol="udp"),
        out(SECOND_LOCALHOST, 9080, DIRECT, PROXY),
        into(9080, "envoy:15206"),
        into(9081, DIRECT),
        into(9080, "envoy:15206", POD_IPV6),
        environment=ENVIRONMENT,
    ),
    case(
        "long-names",
        (
            *("--envoy-port", "15101", "--inbound-capture-port", "15106", "--inbound-tunnel-port", "15108"),
            *("--proxy-uid", "1337", "--proxy-gid", "1337", "--istio-inbound-interception-mode", "REDIRECT"),
            *("--istio-inbound-tproxy-mark", "1337", "--istio-inbound-tproxy-route-table", "133"),
            *("--istio-inbound-ports", "*", "--istio-local-exclude-ports", "9081", "--istio-service-cidr", "*"),
            *("--istio-service-exclude-cidr", "10.1.0.0/16", "--istio-outbound-ports", "80"),
            *("--istio-local-outbound-ports-exclude", "9999", "--istio-exclude-interfaces", "eth9"),
            *("--kube-virt-interfaces", "vm0", "--redirect-dns", "--capture-all-dns", "--drop-invalid", "--dual-stack"),
        ),
        *ALWAYS,
        *ALWAYS_IPV6,
        out(SERVICE, 80, "envoy:15101"),
        out(DATABASE, 3306, DIRECT),
        out(SERVICE, 9999, DIRECT),
        out(OTHER_NAMESERVER_IPV6, 53, RESOLVER, protocol="udp"),
        into(9080, "envoy:15106", POD_IPV6),
        into(9081, DIRECT),
        into(15108, DIRECT),
    ),
)

# Two or three values of each flag; None leaves it out. The last three are variables without a flag.
VALUES: dict[str, tuple[str | None, ...]] = {
    "-p": (None, "15101"),
    "-z": (None, "15106"),
    "-e": (None, "15108"),
    "-u": (None, "1337,1338"),
    "-g": (None, "3000,3001"),
    "-m": (None, "TPROXY"),
    "-t": (None, "0x2a"),
    "-r": (None, "4242"),
    "-b": (None, "*", "9080,9100-9105"),
    "-d": (None, "9081,9090:9095"),
    "-i": (None, "*", "10.96.0.0/16,fd96::/64,127.0.0.2"),
    "-x": (None, "", "10.1.0.0/16,fd01::/64"),
    "-q": (None, "8443,9000-9010"),
    "-o": (None, "3306,27017"),
    "--exclude-inbound-cidrs": (None, "198.51.100.0/24,fd98::/64"),
    "--exclude-outbound-ports-for-uids": (None, "tcp:5432:1000,udp:53:2000"),
    "--dns-port": (None, "15153"),
    "--jump": (None, "first"),
    "-c": (None, "eth1,net+"),
    "-k": (None, "vm0", "vm0,vm1"),
    "--redirect-dns": (None, "true"),
    "--capture-all-dns": (None, "true"),
    "--forward-dns": (None, "true"),
    "--drop-invalid": (None, "true"),
    "--dual-stack": (None, "true"),
    "ISTIO_OUTBOUND_OWNER_GROUPS": (None, "*", "1000,2000"),
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": (None, "4000"),
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": (None, "127.0.0.0/8"),
}
SWITCHES = ("--redirect-dns", "--capture-all-dns", "--forward-dns", "--drop-invalid", "--dual-stack")


def case_of(name: str, values: dict[str, str | None], *, facts: HostFacts = BOTH_SERVERS) -> Case:
    """Make a case, without connections, of values by flag or variable."""
    given = {flag: value for flag, value in values.items() if value is not None}
    words = [(flag,) if flag in SWITCHES else (flag, value) for flag, value in given.items() if flag.startswith("-")]
    environment = {variable: value for variable, value in given.items() if not variable.startswith("-")}
    return case(name, tuple(word for one in words for word in one), environment=environment, facts=facts)


PAIRS = tuple(case_of(f"pairs-{number}", values) for number, values in enumerate(cover_pairs(VALUES)))


def packet_of(connection: Connection) -> Packet:
    """Give the first packet of a connection, as it leaves or enters the pod."""
    uid, gid = connection.owner
    ipv6 = ip_address(connection.address).version == 6
    pod, client = (POD_IPV6, CLIENT_IPV6) if ipv6 else (POD, CLIENT)
    local = not connection.inbound and connection.address in OWN_ADDRESSES
    return Packet(
        destination=connection.address,
        port=connection.port,
        # The kernel gives a packet to an address of this host that very address as its source.
        source=client if connection.inbound else connection.address if local else pod,
        protocol=connection.protocol,
        outbound=not connection.inbound,
        interface="lo" if local else "eth0",
        uid=uid,
        gid=gid,
    )
