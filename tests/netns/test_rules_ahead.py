"""Third-party rules ahead of ours, wherever they stand: what is told bypasses the proxy, and what is not told does not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.rules.kernel.nf_tables_hooks import elements_of, rules_of
from istio_init.rules.kernel.nf_tables_rules import words_of
from istio_init.rules.model import Family
from tests.cases import APP, DATABASE, DIRECT, POD, REJECTED, SERVICE, Connection, into, out
from tests.netns.sockets import connect, servers_for
from tests.sweeps import sweep

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

MEANS = {
    "restore-nft": ("--backend", "restore", "--iptables-variant", "nft"),
    "restore-legacy": ("--backend", "restore", "--iptables-variant", "legacy"),
    "libiptc": ("--backend", "libiptc"),
    "nft": ("--backend", "nft"),
}
each_means = pytest.mark.parametrize("flags", MEANS.values(), ids=MEANS)
TOLD = "takes precedence over ours"
OUT, IN = out(SERVICE, 80, "envoy:15001"), into(9080, "envoy:15006")
TO_SERVICE = f"ip daddr {SERVICE} tcp dport 80"
DNAT = f"{TO_SERVICE} dnat to {DATABASE}"


def apply(pod: Pod, flags: tuple[str, ...]) -> str:
    """Apply today's rules for all connections; give the warnings of rules ahead."""
    told = pod.inside.istio_iptables(*flags, "-u", "1337", "-i", "*", "-b", "*").stderr
    return "\n".join(line for line in told.splitlines() if TOLD in line)


def native(namespace: Namespace, base: str, *rules: str, family: str = "ip", more: str = "") -> None:
    """Add a base chain of a table that iptables does not have."""
    lines = "\n".join(rules)
    text = f"table {family} theirs {{\n chain base {{\n type {base}\n {lines}\n }}\n{more}\n}}\n"
    namespace.run("nft", "-f", "-", stdin=text)


def check(pod: Pod, connection: Connection, server: str) -> None:
    with servers_for(pod, [OUT, IN]):
        assert connect(pod, connection).server == server


class Native(NamedTuple):
    """A native base chain, a connection, and who gets it; "" stands for the proxy, as without this chain."""

    base: str
    rules: tuple[str, ...]
    server: str = ""
    connection: Connection = OUT
    family: str = "ip"


NAT, FILTER = "nat hook output priority -105", "filter hook output priority -160"
RESET = f"{TO_SERVICE} reject with tcp reset"
TO_DATABASE = f"dnat to {DATABASE}"
NATIVE = {
    "nat-before": Native(NAT, (DNAT,), DIRECT),
    "nat-after": Native("nat hook output priority -95", (DNAT,)),
    "nat-of-inet": Native(NAT, (f"meta nfproto ipv4 tcp dport 80 dnat ip to {DATABASE}",), DIRECT, family="inet"),
    "nat-of-ipv6": Native(NAT, ("meta nfproto ipv6 tcp dport 80 redirect to :81",), family="inet"),
    "nat-accepts": Native(NAT, (f"{TO_SERVICE} accept",)),
    "nat-of-udp": Native(NAT, (f"udp dport 80 {TO_DATABASE}",)),
    "set": Native(NAT, (f"tcp dport {{ 80, 90-99 }} {TO_DATABASE}",), DIRECT),
    "set-of-addresses": Native(NAT, (f"ip daddr {{ {SERVICE}, 192.0.2.0/24 }} {TO_DATABASE}",), DIRECT),
    "prefix": Native(NAT, (f"ip daddr 10.96.0.0/13 tcp dport 1-100 {TO_DATABASE}",), DIRECT),
    "user": Native(NAT, (f"meta skuid {APP[0]} tcp dport 80 {TO_DATABASE}",), DIRECT),
    "interface": Native(NAT, (f'oifname "eth*" oifname != "lo" {TO_DATABASE}',), DIRECT),
    "returned-before": Native(NAT, (f"ip daddr {SERVICE} return", DNAT)),
    "rejected": Native(FILTER, (RESET,), REJECTED),
    "accepted": Native(FILTER, ("accept", RESET)),
    "rejected-if-related": Native(FILTER, (RESET.replace(" reject", " ct state related,invalid reject"),)),
    # The server's data then look like a new connection from outside.
    "untracked": Native("filter hook output priority -301", (f"{TO_SERVICE} notrack",), REJECTED),
    "inbound": Native("nat hook prerouting priority dstnat - 5", (f"tcp dport 9080 dnat to {POD}",), DIRECT, IN),
}


@each_means
@sweep("case", NATIVE.values(), ids=list(NATIVE))
def test_a_native_base_chain_is_told_if_and_only_if_it_keeps_connections(
    pod: Pod, flags: tuple[str, ...], case: Native
) -> None:
    native(pod.inside, case.base, *case.rules, family=case.family)
    told = apply(pod, flags)
    with servers_for(pod, [OUT, IN]):
        server = connect(pod, case.connection).server
    pod.inside.run("nft", "delete", "table", case.family, "theirs")
    assert server == (case.server or case.connection.outcome)
    assert len(told.splitlines()) == bool(case.server), told
    if case.server:
        assert f"in chain base of table {case.family} theirs" in told
        assert f"`{case.rules[0]}`" in told
        assert f"nft delete rule {case.family} theirs base handle " in told


# Rules of iptables with what they do to a connection to the service; DOCKER and ONE are chains of third parties.
IPTABLES = {
    "chain-of-a-chain": (
        ("-A OUTPUT -p tcp -j ONE", f"-A ONE -d {SERVICE}/32 -j DOCKER", "-A DOCKER -p tcp -m tcp --dport 80 -j ACCEPT"),
        *(OUT, "in chain DOCKER of table nat (reached from OUTPUT `-p tcp -j ONE`, ONE `"),
    ),
    "goto": ((f"-A OUTPUT -d {SERVICE}/32 -g ONE",), OUT, f"`-d {SERVICE}/32 -g ONE`"),
    "user": (
        (f"-A OUTPUT -m owner --uid-owner {APP[0]} -j RETURN",),
        OUT,
        "it matches TCP connections of user 1000, which bypass",
    ),
    "published-port": (
        (
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
            f"-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9080 -j DNAT --to-destination {POD}:9080",
        ),
        *(
            IN,
            "it matches TCP connections not through docker0 to port 9080, as far as its other conditions hold, which bypass",
        ),
    ),
    "returned": ((f"-A OUTPUT -d {SERVICE}/32 -j ONE", "-A ONE -j RETURN", "-A ONE -j ACCEPT"), OUT, ""),
    "other-protocol": (("-A OUTPUT -j ONE", "-A ONE -p udp -j ACCEPT", "-A ONE -p icmp -j ACCEPT"), OUT, ""),
    "known": (("-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",), OUT, ""),
    "localhost": (("-A OUTPUT -d 127.0.0.11/32 -j ONE", "-A ONE -p tcp -m tcp --dport 53 -j RETURN"), OUT, ""),
    "contradiction": (("-A OUTPUT -p tcp --dport 80 -j ONE", "-A ONE -p tcp ! --dport 80 -j ACCEPT"), OUT, ""),
}


# Means that write into the same tables as a variant.
SHARED = {"nft": [MEANS["restore-nft"]], "legacy": [MEANS["restore-legacy"], MEANS["libiptc"]]}


@each_means
@pytest.mark.parametrize("variant", SHARED)
@sweep("case", IPTABLES.values(), ids=list(IPTABLES))
def test_rules_of_iptables_are_told_if_and_only_if_they_keep_connections(
    pod: Pod, flags: tuple[str, ...], variant: str, case: tuple[tuple[str, ...], Connection, str]
) -> None:
    rules, connection, words = case
    pod.inside.istio_init("clean")
    pod.inside.run("nft", "flush", "ruleset")
    script = "\n".join(("*nat", ":ONE - [0:0]", ":DOCKER - [0:0]", *rules, "COMMIT", ""))
    # The empty tables are there before, so that third-party rules of either variant come first.
    pod.inside.run(f"iptables-{variant}-restore", stdin=script)
    told = apply(pod, flags)
    same_chain = flags in SHARED[variant]
    keeps = bool(words) and (same_chain or "DNAT" in rules[-1])
    if same_chain:
        assert bool(told) == bool(words)
        assert words in told
    with servers_for(pod, [OUT, IN]):
        bypasses = connect(pod, connection).server == DIRECT
    # Of two chains of type nat with one priority, the later one is first; where both are of iptables, either may be.
    assert bypasses in ({keeps} if same_chain else {False, keeps})
    assert told or not bypasses
    pod.inside.istio_init("clean")
    pod.inside.run(f"iptables-{variant}-restore", stdin="*nat\nCOMMIT\n")


@each_means
def test_of_equal_priorities_the_later_chain_is_told(pod: Pod, flags: tuple[str, ...]) -> None:
    native(pod.inside, "nat hook output priority -100", DNAT)
    assert apply(pod, flags) == ""
    check(pod, OUT, OUT.outcome)
    pod.inside.run("nft", "delete", "table", "ip", "theirs")
    native(pod.inside, "nat hook output priority -100", DNAT)
    told = apply(pod, flags)
    assert len(told.splitlines()) == 1
    assert "(priority -100)" in told
    check(pod, OUT, DIRECT)


@each_means
@pytest.mark.parametrize("jump", ["last", "first"])
def test_of_rules_that_stand_first_only_those_of_earlier_chains_are_ahead(
    pod: Pod, flags: tuple[str, ...], jump: str
) -> None:
    variant = "legacy" if "legacy" in flags or "libiptc" in flags else "nft"
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-A", "OUTPUT", "-d", SERVICE, "-j", "RETURN")
    flags = (*flags, "--jump", jump)
    told = apply(pod, flags)
    is_shared = flags[:-2] != MEANS["nft"]
    assert told.count("\n") + bool(told) == (jump == "last" and is_shared)
    assert (", or put ours ahead of it (--jump first)" in told) == bool(told)
    check(pod, OUT, DIRECT if told else OUT.outcome)
    native(pod.inside, "nat hook output priority -105", DNAT)
    told = apply(pod, flags)
    assert f"in chain base of table ip theirs (priority -105), `{DNAT}`" in told
    assert told.count("(--jump first)") == (jump == "last" and is_shared)
    check(pod, OUT, DIRECT)


@each_means
def test_jumps_maps_and_policies_of_native_chains_are_followed(pod: Pod, flags: tuple[str, ...]) -> None:
    more = f" chain more {{\n tcp dport 80 dnat to {DATABASE}\n }}"
    native(
        pod.inside,
        "nat hook output priority -105",
        f"ip daddr vmap {{ {SERVICE} : jump more, {DATABASE} : accept }}",
        more=more,
    )
    told = apply(pod, flags)
    assert f"it matches TCP connections to {SERVICE}/32 to port 80, which bypass the proxy" in told
    assert "in chain more of table ip theirs (reached from base `ip daddr vmap {" in told
    check(pod, OUT, DIRECT)
    pod.inside.run("nft", "delete", "table", "ip", "theirs")
    native(pod.inside, "filter hook output priority -160; policy drop", "ip daddr 10.0.0.0/8 accept")
    told = apply(pod, flags)
    assert "the policy of this chain" in told
    assert "which never reach the proxy; change it if this is not intended (nft list chain ip theirs base shows it)" in told
    check(pod, OUT, OUT.outcome)
    check(pod, out("203.0.113.7", 80, OUT.outcome), REJECTED)


def test_native_rules_in_tables_of_iptables_are_told_with_and_without_nft(pod: Pod, tmp_path: Path) -> None:
    rule = f"ip daddr {SERVICE} tcp dport {{ 80, 443 }} dnat to {DATABASE}"
    text = f"table ip nat {{\n chain OUTPUT {{\n type nat hook output priority -100\n {rule}\n }}\n}}\n"
    pod.inside.run("nft", "-f", "-", stdin=text)
    told = apply(pod, MEANS["restore-nft"])
    assert f"in nat OUTPUT (ipv4): `{rule}`; it matches TCP connections to {SERVICE}/32" in told
    assert "(nft delete rule ip nat OUTPUT handle " in told
    check(pod, OUT, DIRECT)
    for name in ("iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    told = pod.inside.istio_iptables(
        *("--iptables-variant", "nft", "-u", "1337", "-i", "*", "-b", "*"), environment={"PATH": str(tmp_path)}
    ).stderr
    assert (
        f"] -d {SERVICE}/32 -p tcp -m tcp --dport 80 -j DNAT or -d {SERVICE}/32 -p tcp -m tcp --dport 443 -j DNAT`" in told
    )


def test_dns_of_a_resolver_in_the_pod_is_told_if_it_would_be_captured(pod: Pod) -> None:
    script = "\n".join(
        (
            *("*nat", ":DOCKER_OUTPUT - [0:0]", "-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT"),
            "-A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:43458",
            *("COMMIT", ""),
        )
    )
    pod.inside.run("iptables-nft-restore", stdin=script)
    flags = ("--iptables-variant", "nft", "-u", "1337", "-i", "*", "-b", "*")
    assert TOLD not in pod.inside.istio_iptables(*flags, nameservers=("127.0.0.11",)).stderr
    told = pod.inside.istio_iptables(*flags, "--redirect-dns", nameservers=("127.0.0.11",)).stderr
    assert "it matches UDP connections to 127.0.0.11/32 to port 53, which bypass the proxy" in told


def test_a_warning_that_cannot_be_made_keeps_nobody_from_applying(pod: Pod, tmp_path: Path) -> None:
    pod.inside.run("iptables-nft", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    broken = tmp_path / "iptables-nft-save"
    broken.write_text("#!/bin/sh\nkill -9 $$\n")
    broken.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    done = pod.inside.istio_iptables("--backend", "nft", "-u", "1337", "-i", "*", "-b", "*", environment=environment)
    assert "third-party ipv4 rules that may take precedence over ours could not be read: " in done.stderr
    check(pod, OUT, OUT.outcome)


WORDS = {
    "ip daddr 10.1.0.0/16 tcp dport 80 accept": ["-d 10.1.0.0/16 -p tcp -m tcp --dport 80 -j ACCEPT"],
    "ip daddr 10.1.2.0/25 drop": ["-d 10.1.2.0/25 -j DROP"],
    "ip saddr != 10.1.2.3 udp sport 53 return": ["! -s 10.1.2.3/32 -p udp -m tcp --sport 53 -j RETURN"],
    "ip daddr 10.0.0.1-10.0.0.3 accept": ["-d 10.0.0.1/32 -j ACCEPT", "-d 10.0.0.2/31 -j ACCEPT"],
    "tcp dport 80-90 accept": ["-p tcp -m tcp --dport 80:90 -j ACCEPT"],
    "tcp dport != 80-90 accept": ["-p tcp -m tcp ! --dport 80:90 -j ACCEPT"],
    "tcp dport != { 80, 90-91 } accept": ["-p tcp -m multiport ! --dports 80,90:91 -j ACCEPT"],
    "meta l4proto { tcp, udp } drop": ["-p tcp -j DROP", "-p udp -j DROP"],
    "meta l4proto vmap { tcp : jump other, udp : drop }": ["-p tcp -j other", "-p udp -j DROP"],
    'iifname "eth*" oifname != "lo" goto other': ["-i eth+ ! -o lo -g other"],
    "oif lo accept": ["-o lo -j ACCEPT"],
    "meta skuid 7 meta skgid != 8 accept": ["-m owner --uid-owner 7 -m owner ! --gid-owner 8 -j ACCEPT"],
    "ct state new accept": ["-m conntrack --ctstate NEW -j ACCEPT"],
    "ct state established,related accept": ["-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"],
    "ct state vmap { invalid : drop, new : accept }": [
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate NEW -j ACCEPT",
    ],
    "ip daddr . tcp dport { 10.0.0.1 . 80 } accept": ["-p tcp [address] -j ACCEPT"],
    "meta skuid 1000-2000 accept": ["[byteorder] [condition] -j ACCEPT"],
    "meta mark 0x1 accept": ["[condition] -j ACCEPT"],
    "tcp flags syn accept": ["-p tcp [condition] -j ACCEPT"],
    "limit rate 5/second accept": ["[limit] -j ACCEPT"],
    "counter log meta mark set 0x1": [""],
    "ip protocol icmp notrack": ["-p icmp -j NOTRACK"],
}


def test_native_rules_are_put_into_the_words_of_iptables(pod: Pod) -> None:
    native(pod.inside, "filter hook output priority -301", *WORDS, more=" chain other {\n }")

    def read() -> list[list[str]]:
        listed = rules_of("ip", "theirs")
        return [
            [one.text for one in words_of(rule, Family.IPV4, lambda n: elements_of("ip", "theirs", n))] for rule in listed
        ]

    found = dict(zip(WORDS, pod.inside.call(read), strict=True))
    assert {rule: sorted(words) for rule, words in found.items()} == {rule: sorted(words) for rule, words in WORDS.items()}


def test_rules_of_ipv6_and_of_the_other_family_are_told_apart(pod: Pod) -> None:
    rules = ("meta nfproto ipv4 accept", "ip6 daddr fd00::/8 tcp dport 80 reject", "meta nfproto != ipv6 accept")
    native(pod.inside, "filter hook output priority -301", *rules, family="inet")

    def read() -> list[list[str]]:
        listed = rules_of("inet", "theirs")
        return [[one.text for one in words_of(rule, Family.IPV6, lambda _: [])] for rule in listed]

    assert pod.inside.call(read) == [[], ["-d fd00::/8 -p tcp -m tcp --dport 80 -j REJECT"], []]
