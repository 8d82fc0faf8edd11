"""What a second run, another plan and a clean do to a namespace that is in use and has third-party rules."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Self

import pytest

from tests.cases import SERVICE, Connection, into, out
from tests.netns.sockets import RESET, connect, exchange, servers_for

if TYPE_CHECKING:
    from tests.netns.namespaces import Namespace, Pod

Means = tuple[tuple[str, ...], str]

REDIRECT = ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", "")
TPROXY = ("-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "*")
FAMILIES = ("ipv4", "ipv6")

# What iptables-save shows after Istio 1.0.5's own script was run with the arguments of REDIRECT: a fact about that release.
OLD_SCRIPTS_NAT = """\
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:ISTIO_INBOUND -
:ISTIO_IN_REDIRECT -
:ISTIO_OUTPUT -
:ISTIO_REDIRECT -
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 9080 -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ISTIO_REDIRECT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT"""


def add_foreign_rules(namespace: Namespace, variant: str) -> None:
    """Write third-party rules: in the chains that ours jump from, in chains of their own, some with names like ours."""
    for tool in (f"iptables-{variant}", f"ip6tables-{variant}"):
        for rule in (
            ("-t", "nat", "-N", "DOCKER"),
            ("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "DOCKER"),
            ("-t", "nat", "-A", "DOCKER", "-m", "comment", "--comment", "not ours -j ISTIO_OUTPUT", "-j", "RETURN"),
            ("-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "LOG", "--log-prefix", "x -j ISTIO_OUTPUT y "),
            ("-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "counts, -j ISTIO_OUTPUT does not"),
            ("-t", "nat", "-A", "INPUT"),
            ("-t", "nat", "-N", "ISTIO_CUSTOM"),
            ("-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "ISTIO_CUSTOM"),
            ("-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-m", "tcp", "--dport", "8", "-j", "MARK", "--set-mark", "9"),
            ("-t", "filter", "-P", "FORWARD", "DROP"),
            ("-t", "filter", "-A", "INPUT", "-p", "udp", "-m", "udp", "--dport", "9", "-j", "DROP"),
        ):
            namespace.run(tool, *rule)
    namespace.run("ip", "rule", "add", "fwmark", "99", "lookup", "99")
    namespace.run("ip", "route", "add", "local", "default", "dev", "lo", "table", "99")


def everything(namespace: Namespace, variant: str) -> list[str]:
    return [*(namespace.save(variant, family) for family in FAMILIES), namespace.policy_routing()]


def without_ours(saved: str) -> list[str]:
    """Leave out our chains, their rules, and the jumps to them."""
    ours = ("ISTIO_INBOUND", "ISTIO_OUTPUT", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_DIVERT", "ISTIO_TPROXY")
    return [line for line in saved.splitlines() if '"' in line or not set(ours) & set(line.lstrip(":").split())]


@pytest.mark.parametrize("flags", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_clean_gives_the_namespace_back_as_it_was(pod: Pod, means: Means, flags: tuple[str, ...]) -> None:
    run, variant = means
    add_foreign_rules(pod.inside, variant)
    before = everything(pod.inside, variant)
    pod.inside.istio_init(*run, *flags)
    pod.inside.istio_init("clean", *run)
    assert everything(pod.inside, variant) == before


@pytest.mark.parametrize("flags", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_rules_of_others_stay_byte_for_byte(pod: Pod, means: Means, flags: tuple[str, ...]) -> None:
    run, variant = means
    add_foreign_rules(pod.inside, variant)
    before = pod.inside.save(variant)
    for arguments in (flags, (*flags, "-p", "15002", "-x", "10.1.0.0/16")):
        pod.inside.istio_init(*run, *arguments)
        assert without_ours(pod.inside.save(variant)) == without_ours(before)


def test_an_apply_leaves_the_rules_that_the_old_script_left(pod: Pod, means: Means) -> None:
    run, variant = means
    pod.inside.istio_init(*run, *REDIRECT)
    assert sorted(pod.inside.save(variant).splitlines()) == sorted(OLD_SCRIPTS_NAT.splitlines())
    saved = pod.inside.save(variant)
    for chain in ("ISTIO_OUTPUT", "ISTIO_INBOUND"):
        rules = [line for line in saved.splitlines() if line.startswith(f"-A {chain} ")]
        assert rules == [line for line in OLD_SCRIPTS_NAT.splitlines() if line.startswith(f"-A {chain} ")]


@pytest.mark.parametrize("flags", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_a_second_run_writes_nothing_and_says_so(pod: Pod, means: Means, flags: tuple[str, ...]) -> None:
    run, variant = means
    pod.inside.istio_init(*run, *flags)
    with servers_for(pod, [out(SERVICE, 80, "")]):
        connect(pod, out(SERVICE, 80, ""))
    # Counters of a rule begin at zero when it is written, so equal ones that are not zero show that it was not.
    before = pod.inside.run(f"iptables-{variant}-save", "-c", "-t", "nat").stdout.splitlines()[1:-1]
    second = pod.inside.istio_init(*run, *flags)
    after = pod.inside.run(f"iptables-{variant}-save", "-c", "-t", "nat").stdout.splitlines()[1:-1]
    assert after == before
    assert any(line.startswith("[1:") and "ISTIO_REDIRECT" in line for line in after)
    assert "already in place" in second.stderr
    assert "nothing written" in second.stderr


def test_a_run_over_the_old_scripts_rules_finds_them_in_place(pod: Pod) -> None:
    script = "\n".join(line + " [0:0]" if line[0] == ":" else line for line in OLD_SCRIPTS_NAT.splitlines())
    pod.inside.run("iptables-nft-restore", stdin=f"{script}\n")
    assert "already in place" in pod.inside.istio_init(*REDIRECT, "--family", "ipv4").stderr


@pytest.mark.parametrize(
    "flags", [REDIRECT, TPROXY, ("--layout", "current", *REDIRECT)], ids=["redirect", "tproxy", "current"]
)
def test_an_apply_and_a_clean_import_no_library_of_netlink(pod: Pod, flags: tuple[str, ...]) -> None:
    for arguments in (flags, flags, ("clean",)):
        program = (
            f"import sys; from istio_init.cli.main import run; assert run({list(arguments)}) == 0; "
            "print('pyroute2' in sys.modules)"
        )
        assert pod.inside.run(sys.executable, "-c", program).stdout == "False\n"


def test_one_apply_logs_one_line(pod: Pod) -> None:
    result = pod.inside.istio_init(*REDIRECT)
    (line,) = result.stderr.splitlines()
    for word in ("istio-1.0", "restore", "ipv4 nft", "ipv6 nft", "5 chains", "13 rules", " ms"):
        assert word in line
    assert result.stdout == ""


def test_verbose_logs_each_command_with_its_input(pod: Pod) -> None:
    logged = pod.inside.istio_init("-v", *REDIRECT).stderr
    assert "iptables-nft-restore --noflush" in logged
    assert "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN" in logged


def test_no_connection_escapes_or_fails_while_the_plan_changes(pod: Pod, means: Means) -> None:
    other = (*REDIRECT, "-x", "10.1.0.0/16,10.2.0.0/16", "-b", "*", "-u", "1337,1338")
    assert seen_while_changing(pod, means, REDIRECT, other) == {"envoy:15001"}


def test_no_connection_escapes_or_is_refused_while_the_mode_changes(pod: Pod, means: Means) -> None:
    # A connection that is under way when REDIRECT becomes TPROXY can be reset: its packets carry an address that was
    # translated, and `-m socket` does not find its socket by the other one. New ones must be captured throughout.
    seen = seen_while_changing(pod, means, REDIRECT, TPROXY)
    assert "envoy:15001" in seen
    assert seen <= {"envoy:15001", RESET}


def seen_while_changing(pod: Pod, means: Means, one: tuple[str, ...], other: tuple[str, ...]) -> set[str]:
    """Change between two plans while clients connect in both directions, and tell who got their connections."""
    run, _ = means
    outbound, inbound = out(SERVICE, 80, "envoy:15001"), into(9080, "envoy:15001")
    pod.inside.istio_init(*run, *one)
    with (
        servers_for(pod, [outbound, inbound]),
        Clients(pod.inside, outbound) as leaving,
        Clients(pod.outside, inbound) as coming,
    ):
        for flags in (other, one) * 3:
            pod.inside.istio_init(*run, *flags)
    assert min(leaving.count, coming.count) > 20
    return leaving.seen | coming.seen


class Clients:
    """Opens one connection after the other until it is told to stop."""

    def __init__(self, namespace: Namespace, connection: Connection) -> None:
        self.count = 0
        self.seen: set[str] = set()
        self._connection = connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=namespace.call, args=(self._run, connection.owner))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set() and self.count < 100_000:
            self.seen.add(exchange(self._connection).server)
            self.count += 1


def test_runs_at_the_same_time_leave_one_set_of_rules(pod: Pod, means: Means) -> None:
    run, variant = means
    waiting = ("--lock-wait", "60")  # the last one of six on a loaded machine
    command = ["nsenter", f"--net={pod.inside.path}", sys.executable, "-m", "istio_init", *run, *waiting, *REDIRECT]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait(120) for process in running] == [0] * 6
    assert sorted(pod.inside.save(variant).splitlines()) == sorted(OLD_SCRIPTS_NAT.splitlines())


def test_jumps_that_were_doubled_are_made_one(pod: Pod, means: Means) -> None:
    run, variant = means
    pod.inside.istio_init(*run, *REDIRECT)
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ISTIO_OUTPUT")
    pod.inside.istio_init(*run, *REDIRECT)
    assert pod.inside.save(variant).count("-A OUTPUT -p tcp -j ISTIO_OUTPUT") == 1


def test_a_rule_slipped_into_a_chain_of_ours_is_found_and_fixed(pod: Pod, means: Means) -> None:
    run, variant = means
    pod.inside.istio_init(*run, *REDIRECT)
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-I", "ISTIO_OUTPUT", "-d", SERVICE, "-j", "RETURN")
    connection = out(SERVICE, 80, "envoy:15001")
    with servers_for(pod, [connection]):
        assert connect(pod, connection).server == "direct"
        pod.inside.istio_init(*run, *REDIRECT)
        assert connect(pod, connection).server == "envoy:15001"


@pytest.mark.parametrize(("mark", "table"), [("1337", "133"), ("77", "78")], ids=["default", "other"])
def test_clean_removes_the_old_scripts_chains_and_policy_route(pod: Pod, mark: str, table: str) -> None:
    before = everything(pod.inside, "nft")
    pod.inside.istio_init("--iptables-variant", "nft", *TPROXY, "-t", mark, "-r", table)
    # As the old script made it: without a protocol number of our own.
    pod.inside.run("ip", "rule", "del", "fwmark", mark, "lookup", table)
    pod.inside.run("ip", "rule", "add", "fwmark", mark, "lookup", table)
    pod.inside.run("ip", "route", "replace", "local", "default", "dev", "lo", "table", table, "proto", "boot")
    pod.inside.istio_init("clean")
    assert everything(pod.inside, "nft") == before


FOREIGN_ROUTING = (
    ("rule", "add", "from", "10.9.0.0/16", "fwmark", "1337", "lookup", "133"),
    ("rule", "add", "iif", "lo", "fwmark", "1337", "lookup", "133"),
    ("rule", "add", "fwmark", "1337/0xffff", "lookup", "133"),
    ("rule", "add", "fwmark", "5", "lookup", "7", "pref", "100"),
    ("route", "add", "local", "default", "dev", "lo", "table", "99"),
)


@pytest.mark.parametrize("flags", [(), ("-t", "5", "-r", "7"), ("-r", "99")], ids=["like-ours", "same-rule", "same-route"])
def test_policy_routing_of_others_is_left_alone(pod: Pod, flags: tuple[str, ...]) -> None:
    for words in FOREIGN_ROUTING:
        pod.inside.run("ip", *words)
    before = pod.inside.policy_routing()
    connection = into(9080, "envoy:15001")
    pod.inside.istio_init(*TPROXY, *flags)
    with servers_for(pod, [connection]):
        assert connect(pod, connection).server == "envoy:15001"
    pod.inside.istio_init("clean")
    assert pod.inside.policy_routing() == before


LIKE_OURS = ("rule", "add", "fwmark", "1337", "lookup", "133", "pref")


def test_a_rule_like_ours_that_was_there_first_serves_and_stays(pod: Pod) -> None:
    pod.inside.run("ip", *LIKE_OURS, "50")
    before = pod.inside.policy_routing()
    connection = into(9080, "envoy:15001")
    for _ in range(2):
        pod.inside.istio_init(*TPROXY)
        with servers_for(pod, [connection]):
            assert connect(pod, connection).server == "envoy:15001"
    pod.inside.istio_init("clean")
    assert pod.inside.policy_routing() == before


@pytest.mark.parametrize("change", [("clean",), (*TPROXY, "-t", "5")], ids=["clean", "other-mark"])
def test_a_rule_like_ours_that_came_later_stays(pod: Pod, change: tuple[str, ...]) -> None:
    pod.inside.istio_init(*TPROXY)
    pod.inside.run("ip", *LIKE_OURS, "50")
    pod.inside.run("ip", "rule", "add", "fwmark", "1337", "lookup", "200", "pref", "51")
    pod.inside.run("ip", "route", "add", "local", "default", "dev", "lo", "table", "200")
    pod.inside.istio_init(*change)
    rules = pod.inside.policy_routing()
    assert "50:\tfrom all fwmark 0x539 lookup 133\n" in rules
    assert "51:\tfrom all fwmark 0x539 lookup 200\n" in rules


@pytest.mark.parametrize("rest", [("50", "suppress_prefixlength", "0"), ("40000",)], ids=["suppressed", "behind-main"])
def test_a_rule_like_ours_that_does_not_serve_is_not_relied_on(pod: Pod, rest: tuple[str, ...]) -> None:
    pod.inside.run("ip", *LIKE_OURS, *rest)
    pod.inside.istio_init(*TPROXY)
    assert "lookup 133 proto 133" in pod.inside.policy_routing()


def test_clean_of_one_family_leaves_the_other(pod: Pod) -> None:
    pod.inside.istio_init(*REDIRECT)
    pod.inside.istio_init("clean", "--family", "ipv6")
    assert "ISTIO" not in pod.inside.save("nft", "ipv6")
    assert "ISTIO_OUTPUT" in pod.inside.save("nft")


def test_a_chain_that_others_use_is_not_taken_from_them(pod: Pod, means: Means) -> None:
    run, variant = means
    pod.inside.istio_init(*run, *REDIRECT)
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-N", "THEIRS")
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-A", "THEIRS", "-j", "ISTIO_REDIRECT")
    before = pod.inside.save(variant)
    refused = pod.inside.istio_init("clean", *run, check=False)
    assert refused.returncode == 4
    assert "third-party chain THEIRS jumps to it" in refused.stderr
    assert pod.inside.save(variant) == before
