"""What a proxy is told of a world."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.lab.messages import message
from istio_init.lab.resources import Kind, resources
from istio_init.lab.world import SHAPES, Extra, LabPod, Service, World
from tests.sweeps import sweep

MODES = ("REDIRECT", "TPROXY")
REVIEWS = Service("reviews", "default", ("10.96.0.10",), 9080, ("reviews-v1", "reviews-v2"))
OTHER = Service("reviews", "test", ("10.96.0.11",), 9080, ())
MYSQL = Service("mysql", "default", ("10.96.0.12",), 3306, ())
HOST = "reviews.default.svc.cluster.local"
NODE = "sidecar~10.77.0.2~reviews-v1.default~default.svc.cluster.local"
STRANGER = "sidecar~10.77.0.99~x.test~test.svc.cluster.local"

each_shape = sweep("shape", SHAPES)
each_world = sweep(("shape", "mode"), list(product(SHAPES, MODES)))


def world(shape: str = "current", mode: str = "REDIRECT", extra: Extra = Extra()) -> World:  # noqa: B008 - immutable
    pods = (
        LabPod("reviews-v1", "default", ("10.77.0.2",), mode, 8080, "reviews"),
        LabPod("reviews-v2", "default", ("10.77.0.3",), mode, 9080, "reviews"),
        LabPod("caller", "default", ("10.77.0.4",), mode, 80, ""),
    )
    return World(shape, (REVIEWS, OTHER, MYSQL), pods, extra)


def told(of: World, node: str = NODE) -> dict[Kind, dict[str, Any]]:
    """Give what a proxy is told, by kind and name."""
    found = resources(of, of.proxy(node))
    return {kind: {kind.name_of(one): one for one in found[kind]} for kind in Kind}


def members(value: Any, name: str) -> list[Any]:
    """Find all members of a name, anywhere in a value."""
    if isinstance(value, dict):
        own = [value[name]] if name in value else []
        return own + [found for member in value.values() for found in members(member, name)]
    return [found for item in value for found in members(item, name)] if isinstance(value, list) else []


def filters(listener: dict[str, Any]) -> list[str]:
    return [one["name"].rpartition(".")[2] for one in listener.get("listener_filters", [])]


@each_world
@sweep("node", [NODE, STRANGER, "sidecar~10.77.0.4~caller.default~default.svc.cluster.local"])
def test_every_resource_is_a_message_of_the_v3_api(shape: str, mode: str, node: str) -> None:
    of = world(shape, mode)
    found = resources(of, of.proxy(node))
    assert all(found.values())
    for kind, listed in found.items():
        names = [message(kind, one, "test").DESCRIPTOR.full_name for one in listed]
        assert {kind.type_url.rpartition("/")[2]} == set(names)


@sweep("mode", MODES)
def test_istio_1_0_has_one_listener_with_a_socket(mode: str) -> None:
    listeners = told(world("istio-1.0", mode))[Kind.LDS]
    assert list(listeners) == ["virtual", "10.77.0.2_8080", "0.0.0.0_3306", "0.0.0.0_9080"]
    assert [name for name, one in listeners.items() if one.get("bind_to_port", True)] == ["virtual"]
    assert members(listeners["virtual"]["address"], "port_value") == [15001]
    assert listeners["virtual"]["use_original_dst"] is True
    assert filters(listeners["virtual"]) == ["original_dst"]
    assert members(listeners["10.77.0.2_8080"]["address"], "port_value") == [8080]
    assert members(listeners["10.77.0.2_8080"], "cluster") == [f"inbound|9080||{HOST}"]


@sweep("mode", MODES)
def test_the_current_shape_has_a_listener_with_a_socket_for_each_direction(mode: str) -> None:
    listeners = told(world("current", mode))[Kind.LDS]
    assert [name for name, one in listeners.items() if one.get("bind_to_port", True)] == [
        "virtualOutbound",
        "virtualInbound",
    ]
    inbound = listeners["virtualInbound"]
    assert members(inbound["address"], "port_value") == [15006]
    assert filters(inbound)[0] == "original_dst"
    chains = {one["filter_chain_match"]["destination_port"]: one for one in inbound["filter_chains"]}
    assert sorted(chains) == [8080, 15000, 15001, 15006]
    assert members(chains[8080], "cluster") == ["inbound|8080||"]
    assert members(inbound["default_filter_chain"], "cluster") == ["InboundPassthroughCluster"]


@each_shape
def test_only_the_listener_that_takes_inbound_connections_is_transparent_and_only_with_tproxy(shape: str) -> None:
    taking = {"istio-1.0": "virtual", "current": "virtualInbound"}[shape]
    transparent = {
        mode: [name for name, one in told(world(shape, mode))[Kind.LDS].items() if one.get("transparent")] for mode in MODES
    }
    assert transparent == {"REDIRECT": [], "TPROXY": [taking]}


@each_shape
def test_with_tproxy_the_app_sees_its_clients_address(shape: str) -> None:
    listeners = told(world(shape, "TPROXY"))[Kind.LDS]
    from_client = [name for name, one in listeners.items() if "original_src" in filters(one)]
    assert from_client == [name for name, one in listeners.items() if one["traffic_direction"] == "INBOUND"]
    assert members(listeners["10.77.0.2_8080"], "mark") == [1337]
    assert members(told(world(shape, "TPROXY"))[Kind.CDS], "source_address") == []
    assert "original_src" not in str(told(world(shape, "REDIRECT")))


def test_with_redirect_the_current_shape_talks_to_the_app_from_its_own_source() -> None:
    sources = {
        name: members(one, "source_address")[0]["address"]
        for name, one in told(world("current"))[Kind.CDS].items()
        if members(one, "source_address")
    }
    assert sources == {"InboundPassthroughCluster": "127.0.0.6", "inbound|8080||": "127.0.0.6"}
    assert members(told(world("istio-1.0"))[Kind.CDS], "source_address") == []


@each_shape
def test_a_connection_to_the_proxys_own_ports_goes_nowhere(shape: str) -> None:
    for listener in told(world(shape))[Kind.LDS].values():
        ports = {
            one["filter_chain_match"]["destination_port"]: members(one, "cluster")
            for one in listener["filter_chains"]
            if "destination_port" in one.get("filter_chain_match", {})
        }
        guarded = {port: clusters for port, clusters in ports.items() if port != 8080}
        expected = [15000, 15001, 15006] if listener.get("bind_to_port", True) else []
        assert guarded == {port: ["BlackHoleCluster"] for port in expected}
    assert members(told(world(shape))[Kind.CDS]["BlackHoleCluster"], "endpoints") == []


@each_shape
def test_what_nobody_claims_passes_through_but_to_the_pod_itself_only_by_localhost(shape: str) -> None:
    first = next(iter(told(world(shape))[Kind.LDS].values()))
    assert members(first["default_filter_chain"], "cluster") == ["PassthroughCluster"]
    (own,) = (one for one in first["filter_chains"] if "prefix_ranges" in one["filter_chain_match"])
    assert members(own, "address_prefix") == ["10.77.0.2"]
    assert members(own, "cluster") == ["InboundPassthroughCluster"]
    assert members(own, "inline_string") == ["127.0.0.1:%DOWNSTREAM_LOCAL_PORT%"]


IPV4, IPV6 = ("10.77.0.2", "10.96.0.10"), ("fd00:77::2", "fd00:96::10")
each_order = sweep("order", [(IPV4, IPV6), (IPV6, IPV4)], ids=["IPv4-IPv6", "IPv6-IPv4"])


def world_of(*families: tuple[str, str], mode: str = "REDIRECT") -> World:
    pods, services = zip(*families, strict=True)
    pod = LabPod("reviews-v1", "default", pods, mode, 8080, "reviews")
    return World("current", (Service("reviews", "default", services, 9080, ("reviews-v1",)),), (pod,))


def node_of(of: World) -> str:
    return f"sidecar~{of.pods[0].addresses[0]}~reviews-v1.default~default.svc.cluster.local"


def bound(listener: dict[str, Any]) -> list[str]:
    places = [listener["address"], *(one["address"] for one in listener.get("additional_addresses", ()))]
    return [place["socket_address"]["address"] for place in places]


def prefixes(chain: dict[str, Any]) -> list[tuple[str, int]]:
    return [(one["address_prefix"], one["prefix_len"]) for found in members(chain, "prefix_ranges") for one in found]


@each_order
@sweep("mode", MODES)
def test_every_resource_of_dual_stack_is_a_message_of_the_v3_api(order: tuple[tuple[str, str], ...], mode: str) -> None:
    of = world_of(*order, mode=mode)
    found = resources(of, of.proxy(node_of(of)))
    for kind, listed in found.items():
        names = [message(kind, one, "test").DESCRIPTOR.full_name for one in listed]
        assert {kind.type_url.rpartition("/")[2]} == set(names)
        assert len({kind.name_of(one) for one in listed}) == len(listed)


@each_order
def test_a_pod_of_both_families_listens_on_both(order: tuple[tuple[str, str], ...]) -> None:
    of = world_of(*order)
    wildcards = ["::" if ":" in pod else "0.0.0.0" for pod, _ in order]  # noqa: S104 - what listeners have
    listeners = told(of, node_of(of))[Kind.LDS]
    wide = [one for one in listeners.values() if set(bound(one)) & set(wildcards)]
    assert [bound(one) for one in wide] == [wildcards] * 3
    assert sorted(bound(one)[0] for one in listeners.values() if one not in wide) == sorted(pod for pod, _ in order)


@pytest.mark.parametrize("only", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_a_pod_of_one_family_has_nothing_of_the_other(only: tuple[str, str]) -> None:
    of = world_of(only)
    (other,) = {IPV4, IPV6} - {only}
    foreign = {*other, "127.0.0.1", "0.0.0.0"} if only is IPV6 else {*other, "::1", "::", "::6"}  # noqa: S104 - as above
    found = told(of, node_of(of))
    assert {one for one in members(found, "address") if isinstance(one, str)} & foreign == set()
    assert "additional_addresses" not in json.dumps(list(found.values()))


@each_order
def test_inbound_connections_reach_the_app_by_the_family_they_came_by(order: tuple[tuple[str, str], ...]) -> None:
    of = world_of(*order)
    found = told(of, node_of(of))
    chains = found[Kind.LDS]["virtualInbound"]["filter_chains"]
    to_app = {prefixes(one)[0]: members(one, "cluster")[0] for one in chains if one["name"].startswith("inbound|")}
    assert set(to_app) == {("0.0.0.0", 0), ("::", 0)}, "each names its own: Envoy takes any of two that match as well"  # noqa: S104 - as above
    for (prefix, _), name in to_app.items():
        cluster = found[Kind.CDS][name]
        app, source = ("::1", "::6") if prefix == "::" else ("127.0.0.1", "127.0.0.6")
        assert members(cluster["load_assignment"], "socket_address")[0]["address"] == app
        assert cluster["upstream_bind_config"]["source_address"]["address"] == source
    first = ("::", 0) if order[0] is IPV6 else ("0.0.0.0", 0)  # noqa: S104 - as above
    assert to_app[first] == "inbound|8080||"


@each_order
def test_what_no_app_serves_passes_to_the_localhost_of_its_family(order: tuple[tuple[str, str], ...]) -> None:
    of = world_of(*order)
    inbound = told(of, node_of(of))[Kind.LDS]["virtualInbound"]
    (other,) = (one for one in inbound["filter_chains"] if one["name"].startswith("InboundPassthrough"))
    localhosts = ["[::1]:%DOWNSTREAM_LOCAL_PORT%" if ":" in pod else "127.0.0.1:%DOWNSTREAM_LOCAL_PORT%" for pod, _ in order]
    assert members(inbound["default_filter_chain"], "inline_string") == localhosts[:1]
    assert members(other, "inline_string") == localhosts[1:]
    outbound = told(of, node_of(of))[Kind.LDS]["virtualOutbound"]["filter_chains"]
    own = {prefixes(one)[0]: members(one, "inline_string")[0] for one in outbound if prefixes(one)}
    assert own == {
        (pod, 128 if ":" in pod else 32): localhost for (pod, _), localhost in zip(order, localhosts, strict=True)
    }


@each_order
def test_a_pod_is_one_endpoint_with_all_of_its_addresses(order: tuple[tuple[str, str], ...]) -> None:
    of = world_of(*order)
    (endpoint,) = members(told(of, node_of(of))[Kind.EDS][f"outbound|9080||{HOST}"], "endpoint")
    assert bound(endpoint) == [pod for pod, _ in order]


def test_a_service_is_known_by_each_of_its_addresses() -> None:
    of = world_of(IPV4, IPV6)
    (host, _) = told(of, node_of(of))[Kind.RDS]["9080"]["virtual_hosts"]
    assert {"10.96.0.10", "10.96.0.10:9080", "[fd00:96::10]", "[fd00:96::10]:9080"} < set(host["domains"])


@each_order
def test_a_proxy_is_known_by_any_of_its_pods_addresses(order: tuple[tuple[str, str], ...]) -> None:
    of = world_of(*order)
    for pod, _ in order:
        assert of.proxy(f"sidecar~{pod}~x~default.svc.cluster.local").pod == of.pods[0]


@each_shape
def test_a_stranger_gets_outbound_only(shape: str) -> None:
    found = told(world(shape), STRANGER)
    assert [one["traffic_direction"] for one in found[Kind.LDS].values()] == ["OUTBOUND"] * 3
    assert [name for name in found[Kind.CDS] if "nbound" in name and not name.startswith("outbound|")] == []
    assert f"outbound|9080||{HOST}" in found[Kind.CDS]


def test_a_pod_without_a_service_has_no_inbound_port() -> None:
    found = told(world(), "sidecar~10.77.0.4~caller.default~default.svc.cluster.local")
    assert list(found[Kind.LDS]) == ["virtualOutbound", "virtualInbound", "0.0.0.0_3306", "0.0.0.0_9080"]
    assert "InboundPassthroughCluster" in found[Kind.CDS]
    assert [name for name in found[Kind.CDS] if name.startswith("inbound|")] == []


def test_endpoints_are_the_pods_of_the_service() -> None:
    found = told(world())[Kind.EDS]
    places = members(found[f"outbound|9080||{HOST}"], "socket_address")
    assert [(one["address"], one["port_value"]) for one in places] == [("10.77.0.2", 8080), ("10.77.0.3", 9080)]
    assert members(found["outbound|3306||mysql.default.svc.cluster.local"], "socket_address") == []


def test_a_service_is_known_by_each_of_its_names_with_and_without_the_port() -> None:
    hosts = {one["name"]: one for one in told(world())[Kind.RDS]["9080"]["virtual_hosts"]}
    names = ["reviews", "reviews.default", "reviews.default.svc", HOST, "10.96.0.10"]
    assert sorted(hosts[f"{HOST}:9080"]["domains"]) == sorted([*names, *(f"{name}:9080" for name in names)])
    assert members(hosts[f"{HOST}:9080"], "cluster") == [f"outbound|9080||{HOST}"]


@pytest.mark.parametrize(("node", "namespace"), [(NODE, "default"), (STRANGER, "test"), ("nonsense", "default")])
def test_a_name_alone_means_the_service_of_ones_own_namespace(node: str, namespace: str) -> None:
    hosts = told(world(), node)[Kind.RDS]["9080"]["virtual_hosts"]
    assert [one["name"] for one in hosts if "reviews" in one["domains"]] == [f"reviews.{namespace}.svc.cluster.local:9080"]


def test_no_name_is_claimed_twice_and_unknown_hosts_pass_through() -> None:
    for routes in told(world())[Kind.RDS].values():
        domains = [domain for one in routes["virtual_hosts"] for domain in one["domains"]]
        assert len(domains) == len(set(domains))
        assert routes["virtual_hosts"][-1]["domains"] == ["*"]
        assert members(routes["virtual_hosts"][-1], "cluster") == ["PassthroughCluster"]


@each_world
def test_nothing_is_tried_again_or_cut_off_by_the_proxy(shape: str, mode: str) -> None:
    found = told(world(shape, mode))
    assert members(found, "retry_policy") == []
    routed = [one for one in members(found, "route") if "cluster" in one]
    assert len(routed) > 3
    assert {one["timeout"] for one in routed} == {"0s"}


@each_world
def test_every_connection_is_logged_with_its_direction(shape: str, mode: str) -> None:
    for name, listener in told(world(shape, mode))[Kind.LDS].items():
        logs = [log for found in members(listener, "access_log") for log in found]
        managers = [one for one in members(listener, "typed_config") if "access_log" in one]
        assert len(logs) == len(managers) > 0
        formats = members(logs, "json_format")
        assert {one["listener"] for one in formats} == {name}
        assert all(one["downstream_local_address"] == "%DOWNSTREAM_LOCAL_ADDRESS%" for one in formats)
        assert listener["traffic_direction"].lower() in {one["direction"] for one in formats}


def test_statistics_are_named_as_istio_names_them() -> None:
    prefixes = members(told(world("istio-1.0"))[Kind.LDS], "stat_prefix")
    assert {"inbound_10.77.0.2_8080", "outbound_0.0.0.0_9080"} <= set(prefixes)


def test_everybody_gets_a_persons_own_resources_too() -> None:
    extra = Extra(
        listeners=({"name": "mine"},),
        clusters=({"name": "mine"},),
        endpoints=({"cluster_name": "mine"},),
        routes=({"name": "mine"},),
    )
    for node in (NODE, STRANGER):
        assert {list(found)[-1] for found in told(world(extra=extra), node).values()} == {"mine"}


def test_a_resource_that_is_no_message_is_named() -> None:
    with pytest.raises(InvalidInput, match=r'"mine" cannot be read: .*no_such_field.*Cluster as JSON'):
        message(Kind.CDS, {"name": "mine", "no_such_field": 1}, "extra")


@pytest.mark.parametrize("name", ["envoy.no.such.Type", "no.such.Type", "os.path", "", "envoy", "envoy..x.Type"])
def test_a_type_that_nobody_knows_is_an_error(name: str) -> None:
    filters_of = {"filters": [{"name": "x", "typed_config": {"@type": f"type.googleapis.com/{name}"}}]}
    with pytest.raises(InvalidInput, match="cannot be read"):
        message(Kind.LDS, {"name": "mine", "filter_chains": [filters_of]}, "extra")


def test_messages_that_the_control_plane_does_not_use_itself_are_known_too() -> None:
    fault = {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "max_active_faults": 3}
    listener = {"name": "mine", "filter_chains": [{"filters": [{"name": "fault", "typed_config": fault}]}]}
    parsed = message(Kind.LDS, listener, "extra")
    assert parsed.filter_chains[0].filters[0].typed_config.type_url.endswith("HTTPFault")


@each_world
def test_a_world_is_read_as_it_was_written(shape: str, mode: str) -> None:
    written = world(shape, mode, Extra(clusters=({"name": "mine"},)))
    assert World.from_json(written.to_json(), "file") == written


def test_extra_resources_may_be_left_out() -> None:
    value = json.loads(world().to_json())
    del value["extra"]
    assert World.from_json(json.dumps(value), "file") == world()
    assert World.from_json(json.dumps({**value, "extra": {"routes": [{}]}}), "file").extra == Extra(routes=({},))


NONSENSE: dict[str, tuple[tuple[str | int, ...], object, str]] = {
    "shape": (("shape",), "istio-2.0", "'istio-2.0' is not a valid value (allowed: istio-1.0, current)"),
    "unknown member": (("colour",), "red", "unknown member 'colour'"),
    "services are no list": (("services",), {}, "file: services: {} is not a list"),
    "service is no object": (("services", 0), "reviews", "file: services[0]: 'reviews' is not an object"),
    "name": (("services", 0, "name"), "a b", "file: services[0]: name: 'a b' is not a valid name"),
    "empty name": (("pods", 0, "name"), "", "'' is not a valid name"),
    "name is no text": (("pods", 0, "name"), 1, "file: pods[0]: name: 1 is not a string"),
    "address": (("pods", 0, "addresses", 0), "10.0.0", "'10.0.0' is not an IP address"),
    "address with a zone": (("pods", 0, "addresses", 0), "fe80::1%eth0", "'fe80::1%eth0' is not an IP address"),
    "no address": (("pods", 0, "addresses"), [], "[] is not a valid list of addresses"),
    "two addresses of a family": (("pods", 0, "addresses"), ["10.0.0.1", "10.0.0.2"], "is not a valid list of addresses"),
    "port": (("pods", 0, "port"), 65536, "65536 is not a port (allowed: 1..65535)"),
    "port zero": (("services", 0, "port"), 0, "0 is not a port"),
    "port is text": (("services", 0, "port"), "9080", "'9080' is not a port"),
    "port is a truth": (("services", 0, "port"), True, "True is not a port"),
    "mode": (("pods", 0, "mode"), "NONE", "'NONE' is not a valid value (allowed: REDIRECT, TPROXY)"),
    "unhashable mode": (("pods", 0, "mode"), [], "[] is not a valid value"),
    "pod of nowhere": (("services", 0, "pods"), ["reviews-v9"], "lists pod 'reviews-v9'"),
    "pod of another namespace": (("services", 1, "pods"), ["reviews-v1"], "not in namespace 'test'"),
    "service of nowhere": (("pods", 0, "service"), "rating", "has service 'rating'"),
    "same pod": (("pods", 1, "name"), "reviews-v1", "('default', 'reviews-v1') is a duplicate"),
    "same address": (("pods", 1, "addresses", 0), "10.77.0.2", "'10.77.0.2' is a duplicate"),
    "same service": (("services", 1, "namespace"), "default", "('default', 'reviews') is a duplicate"),
    "same virtual address": (("services", 1, "addresses", 0), "10.96.0.10", "('10.96.0.10', 9080) is a duplicate"),
    "extra": (("extra",), [], "file: extra: [] is not an object"),
    "extra kind": (("extra",), {"secrets": []}, "unknown member 'secrets'"),
    "extra resource": (("extra",), {"clusters": ["x"]}, "file: extra: clusters[0]: 'x' is not an object"),
}


@sweep(("path", "value", "problem"), NONSENSE.values(), ids=list(NONSENSE))
def test_nonsense_in_a_world_is_named(path: tuple[str | int, ...], value: object, problem: str) -> None:
    broken = json.loads(world().to_json())
    holder = broken
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    with pytest.raises(InvalidInput) as raised:
        World.from_json(json.dumps(broken), "file")
    assert problem in str(raised.value)


@pytest.mark.parametrize("name", ["shape", "services", "pods"])
def test_a_missing_member_is_named(name: str) -> None:
    value = json.loads(world().to_json())
    del value[name]
    with pytest.raises(InvalidInput, match=f"missing member '{name}'"):
        World.from_json(json.dumps(value), "file")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null"])
def test_what_is_no_json_object_is_no_world(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^file: (not valid JSON|.* is not an object)"):
        World.from_json(text, "file")
