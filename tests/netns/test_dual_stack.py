"""Layout current with IPv6: when it is captured, what lo is given for it, and what is left of that afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cases import DIRECT, POD_IPV6, PROXY, SERVICE, into, out
from tests.cases_current import INBOUND, LOCALHOST_IPV6, SERVICE_IPV6, USUAL
from tests.netns.sockets import connect, servers_for

if TYPE_CHECKING:
    from tests.netns.namespaces import Namespace, Pod

Means = tuple[tuple[str, ...], str]

OUTBOUND = out(SERVICE_IPV6, 80, "envoy:15001")
CAPTURED = (OUTBOUND, into(9080, INBOUND, POD_IPV6), out(POD_IPV6, 9080, INBOUND, PROXY), out(LOCALHOST_IPV6, 9080, DIRECT))
LEFT_ALONE = tuple(connection._replace(outcome=DIRECT) for connection in CAPTURED)
IPV4_OF_ETH0 = ("ip", "-4", "address", "flush", "dev", "eth0")
IPV6_OF_ETH0 = ("ip", "-6", "address", "flush", "dev", "eth0")
SWITCHED_OFF = ("sh", "-c", "for one in all lo eth0; do echo 1 >/proc/sys/net/ipv6/conf/$one/disable_ipv6; done")
LINK_LOCAL_IPV4 = ("ip", "address", "add", "169.254.7.7/16", "dev", "eth0")


def addresses_of_lo(namespace: Namespace) -> list[str]:
    lines = namespace.run("ip", "-oneline", "-6", "address", "show", "dev", "lo").stdout.splitlines()
    return [line.split()[3] for line in lines]


def outcomes(pod: Pod) -> list[str]:
    with servers_for(pod, CAPTURED):
        return [connect(pod, connection).server for connection in CAPTURED]


CAPTURING = [connection.outcome for connection in CAPTURED]
NOT_CAPTURING = [connection.outcome for connection in LEFT_ALONE]


def test_ipv6_is_left_alone_where_the_pod_has_ipv4(pod: Pod, means: Means) -> None:
    pod.inside.istio_iptables(*means[0], *USUAL)
    assert outcomes(pod) == NOT_CAPTURING
    assert addresses_of_lo(pod.inside) == ["::1/128"]


def test_ipv6_is_captured_where_it_is_all_that_the_pod_has(pod: Pod, means: Means) -> None:
    pod.inside.run(*IPV4_OF_ETH0)
    pod.inside.run(*LINK_LOCAL_IPV4)
    pod.inside.istio_iptables(*means[0], *USUAL)
    assert outcomes(pod) == CAPTURING


def test_dual_stack_can_be_switched_off_by_its_flag(pod: Pod) -> None:
    environment = {"ISTIO_DUAL_STACK": "true"}
    pod.inside.istio_iptables(*USUAL, "--dual-stack=false", environment=environment)
    assert outcomes(pod) == NOT_CAPTURING
    pod.inside.istio_iptables(*USUAL, environment=environment)
    assert outcomes(pod) == CAPTURING


def test_lo_has_the_proxys_source_while_ipv6_is_captured(pod: Pod, means: Means) -> None:
    pod.inside.istio_iptables(*means[0], *USUAL, "--dual-stack")
    assert sorted(addresses_of_lo(pod.inside)) == ["::1/128", "::6/128"]
    again = pod.inside.istio_iptables(*means[0], *USUAL, "--dual-stack")
    assert "already in place" in again.stderr
    pod.inside.istio_iptables(*means[0], *USUAL)
    assert addresses_of_lo(pod.inside) == ["::1/128"]
    assert outcomes(pod) == NOT_CAPTURING


def test_an_address_that_was_removed_is_a_reason_to_add_it_again(pod: Pod) -> None:
    pod.inside.istio_iptables(*USUAL, "--dual-stack")
    pod.inside.run("ip", "address", "del", "::6/128", "dev", "lo")
    assert "already in place" not in pod.inside.istio_iptables(*USUAL, "--dual-stack").stderr
    assert "::6/128" in addresses_of_lo(pod.inside)


@pytest.mark.parametrize("command", [SWITCHED_OFF, IPV6_OF_ETH0], ids=["switched off", "no address"])
def test_dual_stack_without_ipv6_is_ipv4_alone(pod: Pod, means: Means, command: tuple[str, ...]) -> None:
    pod.inside.istio_iptables(*means[0], *USUAL, "--dual-stack")
    pod.inside.run(*command)
    done = pod.inside.istio_iptables(*means[0], *USUAL, "--dual-stack")
    assert "--dual-stack has no effect: this pod has no IPv6 address" in done.stderr
    assert pod.inside.save(means[1], "ipv6") == ""
    assert "::6/128" not in addresses_of_lo(pod.inside)
    ipv4 = out(SERVICE, 80, "envoy:15001")
    with servers_for(pod, [ipv4]):
        assert connect(pod, ipv4).server == ipv4.outcome


def test_an_address_of_lo_that_the_kernel_does_not_take_is_an_error_and_nothing_is_half_done(pod: Pod, means: Means) -> None:
    pod.inside.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    refused = pod.inside.istio_iptables(*means[0], *USUAL, "--dual-stack", check=False)
    assert refused.returncode == 4
    assert "disable_ipv6" in refused.stderr
    ipv4 = out(SERVICE, 80, DIRECT)
    with servers_for(pod, [ipv4]):
        assert connect(pod, ipv4).server == DIRECT
