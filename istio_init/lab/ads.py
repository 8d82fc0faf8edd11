"""The state machine of an ADS stream: what to send to a proxy, and when. Pure.

This is the state-of-the-world variant: a response has all resources of its type. Source: Envoy's "xDS REST and gRPC
protocol".
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, NamedTuple

from istio_init.lab.resources import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from istio_init.lab.world import Json

    Snapshot = Mapping[Kind, Sequence[Json]]  # all resources for a proxy

VERSION_LENGTH = 12  # hexadecimal digits

# A proxy warms a changed cluster until it receives its endpoints, and a changed listener until it receives its routes, even
# if these are unchanged.
COMPLETED_BY = {Kind.CDS: Kind.EDS, Kind.LDS: Kind.RDS}


class AdsRequest(NamedTuple):
    """A discovery request.

    Attributes:
        nonce: the nonce of the response that this request acknowledges; empty if none.
        version: the last version that the proxy accepted.
        names: the names of the requested resources.
        error: why the proxy rejected the response; None if it did not.
    """

    kind: Kind
    nonce: str
    version: str
    names: frozenset[str]
    error: str | None


class Push(NamedTuple):
    """A discovery response."""

    kind: Kind
    version: str
    nonce: str
    resources: tuple[Json, ...]


class Subscription(NamedTuple):
    """The state of a proxy's subscription to one type of resource.

    Attributes:
        names: the names of the resources requested last.
        nonce: the nonce of the last response; empty before the first.
        answered: whether the proxy has acked or nacked that response.
        sent: the version of the last response.
        acked: the last version that the proxy accepted.
        nack: why the proxy rejected the last response; None if it did not.
    """

    names: frozenset[str]
    nonce: str = ""
    answered: bool = True
    sent: str | None = None
    acked: str | None = None
    nack: str | None = None


class Stream:
    """A proxy's ADS stream.

    Args:
        node: the proxy's node ID.
        log: logs an event with its fields.
    """

    def __init__(self, node: str, log: Callable[..., None]) -> None:
        self.node = node
        self._log = log
        self._states: dict[Kind, Subscription] = {}
        self._nonces = 0

    def status(self) -> dict[str, dict[str, str | None]]:
        """Return, for each subscribed type, the versions sent and acked, and the last nack."""
        known = [(kind, self._states[kind]) for kind in Kind if kind in self._states]
        return {kind: {"sent": state.sent, "acked": state.acked, "nack": state.nack} for kind, state in known}

    def request(self, request: AdsRequest, snapshot: Snapshot) -> list[Push]:
        """Handle a request, and return the responses to send.

        The first request for a type is always answered: its nonce and version are left over from a previous stream. Later
        ones are only answered if they change the requested resources.
        """
        state = self._states.get(request.kind)
        if state is None:
            self._states[request.kind] = Subscription(request.names)
            return self._push(request.kind, snapshot)
        if request.nonce and request.nonce != state.nonce:
            # The proxy has not yet received the last response; it will repeat its request once it has.
            self._log("ads stale", type=request.kind, nonce=request.nonce, node=self.node)
            return []
        # A response is acked or nacked once: later requests that change the names carry the same nonce.
        updated = state if state.answered or not request.nonce else self._record_answer(state, request)
        self._states[request.kind] = updated._replace(names=request.names)
        return self._push(request.kind, snapshot) if request.kind.by_name and request.names != state.names else []

    def update(self, snapshot: Snapshot) -> list[Push]:
        """Return the responses to send after a change of the world, in the required order."""
        pushes: list[Push] = []
        for kind in Kind:
            state = self._states.get(kind)
            if state is None:
                continue
            completes = any(COMPLETED_BY.get(push.kind) is kind for push in pushes)
            changed = version(_wanted(kind, state, snapshot)) != state.sent
            if changed or completes:
                pushes += self._push(kind, snapshot)
        return pushes

    def _record_answer(self, state: Subscription, request: AdsRequest) -> Subscription:
        if request.error is not None:
            fields = {"type": request.kind, "version": state.sent, "node": self.node, "message": request.error}
            self._log("ads nack", **fields)
            return state._replace(answered=True, nack=request.error)
        self._log("ads ack", type=request.kind, version=request.version, nonce=request.nonce, node=self.node)
        return state._replace(answered=True, acked=request.version, nack=None)

    def _push(self, kind: Kind, snapshot: Snapshot) -> list[Push]:
        state = self._states[kind]
        if kind.by_name and not state.names:
            return []
        resources = _wanted(kind, state, snapshot)
        self._nonces += 1
        push = Push(kind, version(resources), str(self._nonces), resources)
        self._states[kind] = state._replace(nonce=push.nonce, answered=False, sent=push.version)
        fields = {"version": push.version, "nonce": push.nonce, "resources": len(resources), "node": self.node}
        self._log("ads push", type=kind, **fields)
        return [push]


def version(resources: Sequence[Json]) -> str:
    """Derive a version from the content of resources, so that it stays valid across control plane restarts."""
    content = json.dumps(resources, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:VERSION_LENGTH]


def _wanted(kind: Kind, state: Subscription, snapshot: Snapshot) -> tuple[Json, ...]:
    return tuple(one for one in snapshot[kind] if not kind.by_name or kind.name_of(one) in state.names)
