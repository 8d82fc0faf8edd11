"""Converts JSON of Envoy's v3 API to protobuf messages."""

from __future__ import annotations

import json
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf import json_format

from istio_init.core.errors import InvalidInput
from istio_init.lab.resources import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.lab.world import Json

CLASSES = {
    Kind.CDS: Cluster,
    Kind.EDS: ClusterLoadAssignment,
    Kind.LDS: Listener,
    Kind.RDS: RouteConfiguration,
}
TYPE_PREFIX = "type.googleapis.com/"


def message(kind: Kind, resource: Json, where: str) -> Any:
    """Parse a resource.

    Args:
        kind: the type of the resource.
        resource: the resource in protobuf's JSON mapping.
        where: its source, for the error.

    Raises:
        InvalidInput: it is not a valid message of this type.
    """
    try:
        for name in _type_names(resource):
            _register_type(name)
        return json_format.ParseDict(resource, CLASSES[kind]())
    except (json_format.ParseError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # the rest lists all known fields
        problem = f"{json.dumps(kind.name_of(resource))} cannot be read: {reason}"
        raise InvalidInput(where, problem, f"{CLASSES[kind].DESCRIPTOR.full_name} as JSON") from None


def _type_names(value: object) -> Iterator[str]:
    """List the types of all `google.protobuf.Any` messages within a JSON value."""
    if isinstance(value, dict):
        name = value.get("@type")
        if isinstance(name, str):
            yield name.removeprefix(TYPE_PREFIX)
        for member in value.values():
            yield from _type_names(member)
    elif isinstance(value, list):
        for item in value:
            yield from _type_names(item)


def _register_type(name: str) -> None:
    """Import the modules that declare an Envoy message: protobuf only knows imported types.

    An Envoy package corresponds to a directory, but its files cannot be derived from the message's name.
    """
    package = name.rpartition(".")[0]
    if not package.startswith("envoy."):
        return
    try:
        path = import_module(package).__path__
    except (ImportError, AttributeError):  # unknown type: protobuf reports a better error
        return
    for module in iter_modules(path):
        if module.name.endswith("_pb2"):
            import_module(f"{package}.{module.name}")
