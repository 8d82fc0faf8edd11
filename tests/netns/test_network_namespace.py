"""What --network-namespace does: all work is done there, and nothing where the program was started."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests import cases
from tests.netns.sockets import connect, servers_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Pod

ALL = ("-u", "1337", "-i", "*", "-b", "*")
INBOUND = cases.into(9080, "envoy:15006")
OUTBOUND = cases.out(cases.SERVICE, 80, "envoy:15001")


def test_rules_are_written_there_and_connections_follow_them(pod: Pod, means: tuple[tuple[str, ...], str]) -> None:
    flags, variant = means
    outside = pod.outside.save(variant)
    done = pod.outside.istio_init("istio-iptables", *flags, *ALL, "--network-namespace", pod.inside.path)
    assert "layout istio-1.30 applied" in done.stderr
    with servers_for(pod, [INBOUND, OUTBOUND]):
        assert connect(pod, INBOUND).server == INBOUND.outcome
        assert connect(pod, OUTBOUND).server == OUTBOUND.outcome
    assert pod.outside.save(variant) == outside
    assert "already in place" in pod.inside.istio_init("istio-iptables", *flags, *ALL).stderr
    pod.outside.istio_init("istio-iptables", *flags, "--network-namespace", pod.inside.path, "--cleanup-only")
    assert "ISTIO" not in pod.inside.save(variant)


def test_routes_and_addresses_are_made_there(pod: Pod) -> None:
    before = (pod.outside.policy_routing(), pod.outside.run("ip", "address", "show", "lo").stdout)
    words = ("istio-iptables", *ALL, "-m", "TPROXY", "--dual-stack")
    pod.outside.istio_init(*words, environment={"NETWORK_NAMESPACE": pod.inside.path})
    assert "lookup 133" in pod.inside.policy_routing()
    assert "::6/128" in pod.inside.run("ip", "address", "show", "lo").stdout
    assert (pod.outside.policy_routing(), pod.outside.run("ip", "address", "show", "lo").stdout) == before


def test_addresses_are_read_there(pod: Pod) -> None:
    def families() -> set[str]:
        text = pod.outside.istio_init("istio-iptables", "-n", *ALL, "--network-namespace", pod.inside.path).stdout
        return {line for line in text.splitlines() if line.startswith("# current")}

    assert families() == {"# current, ipv4"}
    pod.inside.run("ip", "address", "delete", f"{cases.POD}/24", "dev", "eth0")
    assert families() == {"# current, ipv4", "# current, ipv6"}


def test_a_validation_works_there(pod: Pod) -> None:
    words = ("istio-iptables", *ALL, "--network-namespace", pod.inside.path, "--run-validation")
    done = pod.outside.istio_init(*words)
    assert "validation passed" in done.stderr
    pod.inside.run("iptables-nft", "-t", "nat", "-D", "PREROUTING", "-p", "tcp", "-j", "ISTIO_INBOUND")
    assert pod.outside.istio_init(*words, "--skip-rule-apply", check=False).returncode == 126


@pytest.fixture
def locked(pod: Pod) -> Iterator[Pod]:
    """A pod whose namespace somebody else holds the lock of."""
    file = os.open(pod.inside.path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield pod
    finally:
        os.close(file)


def test_the_lock_is_that_of_the_namespace_that_is_entered(locked: Pod) -> None:
    words = ("istio-iptables", *ALL, "--lock-wait", "0")
    for there in (
        ("--network-namespace", locked.inside.path),
        ("--network-namespace", locked.inside.path, "--cleanup-only"),
    ):
        done = locked.outside.istio_init(*words, *there, check=False)
        assert done.returncode == 5
        assert "the lock of this network namespace" in done.stderr
    assert locked.outside.istio_init(*words).returncode == 0
    assert locked.inside.istio_init(*words, "--network-namespace", locked.outside.path).returncode == 0


def test_a_validation_waits_for_the_lock_as_well(locked: Pod) -> None:
    words = ("istio-iptables", *ALL, "--lock-wait", "0", "--skip-rule-apply", "--run-validation")
    assert locked.inside.istio_init(*words, check=False).returncode == 5


def test_who_may_not_enter_is_told_which_capability_is_missing(pod: Pod) -> None:
    words = ("istio-iptables", *ALL, "--network-namespace", pod.inside.path)
    rights = ("--inh-caps", "-sys_admin", "--bounding-set", "-sys_admin")
    done = pod.outside.run("setpriv", *rights, sys.executable, "-m", "istio_init", *words, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert "cannot enter the network namespace" in line
    assert "SYS_ADMIN" in line
    assert "ISTIO" not in pod.inside.save("nft")


def test_who_may_not_even_look_at_it_is_told_so(pod: Pod) -> None:
    words = ("istio-iptables", *ALL, "--network-namespace", pod.inside.path)
    user = ("--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "-all", "--bounding-set", "-all")
    done = pod.outside.run("setpriv", *user, sys.executable, "-m", "istio_init", *words, check=False)
    assert done.returncode == 3
    assert "cannot open the network namespace" in done.stderr


def test_the_nameservers_are_told_to_be_this_machines(pod: Pod) -> None:
    words = ("istio-iptables", "-n", *ALL, "--redirect-dns", "--network-namespace", pod.inside.path)
    told = "resolv.conf, not the pod's"
    no_servers = "resolv.conf has no nameserver"
    assert any(text in pod.outside.istio_init(*words).stderr for text in (told, no_servers))
    assert told not in pod.outside.istio_init(*words, "--capture-all-dns").stderr
