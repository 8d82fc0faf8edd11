"""What a pod tells its proxy: the flags and variables of Istio 1.0's `pilot-agent proxy`, validated.

One row of `OPTIONS` is one flag. Names and defaults are those of Istio 1.0.5, `pilot/cmd/pilot-agent`.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.sidecar.bootstrap.durations import SECOND, parse_duration

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
HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")  # a name as DNS has it, or an IPv4 address
HOST_IN_BRACKETS = re.compile(r"\[[0-9A-Fa-f:.]+\]")
LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+")
META_PREFIX = "ISTIO_META_"
METAJSON_PREFIX = "ISTIO_METAJSON_"


class Option(NamedTuple):
    """One flag of the proxy.

    Attributes:
        name: the flag without its dashes, which is also its key among the values.
        default: as a user would write it; None where it is made from the environment, or there is none.
        metavar: what `--help` shows for the value.
        help: what it is.
    """

    name: str
    default: str | None
    metavar: str
    help: str


OPTIONS = (
    Option("ip", None, "ADDRESS", "Address of the pod. Default: $INSTANCE_IP, else the first one that is not loopback."),
    Option("id", None, "ID", "Name of this proxy. Default: $POD_NAME.$POD_NAMESPACE, else the address."),
    Option("domain", None, "DOMAIN", "DNS suffix. Default: $POD_NAMESPACE.svc.cluster.local."),
    Option("configPath", "/etc/istio/proxy", "DIRECTORY", "Where the bootstrap file is written."),
    Option("binaryPath", "/usr/local/bin/envoy", "FILE", "The Envoy that is run."),
    Option("serviceCluster", "istio-proxy", "NAME", "Service that this proxy belongs to."),
    Option("availabilityZone", None, "ZONE", "Availability zone of the node."),
    Option("drainDuration", "2s", "DURATION", "How long connections are drained; whole seconds, at most 1h."),
    Option("parentShutdownDuration", "3s", "DURATION", "When a former epoch ends; more than the drain, at most 1h."),
    Option("statusPort", "0", "PORT", "Where readiness is served; 0 is off."),
    Option("discoveryAddress", "istio-pilot:15007", "HOST:PORT", "The control plane; Envoy resolves the host."),
    Option("discoveryGrpcPort", None, "PORT", "Port of its ADS. Default: 15010, with MUTUAL_TLS 15011."),
    Option("discoveryRefreshDelay", "1s", "DURATION", "Polling interval, 1s to 10m; v2 only."),
    Option("zipkinAddress", None, "HOST:PORT", "Where traces go."),
    Option("connectTimeout", "1s", "DURATION", "For connections to the control plane, 1ms to 30s."),
    Option("statsdUdpAddress", None, "ADDRESS:PORT", "Where statistics go; an IP address, for Envoy resolves no name here."),
    Option("proxyAdminPort", str(ADMIN_PORT), "PORT", "Envoy's administration, on localhost."),
    Option("controlPlaneAuthPolicy", NONE, "POLICY", "NONE or MUTUAL_TLS."),
    Option("customConfigFile", None, "FILE", "A bootstrap file that is used instead of a rendered one."),
    Option("proxyLogLevel", "warn", "LEVEL", "Envoy's log level."),
    Option("concurrency", "0", "NUMBER", "Worker threads; 0 is Envoy's own choice."),
    Option("applicationPorts", None, "PORTS", "Ports of the app that readiness waits for."),
)


class HostPort(NamedTuple):
    """Where something listens; the host may be a name."""

    host: str
    port: int


class Node(NamedTuple):
    """Who a proxy is.

    Attributes:
        role: `sidecar`, `ingress` or `router`.
        ip: the pod's address.
        id: the proxy's name among those of its role.
        domain: the DNS suffix of the pod's services.
        cluster: the service that it belongs to.
        zone: the availability zone, or empty.
        metadata: what else the control plane is told; any JSON.
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
        """The name by which a control plane knows this proxy: Istio's service node."""
        return f"{self.role}~{self.ip}~{self.id}~{self.domain}"


class ProxySettings(NamedTuple):
    """Validated settings of one proxy; durations are nanoseconds, and what is off is 0, empty or None.

    Attributes:
        xds: the control plane's ADS.
        control_plane_identity: the SPIFFE id that the control plane must prove; empty without mutual TLS.
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
    """Validate what a pod gave, and fill in the defaults.

    Args:
        role: `sidecar`, `ingress` or `router`.
        values: `Option.name` → the value of its flag, or None where the flag was not given.
        environ: the environment variables.
        first_address: the host's first address that is not loopback, or empty.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    given = {option.name: values.get(option.name) or option.default or "" for option in OPTIONS}
    drain = _duration(given, "drainDuration", SECOND, HOUR, whole_seconds=True)
    discovery = _host_port(given["discoveryAddress"], "--discoveryAddress")
    secure = _one_of(given, "controlPlaneAuthPolicy", (NONE, MUTUAL_TLS)) == MUTUAL_TLS
    xds_port = given["discoveryGrpcPort"] or str(XDS_TLS_PORT if secure else XDS_PORT)
    ports = (word.strip() for word in given["applicationPorts"].split(",") if word.strip())
    return ProxySettings(
        node=_node(role, given, environ, first_address),
        config_path=given["configPath"],
        binary_path=given["binaryPath"],
        drain=drain,
        parent_shutdown=_duration(given, "parentShutdownDuration", drain + SECOND, HOUR, whole_seconds=True),
        status_port=_status_port(given),
        xds=HostPort(discovery.host, _port(xds_port, "--discoveryGrpcPort")),
        refresh_delay=_duration(given, "discoveryRefreshDelay", SECOND, 600 * SECOND),
        zipkin=_optional_host_port(given, "zipkinAddress"),
        connect_timeout=_duration(given, "connectTimeout", MILLISECOND, 30 * SECOND),
        statsd=_statsd(given["statsdUdpAddress"]),
        admin_port=_admin_port(given),
        control_plane_identity=_identity(discovery.host, given["domain"], environ) if secure else "",
        custom_config_file=given["customConfigFile"],
        log_level=_one_of(given, "proxyLogLevel", LOG_LEVELS),
        concurrency=_number(given["concurrency"], "--concurrency", 0, 1024),
        application_ports=tuple(_port(port, "--applicationPorts") for port in ports),
    )


def _node(role: str, given: Mapping[str, str], environ: Mapping[str, str], first_address: str) -> Node:
    if role not in ROLES:
        raise InvalidInput("role", f"{role!r} is not a role", ", ".join(ROLES))
    ip = _address(given["ip"], "--ip") or _address(environ.get("INSTANCE_IP", ""), "$INSTANCE_IP") or first_address
    if not ip:
        raise InvalidInput("--ip", "this host has no address but loopback", "the pod's address, or $INSTANCE_IP")
    pod, namespace = environ.get("POD_NAME", ""), environ.get("POD_NAMESPACE", "")
    return Node(
        role=role,
        ip=ip,
        id=_word(given["id"] or (f"{pod}.{namespace}" if pod and namespace else ip), "--id"),
        domain=_word(given["domain"] or (f"{namespace}.svc.cluster.local" if namespace else ""), "--domain"),
        cluster=_text(given["serviceCluster"], "--serviceCluster"),
        zone=_text(given["availabilityZone"], "--availabilityZone"),
        metadata=read_metadata(role, environ),
    )


def read_metadata(role: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Collect the node's metadata: ISTIO_META_X as X, then the members of each ISTIO_METAJSON_*, then the role.

    Variables are taken by name, so that the same environment always gives the same metadata.

    Raises:
        InvalidInput: an ISTIO_METAJSON_ variable is no JSON object, or has a key twice.
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
            members = json.loads(environ[name], parse_constant=_no_constant, object_pairs_hook=_no_repetition)
            json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"${name}", f"{environ[name]!r} cannot be read as JSON: {error}", "a JSON object") from None
        if not isinstance(members, dict):
            raise InvalidInput(f"${name}", f"{environ[name]!r} is not a JSON object", 'such as {"app":"productpage"}')
        metadata.update(members)
    return {**metadata, "istio": role}


def _no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which JSON does not have and Python's parser takes."""
    raise ValueError(name)


def _no_repetition(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that an object has twice: which of the two would count is nowhere laid down (RFC 8259, 4)."""
    found: dict[str, Any] = {}
    for key, value in members:
        if key in found:
            message = f"the key {key!r} stands there twice"
            raise ValueError(message)
        found[key] = value
    return found


def _text(text: str, where: str) -> str:
    """Refuse bytes that are no UTF-8: JSON cannot carry them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(where, f"{text!r} is not UTF-8", "text") from None
    return text


def _word(text: str, where: str) -> str:
    """Read a part of the node's name, whose parts are separated by ~."""
    if "~" in text or not text.isprintable() or " " in text:
        raise InvalidInput(where, f"{text!r} cannot be part of a node's name", "printable text without ~ and spaces")
    return text


def _identity(host: str, domain: str, environ: Mapping[str, str]) -> str:
    """Say who the control plane must prove to be (Istio 1.0.5, `pilot-agent` and `envoy.GetPilotSAN`)."""
    labels = host.removesuffix(".").split(".")
    if len(labels) == 1:
        owner = environ.get("POD_NAMESPACE", "")
        if not owner:
            problem = f"{host!r} does not say which namespace the control plane is in, and POD_NAMESPACE is not set"
            raise InvalidInput("--discoveryAddress", problem, "SERVICE.NAMESPACE:PORT, or POD_NAMESPACE")
    elif len(labels) == 2:  # noqa: PLR2004 - service and namespace
        owner = labels[1]
    else:
        owner = environ.get("ISTIO_NAMESPACE") or "istio-system"
    return f"spiffe://{domain or TRUST_DOMAIN}/ns/{owner}/sa/istio-pilot-service-account"


def _address(text: str, where: str) -> str:
    if not text:
        return ""
    if "%" not in text:  # a scope is of no use to others
        with suppress(ValueError):
            return str(ip_address(text))
    raise InvalidInput(where, f"{text!r} is not an IP address", "an address such as 10.1.1.1 or fd00::1")


def _duration(
    given: Mapping[str, str],
    name: str,
    lowest: int,
    highest: int,
    *,
    whole_seconds: bool = False,
) -> int:
    flag, text = f"--{name}", given[name]
    value = parse_duration(text, flag)
    if not lowest <= value <= highest or (whole_seconds and value % SECOND):
        whole = "whole seconds, " if whole_seconds else ""
        span = f"{whole}{lowest / SECOND:g}s to {highest / SECOND:g}s"
        raise InvalidInput(flag, f"{text!r} is out of range", span)
    return value


def _optional_host_port(given: Mapping[str, str], name: str) -> HostPort | None:
    return _host_port(given[name], f"--{name}") if given[name] else None


def _host_port(text: str, where: str) -> HostPort:
    """Read `host:port`; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if HOST_IN_BRACKETS.fullmatch(host) else host
    if not _is_host(host):
        raise InvalidInput(where, f"{text!r} is not an address with a port", "HOST:PORT, such as istio-pilot:15010")
    return HostPort(bare, _port(port, where))


def _admin_port(given: Mapping[str, str]) -> int:
    port = _port(given["proxyAdminPort"], "--proxyAdminPort")
    if port == PROMETHEUS_PORT:
        raise InvalidInput("--proxyAdminPort", f"{port} is where Envoy serves metrics", "a port that is free, such as 15000")
    return port


def _status_port(given: Mapping[str, str]) -> int:
    port = _port(given["statusPort"], "--statusPort", lowest=0)
    if port in (_admin_port(given), PROMETHEUS_PORT):
        raise InvalidInput("--statusPort", f"{port} is a port of Envoy's own", "a port that is free, such as 15020")
    return port


def _is_host(text: str) -> bool:
    """Tell whether a text is a name, an IPv4 address, or an IPv6 address in brackets."""
    in_brackets = HOST_IN_BRACKETS.fullmatch(text) is not None
    if not in_brackets and not LOOKS_LIKE_IPV4.fullmatch(text):
        return HOST_NAME.fullmatch(text) is not None
    try:
        address = ip_address(text.strip("[]"))
    except ValueError:
        return False
    return in_brackets == (address.version == 6)  # noqa: PLR2004 - IP's own number


def _statsd(text: str) -> HostPort | None:
    """Read where statistics go; Envoy resolves no name there."""
    if not text:
        return None
    place = _host_port(text, "--statsdUdpAddress")
    return place._replace(host=_address(place.host, "--statsdUdpAddress"))


def _port(text: str, where: str, lowest: int = 1) -> int:
    return _number(text, where, lowest, PORT_MAX)


def _number(text: str, where: str, lowest: int, highest: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(PORT_MAX)) else -1
    if not lowest <= number <= highest:
        raise InvalidInput(where, f"{text!r} is not a number in range", f"{lowest}..{highest}")
    return number


def _one_of(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    if given[name] not in allowed:
        raise InvalidInput(f"--{name}", f"{given[name]!r} is not possible", ", ".join(allowed))
    return given[name]
