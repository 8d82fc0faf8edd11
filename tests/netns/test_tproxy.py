"""What TPROXY alone promises."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests import cases
from tests.cases import into
from tests.netns.sockets import Answer, answer_from, connect, servers_for

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod

TPROXY = ("-u", "1337", "-m", "TPROXY", "-i", "*", "-b")
INBOUND = into(9080, "envoy:15001")


@pytest.mark.parametrize("ports", ["*", "9080"])
def test_the_proxy_sees_the_clients_own_address_and_port(pod: Pod, means: tuple[tuple[str, ...], str], ports: str) -> None:
    pod.inside.istio_init(*means[0], *TPROXY, ports)
    with servers_for(pod, [INBOUND]):
        answer = connect_from_port(pod, 40000)
    assert answer == Answer("envoy:15001", f"{cases.POD}:9080", f"{cases.POD}:9080", f"{cases.CLIENT}:40000")


@pytest.mark.parametrize("ports", ["*", "9080"])
def test_a_port_that_a_client_uses_again_is_captured_again(
    pod: Pod,
    means: tuple[tuple[str, ...], str],
    ports: str,
) -> None:
    pod.inside.istio_init(*means[0], *TPROXY, ports)
    with servers_for(pod, [INBOUND]):
        seen = [connect_from_port(pod, 40000).server for _ in range(3)]
    assert seen == ["envoy:15001"] * 3


def test_another_mark_and_table_replace_the_ones_before(pod: Pod, means: tuple[tuple[str, ...], str]) -> None:
    before = pod.inside.policy_routing()
    pod.inside.istio_init(*means[0], *TPROXY, "*")
    pod.inside.istio_init(*means[0], *TPROXY, "*", "-t", "0x2a", "-r", "4242")
    assert "lookup 4242" in pod.inside.policy_routing()
    assert "lookup 133" not in pod.inside.policy_routing()
    with servers_for(pod, [INBOUND]):
        assert connect(pod, INBOUND).server == "envoy:15001"
    pod.inside.istio_init("clean", *means[0])
    assert pod.inside.policy_routing() == before


def connect_from_port(pod: Pod, port: int) -> Answer:
    def exchange() -> Answer:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((cases.CLIENT, port))
            client.connect((cases.POD, 9080))
            return answer_from(client)

    return pod.outside.call(exchange)
