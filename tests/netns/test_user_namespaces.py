"""Pods with user namespaces: rules from inside and from the node, ids that are not mapped, and owners that are elsewhere."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns.user_namespaces import FIRST, PROGRAM, UserPod, user_pod
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

TODAY = ("-u", "1337", "-i", "*", "-b", "*")
LAYOUTS = {"current": TODAY, "istio-1.0": ("--layout", "istio-1.0", "-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")}
MEANS = {
    "nft": ("--iptables-variant", "nft"),
    "legacy": ("--iptables-variant", "legacy"),
    "native": ("--backend", "nft"),
    "libiptc": ("--backend", "libiptc"),
}


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Iterator[UserPod]:
    need_namespaces()
    monkeypatch.delenv("XTABLES_LOCKFILE")  # the pod's root may not open the one that tests have
    with user_pod() as made:
        yield made


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rules_from_the_node_are_those_that_the_pods_root_would_write(
    pod: UserPod, layout: tuple[str, ...], means: tuple[str, ...]
) -> None:
    done = pod.from_node(*layout, *means)
    assert " applied (" in done.stderr
    assert "warning" not in done.stderr
    inside = pod.inside(*PROGRAM, "istio-iptables", *layout, *means)
    assert "already in place" in inside.stderr
    assert "root" not in inside.stderr
    again = pod.from_node(*layout, *means)
    assert "already in place" in again.stderr
    pod.from_node(*means, "--cleanup-only")
    assert "ISTIO" not in pod.inside("iptables-nft-save").stdout + pod.inside("iptables-legacy-save").stdout
    assert "istio" not in pod.inside("nft", "list", "ruleset").stdout


def test_policy_routes_of_tproxy_are_made_from_the_node(pod: UserPod) -> None:
    pod.from_node(*TODAY, "-m", "TPROXY")
    assert "lookup 133" in pod.inside("ip", "rule").stdout
    pod.from_node("--cleanup-only")
    assert "lookup 133" not in pod.inside("ip", "rule").stdout


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_validation_from_the_node_tells_the_truth(pod: UserPod, layout: tuple[str, ...]) -> None:
    passed = pod.from_node(*layout, "--run-validation")
    assert "validation passed" in passed.stderr
    assert "of uid 1337" in passed.stderr  # the pod's, which is not the node's
    pod.inside("iptables-nft", "-t", "nat", "-F", "ISTIO_OUTPUT")
    assert pod.from_node(*layout, "--run-validation", "--skip-rule-apply", check=False).returncode == 126


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize(("flag", "noun"), [("-u", "uid"), ("-g", "gid")])
def test_an_id_that_is_not_mapped_is_refused_and_nothing_changes(
    pod: UserPod, flag: str, noun: str, means: tuple[str, ...]
) -> None:
    pod.inside(*PROGRAM, "istio-iptables", *TODAY, *means)
    before = pod.inside("nft", "list", "ruleset").stdout, pod.inside("iptables-legacy-save").stdout.splitlines()[1:-1]
    words = (*TODAY, *means, flag, str(FIRST))  # which is root there, seen from the node
    done = pod.inside(*PROGRAM, "istio-iptables", *words, check=False), pod.from_node(*words, check=False)
    message = f"{noun} {FIRST}: it is not mapped in this user namespace"
    assert [one.returncode for one in done] == [2, 2]
    assert all(message in one.stderr and "allowed: 0 to 65535" in one.stderr for one in done)
    after = pod.inside("nft", "list", "ruleset").stdout, pod.inside("iptables-legacy-save").stdout.splitlines()[1:-1]
    assert after == before


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_root_of_a_user_namespace_that_does_not_own_the_network_is_told_so_and_not_to_be_root(
    pod: UserPod, means: tuple[str, ...]
) -> None:
    words = ("istio-iptables", "-u", "0", "-g", "0", "-i", "*", *means)
    done = pod.in_network("unshare", "--map-root-user", *PROGRAM, *words, check=False)
    assert done.returncode == 3
    assert "this network namespace belongs to another user namespace" in done.stderr
    assert "run as root (runAsUser: 0)" not in done.stderr


@pytest.mark.parametrize("means", [MEANS["legacy"], MEANS["libiptc"]], ids=["legacy", "libiptc"])
def test_the_lock_of_the_nodes_iptables_is_not_waited_for(pod: UserPod, means: tuple[str, ...]) -> None:
    lock = Path("/run/xtables.lock")
    lock.touch()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # keeps out who wants it alone, as iptables does
        done = pod.from_node(*TODAY, *means, "--lock-wait", "0")
    assert " applied (" in done.stderr
    assert "lock" not in done.stderr
