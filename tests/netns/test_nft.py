"""Native nftables: the behaviour of every other means, and what is particular to tables of our own."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests import cases
from tests.cases import DIRECT, SERVICE, into, out
from tests.netns import (
    test_change,
    test_current,
    test_dns,
    test_dual_stack,
    test_faults,
    test_network_namespace,
    test_tproxy,
    test_upstream_faults,
    test_validation,
)
from tests.netns.sockets import connect, servers_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

Means = tuple[tuple[str, ...], str]

NFT = ("--backend", "nft")
REDIRECT = test_change.REDIRECT
TPROXY = test_change.TPROXY
BOTH_MODES = pytest.mark.parametrize("flags", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
NETWORK_TIMEOUT = 10.0  # seconds
TCP_LAST_ACK = "09"  # net/tcp_states.h

# What other means are tried with holds for this one, too, where it shows in connections; these look at iptables' own tables.
LOOK_AT_IPTABLES = {
    "test_an_apply_leaves_the_rules_that_the_old_script_left",
    "test_a_second_run_writes_nothing_and_says_so",
    "test_runs_at_the_same_time_leave_one_set_of_rules",
    "test_jumps_that_were_doubled_are_made_one",
    "test_a_rule_slipped_into_a_chain_of_ours_is_found_and_fixed",
    "test_a_chain_that_others_use_is_not_taken_from_them",
    "test_no_rule_of_ours_at_the_head_of_a_chain_stands_behind_another",
    "test_a_foreign_rule_that_shadows_ours_is_told",
}
MODULES = (
    *(test_change, test_current, test_dns, test_dual_stack, test_faults, test_upstream_faults),
    *(test_network_namespace, test_tproxy, test_validation),
)


@pytest.fixture
def means() -> Means:
    return NFT, "nft"


def behaviour_of_every_means() -> dict[str, Callable[..., None]]:
    """Name each test that takes `means` after its module and itself."""
    return {
        f"{module.__name__.rpartition('.')[2]}_{name.removeprefix('test_')}": test
        for module in MODULES
        for name, test in vars(module).items()
        if name.startswith("test_")
        and name not in LOOK_AT_IPTABLES
        and inspect.isfunction(test)
        and "means" in inspect.signature(test).parameters
    }


globals().update(behaviour_of_every_means())


def ruleset(namespace: Namespace, *flags: str) -> str:
    return namespace.run("nft", *flags, "list", "ruleset").stdout


def ours(namespace: Namespace) -> list[str]:
    """Give our tables without counters."""
    return [namespace.run("nft", "-s", "list", "table", family, "istio-init").stdout for family in ("ip", "ip6")]


def tables(namespace: Namespace) -> list[str]:
    return namespace.run("nft", "list", "tables").stdout.splitlines()


def nft(namespace: Namespace, script: str) -> None:
    namespace.run("nft", "-f", "-", stdin=script)


@BOTH_MODES
def test_a_second_run_writes_nothing(pod: Pod, flags: tuple[str, ...]) -> None:
    pod.inside.istio_init(*NFT, *flags)
    with servers_for(pod, [out(SERVICE, 80, "")]):
        connect(pod, out(SERVICE, 80, ""))
    # Handles are given anew to each rule that is written, and its counters begin at zero.
    before = ruleset(pod.inside, "-a")
    second = pod.inside.istio_init(*NFT, *flags)
    assert ruleset(pod.inside, "-a") == before
    assert "packets 1 " in before
    assert "already in place (nft; ipv4 nft, ipv6 nft): nothing written" in second.stderr


TAMPERED = {
    "a rule more": "insert rule ip istio-init nat_ISTIO_OUTPUT ip daddr 10.96.0.10 return",
    "a rule more, at the end": "add rule ip istio-init nat_ISTIO_OUTPUT counter",
    "a rule more, in a guard": "insert rule ip istio-init nat_ISTIO_OUTPUT_if_1 return",
    "a rule more, in a base chain": "insert rule ip istio-init nat_OUTPUT tcp dport 80 accept",
    "a rule that nobody knows": "add rule ip istio-init nat_OUTPUT limit rate 1/second log",
    "a chain without its rules": "flush chain ip istio-init nat_ISTIO_REDIRECT",
    "a set with less": (
        "flush chain ip istio-init nat_ISTIO_INBOUND; "
        "add rule ip istio-init nat_ISTIO_INBOUND tcp dport { 9080 } jump nat_ISTIO_IN_REDIRECT"
    ),
    "a chain more": "add chain ip istio-init nat_MORE",
    "a guard more": "add chain ip istio-init nat_ISTIO_OUTPUT_if_7",
    "a base chain more": "add chain ip istio-init more { type filter hook output priority 5; policy drop; }",
    "a set more": "add set ip istio-init more { type ipv4_addr; }",
    "a policy": "chain ip istio-init nat_OUTPUT { policy drop; }",
    "switched off": "add table ip istio-init { flags dormant; }",
    "without IPv6": "delete table ip6 istio-init",
}


@pytest.mark.parametrize("script", TAMPERED.values(), ids=list(TAMPERED))
def test_what_somebody_changed_by_hand_is_found_and_fixed(pod: Pod, script: str) -> None:
    flags = (*NFT, "-u", "1337", "-i", "*", "-b", "9080,9082", "--dual-stack")
    pod.inside.istio_iptables(*flags)
    whole = ours(pod.inside)
    nft(pod.inside, script)
    assert "rules written" in pod.inside.istio_iptables(*flags).stderr
    assert ours(pod.inside) == whole
    nft(pod.inside, script)
    pod.inside.istio_init("clean", *NFT)
    assert tables(pod.inside) == []


MOVED = {
    "another priority": ("output priority -100", "output priority -99"),
    "another condition": (
        "meta l4proto tcp counter jump nat_ISTIO_OUTPUT ",
        "meta l4proto udp counter jump nat_ISTIO_OUTPUT ",
    ),
    "another set": ("tcp dport { 9080, 9082 }", "tcp dport { 9080, 9083 }"),
    "another port": ("redirect to :15001", "redirect to :15002"),
}


@pytest.mark.parametrize(("old", "new"), MOVED.values(), ids=list(MOVED))
def test_a_word_that_is_not_ours_is_found_and_fixed(pod: Pod, old: str, new: str) -> None:
    flags = (*REDIRECT, "-b", "9080,9082")
    printed = pod.inside.istio_init("--dry-run", "--format", "nft", *flags).stdout
    nft(pod.inside, printed)
    whole = ours(pod.inside)
    other = printed.replace(old, new)
    assert other != printed
    nft(pod.inside, other)
    assert "rules written" in pod.inside.istio_init(*NFT, *flags).stderr
    assert ours(pod.inside) == whole


def test_a_reason_alone_makes_no_difference(pod: Pod) -> None:
    printed = pod.inside.istio_init("--dry-run", "--format", "nft", *REDIRECT).stdout
    nft(pod.inside, printed.replace("must not loop", "is ours"))
    assert "already in place" in pod.inside.istio_init(*NFT, *REDIRECT).stderr


def test_runs_at_the_same_time_leave_one_set_of_rules(pod: Pod) -> None:
    command = ["nsenter", f"--net={pod.inside.path}", sys.executable, "-m", "istio_init", *NFT, *REDIRECT]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    logged = [process.communicate(timeout=60)[1] for process in running]
    assert sorted("rules written" in text for text in logged) == [False] * 5 + [True]
    assert pod.inside.run("nft", "list", "table", "ip", "istio-init").stdout.count("jump nat_ISTIO_OUTPUT ") == 1


def test_it_needs_no_iptables_and_makes_none_of_its_tables(pod: Pod, tmp_path: Path) -> None:
    environment = with_nft_alone(tmp_path)
    pod.inside.istio_init(*NFT, *TPROXY, environment=environment)
    assert tables(pod.inside) == ["table ip istio-init", "table ip6 istio-init"]
    assert pod.inside.run("cat", "/proc/net/ip_tables_names").stdout == ""
    pod.inside.istio_init("clean", *NFT, environment=environment)
    assert tables(pod.inside) == []


def with_nft_alone(directory: Path) -> dict[str, str]:
    """Give a PATH on which there is nft and nothing of iptables."""
    real = shutil.which("nft")
    assert real
    (directory / "nft").symlink_to(real)
    return {"PATH": str(directory)}


def test_by_default_it_is_taken_where_there_is_no_iptables(pod: Pod, tmp_path: Path) -> None:
    environment = with_nft_alone(tmp_path)
    assert "applied (nft; ipv4 nft, ipv6 nft)" in pod.inside.istio_init(*REDIRECT, environment=environment).stderr
    assert "already in place (nft;" in pod.inside.istio_init(*REDIRECT, environment=environment).stderr
    assert "clean (nft;" in pod.inside.istio_init("clean", environment=environment).stderr
    assert tables(pod.inside) == []


def stand_ins(directory: Path, script: str, *names: str) -> dict[str, str]:
    """Put programs of these names first on the PATH that do no more than a script says."""
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


RESTORES = [f"{tool}{variant}-restore" for tool in ("iptables", "ip6tables") for variant in ("", "-nft", "-legacy")]
NO_MODULE = "cat >/dev/null; echo 'Extension REDIRECT revision 0 not supported, missing kernel module?' >&2; exit 2"


def test_by_default_it_is_taken_where_no_variant_of_iptables_takes_the_plan(pod: Pod, tmp_path: Path) -> None:
    environment = stand_ins(tmp_path, NO_MODULE, *RESTORES)
    logged = pod.inside.istio_init("-v", *REDIRECT, environment=environment).stderr
    assert "warning: ipv4 rules are in native nftables: `iptables-nft-restore" in logged
    assert "applied (nft; ipv4 nft, ipv6 nft)" in logged
    connection = out(SERVICE, 80, "envoy:15001")
    with servers_for(pod, [connection]):
        assert connect(pod, connection).server == "envoy:15001"


def test_where_iptables_has_rules_of_ours_nothing_else_is_taken(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init(*REDIRECT)
    before = ruleset(pod.inside)
    environment = stand_ins(tmp_path, NO_MODULE, *RESTORES)
    failed = pod.inside.istio_init(*REDIRECT, "-x", "10.1.0.0/16", environment=environment, check=False)
    assert failed.returncode == 4
    assert "missing kernel module" in failed.stderr
    assert ruleset(pod.inside) == before


def test_without_either_both_are_named(pod: Pod, tmp_path: Path) -> None:
    failed = pod.inside.istio_init(*REDIRECT, environment={"PATH": str(tmp_path)}, check=False)
    assert failed.returncode == 4
    assert "install Debian's package `iptables`" in failed.stderr
    assert "install Debian's package `nftables`" in failed.stderr
    assert "nothing was changed" in failed.stderr
    # The kernel itself says that there is nothing.
    assert "nothing to remove" in pod.inside.istio_init("clean", environment={"PATH": str(tmp_path)}).stderr


def test_clean_without_a_backend_removes_what_nft_made(pod: Pod) -> None:
    pod.inside.istio_init(*NFT, *TPROXY)
    logged = pod.inside.istio_init("clean").stderr
    assert "clean (nft;" in logged
    assert not any("istio-init" in name for name in tables(pod.inside))
    assert "lookup 133" not in pod.inside.policy_routing()


def test_clean_of_iptables_rules_does_without_nft(pod: Pod, tmp_path: Path) -> None:
    broken = stand_ins(tmp_path, "echo 'netlink: Error: cache initialization failed: Invalid argument' >&2; exit 1", "nft")
    pod.inside.istio_init(*REDIRECT)
    assert "not seen" not in pod.inside.istio_init("clean", environment=broken).stderr
    assert pod.inside.save("nft") == ""
    pod.inside.istio_init(*NFT, *REDIRECT)
    before = ruleset(pod.inside)
    failed = pod.inside.istio_init("clean", environment=broken, check=False)
    assert failed.returncode == 4
    assert "`nft -j list table ip istio-init` exited with status 1" in failed.stderr
    assert "nothing was changed" in failed.stderr
    assert ruleset(pod.inside) == before


def test_clean_of_one_family_leaves_the_other(pod: Pod) -> None:
    pod.inside.istio_init(*NFT, *REDIRECT)
    pod.inside.istio_init("clean", *NFT, "--family", "ipv6")
    assert tables(pod.inside) == ["table ip istio-init"]


THEIRS = """\
table inet istio-init {
  chain output {
    type nat hook output priority -100
    tcp dport 7 counter accept
  }
}
table ip istio {
  set some {
    type ipv4_addr
    elements = { 10.0.0.1 }
  }
}
"""


def test_another_plan_keeps_the_base_chains(pod: Pod) -> None:
    """A packet must not pass a chain that goes and, at the same hook, one that comes."""

    def base_chains() -> dict[str, str]:
        listed = re.findall(r"chain (\w+) { # handle (\d+)\n\t\ttype", ruleset(pod.inside, "-a"))
        return dict(listed)

    pod.inside.istio_init(*NFT, *TPROXY)
    before = base_chains()
    pod.inside.istio_init(*NFT, *TPROXY, "-x", "10.1.0.0/16")
    assert "10.1.0.0/16" in ruleset(pod.inside)
    assert base_chains() == before
    assert {"mangle_PREROUTING", "nat_OUTPUT"} <= set(before)


def test_what_is_no_chain_goes_with_the_table(pod: Pod) -> None:
    pod.inside.istio_init(*NFT, *TPROXY)
    nft(pod.inside, "add set ip istio-init theirs { type ipv4_addr; }; add chain ip istio-init theirs")
    pod.inside.istio_init(*NFT, *TPROXY)
    assert "theirs" not in ruleset(pod.inside)
    assert "already in place" in pod.inside.istio_init(*NFT, *TPROXY).stderr


def test_tables_of_others_stay_as_they_are(pod: Pod) -> None:
    nft(pod.inside, THEIRS)
    before = ruleset(pod.inside, "-a")
    pod.inside.istio_init(*NFT, *TPROXY)
    assert ruleset(pod.inside, "-a").startswith(before.rstrip())
    pod.inside.istio_init("clean", *NFT)
    assert ruleset(pod.inside, "-a") == before


@pytest.mark.parametrize("before", [None, REDIRECT, TPROXY], ids=["nothing", "redirect", "tproxy"])
def test_when_it_fails_nothing_at_all_has_changed(pod: Pod, tmp_path: Path, before: tuple[str, ...] | None) -> None:
    if before:
        pod.inside.istio_init(*NFT, *before)
        nft(pod.inside, "add rule ip istio-init nat_OUTPUT limit rate 1/second log")
    was = ruleset(pod.inside, "-a"), pod.inside.policy_routing()
    # The kernel refuses the last line, so all before it is taken back.
    real = shutil.which("nft")
    spoiling = (
        f'case $1 in -f) (cat; echo \'add rule ip istio-init nat_OUTPUT jump nowhere\') | {real} "$@";; *) {real} "$@"; esac'
    )
    environment = stand_ins(tmp_path, spoiling, "nft")
    failed = pod.inside.istio_init(*NFT, *TPROXY, "-t", "5", environment=environment, check=False)
    assert failed.returncode == 4
    (line,) = failed.stderr.splitlines()
    assert "`nft -f -` exited with status 1" in line
    assert "No such file or directory" in line
    assert "nothing was changed" in line
    assert (ruleset(pod.inside, "-a"), pod.inside.policy_routing()) == was


WITHOUT_IPV6 = """\
script=$(cat)
case $1$script in -[cf]*'table ip6'*) echo 'Error: Could not process rule: Operation not supported' >&2; exit 1;; esac
printf '%s\\n' "$script" | {real} "$@"
"""


def test_ipv6_that_does_not_work_is_a_warning(pod: Pod, tmp_path: Path) -> None:
    environment = stand_ins(tmp_path, WITHOUT_IPV6.format(real=shutil.which("nft")), "nft")
    done = pod.inside.istio_init(*NFT, *REDIRECT, environment=environment)
    assert "warning: ipv6 rules are left out, because ipv6 does not work here: `nft -c -f -`" in done.stderr
    assert tables(pod.inside) == ["table ip istio-init"]


def test_ipv6_that_was_asked_for_and_does_not_work_is_an_error_and_leaves_nothing(pod: Pod, tmp_path: Path) -> None:
    environment = stand_ins(tmp_path, WITHOUT_IPV6.format(real=shutil.which("nft")), "nft")
    assert pod.inside.istio_init(*NFT, "--family", "ipv6", *REDIRECT, environment=environment, check=False).returncode == 4
    failed = pod.inside.istio_iptables(*NFT, "--dual-stack", *REDIRECT, environment=environment, check=False)
    assert failed.returncode == 4
    assert tables(pod.inside) == []


@pytest.mark.parametrize(
    ("message", "status", "told"),
    [
        (
            "Error: cache initialization failed: Invalid argument",
            4,
            "the kernel seems to lack nf_tables; load the module nf_tables",
        ),
        (
            "Unable to initialize Netlink socket: Protocol not supported",
            4,
            "the kernel seems to lack nf_tables; load the module nf_tables",
        ),
        ("Operation not permitted (you must be root)", 3, "a security module may forbid it"),
    ],
)
def test_what_keeps_it_from_working_is_told_with_a_remedy(
    pod: Pod, tmp_path: Path, message: str, status: int, told: str
) -> None:
    environment = stand_ins(tmp_path, f"echo '{message}' >&2; exit 1", "nft")
    failed = pod.inside.istio_init(*NFT, *REDIRECT, environment=environment, check=False)
    assert failed.returncode == status
    assert message in failed.stderr
    assert told in failed.stderr


def test_an_ordinary_user_is_told_what_is_missing(pod: Pod) -> None:
    command = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    refused = pod.inside.run(*command, sys.executable, "-m", "istio_init", *NFT, *REDIRECT, check=False)
    assert refused.returncode == 3
    assert "reading and changing rules needs NET_ADMIN" in refused.stderr


def test_legacy_tables_contradict_it(pod: Pod) -> None:
    refused = pod.inside.istio_init(*NFT, "--iptables-variant", "legacy", *REDIRECT, check=False)
    assert refused.returncode == 2
    assert "--backend" in refused.stderr


@pytest.mark.parametrize("port", [80, 9080])
def test_under_tproxy_nobody_else_gets_what_no_proxy_listens_for(pod: Pod, port: int) -> None:
    pod.inside.istio_init(*NFT, *TPROXY, "-z", "15006")
    connection = into(port, DIRECT)
    with servers_for(pod, [connection]):
        assert connect(pod, connection).server == "rejected"
        pod.inside.istio_init("clean", *NFT)
        assert connect(pod, connection).server == DIRECT


def test_under_tproxy_the_end_of_a_connection_is_heard_in_time_wait(pod: Pod) -> None:
    """Who closes first waits in TIME_WAIT for the other end. `-m socket` lets that through, `socket wildcard` would not."""
    pod.inside.istio_init(*NFT, *TPROXY)
    server = pod.outside.call(lambda: socket.create_server((SERVICE, 80)))
    client = pod.inside.call(lambda: socket.create_connection((SERVICE, 80)), cases.PROXY)
    peer, _ = server.accept()
    with server, peer:
        client.close()
        assert peer.recv(1) == b""
    wait_until(lambda: not has_socket(pod.outside, TCP_LAST_ACK))


def has_socket(namespace: Namespace, state: str) -> bool:
    lines = namespace.run("cat", "/proc/thread-self/net/tcp").stdout.splitlines()[1:]
    return any(line.split()[3] == state for line in lines)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + NETWORK_TIMEOUT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_packet_that_no_process_sent_has_none_of_the_owners(pod: Pod) -> None:
    """So holds `! --gid-owner`; `meta skgid !=` would not, and such a packet would be captured."""
    pod.inside.istio_iptables(*NFT, "-i", "*", environment={"ISTIO_OUTBOUND_OWNER_GROUPS": "5"})
    membership = struct.pack("4s4s", socket.inet_aton("239.1.2.3"), socket.inet_aton(cases.POD))

    def join() -> socket.socket:
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return member

    with pod.inside.call(join):  # the kernel itself tells the routers
        wait_until(lambda: packets(pod.inside, "nat_ISTIO_OUTPUT_if_2", "accept") > 0)


def packets(namespace: Namespace, chain: str, verdict: str) -> int:
    """Count the packets of the last rule of a chain that ends with a verdict."""
    listed = json.loads(namespace.run("nft", "-j", "list", "chain", "ip", "istio-init", chain).stdout)["nftables"]
    rules = [item["rule"]["expr"] for item in listed if "rule" in item]
    assert verdict in rules[-1][-1]
    return sum(part["counter"]["packets"] for part in rules[-1] if "counter" in part)


def test_thousands_of_destinations_are_one_look_up(pod: Pod) -> None:
    excluded = ",".join(f"10.{number >> 8}.{number & 255}.0/25" for number in range(2000))
    flags = (*NFT, "-u", "1337", "-i", "*", "-x", excluded)
    pod.inside.istio_init(*flags)
    listed = pod.inside.run("nft", "list", "chain", "ip", "istio-init", "nat_ISTIO_OUTPUT").stdout
    assert listed.count("ip daddr {") == 1
    assert 'comment "2,000 destinations are excluded (-x)"' in listed
    assert "already in place" in pod.inside.istio_init(*flags).stderr
    connections = [out("10.1.2.3", 3306, DIRECT), out(SERVICE, 80, "envoy:15001")]
    with servers_for(pod, connections):
        assert [connect(pod, one).server for one in connections] == [one.outcome for one in connections]
