"""Client for Envoy's admin interface, on the pod's loopback address.

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

REQUEST_TIMEOUT = 2.0  # seconds

UPDATES = re.compile(r".*\.update_(success|rejected): (?P<number>\d+)")
# Connections per listener; the per-worker statistics would count them twice.
CONNECTIONS = re.compile(r"listener\.(?P<listener>.+)\.downstream_cx_active: (?P<number>\d+)")
NOT_TRAFFIC = re.compile(rf"admin|.*[_.:]{PROMETHEUS_PORT}|.*\.worker_\d+|.*\.main_thread")


class Unreachable(Exception):
    """Envoy's admin interface does not respond, or responds with an error."""


class Admin(NamedTuple):
    """Envoy's admin interface."""

    port: int

    def updates(self, service: str) -> int:
        """Count the updates of a discovery service that Envoy accepted or rejected.

        Args:
            service: `cluster_manager.cds` or `listener_manager.lds`.

        Raises:
            Unreachable: the request failed.
        """
        text = self._request("GET", rf"/stats?filter=^{service}\.update_(success|rejected)$")
        return sum(int(found["number"]) for line in text.splitlines() if (found := UPDATES.fullmatch(line)))

    def connections(self) -> int:
        """Count active downstream connections, except those to the admin and Prometheus listeners.

        Raises:
            Unreachable: the request failed.
        """
        text = self._request("GET", r"/stats?filter=^listener\..*\.downstream_cx_active$")
        matches = filter(None, map(CONNECTIONS.fullmatch, text.splitlines()))
        return sum(int(found["number"]) for found in matches if not NOT_TRAFFIC.fullmatch(found["listener"]))

    def inbound_ports(self, address: str) -> set[int]:
        """List the pod's ports for which the control plane has configured inbound listeners.

        Args:
            address: the pod's address.

        Raises:
            Unreachable: the request failed.
        """
        text = self._request("GET", "/config_dump?resource=dynamic_listeners")
        try:
            configs = json.loads(text).get("configs", [])
        except (AttributeError, ValueError):
            problem = "/config_dump: not a JSON object"
            raise Unreachable(problem) from None
        states = (listener.get("active_state", {}) for listener in configs)
        listeners = [state.get("listener", {}) for state in states]
        return {port for listener in listeners for port in _ports(listener, address)}

    def is_initializing(self) -> bool:
        """Return whether Envoy is still initializing; False if it does not respond."""
        try:
            return "INITIALIZING" in self._ask("GET", "/ready")[1]
        except Unreachable:
            return False

    def drain(self) -> None:
        """Start a graceful drain: clients are asked to reconnect elsewhere, but connections are still accepted.

        Raises:
            Unreachable: the request failed.
        """
        try:
            self._request("POST", "/drain_listeners?graceful")
        except Unreachable:
            self._request("POST", "/healthcheck/fail")  # Envoy before 1.14

    def _request(self, method: str, path: str) -> str:
        status, text = self._ask(method, path)
        if status != http.client.OK:
            problem = f"{path}: status {status}"
            raise Unreachable(problem)
        return text

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOCALHOST, self.port, timeout=REQUEST_TIMEOUT)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error)) from None
        finally:
            connection.close()


def _ports(listener: dict[str, Any], address: str) -> Iterator[int]:
    """List the ports of a listener: the one it is bound to on `address`, or those of its inbound filter chains."""
    bound = listener.get("address", {}).get("socket_address", {})
    if bound.get("address") == address:
        yield bound.get("port_value", 0)
    if listener.get("traffic_direction") == "INBOUND":
        for chain in listener.get("filter_chains", []):
            yield chain.get("filter_chain_match", {}).get("destination_port", 0)
