"""Which of iptables' two variants is taken."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

POD = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")
FOREIGN = ("-t", "filter", "-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "DROP")
TOOLS = ("iptables-restore", "iptables-save", "ip6tables-restore", "ip6tables-save")


def has_ours(namespace: Namespace, variant: str, family: str = "ipv4") -> bool:
    return "ISTIO_" in namespace.save(variant, family)


def tools_on_a_path(directory: Path, variant: str, name: str) -> dict[str, str]:
    """Give a PATH on which one variant's tools are, with `-NAME` in the names they are found by, and no other."""
    for tool in TOOLS:
        family, verb = tool.split("-")
        real = shutil.which(f"{family}-{variant}-{verb}")
        assert real
        found_by = directory / "-".join(part for part in (family, name, verb) if part)
        # These are one binary that goes by the name it is called with.
        found_by.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
        found_by.chmod(0o755)
    return {"PATH": str(directory)}


@pytest.mark.parametrize(("taken", "other"), [("legacy", "nft"), ("nft", "legacy")])
def test_the_variant_that_has_rules_already_wins(pod: Pod, taken: str, other: str) -> None:
    pod.inside.run(f"iptables-{taken}", *FOREIGN)
    pod.inside.istio_init(*POD, "--family", "ipv4")
    assert has_ours(pod.inside, taken)
    assert not has_ours(pod.inside, other)


def test_each_family_has_a_variant_of_its_own(pod: Pod) -> None:
    pod.inside.run("ip6tables-legacy", *FOREIGN)
    logged = pod.inside.istio_init(*POD).stderr
    assert "ipv4 nft, ipv6 legacy" in logged
    assert has_ours(pod.inside, "legacy", "ipv6")
    assert not has_ours(pod.inside, "nft", "ipv6")


def test_when_both_have_rules_nf_tables_is_taken_with_a_warning_unless_a_flag_decides(pod: Pod) -> None:
    for variant in ("legacy", "nft"):
        pod.inside.run(f"iptables-{variant}", *FOREIGN)
    before = pod.inside.save("nft"), pod.inside.save("legacy")
    logged = pod.inside.istio_init(*POD).stderr
    assert "warning: both iptables-nft and iptables-legacy have third-party ipv4 rules; ours are in iptables-nft" in logged
    assert "warning" not in pod.inside.istio_init(*POD).stderr
    assert "both" not in pod.inside.istio_init("clean").stderr
    assert (pod.inside.save("nft"), pod.inside.save("legacy")) == before
    pod.inside.istio_init(*POD, "--iptables-variant", "legacy")
    assert has_ours(pod.inside, "legacy")
    assert not has_ours(pod.inside, "nft")


def test_rules_of_ours_outweigh_rules_of_others(pod: Pod) -> None:
    pod.inside.istio_init(*POD, "--iptables-variant", "legacy")
    pod.inside.run("iptables-nft", *FOREIGN)
    assert "already in place" in pod.inside.istio_init(*POD).stderr
    pod.inside.istio_init("clean")
    assert not has_ours(pod.inside, "legacy")


def test_without_any_rules_nf_tables_is_taken_and_no_legacy_table_is_made(pod: Pod) -> None:
    pod.inside.istio_init(*POD)
    assert has_ours(pod.inside, "nft")
    assert pod.inside.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout == ""


def test_a_variant_that_does_not_work_is_passed_over(pod: Pod, tmp_path: Path) -> None:
    for tool in ("iptables-nft-restore", "ip6tables-nft-restore", "iptables-nft-save", "ip6tables-nft-save"):
        stand_in = tmp_path / tool
        stand_in.write_text("#!/bin/sh\ncat >/dev/null\necho 'Could not fetch rule set generation id' >&2\nexit 1\n")
        stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert "ipv4 legacy, ipv6 legacy" in pod.inside.istio_init(*POD, environment=environment).stderr
    assert has_ours(pod.inside, "legacy")


def test_a_variant_that_takes_half_of_the_plan_is_cleaned_and_passed_over(pod: Pod, tmp_path: Path) -> None:
    real = shutil.which("iptables-nft-restore")
    stand_in = tmp_path / "iptables-nft-restore"
    # It commits what stands in front of the table nat, and then fails.
    stand_in.write_text(
        f"#!/bin/sh\nscript=$(cat)\nprintf '%s\\n' \"$script\" | sed '/^[*]nat/,$d' | {real} \"$@\"\n"
        "case $script in *'*nat'*) echo 'no chain type nat' >&2; exit 4;; esac\n",
    )
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    logged = pod.inside.istio_init(*POD, "-m", "TPROXY", environment=environment).stderr
    assert "ipv4 legacy" in logged
    assert has_ours(pod.inside, "legacy")
    assert not has_ours(pod.inside, "nft")


@pytest.mark.parametrize(("variant", "name"), [("legacy", "legacy"), ("nft", "nft"), ("legacy", ""), ("nft", "")])
def test_the_tools_that_are_installed_are_found(pod: Pod, tmp_path: Path, variant: str, name: str) -> None:
    environment = tools_on_a_path(tmp_path, variant, name)
    pod.inside.istio_init(*POD, environment=environment)
    assert has_ours(pod.inside, variant)
    again = pod.inside.istio_init(*POD, environment=environment)
    assert "already in place" in again.stderr


def test_libiptc_and_nf_tables_contradict_each_other(pod: Pod) -> None:
    refused = pod.inside.istio_init(*POD, "--backend", "libiptc", "--iptables-variant", "nft", check=False)
    assert refused.returncode == 2
    assert "--backend" in refused.stderr
