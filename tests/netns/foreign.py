"""Third-party rules in the tables of iptables, and how to tell them from ours by nft's own listing."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Namespace

BASE = {
    "OUTPUT": {"nat": "type nat hook output priority -100", "mangle": "type route hook output priority mangle"},
    "PREROUTING": {
        "nat": "type nat hook prerouting priority dstnat",
        "mangle": "type filter hook prerouting priority mangle",
    },
    "POSTROUTING": {"nat": "type nat hook postrouting priority srcnat"},
    "INPUT": {"filter": "type filter hook input priority filter"},
}
# Forms of rules that iptables 1.8.9 leaves out the table for, fails at, or misunderstands, each where it matters.
RULES = {
    "masquerade": ("ip", "nat", "POSTROUTING", 'oifname "eth0" masquerade'),
    "dnat": ("ip", "nat", "OUTPUT", "ip daddr 10.9.9.9 tcp dport { 80, 443 } dnat to 10.1.1.1:8080"),
    "snat": ("ip", "nat", "POSTROUTING", "ip saddr 10.9.9.9 snat to 10.1.1.1"),
    "mark-mask": ("ip", "nat", "POSTROUTING", "meta mark & 0x00ff0000 == 0x00040000 masquerade"),
    "mark-set": ("ip", "mangle", "PREROUTING", "meta mark set meta mark & 0xff00ffff | 0x00040000"),
    "ct-state": ("ip", "filter", "INPUT", "ct state established,related counter accept"),
    "set": ("ip", "nat", "OUTPUT", "ip daddr { 10.9.9.9, 10.9.9.10 } return"),
    "concatenation": ("ip", "nat", "PREROUTING", "ip saddr . tcp dport { 10.9.9.9 . 80 } return"),
    "map": ("ip", "nat", "OUTPUT", "ip daddr vmap { 10.9.9.9 : accept }"),
    "numgen": ("ip", "nat", "OUTPUT", "tcp dport 81 numgen random mod 2 == 0 return"),
    "fib": ("ip", "nat", "PREROUTING", "tcp dport 81 fib daddr type local return"),
    "ipv6-masquerade": ("ip6", "nat", "POSTROUTING", 'oifname "eth0" masquerade'),
    "ipv6-ct-state": ("ip6", "filter", "INPUT", "ct state established,related counter accept"),
    "ipv6-mark-set": ("ip6", "mangle", "OUTPUT", "meta mark set meta mark | 0x00040000"),
}
OURS = ("ISTIO_", "istio-init")
PLANS = (
    ("-u", "1337", "-i", "*", "-b", "9080"),
    ("-u", "1337", "-i", "10.0.0.0/8", "-b", "*", "-m", "TPROXY"),
    ("--layout", "current", "-u", "1337", "-i", "*", "-b", "*", "-c", "net1", "-k", "vm0", "-m", "TPROXY", "--dual-stack"),
    ("-u", "1337", "-i", "*", "-b", "9080", "--backend", "nft"),
    ("-u", "1337", "-i", "*", "-b", "9080", "--jump", "first"),
)
MOST_RULES = 6

Chain = tuple[str, str, str]  # family, table, and name


class Trial(NamedTuple):
    """Plans applied beside a set of third-party rules, and what of the promises did not hold."""

    rules: tuple[str, ...]
    broken: tuple[str, ...]


def listed(namespace: Namespace) -> dict[Chain, list[str]]:
    """Give the rules of each chain that has any, as nft prints them, without counters."""
    chains: dict[Chain, list[str]] = {}
    family = table = chain = ""
    for line in namespace.run("nft", "-s", "list", "ruleset").stdout.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            _, family, table, *_ = words
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif words and words[0] not in ("}", "type"):
            chains.setdefault((family, table, chain), []).append(line.strip())
    return chains


def unordered(namespace: Namespace) -> dict[Chain, list[str]]:
    """Give the same, sorted: where ours stand among third-party rules depends on which were there first."""
    return {chain: sorted(rules) for chain, rules in listed(namespace).items()}


def foreign(namespace: Namespace) -> dict[Chain, list[str]]:
    """Give the rules of each chain that has any, but for ours."""
    kept = {
        place: [rule for rule in rules if not any(sign in rule for sign in OURS)]
        for place, rules in listed(namespace).items()
        if not any(sign in name for name in place for sign in OURS)
    }
    return {place: rules for place, rules in kept.items() if rules}


def handles(namespace: Namespace) -> set[tuple[str, str, str, int]]:
    """Give family, table, chain and handle of each rule."""
    items = json.loads(namespace.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    rules = [item["rule"] for item in items if "rule" in item]
    return {(rule["family"], rule["table"], rule["chain"], rule["handle"]) for rule in rules}


def add_rule(namespace: Namespace, family: str, table: str, chain: str, rule: str) -> None:
    """Add a base chain with a rule, as a program that does not know of iptables does."""
    text = f"table {family} {table} {{\n chain {chain} {{\n {BASE[chain][table]};\n {rule}\n }}\n}}\n"
    namespace.run("nft", "-f", "-", stdin=text)


def try_sets(namespace: Namespace, count: int, seed: int) -> Iterator[Trial]:
    """Apply two plans, each twice, and clean, beside random sets of third-party rules, which come before and between."""
    random = Random(seed)  # noqa: S311 - no secret
    for _ in range(count):
        names = random.sample(sorted(RULES), random.randint(1, MOST_RULES))
        split = random.randint(0, len(names))
        theirs = _alone(namespace, names)
        first, second = random.sample(PLANS, 2)
        for name in names[:split]:
            add_rule(namespace, *RULES[name])
        namespace.istio_init(*first)
        for name in names[split:]:
            add_rule(namespace, *RULES[name])
        broken = [*_broken(namespace, second), *_broken(namespace, first)]
        now = listed(namespace)
        if any([rule for rule in now.get(chain, ()) if rule in rules] != rules for chain, rules in theirs.items()):
            broken.append("third-party rules changed")
        namespace.istio_init("clean")
        if listed(namespace) != theirs:
            broken.append("clean left something, or took too much")
        yield Trial(tuple(names), tuple(broken))


def _alone(namespace: Namespace, names: list[str]) -> dict[Chain, list[str]]:
    """Give what nft lists of third-party rules while nothing else is there; nothing is there afterwards."""
    namespace.run("nft", "flush", "ruleset")
    for name in names:
        add_rule(namespace, *RULES[name])
    found = listed(namespace)
    namespace.run("nft", "flush", "ruleset")
    return found


def _broken(namespace: Namespace, plan: tuple[str, ...]) -> Iterator[str]:
    namespace.istio_init(*plan)
    once = unordered(namespace)
    namespace.istio_init(*plan)
    if unordered(namespace) != once:
        yield "a second apply changed something"
    jumps = [chain for chain, rules in once.items() for rule in rules if "jump ISTIO_OUTPUT" in rule and chain[1] == "nat"]
    wanted = [] if "--backend" in plan else [family for family in ("ip", "ip6") if (family, "nat", "ISTIO_OUTPUT") in once]
    if sorted(chain[0] for chain in jumps if chain[2] == "OUTPUT") != wanted or ("--backend" not in plan and not wanted):
        yield "a jump is missing, or stands twice"
