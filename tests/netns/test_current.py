"""What layout current does to connections, shown with real packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cases import (
    APP,
    CLIENT,
    CLIENT_IPV6,
    DATABASE,
    DIRECT,
    POD,
    POD_IPV6,
    PROXY,
    ROOT,
    SERVICE,
    into,
    out,
)
from tests.cases_current import INBOUND, SERVICE_IPV6, USUAL
from tests.netns.peers import MACHINE, SYN, SYN_ACK, Relay, connect_from, family_of, resets_after, virtual_machine
from tests.netns.sockets import Answer, connect, servers_for

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod

Means = tuple[tuple[str, ...], str]

ENDS = ((POD, CLIENT), (POD_IPV6, CLIENT_IPV6))
TPROXY = ("-m", "TPROXY", "-i", "*", "-b", "*", "--dual-stack")


@pytest.mark.parametrize("flags", [(*USUAL, "--dual-stack"), TPROXY], ids=["redirect", "tproxy"])
def test_the_proxy_reaches_its_app_from_the_source_that_it_keeps_for_that(
    pod: Pod, means: Means, flags: tuple[str, ...]
) -> None:
    pod.inside.istio_iptables(*means[0], *flags)
    for address, source in ((POD, "127.0.0.6"), (POD_IPV6, "::6")):
        any_source = out(address, 9080, INBOUND, PROXY)
        with servers_for(pod, [any_source]):
            assert connect(pod, any_source).server == INBOUND
            answer = connect_from(pod.inside, (source, 0), address, 9080, PROXY)
        assert answer.server == DIRECT
        assert answer.client.startswith(f"{source}:")


@pytest.mark.parametrize("ports", ["*", "9080"])
def test_under_tproxy_the_proxy_sees_the_clients_own_address_and_port(pod: Pod, means: Means, ports: str) -> None:
    pod.inside.istio_iptables(*means[0], *TPROXY, "-b", ports)
    for address, client in ENDS:
        with servers_for(pod, [into(9080, INBOUND, address)]):
            answers = [connect_from(pod.outside, (client, 40000), address, 9080) for _ in range(2)]
        # The second one uses the port again, whose connection conntrack still remembers.
        assert answers == [Answer(INBOUND, f"{address}:9080", f"{address}:9080", f"{client}:40000")] * 2


@pytest.mark.parametrize("owner", [PROXY, (0, 1337), (1337, 0)], ids=["user-and-group", "group", "user"])
def test_under_tproxy_an_app_that_sees_its_client_answers_through_the_proxy(
    pod: Pod, means: Means, owner: tuple[int, int]
) -> None:
    pod.inside.istio_iptables(*means[0], *TPROXY)
    for address, client in ENDS:
        with servers_for(pod, [out(address, 9080, DIRECT)]), Relay(pod, owner, family_of(address)) as relay:
            answer = connect_from(pod.outside, (client, 40000), address, 9080)
        assert relay.failure == ""
        assert relay.clients == [f"{client}:40000"]
        assert answer.server == DIRECT
        assert answer.client.startswith(f"{client}:")
        assert answer.client != f"{client}:40000"  # this is the proxy's connection


def test_without_the_connections_mark_the_apps_answers_would_miss_the_proxy(pod: Pod) -> None:
    pod.inside.istio_iptables("--iptables-variant", "nft", *TPROXY)
    restore = [line for line in pod.inside.save("nft").splitlines() if "--restore-mark" in line]
    pod.inside.run("iptables-nft", "-t", "mangle", *restore[0].replace("-A", "-D", 1).split())
    with (
        servers_for(pod, [out(POD, 9080, DIRECT)]),
        Relay(pod, PROXY, family_of(POD)) as relay,
        pytest.raises(ValueError, match="Expecting value"),  # no answer at all
    ):
        connect_from(pod.outside, (CLIENT, 40000), POD, 9080)
    assert relay.failure


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
@pytest.mark.parametrize("cidrs", ["*", "10.96.0.0/16"])
def test_what_comes_from_a_virtual_machine_counts_as_outbound(pod: Pod, means: Means, cidrs: str, mode: str) -> None:
    wanted = [out(SERVICE, 80, "envoy:15001"), into(9080, INBOUND), out(DATABASE, 3306, DIRECT)]
    with virtual_machine(pod, "vm0") as machine:
        pod.inside.istio_iptables(*means[0], "-i", cidrs, "-b", "*", "-k", "vm0", "-m", mode)
        with servers_for(pod, wanted):
            captured = connect_from(machine, (MACHINE, 0), SERVICE, 80)
            other = connect_from(machine, (MACHINE, 0), DATABASE, 3306)
            from_outside = connect(pod, into(9080, INBOUND))
    assert captured == Answer("envoy:15001", f"{SERVICE}:80", captured.local, captured.client)
    assert other.server == ("envoy:15001" if cidrs == "*" else DIRECT)
    assert from_outside.server == INBOUND


def test_another_machines_connections_through_the_pod_count_as_inbound(pod: Pod, means: Means) -> None:
    with virtual_machine(pod, "vm0") as machine:
        pod.inside.istio_iptables(*means[0], "-i", "*", "-b", "*", "-k", "vm1")
        with servers_for(pod, [out(SERVICE, 80, INBOUND)]):
            assert connect_from(machine, (MACHINE, 0), SERVICE, 80).server == INBOUND


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_replies_to_a_machine_behind_an_excluded_interface_reach_it(pod: Pod, means: Means, mode: str) -> None:
    with virtual_machine(pod, "vm0") as machine:
        pod.inside.istio_iptables(*means[0], "-i", "*", "-b", "*", "-c", "vm0", "-m", mode)
        with servers_for(pod, [out(SERVICE, 80, DIRECT)]):
            assert connect_from(machine, (MACHINE, 0), SERVICE, 80).server == DIRECT


def test_packets_of_no_connection_are_dropped_when_asked_for(pod: Pod, means: Means) -> None:
    stray, new = (9, SYN_ACK), (10, SYN)
    assert resets_after(pod, [stray, new]) == [9, 10]
    pod.inside.istio_iptables(*means[0], "--drop-invalid")
    assert resets_after(pod, [stray, new]) == [10]


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_an_excluded_interface_passes_both_ways_and_the_others_do_not(pod: Pod, means: Means, mode: str) -> None:
    with virtual_machine(pod, "net1") as machine:
        pod.inside.istio_iptables(*means[0], "-i", "*", "-b", "*", "-c", "eth0", "-m", mode)
        connections = [out(SERVICE, 80, DIRECT), into(9080, DIRECT), out(POD, 9080, INBOUND, PROXY)]
        with servers_for(pod, connections):
            assert [connect(pod, one).server for one in connections] == [DIRECT, DIRECT, INBOUND]
            assert connect_from(machine, (MACHINE, 0), POD, 9080).server == INBOUND


def test_another_plan_takes_the_place_of_the_one_before(pod: Pod, means: Means) -> None:
    connections = [out(SERVICE, 80, DIRECT, ROOT), out(SERVICE_IPV6, 80, DIRECT), out(SERVICE, 80, DIRECT, APP)]
    pod.inside.istio_iptables(*means[0], *TPROXY, "--drop-invalid", "-k", "vm0", "-c", "eth1")
    pod.inside.istio_iptables(*means[0], "-b", "9080")
    with servers_for(pod, connections):
        assert [connect(pod, one).server for one in connections] == [DIRECT] * 3
    assert "lookup 133" not in pod.inside.policy_routing()
