"""What --run-validation finds out, with its own real connections, about rules that are whole, broken, or not there."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import cases
from tests.netns.sockets import Servers
from tests.privileges import give_up

if TYPE_CHECKING:
    import subprocess

    from tests.netns.namespaces import Namespace, Pod

REDIRECT = ("-u", "1337", "-i", "*", "-b", "*", "-d", "15020,15090", "-x", "10.0.0.0/8", "-o", "3306")
LISTS = ("-u", "1337,5", "-g", "7", "-i", "10.0.0.0/8,192.168.1.1,fd00::/8", "-x", "10.96.0.0/16", "-b", "9080,8000-8100")
TPROXY = ("-u", "1337", "-i", "*", "-b", "*", "-d", "15020", "-m", "TPROXY")
DNS = ("--redirect-dns", "--capture-all-dns")
NOTHING = ("-u", "1337")
WHOLE = {
    "redirect": REDIRECT,
    "lists": LISTS,
    "lists-ports": (*LISTS, "-q", "5432", "-e", "15010", "--iptables-probe-port", "2000"),
    "lists-dual": (*LISTS, "--dual-stack"),
    "redirect-dual-dns": (*REDIRECT, "--dual-stack", *DNS),
    "tproxy": TPROXY,
    "tproxy-dual-dns": (*TPROXY, "--dual-stack", *DNS, "--drop-invalid"),
    "tproxy-numbers": (*TPROXY, "-t", "15002", "-r", "15003"),
    "nothing": NOTHING,
    "one-port": ("-u", "1337", "-p", "15001", "-z", "15001", "-i", "*", "-b", "*"),
    "all-excluded": ("-u", "1337", "-i", "*", "-x", "0.0.0.0/0"),
    "many": ("-u", "1337", "-b", ",".join(str(port) for port in range(2000, 2008))),
}


class Found(NamedTuple):
    """What a validation logged.

    Attributes:
        good: the paths that are as they should be.
        wrong: those that are not.
        unchecked: those that could not be tried.
        last: the last line.
    """

    status: int
    good: list[str]
    wrong: list[str]
    unchecked: list[str]
    last: str


def read(done: subprocess.CompletedProcess[str]) -> Found:
    def lines(pattern: str) -> list[str]:
        return re.findall(rf"^istio-init: {pattern}(.*)$", done.stderr, re.MULTILINE)

    paths = (lines("✓ "), lines("error: ✗ "), lines("warning: not checked: "))
    return Found(done.returncode, *paths, done.stderr.splitlines()[-1])


def validate(namespace: Namespace, *flags: str, environment: dict[str, str] | None = None, timeout: str = "2s") -> Found:
    """Validate the rules that are there."""
    words = ("istio-iptables", *flags, "--skip-rule-apply", "--run-validation", "--probe-timeout", timeout)
    return read(namespace.istio_init(*words, check=False, environment=environment))


def apply(namespace: Namespace, *flags: str) -> None:
    namespace.istio_init("istio-iptables", *flags)


def everything(namespace: Namespace) -> list[str]:
    addresses = [line.split()[1:4] for line in namespace.run("ip", "-oneline", "address").stdout.splitlines()]
    links = [line.split()[1] for line in namespace.run("ip", "-oneline", "link").stdout.splitlines()]
    # The kernel gives itself link-local addresses and takes its time for it.
    own = [line for line in addresses if not line[2].startswith("fe80")]
    rules = [namespace.save("nft", family) for family in ("ipv4", "ipv6")]
    return [*rules, namespace.policy_routing(), namespace.run("ip", "-6", "rule").stdout, str(own), str(links)]


@pytest.mark.parametrize("flags", WHOLE.values(), ids=list(WHOLE))
def test_whole_rules_pass_and_nothing_is_left_behind(pod: Pod, flags: tuple[str, ...]) -> None:
    apply(pod.inside, *flags)
    before = everything(pod.inside)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])
    assert found.last.startswith(f"istio-init: validation passed: {len(found.good)} of {len(found.good)} paths checked, ")
    kinds = {line.partition(" tcp ")[0].partition(" udp ")[0] for line in found.good}
    families = ("ipv4", "ipv6") if "--dual-stack" in flags else ("ipv4",)
    names = ["out", "proxy out", "proxy to its own pod", "in"]
    names += ["dns", "proxy's dns"] if "--redirect-dns" in flags else []
    names += ["in by policy route"] if "TPROXY" in flags else []
    assert kinds == {f"{family} {name}" for family in families for name in names}
    assert everything(pod.inside) == before


def test_every_means_passes(pod: Pod, means: tuple[tuple[str, ...], str]) -> None:
    found = read(pod.inside.istio_init("istio-iptables", *means[0], *REDIRECT, *DNS, "--run-validation"))
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])


@pytest.mark.parametrize("flags", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_rules_of_nftables_pass(pod: Pod, flags: tuple[str, ...]) -> None:
    if shutil.which("nft") is None:
        give_up("not installed: nft")
    words = (*flags, *DNS, "--dual-stack", "--native-nftables", "--run-validation")
    found = read(pod.inside.istio_init("istio-iptables", *words))
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])


OLD = ("--layout", "istio-1.0", "-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")


@pytest.mark.parametrize("flags", [OLD, (*OLD, "-m", "TPROXY")], ids=["redirect", "tproxy"])
def test_rules_of_istio_1_0_pass_and_close_ipv6(pod: Pod, flags: tuple[str, ...]) -> None:
    apply(pod.inside, *flags)
    before = everything(pod.inside)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])
    rejected = [line for line in found.good if line.endswith("found a rejection")]
    assert {line.partition("]:")[2].partition(":")[0] for line in rejected} >= {"9080", "15002"}
    assert all(line.startswith("ipv6 in tcp ") for line in rejected)
    assert everything(pod.inside) == before


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        (("-D", "INPUT", "-j", "ISTIO_INBOUND"), "found its original destination"),
        (("-I", "INPUT", "-p", "tcp", "-j", "DROP"), "found nothing within 2 s: the connection is lost"),
        (("-I", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"), "found its original destination"),
    ],
    ids=["open", "dropped", "reset"],
)
def test_ipv6_that_istio_1_0_does_not_reject_fails(pod: Pod, command: tuple[str, ...], ending: str) -> None:
    apply(pod.inside, *OLD)
    pod.inside.run("ip6tables-nft", *command)
    found = validate(pod.inside, *OLD)
    assert found.status == 126
    assert [line for line in found.wrong if line.startswith("ipv6 in tcp ")] == found.wrong != []
    assert all("expected a rejection (other IPv6 would bypass Envoy" in line for line in found.wrong)
    assert any(ending in line for line in found.wrong)


def test_a_resolver_on_another_port_and_excluded_senders_and_ports_of_users_are_checked(pod: Pod) -> None:
    flags = (*REDIRECT, *DNS, "--dns-port", "15153", "--exclude-outbound-ports-for-uids", "tcp:5432:2000")
    apply(pod.inside, *flags)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])
    (user,) = [line for line in found.good if line.startswith("ipv4 user out tcp")]
    assert ":5432 of uid 2000" in user
    assert "expected its original destination" in user
    assert [line for line in found.good if "found port 15153" in line] != []
    excluding = (*flags, "--exclude-inbound-cidrs", "0.0.0.0/0")
    apply(pod.inside, *excluding)
    found = validate(pod.inside, *excluding)
    assert (found.status, found.wrong) == (0, [])
    assert ["the senders of --exclude-inbound-cidrs" in line for line in found.unchecked] == [True]


def test_a_line_says_path_expectation_reason_and_finding(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT)
    lines = validate(pod.inside, *REDIRECT).good
    assert (
        "ipv4 out tcp 203.0.113.77:15002 of uid 0, gid 0: expected port 15001 "
        "(every other destination is captured (-i '*')), found port 15001"
    ) in lines
    assert (
        "ipv4 out tcp 10.0.0.1:15002 of uid 0, gid 0: expected its original destination "
        "(destination 10.0.0.0/8 is excluded (-x)), found its original destination"
    ) in lines


def test_a_pod_of_ipv6_alone_is_validated_in_both_families(pod: Pod) -> None:
    pod.inside.run("ip", "address", "delete", f"{cases.POD}/24", "dev", "eth0")
    apply(pod.inside, *REDIRECT)
    found = validate(pod.inside, *REDIRECT)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])
    assert {line.partition(" ")[0] for line in found.good} == {"ipv4", "ipv6"}


def test_one_family_can_be_validated_alone(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT, "--dual-stack")
    found = validate(pod.inside, *REDIRECT, "--dual-stack", "--family", "ipv6")
    assert found.status == 0
    assert {line.partition(" ")[0] for line in found.good} == {"ipv6"}


def test_nameservers_of_both_kinds_are_asked(pod: Pod, nameservers: tuple[str, ...]) -> None:
    flags = (*REDIRECT, "--redirect-dns", "--dual-stack")
    apply(pod.inside, *flags)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])
    for server in nameservers:
        assert len([line for line in found.good if f"{server}:53" in line.replace("[", "").replace("]", "")]) >= 2


@pytest.fixture
def nameservers() -> tuple[str, ...]:
    from istio_init.rules.environment import read_host_facts

    servers = read_host_facts().nameservers
    if not servers:
        pytest.skip("this machine's resolv.conf names no server")
    return servers


NAT = ("-t", "nat", "-D")
# What is taken away, or put in the way, and which paths must be found wrong, and nothing else.
BREAKS = {
    "inbound": (REDIRECT, ("iptables", *NAT, "PREROUTING", "-p", "tcp", "-j", "ISTIO_INBOUND"), {"ipv4 in": "15002"}),
    "inbound-v6": (REDIRECT, ("ip6tables", *NAT, "PREROUTING", "-p", "tcp", "-j", "ISTIO_INBOUND"), {"ipv6 in": "15002"}),
    "excluded-port": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_INBOUND", "-p", "tcp", "--dport", "15020", "-j", "RETURN"),
        {"ipv4 in": "15020"},
    ),
    "tunnel": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_INBOUND", "-p", "tcp", "--dport", "15008", "-j", "RETURN"),
        {"ipv4 in": "15008"},
    ),
    "excluded-cidr": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_OUTPUT", "-d", "10.0.0.0/8", "-j", "RETURN"),
        {"ipv4 out": "10.0.0.1"},
    ),
    "excluded-outbound-port": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_OUTPUT", "-p", "tcp", "--dport", "3306", "-j", "RETURN"),
        {"ipv4 out": "3306"},
    ),
    "outbound": (REDIRECT, ("iptables", *NAT, "ISTIO_OUTPUT", "-j", "ISTIO_REDIRECT"), {"ipv4 out": "203.0.113.77"}),
    "loop": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_OUTPUT", "-m", "owner", "--uid-owner", "1337", "-j", "RETURN"),
        {"ipv4 proxy out": "of uid 1337", "ipv4 proxy's dns": "of uid 1337"},
    ),
    "dns": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_OUTPUT_DNS", "-p", "udp", "--dport", "53", "-j", "REDIRECT", "--to-ports", "15053"),
        {"ipv4 dns": "udp"},
    ),
    "dns-tcp": (
        REDIRECT,
        ("iptables", *NAT, "ISTIO_OUTPUT_DNS", "-p", "tcp", "--dport", "53", "-j", "REDIRECT", "--to-ports", "15053"),
        {"ipv4 dns": "tcp"},
    ),
    "tproxy-route": (TPROXY, ("ip", "rule", "delete", "fwmark", "1337"), {"ipv4 in by policy route": "15002"}),
    "foreign-rule-first": (
        TPROXY,
        ("iptables", "-t", "mangle", "-I", "PREROUTING", "-p", "tcp", "--dport", "15002", "-j", "ACCEPT"),
        {"ipv4 in": "15002", "ipv4 in by policy route": "15002"},
    ),
    "foreign-redirect-to-a-dead-port": (
        REDIRECT,
        ("iptables", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "3306", "-j", "REDIRECT", "--to-ports", "1"),
        {"ipv4 out": "but intercepted on the way: refused"},
    ),
    "foreign-redirect-of-what-comes-in": (
        REDIRECT,
        ("iptables", "-t", "nat", "-I", "PREROUTING", "-p", "tcp", "--dport", "15020", "-j", "REDIRECT", "--to-ports", "1"),
        {"ipv4 in": "but intercepted on the way: refused"},
    ),
    "foreign-redirect-to-another-port": (
        REDIRECT,
        (
            "iptables",
            "-t",
            "nat",
            "-I",
            "PREROUTING",
            "-p",
            "tcp",
            "--dport",
            "15020",
            "-j",
            "REDIRECT",
            "--to-ports",
            "15090",
        ),
        {"ipv4 in": "found port 15090"},
    ),
    "foreign-drop": (
        REDIRECT,
        ("iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "15001", "-j", "DROP"),
        {"ipv4 out": "203.0.113.77"},
    ),
}


@pytest.mark.parametrize(("flags", "command", "wrong"), BREAKS.values(), ids=list(BREAKS))
def test_broken_rules_fail_and_the_path_is_named(
    pod: Pod, flags: tuple[str, ...], command: tuple[str, ...], wrong: dict[str, str]
) -> None:
    flags = (*flags, "--dual-stack", *DNS)
    apply(pod.inside, *flags)
    tool, *words = command
    pod.inside.run(tool.replace("tables", "tables-nft"), *words)
    before = everything(pod.inside)
    found = validate(pod.inside, *flags)
    assert found.status == 126
    assert {re.split(" tcp | udp ", line)[0] for line in found.wrong} == set(wrong), found.wrong
    for line in found.wrong:
        assert wrong[re.split(" tcp | udp ", line)[0]] in line
    assert f"{len(found.wrong)} of {len(found.good) + len(found.wrong)} paths are wrong: {found.wrong[0]}" in found.last
    assert "apply them" in found.last
    assert everything(pod.inside) == before


def test_a_connection_that_is_lost_is_told_after_the_timeout(pod: Pod) -> None:
    flags, command, _ = BREAKS["foreign-drop"]
    apply(pod.inside, *flags)
    pod.inside.run("iptables-nft", *command[1:])
    (line,) = validate(pod.inside, *flags).wrong
    assert line.endswith("found nothing within 2 s: the connection is lost")


def test_rules_that_are_not_there_fail(pod: Pod) -> None:
    found = validate(pod.inside, *REDIRECT)
    assert found.status == 126
    assert {re.split(" tcp ", line)[0] for line in found.wrong} == {"ipv4 out", "ipv4 proxy to its own pod", "ipv4 in"}


def test_a_redirect_to_another_port_of_the_proxy_fails(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT, "-z", "15001")
    (line, *_) = validate(pod.inside, *REDIRECT, "-z", "15006").wrong
    assert "expected port 15006" in line
    assert line.endswith("found port 15001")


@pytest.mark.parametrize(("port", "kind"), [(15001, "tcp"), (15006, "tcp"), (15053, "tcp"), (15053, "udp")])
def test_a_port_that_is_in_use_is_told(pod: Pod, port: int, kind: str) -> None:
    apply(pod.inside, *REDIRECT, *DNS)
    with pod.inside.call(lambda: taken(port, kind)):
        found = validate(pod.inside, *REDIRECT, *DNS)
    assert (found.status, found.good, found.wrong) == (126, [], [])
    assert f"nothing was validated: port {port} is in use" in found.last
    assert "before the proxy starts" in found.last


def taken(port: int, kind: str) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    server.bind(("", port))
    if kind == "tcp":
        server.listen()
    return server


@pytest.mark.parametrize("timeout", ["1s", "5s"])
def test_an_app_that_serves_an_excluded_port_already_is_no_hindrance(pod: Pod, timeout: str) -> None:
    apply(pod.inside, *REDIRECT)
    servers = Servers()
    servers.listen(pod.inside, cases.DIRECT, {15020})
    servers.start()
    try:
        found = validate(pod.inside, *REDIRECT, timeout=timeout)
    finally:
        servers.close()
    assert (found.status, found.wrong) == (0, [])
    assert [line for line in found.good if "15020" in line and line.endswith("(another server answered)")]


def test_clients_never_share_a_port_however_few_there_are(pod: Pod) -> None:
    flags = (*LISTS, "--dual-stack")
    apply(pod.inside, *flags)
    # A connected client has one address; another with another address may be given its port, and answers are told by ports.
    pod.inside.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40039")
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], [])


def test_an_app_that_takes_over_a_connection_to_the_world_is_not_its_destination(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT)
    dial = ("-p", "tcp", "--dport", "3306", "-j", "REDIRECT", "--to-ports", "9080")
    pod.inside.run("iptables-nft", "-t", "nat", "-I", "OUTPUT", *dial)
    servers = Servers()
    servers.listen(pod.inside, cases.DIRECT, {9080})
    servers.start()
    try:
        (line,) = validate(pod.inside, *REDIRECT).wrong
    finally:
        servers.close()
    assert "3306" in line
    assert line.endswith("(but intercepted on the way: another server answered)")


def test_a_validation_that_is_told_to_end_leaves_nothing_behind(pod: Pod) -> None:
    flags, command, _ = BREAKS["foreign-drop"]
    apply(pod.inside, *flags)
    pod.inside.run("iptables-nft", *command[1:])  # so that it lasts until its timeout
    before = everything(pod.inside)
    made = "until ip link show istio-probe >&2; do kill -0 $! || exit 1; sleep 0.05; done"
    script = f'"$@" & {made}; kill -TERM $!; wait $!; echo $?'
    program = (sys.executable, "-m", "istio_init", "istio-iptables", *flags)
    ended = pod.inside.run(
        "sh", "-c", script, "sh", *program, "--skip-rule-apply", "--run-validation", "--probe-timeout", "2s"
    )
    assert ended.stdout == f"{128 + signal.SIGTERM}\n"
    assert everything(pod.inside) == before


def test_what_a_killed_validation_left_is_no_hindrance(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT)
    pod.inside.run("ip", "link", "add", "istio-probe", "type", "veth", "peer", "name", "istio-probe-far")
    pod.inside.run("ip", "rule", "add", "fwmark", "15002", "lookup", "15002", "priority", "32000")
    assert validate(pod.inside, *REDIRECT).status == 0
    assert "istio-probe" not in pod.inside.run("ip", "link").stdout
    assert "15002" not in pod.inside.policy_routing()


def test_no_probe_leaves_the_pod(pod: Pod) -> None:
    """The world outside counts the packets that reach it: none, though rules are missing and all is tried."""
    pod.outside.run("iptables-nft", "-A", "INPUT", "-p", "tcp")
    pod.outside.run("iptables-nft", "-A", "FORWARD", "-p", "tcp")
    assert validate(pod.inside, *REDIRECT, *DNS).status == 126
    counted = pod.outside.run("iptables-nft-save", "-c").stdout
    assert re.findall(r"^(\[.*\]) -A", counted, re.MULTILINE) == ["[0:0]"] * 2


def test_an_interface_that_is_excluded_is_not_expected_to_be_captured(pod: Pod) -> None:
    flags = ("-u", "1337", "-i", "*", "-b", "*", "-c", "istio+")
    apply(pod.inside, *flags)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong, found.unchecked) == (0, [], ["the interfaces of -c and -k"])
    assert [line for line in found.good if "interface istio+ is excluded (-c)), found its original destination" in line]


def test_groups_count(pod: Pod) -> None:
    for environment in ({"ISTIO_OUTBOUND_OWNER_GROUPS": "2000"}, {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "2000"}):
        pod.inside.istio_init("istio-iptables", *REDIRECT, environment=environment)
        found = validate(pod.inside, *REDIRECT, environment=environment)
        assert (found.status, found.wrong, found.unchecked) == (0, [], [])
        assert [
            line for line in found.good if line.startswith("ipv4 group out") and "found its original destination" in line
        ]


def test_long_lists_are_sampled_and_the_rest_is_told(pod: Pod) -> None:
    flags = ("-u", "1337", "-b", ",".join(str(port) for port in range(2000, 2020)), "-k", "tap0")
    apply(pod.inside, *flags)
    found = validate(pod.inside, *flags)
    assert (found.status, found.wrong) == (0, [])
    assert found.unchecked == ["12 more items of -b", "the interfaces of -c and -k"]


def run_with(pod: Pod, *setpriv: str) -> Found:
    """Validate with fewer rights, as containers have them."""
    words = ("istio-iptables", *REDIRECT, *DNS, "--skip-rule-apply", "--run-validation", "--probe-timeout", "2s")
    return read(pod.inside.run("setpriv", *setpriv, sys.executable, "-m", "istio_init", *words, check=False))


def test_the_capabilities_of_an_init_container_are_enough_for_both_directions(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT, *DNS)
    rights = "-all,+net_admin,+net_raw"
    found = run_with(pod, "--inh-caps", rights, "--bounding-set", rights)
    assert (found.status, found.wrong) == (0, [])
    assert {re.split(" tcp | udp ", line)[0] for line in found.good} == {"ipv4 out", "ipv4 in", "ipv4 dns"}
    assert {re.split(" tcp | udp ", line)[0] for line in found.unchecked} >= {"ipv4 proxy out", "ipv4 proxy to its own pod"}
    assert all("SETUID" in line for line in found.unchecked)


PROXY = ("--reuid", "1337", "--regid", "1337", "--clear-groups", "--inh-caps", "-all", "--bounding-set", "-all")


def test_the_proxys_user_without_any_capability_checks_the_way_to_its_own_pod(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT, *DNS)
    found = run_with(pod, *PROXY)
    assert (found.status, found.wrong) == (0, [])
    assert [re.split(" tcp ", line)[0] for line in found.good] == ["ipv4 proxy to its own pod"]
    assert [line for line in found.unchecked if line.startswith("ipv4 in") and "NET_ADMIN" in line]
    pod.inside.run("iptables-nft", "-t", "nat", "-F", "ISTIO_OUTPUT")
    found = run_with(pod, *PROXY)
    assert (found.status, found.good) == (126, [])
    assert [re.split(" tcp ", line)[0] for line in found.wrong] == ["ipv4 proxy to its own pod"]


def test_an_app_without_any_capability_checks_what_reaches_the_proxy(pod: Pod) -> None:
    apply(pod.inside, *REDIRECT, *DNS)
    app = ("--reuid", "1000", "--regid", "1000", *PROXY[4:])
    found = run_with(pod, *app)
    assert (found.status, found.wrong) == (0, [])
    assert {re.split(" tcp | udp ", line)[0] for line in found.good} == {"ipv4 out", "ipv4 dns"}


def test_a_validation_that_can_check_nothing_fails(pod: Pod) -> None:
    words = ("istio-iptables", "-u", "1337,0", "--skip-rule-apply", "--run-validation")
    none = ("--inh-caps", "-all", "--bounding-set", "-all", "--reuid", "1000", "--regid", "1000", "--clear-groups")
    found = read(pod.inside.run("setpriv", *none, sys.executable, "-m", "istio_init", *words, check=False))
    assert (found.status, found.good, found.wrong) == (126, [], [])
    assert "no path could be checked" in found.last
    assert "NET_ADMIN" in found.last
