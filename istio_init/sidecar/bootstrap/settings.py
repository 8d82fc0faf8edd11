"""The proxy's settings: flags and variables of Istio 1.0's `pilot-agent proxy`, validated.

Each row of `OPTIONS` is one flag. Names and defaults are those of Istio 1.0.5, `pilot/cmd/pilot-agent`.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

from istio_init.core.durations import SECOND, parse_duration
from istio_init.core.errors import InvalidInput
from istio_init.core.limits import read_json
from istio_init.core.option import Kind, Option

HOUR = 3600 * SECOND
MILLISECOND = SECOND // 1000
PORT_MAX = 65535
PROMETHEUS_PORT = 15090
ROLES = ("sidecar", "ingress", "router")
NONE, MUTUAL_TLS = "NONE", "MUTUAL_TLS"
LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "err", "error", "critical", "off")  # envoy --help
ADMIN_PORT = 15000
XDS_PORT = 15010
XDS_TLS_PORT = 15011
TRUST_DOMAIN = "cluster.local"
HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")  # a DNS name or an IPv4 address
HOST_IN_BRACKETS = re.compile(r"\[[0-9A-Fa-f:.]+\]")
LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+")
META_PREFIX = "ISTIO_META_"
METAJSON_PREFIX = "ISTIO_METAJSON_"


def _flag(name: str, default: str | None, metavar: str, text: str, *, is_path: bool = False) -> Option:
    """Make the row of a flag.

    Args:
        name: the flag without dashes; also its key in the values.
        default: as a user would write it; None if it is derived from the environment, or if there is none.
        metavar: the value's placeholder in `--help`.
        text: the help, without the default.
        is_path: whether the value is a path.
    """
    text += f" Default: {default}." if default else ""
    return Option(name, (f"--{name}",), metavar=metavar, help=text, default=default, is_path=is_path)


ROLE = Option("role", (), metavar=f"[{'|'.join(ROLES)}]", kind=Kind.ARGUMENT, default=ROLES[0])
OPTIONS = (
    _flag("ip", None, "ADDRESS", "Address of the pod. Default: $INSTANCE_IP, else the first non-loopback address."),
    _flag("id", None, "ID", "Name of this proxy. Default: $POD_NAME.$POD_NAMESPACE, else the address."),
    _flag("domain", None, "DOMAIN", "DNS suffix. Default: $POD_NAMESPACE.svc.cluster.local."),
    _flag("configPath", "/etc/istio/proxy", "DIRECTORY", "Directory for the bootstrap file.", is_path=True),
    _flag("binaryPath", "/usr/local/bin/envoy", "FILE", "Envoy's executable.", is_path=True),
    _flag("serviceCluster", "istio-proxy", "NAME", "Service that this proxy belongs to."),
    _flag("availabilityZone", None, "ZONE", "Availability zone of the node."),
    _flag("drainDuration", "2s", "DURATION", "Drain time; whole seconds, at most 1h."),
    _flag(
        "parentShutdownDuration", "3s", "DURATION", "Time until the previous epoch exits; longer than the drain, at most 1h."
    ),
    _flag("statusPort", "0", "PORT", "Port of the readiness probe; 0 disables it."),
    _flag("discoveryAddress", "istio-pilot:15007", "HOST:PORT", "The control plane; Envoy resolves the host."),
    _flag("discoveryGrpcPort", None, "PORT", "Port of its ADS. Default: 15010, with MUTUAL_TLS 15011."),
    _flag("discoveryRefreshDelay", "1s", "DURATION", "Polling interval, 1s to 10m; v2 only."),
    _flag("zipkinAddress", None, "HOST:PORT", "Zipkin collector for traces."),
    _flag("connectTimeout", "1s", "DURATION", "Timeout for connections to the control plane, 1ms to 30s."),
    _flag("statsdUdpAddress", None, "ADDRESS:PORT", "StatsD server; an IP address, as Envoy does not resolve names here."),
    _flag("proxyAdminPort", str(ADMIN_PORT), "PORT", "Port of Envoy's admin interface, on localhost."),
    _flag("controlPlaneAuthPolicy", NONE, "POLICY", "NONE or MUTUAL_TLS."),
    _flag("customConfigFile", None, "FILE", "Bootstrap file to use instead of a rendered one.", is_path=True),
    _flag("proxyLogLevel", "warn", "LEVEL", "Envoy's log level."),
    _flag("concurrency", "0", "NUMBER", "Worker threads; 0 leaves the choice to Envoy."),
    _flag("applicationPorts", None, "PORTS", "Ports of the app; readiness needs an inbound listener for one of them."),
)


class HostPort(NamedTuple):
    """A host, by name or address, and a port."""

    host: str
    port: int


class Node(NamedTuple):
    """The identity of a proxy.

    Attributes:
        role: `sidecar`, `ingress` or `router`.
        ip: the pod's address.
        id: the proxy's name, unique within its role.
        domain: the DNS suffix of the pod's services.
        cluster: the service that the proxy belongs to.
        zone: the availability zone, or empty.
        metadata: further data for the control plane; any JSON.
    """

    role: str
    ip: str
    id: str
    domain: str
    cluster: str
    zone: str
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """The name by which the control plane identifies this proxy: Istio's service node."""
        return f"{self.role}~{self.ip}~{self.id}~{self.domain}"


class ProxySettings(NamedTuple):
    """Validated settings of a proxy; durations are in nanoseconds, disabled features are 0, empty or None.

    Attributes:
        xds: the control plane's ADS.
        control_plane_identity: the SPIFFE ID that the control plane must present; empty without mutual TLS.
    """

    node: Node
    config_path: str
    binary_path: str
    drain: int
    parent_shutdown: int
    status_port: int
    xds: HostPort
    refresh_delay: int
    zipkin: HostPort | None
    connect_timeout: int
    statsd: HostPort | None
    admin_port: int
    control_plane_identity: str
    custom_config_file: str
    log_level: str
    concurrency: int
    application_ports: tuple[int, ...]


def parse_proxy_settings(
    role: str,
    values: Mapping[str, str | None],
    environ: Mapping[str, str],
    first_address: str,
) -> ProxySettings:
    """Validate flags and variables, and apply defaults.

    Args:
        role: `sidecar`, `ingress` or `router`.
        values: `Option.name` → the flag's value, or None if it was not flags.
        environ: the environment variables.
        first_address: the host's first non-loopback address, or empty.

    Raises:
        InvalidInput: a value is not allowed; the first one is reported.
    """
    flags = {option.name: values.get(option.name) or option.default or "" for option in OPTIONS}
    drain = _duration(flags, "drainDuration", SECOND, HOUR, whole_seconds=True)
    discovery = _host_port(flags["discoveryAddress"], "--discoveryAddress")
    secure = _one_of(flags, "controlPlaneAuthPolicy", (NONE, MUTUAL_TLS)) == MUTUAL_TLS
    xds_port = flags["discoveryGrpcPort"] or str(XDS_TLS_PORT if secure else XDS_PORT)
    ports = (word.strip() for word in flags["applicationPorts"].split(",") if word.strip())
    return ProxySettings(
        node=_node(role, flags, environ, first_address),
        config_path=flags["configPath"],
        binary_path=flags["binaryPath"],
        drain=drain,
        parent_shutdown=_duration(flags, "parentShutdownDuration", drain + SECOND, HOUR, whole_seconds=True),
        status_port=_status_port(flags),
        xds=HostPort(discovery.host, _port(xds_port, "--discoveryGrpcPort")),
        refresh_delay=_duration(flags, "discoveryRefreshDelay", SECOND, 600 * SECOND),
        zipkin=_optional_host_port(flags, "zipkinAddress"),
        connect_timeout=_duration(flags, "connectTimeout", MILLISECOND, 30 * SECOND),
        statsd=_statsd(flags["statsdUdpAddress"]),
        admin_port=_admin_port(flags),
        control_plane_identity=_identity(discovery.host, flags["domain"], environ) if secure else "",
        custom_config_file=flags["customConfigFile"],
        log_level=_one_of(flags, "proxyLogLevel", LOG_LEVELS),
        concurrency=_number(flags["concurrency"], "--concurrency", 0, 1024),
        application_ports=tuple(_port(port, "--applicationPorts") for port in ports),
    )


def _node(role: str, flags: Mapping[str, str], environ: Mapping[str, str], first_address: str) -> Node:
    if role not in ROLES:
        raise InvalidInput("role", f"{role!r} is not a known role", ", ".join(ROLES))
    ip = _address(flags["ip"], "--ip") or _address(environ.get("INSTANCE_IP", ""), "$INSTANCE_IP") or first_address
    if not ip:
        raise InvalidInput("--ip", "this host has no non-loopback address", "the pod's address, or $INSTANCE_IP")
    pod, namespace = environ.get("POD_NAME", ""), environ.get("POD_NAMESPACE", "")
    return Node(
        role=role,
        ip=ip,
        id=_node_part(flags["id"] or (f"{pod}.{namespace}" if pod and namespace else ip), "--id"),
        domain=_node_part(flags["domain"] or (f"{namespace}.svc.cluster.local" if namespace else ""), "--domain"),
        cluster=_text(flags["serviceCluster"], "--serviceCluster"),
        zone=_text(flags["availabilityZone"], "--availabilityZone"),
        metadata=read_metadata(role, environ),
    )


def read_metadata(role: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Collect the node's metadata: ISTIO_META_X as X, then the members of each ISTIO_METAJSON_*, then the role.

    Variables are read in alphabetical order, so the result is deterministic.

    Raises:
        InvalidInput: an ISTIO_METAJSON_ variable is not a JSON object, or has a duplicate key.
    """
    metadata: dict[str, Any] = {
        name.removeprefix(META_PREFIX): _text(environ[name], f"${name}")
        for name in sorted(environ)
        if name.startswith(META_PREFIX)
    }
    for name in sorted(environ):
        if not name.startswith(METAJSON_PREFIX):
            continue
        try:
            members = read_json(environ[name], parse_constant=_reject_constant, object_pairs_hook=_reject_duplicates)
            json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise InvalidInput(f"${name}", f"{environ[name]!r} is not valid JSON: {error}", "a JSON object") from None
        if not isinstance(members, dict):
            raise InvalidInput(f"${name}", f"{environ[name]!r} is not a JSON object", 'such as {"app":"productpage"}')
        metadata.update(members)
    return {**metadata, "istio": role}


def _reject_constant(name: str) -> None:
    """Reject NaN and infinities, which Python's parser accepts but JSON does not have."""
    raise ValueError(name)


def _reject_duplicates(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate keys, whose meaning is undefined (RFC 8259, 4)."""
    found: dict[str, Any] = {}
    for key, value in members:
        if key in found:
            message = f"duplicate key {key!r}"
            raise ValueError(message)
        found[key] = value
    return found


def _text(text: str, where: str) -> str:
    """Reject text that is not UTF-8, which JSON cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(where, f"{text!r} is not UTF-8", "text") from None
    return text


def _node_part(text: str, where: str) -> str:
    """Validate a part of the node's name; parts are separated by ~."""
    if "~" in text or not text.isprintable() or " " in text:
        raise InvalidInput(where, f"{text!r} cannot be part of a node's name", "printable text without ~ or spaces")
    return text


def _identity(host: str, domain: str, environ: Mapping[str, str]) -> str:
    """Return the control plane's expected SPIFFE ID (Istio 1.0.5, `pilot-agent` and `envoy.GetPilotSAN`)."""
    match host.removesuffix(".").split("."):
        case [_service]:
            namespace = environ.get("POD_NAMESPACE", "")
        case [_service, namespace]:
            pass
        case _:
            namespace = environ.get("ISTIO_NAMESPACE") or "istio-system"
    if not namespace:
        problem = f"{host!r} does not name the control plane's namespace, and POD_NAMESPACE is not set"
        raise InvalidInput("--discoveryAddress", problem, "SERVICE.NAMESPACE:PORT, or POD_NAMESPACE")
    return f"spiffe://{domain or TRUST_DOMAIN}/ns/{namespace}/sa/istio-pilot-service-account"


def _address(text: str, where: str) -> str:
    if not text:
        return ""
    if "%" not in text:  # zone IDs are only meaningful on this host
        with suppress(ValueError):
            return str(ip_address(text))
    raise InvalidInput(where, f"{text!r} is not an IP address", "an address such as 10.1.1.1 or fd00::1")


def _duration(
    flags: Mapping[str, str],
    name: str,
    lowest: int,
    highest: int,
    *,
    whole_seconds: bool = False,
) -> int:
    flag, text = f"--{name}", flags[name]
    value = parse_duration(text, flag)
    if not lowest <= value <= highest or (whole_seconds and value % SECOND):
        whole = "whole seconds, " if whole_seconds else ""
        allowed = f"{whole}{lowest / SECOND:g}s to {highest / SECOND:g}s"
        raise InvalidInput(flag, f"{text!r} is out of range", allowed)
    return value


def _optional_host_port(flags: Mapping[str, str], name: str) -> HostPort | None:
    return _host_port(flags[name], f"--{name}") if flags[name] else None


def _host_port(text: str, where: str) -> HostPort:
    """Parse `host:port`, with IPv6 addresses in brackets."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if HOST_IN_BRACKETS.fullmatch(host) else host
    if not _is_host(host):
        raise InvalidInput(where, f"{text!r} is not a host and port", "HOST:PORT, such as istio-pilot:15010")
    return HostPort(bare, _port(port, where))


def _admin_port(flags: Mapping[str, str]) -> int:
    port = _port(flags["proxyAdminPort"], "--proxyAdminPort")
    if port == PROMETHEUS_PORT:
        raise InvalidInput("--proxyAdminPort", f"{port} is the port of Envoy's metrics", "a free port, such as 15000")
    return port


def _status_port(flags: Mapping[str, str]) -> int:
    port = _port(flags["statusPort"], "--statusPort", lowest=0)
    if port in (_admin_port(flags), PROMETHEUS_PORT):
        raise InvalidInput("--statusPort", f"{port} is already used by Envoy", "a free port, such as 15020")
    return port


def _is_host(text: str) -> bool:
    """Return whether a text is a name, an IPv4 address, or an IPv6 address in brackets."""
    in_brackets = HOST_IN_BRACKETS.fullmatch(text) is not None
    if not in_brackets and not LOOKS_LIKE_IPV4.fullmatch(text):
        return HOST_NAME.fullmatch(text) is not None
    try:
        address = ip_address(text.strip("[]"))
    except ValueError:
        return False
    return in_brackets == isinstance(address, IPv6Address)


def _statsd(text: str) -> HostPort | None:
    """Parse the StatsD server, whose name Envoy would not resolve."""
    if not text:
        return None
    server = _host_port(text, "--statsdUdpAddress")
    return server._replace(host=_address(server.host, "--statsdUdpAddress"))


def _port(text: str, where: str, lowest: int = 1) -> int:
    return _number(text, where, lowest, PORT_MAX)


def _number(text: str, where: str, lowest: int, highest: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(PORT_MAX)) else -1
    if not lowest <= number <= highest:
        raise InvalidInput(where, f"{text!r} is not a number in the allowed range", f"{lowest}..{highest}")
    return number


def _one_of(flags: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    if flags[name] not in allowed:
        raise InvalidInput(f"--{name}", f"{flags[name]!r} is not a valid value", ", ".join(allowed))
    return flags[name]
