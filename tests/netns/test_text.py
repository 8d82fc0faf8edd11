"""What --dry-run prints is what an apply does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cases import CASES, Case

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod

ADDRESS_FAMILIES = {"ipv4": "iptables", "ipv6": "ip6tables"}


def dry_run(pod: Pod, case: Case, *flags: str) -> str:
    return pod.inside.istio_init("--dry-run", *flags, *case.flags, environment=case.environment).stdout


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_dry_run_prints_loads_unchanged_and_is_what_an_apply_writes(pod: Pod, case: Case, variant: str) -> None:
    for family, tool in ADDRESS_FAMILIES.items():
        script = dry_run(pod, case, "--family", family)
        pod.inside.run(f"{tool}-{variant}-restore", "--noflush", stdin=script)
    if case.plan().route is None:
        done = pod.inside.istio_init("--iptables-variant", variant, *case.flags, environment=case.environment)
        assert "already in place" in done.stderr
    else:
        saved = pod.inside.save(variant)
        pod.inside.istio_init("--iptables-variant", variant, *case.flags, environment=case.environment)
        assert pod.inside.save(variant) == saved


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_commands_that_a_dry_run_prints_can_be_pasted(pod: Pod, case: Case) -> None:
    pod.inside.run("sh", "-e", stdin=dry_run(pod, case, "--format", "commands", "--iptables-variant", "nft"))
    done = pod.inside.istio_init(*case.flags, environment=case.environment)
    assert "already in place" in done.stderr


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_script_for_ipv6_is_refused_by_ipv4(pod: Pod, variant: str) -> None:
    script = dry_run(pod, CASES[0], "--family", "ipv6")
    assert pod.inside.run(f"iptables-{variant}-restore", "--noflush", stdin=script, check=False).returncode != 0
    assert pod.inside.save(variant) == ""


def test_a_dry_run_changes_nothing(pod: Pod) -> None:
    for case in CASES:
        dry_run(pod, case)
    assert pod.inside.save("nft") == pod.inside.save("legacy") == pod.inside.save("nft", "ipv6") == ""
    assert pod.inside.run("cat", "/proc/net/ip_tables_names").stdout == ""
