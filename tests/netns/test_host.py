"""Where rules are not written: a Kubernetes node, and a machine's own namespace; by stand-ins, never in this machine's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

RULES = ("-u", "1337", "-i", "*", "-b", "*")
BACKENDS = {
    "auto": (),
    "restore-nft": ("--iptables-variant", "nft"),
    "restore-legacy": ("--iptables-variant", "legacy"),
    "libiptc": ("--backend", "libiptc"),
    "nft": ("--backend", "nft"),
}


def state(namespace: Namespace) -> tuple[str, ...]:
    saved = [namespace.save(variant, family) for variant in ("nft", "legacy") for family in ("ipv4", "ipv6")]
    return (*saved, namespace.run("nft", "list", "tables").stdout, namespace.surroundings())


@pytest.mark.parametrize("flags", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_node_is_refused_whichever_rule_set_shows_it(pod: Pod, variant: str, flags: tuple[str, ...]) -> None:
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-N", "KUBE-SERVICES")
    before = state(pod.inside)
    for words in (("apply", *RULES, "-m", "TPROXY"), ("clean",), ("istio-iptables", *RULES, "--dual-stack")):
        done = pod.inside.istio_init(*words, *flags, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "--host: the chain KUBE-SERVICES shows that this network namespace is a Kubernetes node's" in line
    assert state(pod.inside) == before
    pod.inside.istio_init("apply", *RULES, *flags, "--host")
    pod.inside.istio_init("clean", *flags, environment={"ISTIO_INIT_HOST": "true"})


VALIDATION = ("--skip-rule-apply", "--run-validation")


@pytest.mark.parametrize("flags", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_node_is_not_validated_either_unless_it_is_meant(pod: Pod, variant: str, flags: tuple[str, ...]) -> None:
    pod.inside.istio_init("istio-iptables", *RULES, *flags)
    pod.inside.run(f"iptables-{variant}", "-t", "nat", "-N", "KUBE-SERVICES")
    done = pod.inside.istio_init("istio-iptables", *RULES, *flags, *VALIDATION, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "--host: the chain KUBE-SERVICES shows" in line
    assert "validation passed" in pod.inside.istio_init("istio-iptables", *RULES, *flags, *VALIDATION, "--host").stderr


def test_a_node_with_the_nftables_of_kube_proxy_is_refused(pod: Pod) -> None:
    pod.inside.run("nft", "-f", "-", stdin="add table ip kube-proxy\nadd chain ip kube-proxy services\n")
    assert pod.inside.istio_init(*RULES, check=False).returncode == 2


def test_a_node_agent_writes_into_a_pods_namespace_but_not_into_the_nodes(pod: Pod) -> None:
    node = pod.outside
    node.run("iptables-nft", "-t", "nat", "-N", "cali-PREROUTING")
    node.istio_init("istio-iptables", *RULES, "--network-namespace", pod.inside.path)
    assert "ISTIO_OUTPUT" in pod.inside.save("nft")
    done = pod.inside.istio_init("istio-iptables", *RULES, "--network-namespace", node.path, check=False)
    assert done.returncode == 2
    assert "cali-PREROUTING" in done.stderr


def machine(namespace: Namespace, place: Path, *words: str) -> tuple[int, str]:
    """Run the program as if a namespace were that of process 1, in the initial PID namespace."""
    (place / "self" / "ns").mkdir(parents=True)
    (place / "1" / "ns").mkdir(parents=True)
    (place / "self" / "ns" / "pid").symlink_to("pid:[4026531836]")
    (place / "1" / "ns" / "net").symlink_to(f"net:[{os.fstat(namespace.fd).st_ino}]")
    (place / "thread-self").symlink_to("/proc/thread-self")
    program = (
        f"from istio_init.rules.kernel import host; host.PROC = {str(place)!r}\n"
        f"from istio_init.cli.main import run; raise SystemExit(run({list(words)!r}))"
    )
    done = namespace.run(sys.executable, "-c", program, check=False)
    return done.returncode, done.stderr


def test_a_machines_own_namespace_is_refused_as_the_target_too(pod: Pod, tmp_path: Path) -> None:
    before = state(pod.outside)
    for number, words in enumerate(
        [
            RULES,
            ("clean",),
            ("istio-iptables", *RULES, "--network-namespace", "/proc/self/ns/net"),
            ("istio-iptables", *RULES, *VALIDATION),
        ]
    ):
        status, stderr = machine(pod.outside, tmp_path / str(number), *words)
        assert (status, stderr.count("\n")) == (2, 1), stderr
        assert "the machine's own" in stderr
    assert state(pod.outside) == before


def test_from_a_machine_a_pods_namespace_can_be_written(pod: Pod, tmp_path: Path) -> None:
    words = ("istio-iptables", *RULES, "--network-namespace", pod.inside.path)
    status, stderr = machine(pod.outside, tmp_path, *words)
    assert status == 0, stderr
    assert "ISTIO_OUTPUT" in pod.inside.save("nft")


def test_the_log_says_that_ipv6_is_closed_only_where_it_is(pod: Pod) -> None:
    closed = "IPv6 from outside is closed (ENABLE_INBOUND_IPV6 opens it)"
    assert closed in pod.inside.istio_init(*RULES).stderr
    assert closed in pod.inside.istio_init(*RULES).stderr  # already in place
    assert closed not in pod.inside.istio_init(*RULES, "--family", "ipv4").stderr
    assert closed not in pod.inside.istio_init(*RULES, environment={"ENABLE_INBOUND_IPV6": "1"}).stderr
    assert closed not in pod.inside.istio_iptables(*RULES, "--dual-stack").stderr
