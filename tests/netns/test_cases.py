"""The third use of the case table: each case applied for real, and its connections opened with real packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cases import CASES, CLIENT, Case, Connection
from tests.netns.sockets import Answer, connect, servers_for

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_connection_reaches_whom_it_should(case: Case, pod: Pod, means: tuple[tuple[str, ...], str]) -> None:
    flags, _ = means
    pod.inside.istio_init(*flags, *case.flags, environment=case.environment)
    with servers_for(pod, case.connections):
        answers = {connection: connect(pod, connection) for connection in case.connections}
    assert {c: answer.server for c, answer in answers.items()} == {c: c.outcome for c in answers}
    for connection, answer in answers.items():
        if connection.outcome.startswith("envoy"):
            assert_the_original_destination_is_readable(case, connection, answer)


def assert_the_original_destination_is_readable(case: Case, connection: Connection, answer: Answer) -> None:
    asked = f"{connection.address}:{connection.port}"
    if connection.inbound and case.plan().routes:  # TPROXY: the socket itself has both real ends
        assert answer.local == asked
        assert answer.client.startswith(f"{CLIENT}:")
    else:
        assert answer.original == asked
