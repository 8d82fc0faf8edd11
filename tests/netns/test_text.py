"""What --dry-run prints is what an apply does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.rules.options import ISTIO_1_0
from tests.cases import CASES, Case
from tests.cases_current import CASES_CURRENT

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod

ADDRESS_FAMILIES = {"ipv4": "iptables", "ipv6": "ip6tables"}
# Those of layout current that have each kind of rule between them; the contract suite writes all of them.
MANIFOLD = ("dual-stack-tproxy", "virtual-interfaces", "long-names", "dns-dual-stack", "environment", "owner-groups")
SHOWN = (*CASES, *(case for case in CASES_CURRENT if case.name.removeprefix("current-") in MANIFOLD))
each_case = pytest.mark.parametrize("case", SHOWN, ids=lambda case: case.name)


def run(pod: Pod, case: Case, *flags: str) -> tuple[str, str]:
    """Run the command of a case's layout, and give what it printed and what it logged."""
    if case.layout == ISTIO_1_0:
        done = pod.inside.istio_init(*flags, *case.flags, environment=case.environment)
    else:
        nameservers = case.facts.nameservers
        done = pod.inside.istio_iptables(*flags, *case.flags, environment=case.environment, nameservers=nameservers)
    return done.stdout, done.stderr


def dry_run(pod: Pod, case: Case, *flags: str) -> str:
    return run(pod, case, "--dry-run", *flags)[0]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@each_case
def test_what_a_dry_run_prints_loads_unchanged_and_is_what_an_apply_writes(pod: Pod, case: Case, variant: str) -> None:
    for family, tool in ADDRESS_FAMILIES.items():
        script = dry_run(pod, case, "--family", family)
        pod.inside.run(f"{tool}-{variant}-restore", "--noflush", stdin=script)
    saved = [pod.inside.save(variant, family) for family in ADDRESS_FAMILIES]
    _, logged = run(pod, case, "--iptables-variant", variant)
    if case.plan().routes or case.plan().addresses:
        assert "0 chains and 0 rules written" in logged
    else:
        assert "already in place" in logged
    assert [pod.inside.save(variant, family) for family in ADDRESS_FAMILIES] == saved


@each_case
def test_the_commands_that_a_dry_run_prints_can_be_pasted(pod: Pod, case: Case) -> None:
    pod.inside.run("sh", "-e", stdin=dry_run(pod, case, "--format", "commands", "--iptables-variant", "nft"))
    _, logged = run(pod, case)
    assert "already in place" in logged


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_script_for_ipv6_is_refused_by_ipv4(pod: Pod, variant: str) -> None:
    script = dry_run(pod, CASES[0], "--family", "ipv6")
    assert pod.inside.run(f"iptables-{variant}-restore", "--noflush", stdin=script, check=False).returncode != 0
    assert pod.inside.save(variant) == ""


def test_a_dry_run_changes_nothing(pod: Pod) -> None:
    before = pod.inside.policy_routing()
    for case in SHOWN:
        dry_run(pod, case)
    assert pod.inside.save("nft") == pod.inside.save("legacy") == pod.inside.save("nft", "ipv6") == ""
    assert pod.inside.run("cat", "/proc/net/ip_tables_names").stdout == ""
    assert pod.inside.policy_routing() == before
