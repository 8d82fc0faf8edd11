"""The protocol of one ADS stream: what is answered to a proxy, and when. Pure.

This is the state-of-the-world variant: an answer holds all resources of its kind. Source: Envoy's "xDS REST and gRPC
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

    Offer = Mapping[Kind, Sequence[Json]]  # all resources that there are for a proxy

VERSION_LENGTH = 12  # hexadecimal digits

# A proxy warms up a changed cluster until it hears of its endpoints, and a changed listener until it hears of its routes,
# though these be the same as before.
COMPLETED_BY = {Kind.CDS: Kind.EDS, Kind.LDS: Kind.RDS}


class Asked(NamedTuple):
    """A request of a proxy.

    Attributes:
        nonce: of the answer that this request is about; empty for none.
        version: the last one that the proxy took.
        names: of the resources that it wants.
        error: why it refused the answer; None where it did not.
    """

    kind: Kind
    nonce: str
    version: str
    names: frozenset[str]
    error: str | None


class Push(NamedTuple):
    """An answer to a proxy, asked for or not."""

    kind: Kind
    version: str
    nonce: str
    resources: tuple[Json, ...]


class State(NamedTuple):
    """What is known of a proxy and one kind of resource.

    Attributes:
        names: of the resources that the proxy asked for last.
        nonce: of the last answer, empty before the first.
        judged: whether the proxy took or refused that one.
        sent: the version of the last answer.
        acked: the last version that the proxy took.
        nack: why the proxy refused the last answer; None where it did not.
    """

    names: frozenset[str]
    nonce: str = ""
    judged: bool = True
    sent: str | None = None
    acked: str | None = None
    nack: str | None = None


class Stream:
    """One proxy's conversation with the control plane.

    Args:
        node: the proxy's name.
        log: takes an event and its particulars.
    """

    def __init__(self, node: str, log: Callable[..., None]) -> None:
        self.node = node
        self._log = log
        self._states: dict[Kind, State] = {}
        self._nonces = 0

    def status(self) -> dict[str, dict[str, str | None]]:
        """Tell, for each kind asked for, the versions that were sent and taken, and the refusal if there is one."""
        known = [(kind, self._states[kind]) for kind in Kind if kind in self._states]
        return {kind: {"sent": state.sent, "acked": state.acked, "nack": state.nack} for kind, state in known}

    def request(self, asked: Asked, offer: Offer) -> list[Push]:
        """Take a request, and give what it is answered with.

        The first request of a kind is always answered: what its nonce and version say comes from another stream. Later
        ones are answered only if they ask for other resources.
        """
        state = self._states.get(asked.kind)
        if state is None:
            self._states[asked.kind] = State(asked.names)
            return self._push(asked.kind, offer)
        if asked.nonce and asked.nonce != state.nonce:
            # The proxy has not seen the last answer yet; it will say all this again when it has.
            self._log("ads stale", type=asked.kind, nonce=asked.nonce, node=self.node)
            return []
        # An answer is judged once: a later change of names carries its nonce too.
        judged = state if state.judged or not asked.nonce else self._judge(state, asked)
        self._states[asked.kind] = judged._replace(names=asked.names)
        return self._push(asked.kind, offer) if asked.kind.by_name and asked.names != state.names else []

    def update(self, offer: Offer) -> list[Push]:
        """Give what is to be sent after the world changed, in the order in which it must be sent."""
        pushes: list[Push] = []
        for kind in Kind:
            state = self._states.get(kind)
            if state is None:
                continue
            completes = any(COMPLETED_BY.get(push.kind) is kind for push in pushes)
            changed = version(_wanted(kind, state, offer)) != state.sent
            if changed or completes:
                pushes += self._push(kind, offer)
        return pushes

    def _judge(self, state: State, asked: Asked) -> State:
        if asked.error is not None:
            particulars = {"type": asked.kind, "version": state.sent, "node": self.node, "message": asked.error}
            self._log("ads nack", **particulars)
            return state._replace(judged=True, nack=asked.error)
        self._log("ads ack", type=asked.kind, version=asked.version, nonce=asked.nonce, node=self.node)
        return state._replace(judged=True, acked=asked.version, nack=None)

    def _push(self, kind: Kind, offer: Offer) -> list[Push]:
        state = self._states[kind]
        if kind.by_name and not state.names:
            return []
        resources = _wanted(kind, state, offer)
        self._nonces += 1
        push = Push(kind, version(resources), str(self._nonces), resources)
        self._states[kind] = state._replace(nonce=push.nonce, judged=False, sent=push.version)
        particulars = {"version": push.version, "nonce": push.nonce, "resources": len(resources), "node": self.node}
        self._log("ads push", type=kind, **particulars)
        return [push]


def version(resources: Sequence[Json]) -> str:
    """Name a set of resources by its content, so that the name means the same to every control plane at any time."""
    content = json.dumps(resources, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:VERSION_LENGTH]


def _wanted(kind: Kind, state: State, offer: Offer) -> tuple[Json, ...]:
    return tuple(one for one in offer[kind] if not kind.by_name or kind.name_of(one) in state.names)
