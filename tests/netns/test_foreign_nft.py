"""Third-party native rules in the tables of iptables, such as kube-router, Calico, Tailscale and Kilo write.

`iptables-nft-save` leaves a table with such a rule out, or fails; so what a run finds is compared with nft's own listing.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

REDIRECT = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")
TPROXY = ("-p", "15001", "-u", "1337", "-i", "10.0.0.0/8", "-b", "*", "-m", "TPROXY")
CURRENT = ("--layout", "current", *REDIRECT[2:], "-c", "net1", "-k", "vm0", "-m", "TPROXY", "--dual-stack")
NATIVE = ("--backend", "nft")
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


def listed(namespace: Namespace) -> dict[tuple[str, str, str], list[str]]:
    """Give the rules of each chain that has any, as nft prints them, without counters."""
    chains: dict[tuple[str, str, str], list[str]] = {}
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


def foreign(namespace: Namespace) -> dict[tuple[str, str, str], list[str]]:
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


@pytest.mark.parametrize("place", RULES.values(), ids=RULES)
def test_a_plan_is_found_replaced_and_removed_beside_any_rule(pod: Pod, place: tuple[str, str, str, str]) -> None:
    add_rule(pod.inside, *place)
    before, theirs = foreign(pod.inside), handles(pod.inside)
    routing = pod.inside.policy_routing()
    pod.inside.istio_init(*REDIRECT)
    first = listed(pod.inside)
    assert "already in place" in pod.inside.istio_init(*REDIRECT).stderr
    for plan in (CURRENT, TPROXY, REDIRECT):
        pod.inside.istio_init(*plan)
        again = handles(pod.inside)
        pod.inside.istio_init(*plan)
        assert len(handles(pod.inside)) == len(again)
    assert {name: sorted(rules) for name, rules in listed(pod.inside).items()} == {
        name: sorted(rules) for name, rules in first.items()
    }
    assert foreign(pod.inside) == before
    pod.inside.istio_init(*REDIRECT, *NATIVE)
    assert not any("ISTIO_" in chain and table != "istio-init" for _, table, chain in listed(pod.inside))
    pod.inside.istio_init(*REDIRECT)
    assert {name for name in listed(pod.inside) if "ISTIO_" in name[2]} == {name for name in first if "ISTIO_" in name[2]}
    pod.inside.istio_init("clean")
    assert listed(pod.inside) == before
    assert handles(pod.inside) == theirs
    assert pod.inside.policy_routing() == routing


def test_when_a_part_fails_beside_such_rules_all_is_as_it_was(pod: Pod, tmp_path: Path) -> None:
    for place in (RULES["dnat"], RULES["mark-set"], ("ip6", "nat", "OUTPUT", "ip6 daddr vmap { fd00::9 : accept }")):
        add_rule(pod.inside, *place)
    pod.inside.istio_init(*CURRENT)
    was, routing = listed(pod.inside), pod.inside.policy_routing()
    real = shutil.which("ip6tables-nft-restore")
    (tmp_path / "ip6tables-nft-restore").write_text(
        f'#!/bin/sh\nscript=$(cat)\ncase $script in *15055*) echo "no such thing" >&2; exit 1;; esac\n'
        f'printf "%s\\n" "$script" | exec {real} "$@"\n'
    )
    (tmp_path / "ip6tables-nft-restore").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    other = (*CURRENT, "-p", "15055", "-k", "vm1")
    failed = pod.inside.istio_init(*other, environment=environment, check=False)
    assert failed.returncode == 4
    assert "the previous rules are in place again (rollback)" in failed.stderr
    assert {name: sorted(rules) for name, rules in listed(pod.inside).items()} == {
        name: sorted(rules) for name, rules in was.items()
    }
    assert pod.inside.policy_routing() == routing


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY, CURRENT], ids=["redirect", "tproxy", "current"])
def test_without_any_program_of_iptables_or_nft_a_clean_still_removes_all(
    pod: Pod, tmp_path: Path, plan: tuple[str, ...]
) -> None:
    add_rule(pod.inside, *RULES["dnat"])
    before, surroundings = listed(pod.inside), pod.inside.surroundings()
    pod.inside.istio_init(*plan)
    done = pod.inside.istio_init("clean", environment={"PATH": str(tmp_path)})
    assert " chains " in done.stderr
    assert (listed(pod.inside), pod.inside.surroundings()) == (before, surroundings)


def test_what_native_removal_took_away_comes_back_as_it_was_when_a_later_step_fails(pod: Pod, tmp_path: Path) -> None:
    """The rules of iptables are removed before a legacy plan, whose removal fails."""
    pod.inside.istio_init(*REDIRECT, "--iptables-variant", "legacy")
    script = pod.inside.istio_init(*TPROXY, "--dry-run", "--family", "ipv4").stdout
    pod.inside.run("iptables-nft-restore", "--noflush", stdin=script)
    was = pod.inside.save("nft"), pod.inside.save("legacy")
    (tmp_path / "iptables-legacy-restore").write_text("#!/bin/sh\ncat >/dev/null\necho no >&2\nexit 1\n")
    (tmp_path / "iptables-legacy-restore").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    failed = pod.inside.istio_init(*REDIRECT, *NATIVE, environment=environment, check=False)
    assert failed.returncode == 4
    assert (pod.inside.save("nft"), pod.inside.save("legacy")) == was
