"""The one case table. Each case is used three times: its rule text is compared with a golden file, its connections are
traced through the plan, and it is applied for real and its connections are opened with real packets.

A new flag is a new case here, and all three follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.argv import read
from istio_init.rules.environment import collect
from istio_init.rules.layout import ISTIO_1_0
from istio_init.rules.layouts import build_plan
from istio_init.rules.options import OPTIONS
from istio_init.rules.settings import NO_ACCOUNTS, NO_FACTS, HostFacts, parse_settings

if TYPE_CHECKING:
    from istio_init.rules.model import Plan

# Two network namespaces: the pod, and the world round it.
POD = "10.77.0.2"
POD_IPV6 = "fd77::2"
CLIENT = "10.77.0.1"
CLIENT_IPV6 = "fd77::1"
SERVICE = "10.96.0.10"
DATABASE = "10.1.2.3"
INTERNET = "203.0.113.7"
LOCALHOST = "127.0.0.1"

APP = (1000, 1000)  # uid, gid
PROXY = (1337, 1337)
PROXY_GROUP = (2000, 1337)
ROOT = (0, 0)

DIRECT = "direct"
REJECTED = "rejected"


class Connection(NamedTuple):
    """One connection and who must get it.

    Attributes:
        address: where the client asked to go.
        port: and which port.
        outcome: `direct`, `rejected`, or `envoy:PORT`.
        owner: uid and gid of the client, if it is in the pod.
        inbound: whether the client is in the world outside.
        protocol: `tcp` or `udp`.
    """

    address: str
    port: int
    outcome: str
    owner: tuple[int, int] = APP
    inbound: bool = False
    protocol: str = "tcp"


class Case(NamedTuple):
    """A way to call the program, and what must be true of connections then.

    Attributes:
        flags: those of settings only.
        layout: which rules are asked for, besides.
        facts: the machine that they are asked for on.
    """

    name: str
    flags: tuple[str, ...]
    connections: tuple[Connection, ...]
    environment: dict[str, str] = {}  # noqa: RUF012 - never written to
    layout: str = ISTIO_1_0
    facts: HostFacts = NO_FACTS

    def plan(self) -> Plan:
        """Make the plan as the command line would, on a machine that has no user or group by name."""
        values = collect(read(OPTIONS, self.flags, "apply"), self.environment, self.layout)
        return build_plan(parse_settings(values, NO_ACCOUNTS, self.layout, self.facts))


def out(address: str, port: int, outcome: str, owner: tuple[int, int] = APP, protocol: str = "tcp") -> Connection:
    return Connection(address, port, outcome, owner, protocol=protocol)


def into(port: int, outcome: str, address: str = POD, protocol: str = "tcp") -> Connection:
    return Connection(address, port, outcome, inbound=True, protocol=protocol)


ENVOY = "envoy:15001"
# What holds whatever is captured: the proxy does not loop, localhost stays local, UDP passes by.
ALWAYS = (
    out(SERVICE, 80, DIRECT, PROXY),
    out(SERVICE, 80, DIRECT, PROXY_GROUP),
    out(LOCALHOST, 9080, DIRECT),
    out(SERVICE, 53, DIRECT, protocol="udp"),
    into(9080, DIRECT, protocol="udp"),
)
# Anything that a pod sends to an address of its own leaves on `lo`, the proxy's calls included.
SELF_CALL = (out(POD, 9080, ENVOY), out(POD, 9080, ENVOY, PROXY))

CASES = (
    Case(
        "pod",
        ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", ""),
        (
            *ALWAYS,
            *SELF_CALL,
            out(SERVICE, 80, ENVOY),
            out(INTERNET, 443, ENVOY),
            out(SERVICE, 80, ENVOY, ROOT),
            into(9080, ENVOY),
            into(9081, DIRECT),
            into(9080, REJECTED, POD_IPV6),
        ),
    ),
    Case("defaults", (), (out(SERVICE, 80, DIRECT), out(POD, 9080, ENVOY), into(9080, DIRECT))),
    Case(
        "default-users",
        ("-i", "*"),
        (*ALWAYS, out(SERVICE, 80, ENVOY), out(SERVICE, 80, DIRECT, ROOT)),
    ),
    Case(
        "long-names",
        (
            *("--envoy-port", "15101", "--inbound-capture-port", "15106", "--proxy-uid", "1337", "--proxy-gid", "1337"),
            *("--istio-inbound-interception-mode", "REDIRECT", "--istio-inbound-tproxy-mark", "1337"),
            *("--istio-inbound-tproxy-route-table", "133", "--istio-inbound-ports", "*"),
            *("--istio-local-exclude-ports", "9081", "--istio-service-cidr", "*"),
            *("--istio-service-exclude-cidr", "10.1.0.0/16"),
        ),
        (
            *ALWAYS,
            out(SERVICE, 80, "envoy:15101"),
            out(DATABASE, 3306, DIRECT),
            into(9080, "envoy:15106"),
            into(9081, DIRECT),
        ),
    ),
    Case(
        "capture-port",
        ("-u", "1337", "-p", "15001", "-z", "15006", "-i", "*", "-b", "9080"),
        (*ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY), into(9080, "envoy:15006")),
    ),
    Case(
        "all-inbound",
        ("-u", "1337", "-b", "*", "-d", "9081,9090-9095"),
        (
            *ALWAYS,
            out(SERVICE, 80, DIRECT),
            into(22, DIRECT),
            into(9080, ENVOY),
            into(9081, DIRECT),
            into(9089, ENVOY),
            into(9093, DIRECT),
        ),
    ),
    Case(
        "inbound-list",
        ("-u", "1337", "-b", " 9080, ,8000:8100,22, 9080"),
        (*ALWAYS, into(9080, ENVOY), into(8000, ENVOY), into(8100, ENVOY), into(8101, DIRECT), into(22, ENVOY)),
    ),
    Case(
        "outbound-list",
        ("-u", "1337", "-i", "10.96.0.0/16,203.0.113.7"),
        (*ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY), out(INTERNET, 443, ENVOY), out(DATABASE, 3306, DIRECT)),
    ),
    Case(
        "outbound-exclusions",
        ("-u", "1337", "-i", "*", "-x", "10.1.0.0/16,203.0.113.7/32"),
        (*ALWAYS, out(SERVICE, 80, ENVOY), out(INTERNET, 443, DIRECT), out(DATABASE, 3306, DIRECT)),
    ),
    Case(
        "exclusion-before-inclusion",
        ("-u", "1337", "-i", "10.0.0.0/8", "-x", "10.1.2.0/24"),
        (*ALWAYS, out(SERVICE, 80, ENVOY), out(DATABASE, 3306, DIRECT), out(INTERNET, 443, DIRECT)),
    ),
    Case(
        "masked-and-whole",
        ("-u", "1337", "-i", "0.0.0.0/0", "-x", "10.1.9.9/16,10.1.0.0/16"),
        (*ALWAYS, out(SERVICE, 80, ENVOY), out(INTERNET, 443, ENVOY), out(DATABASE, 3306, DIRECT)),
    ),
    Case(
        "several-owners",
        ("-u", "1337,1000", "-g", "1337,3000", "-i", "*"),
        (*ALWAYS, out(SERVICE, 80, DIRECT, (1000, 9)), out(SERVICE, 80, DIRECT, (9, 3000)), out(SERVICE, 80, ENVOY, (9, 9))),
    ),
    Case(
        "excluded-senders",
        ("-u", "1337", "-b", "*", "--exclude-inbound-cidrs", f"{CLIENT}/30,198.51.100.0/24"),
        (*ALWAYS, into(9080, DIRECT), into(22, DIRECT)),
    ),
    Case(
        "excluded-senders-of-others",
        ("-u", "1337", "-m", "TPROXY", "-b", "9080", "--exclude-inbound-cidrs", "198.51.100.0/24"),
        (*ALWAYS, into(9080, ENVOY), into(9081, DIRECT)),
    ),
    Case(
        "excluded-ports-of-users",
        ("-u", "1337", "-i", "*", "--exclude-outbound-ports-for-uids", "tcp:5432-5433:1000,tcp:443:0"),
        (
            *ALWAYS,
            out(DATABASE, 5432, DIRECT),
            out(DATABASE, 5434, ENVOY),
            out(DATABASE, 5432, ENVOY, ROOT),
            out(INTERNET, 443, DIRECT, ROOT),
            out(POD, 5432, DIRECT),
        ),
    ),
    Case(
        "jump-first",
        ("-u", "1337", "-i", "*", "-b", "9080", "--jump", "first"),
        (
            *ALWAYS,
            *SELF_CALL,
            out(SERVICE, 80, ENVOY),
            into(9080, ENVOY),
            into(9081, DIRECT),
            into(9080, REJECTED, POD_IPV6),
        ),
    ),
    Case(
        "tproxy-list",
        ("-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "9080,9100-9105"),
        (*ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY), into(9080, ENVOY), into(9102, ENVOY), into(9081, DIRECT)),
    ),
    Case(
        "tproxy-all",
        ("-u", "1337", "-m", "TPROXY", "-z", "15006", "-i", "*", "-b", "*", "-d", "9081"),
        (*ALWAYS, *SELF_CALL, into(9080, "envoy:15006"), into(9081, DIRECT), into(22, DIRECT)),
    ),
    Case(
        "tproxy-mark-and-table",
        ("-u", "1337", "-m", "TPROXY", "-t", "0x2a", "-r", "4242", "-b", "9080"),
        (*ALWAYS, out(SERVICE, 80, DIRECT), into(9080, ENVOY), into(9081, DIRECT)),
    ),
    Case(
        "tproxy-without-inbound",
        ("-u", "1337", "-m", "TPROXY", "-i", "*"),
        (*ALWAYS, *SELF_CALL, out(SERVICE, 80, ENVOY), into(9080, DIRECT)),
    ),
    Case(
        "open-ipv6",
        ("-u", "1337", "-i", "*", "-b", "*"),
        (*ALWAYS, out(SERVICE, 80, ENVOY), into(9080, ENVOY), into(9080, DIRECT, POD_IPV6)),
        {"ENABLE_INBOUND_IPV6": "1"},
    ),
    Case(
        "flag-beside-a-bad-variable",  # a Service named `envoy` gives its namespace's pods such a variable
        ("-p", "15001", "-u", "1337", "-i", "*"),
        (*ALWAYS, out(SERVICE, 80, ENVOY)),
        {"ENVOY_PORT": "tcp://10.96.0.20:80"},
    ),
    Case(
        "environment",
        (),
        (
            *ALWAYS,
            out(SERVICE, 80, "envoy:15201"),
            out(DATABASE, 3306, DIRECT),
            into(9080, "envoy:15206"),
            into(9081, DIRECT),
        ),
        {
            "ENVOY_PORT": "15201",
            "INBOUND_CAPTURE_PORT": "15206",
            "PROXY_UID": "1337",
            "PROXY_GID": "1337",
            "ISTIO_INBOUND_INTERCEPTION_MODE": "TPROXY",
            "ISTIO_INBOUND_TPROXY_MARK": "7",
            "ISTIO_INBOUND_TPROXY_ROUTE_TABLE": "77",
            "ISTIO_INBOUND_PORTS": "*",
            "ISTIO_LOCAL_EXCLUDE_PORTS": "9081",
            "ISTIO_SERVICE_CIDR": "*",
            "ISTIO_SERVICE_EXCLUDE_CIDR": "10.1.0.0/16",
        },
    ),
)
