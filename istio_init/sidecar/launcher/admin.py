"""Envoy's administration interface, on localhost of the pod.

Source: Envoy's documentation, "Administration interface".
"""

from __future__ import annotations

import http.client
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.sidecar.bootstrap.common import LOCALHOST
from istio_init.sidecar.bootstrap.settings import PROMETHEUS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 2.0  # seconds that one answer may take

UPDATES = re.compile(r".*\.update_(success|rejected): (?P<number>\d+)")
# Connections of listeners; the per-worker figures say the same once more.
CONNECTIONS = re.compile(r"listener\.(?P<listener>.+)\.downstream_cx_active: (?P<number>\d+)")
NOT_TRAFFIC = re.compile(rf"admin|.*[_.:]{PROMETHEUS_PORT}|.*\.worker_\d+|.*\.main_thread")


class Unreachable(Exception):
    """Envoy does not answer, or not with success."""


class Admin(NamedTuple):
    """Where Envoy's administration listens."""

    port: int

    def updates(self, service: str) -> int:
        """Count the updates of a discovery service that Envoy took or refused.

        Args:
            service: `cluster_manager.cds` or `listener_manager.lds`.

        Raises:
            Unreachable: Envoy does not answer.
        """
        text = self._request("GET", rf"/stats?filter=^{service}\.update_(success|rejected)$")
        return sum(int(one["number"]) for line in text.splitlines() if (one := UPDATES.fullmatch(line)))

    def connections(self) -> int:
        """Count the connections that Envoy holds for its clients, its own statistics' readers left out.

        Raises:
            Unreachable: Envoy does not answer.
        """
        text = self._request("GET", r"/stats?filter=^listener\..*\.downstream_cx_active$")
        found = (CONNECTIONS.fullmatch(line) for line in text.splitlines())
        return sum(int(one["number"]) for one in found if one and not NOT_TRAFFIC.fullmatch(one["listener"]))

    def inbound_ports(self, address: str) -> set[int]:
        """List the ports of the pod that listeners from the control plane take connections for.

        Args:
            address: the pod's own.

        Raises:
            Unreachable: Envoy does not answer.
        """
        text = self._request("GET", "/config_dump?resource=dynamic_listeners")
        try:
            found = json.loads(text).get("configs", [])
        except (AttributeError, ValueError):
            problem = "/config_dump: no JSON object"
            raise Unreachable(problem) from None
        states = (listener.get("active_state", {}) for listener in found)
        listeners = [state.get("listener", {}) for state in states]
        return {port for listener in listeners for port in _ports(listener, address)}

    def is_initializing(self) -> bool:
        """Tell whether Envoy still waits for what it needs to serve; an Envoy that does not answer is not known to."""
        try:
            return "INITIALIZING" in self._ask("GET", "/ready")[1]
        except Unreachable:
            return False

    def drain(self) -> None:
        """Tell clients to go elsewhere, while connections are still accepted.

        Raises:
            Unreachable: Envoy does not answer.
        """
        try:
            self._request("POST", "/drain_listeners?graceful")
        except Unreachable:
            self._request("POST", "/healthcheck/fail")  # Envoys before 1.14

    def _request(self, method: str, path: str) -> str:
        status, text = self._ask(method, path)
        if status != http.client.OK:
            problem = f"{path}: status {status}"
            raise Unreachable(problem)
        return text

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOCALHOST, self.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error)) from None
        finally:
            connection.close()


def _ports(listener: dict[str, Any], address: str) -> Iterator[int]:
    """Read a listener of either shape: one for an address and port, or one with a filter chain for each port."""
    bound = listener.get("address", {}).get("socket_address", {})
    if bound.get("address") == address:
        yield bound.get("port_value", 0)
    if listener.get("traffic_direction") == "INBOUND":
        for chain in listener.get("filter_chains", []):
            yield chain.get("filter_chain_match", {}).get("destination_port", 0)
