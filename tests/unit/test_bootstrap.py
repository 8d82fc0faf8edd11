"""Proxy settings, durations, metadata, and the bootstrap that is made of them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.durations import parse_duration, to_json
from istio_init.core.errors import InvalidInput
from istio_init.sidecar.bootstrap import render_bootstrap
from istio_init.sidecar.bootstrap.override import merge
from istio_init.sidecar.bootstrap.settings import OPTIONS, parse_proxy_settings, read_metadata
from tests.proxies import POD_ENVIRONMENT, POD_FLAGS, Proxy
from tests.unit.program import call, refused

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

SECOND = 10**9
ANY_IPV4 = "0.0.0.0"  # noqa: S104 - a sample


def rendered(flavour: str = "v3", **flags: str) -> Json:
    loaded: Json = json.loads(render_bootstrap(Proxy("", flags).settings(), flavour))
    return loaded


def cluster(name: str, flavour: str = "v3", **flags: str) -> Json:
    found: list[Json] = [c for c in rendered(flavour, **flags)["static_resources"]["clusters"] if c["name"] == name]
    (only,) = found
    return only


def endpoint(made: Json) -> tuple[str, int]:
    (locality,) = made["load_assignment"]["endpoints"]
    address = locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    return address["address"], address["port_value"]


@pytest.mark.parametrize("flavour", ["v2", "v3"])
@pytest.mark.parametrize(
    ("ip", "host", "both"), [("10.244.0.10", ANY_IPV4, None), ("fd00:10:244::10", "::", True)], ids=["IPv4", "IPv6"]
)
def test_statistics_are_read_by_whatever_address_the_pod_has(flavour: str, ip: str, host: str, *, both: bool | None) -> None:
    (listener,) = rendered(flavour, ip=ip)["static_resources"]["listeners"]
    address = listener["address"]["socket_address"]
    assert (address["address"], address["port_value"], address.get("ipv4_compat")) == (host, 15090, both)


@pytest.mark.parametrize(
    ("text", "nanoseconds", "written"),
    [
        ("45s", 45 * SECOND, "45s"),
        ("1m0s", 60 * SECOND, "60s"),
        ("500ms", SECOND // 2, "0.500s"),
        ("1h2m3.5s", 3723 * SECOND + SECOND // 2, "3723.500s"),
        ("1.5h", 5400 * SECOND, "5400s"),
        ("250us", 250_000, "0.000250s"),
        ("250µs", 250_000, "0.000250s"),
        ("1ns", 1, "0.000000001s"),
        ("0", 0, "0s"),
    ],
)
def test_gos_durations_become_protobufs(text: str, nanoseconds: int, written: str) -> None:
    assert parse_duration(text, "--x") == nanoseconds
    assert to_json(nanoseconds) == written


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "-5s", "1m 0s", "5S", "1d", ".s", "\u0665s", "5s;reboot"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--drainDuration"):
        parse_duration(text, "--drainDuration")


@given(st.text())
def test_a_duration_is_read_or_refused(text: str) -> None:
    with suppress(InvalidInput):
        assert parse_duration(text, "--x") >= 0


def test_the_node_says_who_the_proxy_is() -> None:
    node = rendered(availabilityZone="zone-1")["node"]
    assert node["id"] == "sidecar~10.1.1.1~productpage-v1-1.default~default.svc.cluster.local"
    assert node["cluster"] == "productpage"
    assert node["locality"] == {"zone": "zone-1"}
    assert node["metadata"] == {
        "POD_NAME": "productpage-v1-1",
        "INTERCEPTION_MODE": "REDIRECT",
        "app": "productpage",
        "version": "v1",
        "istio": "sidecar",
    }


def test_without_a_zone_there_is_no_locality() -> None:
    assert "locality" not in rendered()["node"]


def test_defaults_come_from_the_environment_and_then_from_the_host() -> None:
    settings = parse_proxy_settings("sidecar", {}, {}, "10.9.9.9")
    assert settings.node.name == "sidecar~10.9.9.9~10.9.9.9~"
    assert settings.config_path == "/etc/istio/proxy"
    assert (settings.xds.host, settings.xds.port) == ("istio-pilot", 15010)
    assert (settings.drain, settings.parent_shutdown) == (2 * SECOND, 3 * SECOND)


def test_metadata_of_json_variables_is_merged_in_and_the_role_comes_last() -> None:
    environment = {"ISTIO_META_A": "1", "ISTIO_METAJSON_X": '{"A": {"b": [2]}, "istio": "no"}', "OTHER": "x"}
    assert read_metadata("router", environment) == {"A": {"b": [2]}, "istio": "router"}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '"x"', "1", "", "{'a': 1}", '{"a":NaN}', '{"a":1e999}', '{"a":"\\ud800"}', "[" * 20000]
)
def test_metadata_that_is_no_json_object_names_its_variable(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"\$ISTIO_METAJSON_LABELS"):
        read_metadata("sidecar", {"ISTIO_METAJSON_LABELS": text})


@pytest.mark.parametrize("text", ['{"app": "a", "app": "b"}', '{"x": {"app": 1, "b": 2, "app": 1}}'])
def test_metadata_with_a_key_twice_names_its_variable_and_the_key(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"\$ISTIO_METAJSON_LABELS: .* duplicate key 'app'"):
        read_metadata("sidecar", {"ISTIO_METAJSON_LABELS": text})


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ({}, ("istio-pilot.istio-system", 15010)),
        ({"controlPlaneAuthPolicy": "MUTUAL_TLS"}, ("istio-pilot.istio-system", 15011)),
        ({"discoveryGrpcPort": "15099"}, ("istio-pilot.istio-system", 15099)),
        ({"discoveryAddress": "[fd00::1]:15007"}, ("fd00::1", 15010)),
    ],
)
def test_the_control_plane_is_asked_at_its_ads_port(flags: dict[str, str], place: tuple[str, int]) -> None:
    assert endpoint(cluster("xds-grpc", **flags)) == place


@pytest.mark.parametrize(
    ("discovery", "environment", "namespace"),
    [
        ("istio-pilot:15007", {}, "default"),
        ("istio-pilot.mesh:15007", {}, "mesh"),
        ("istio-pilot.:15007", {}, "default"),
        ("istio-pilot.mesh.:15007", {}, "mesh"),
        ("10.1.1.2:15007", {}, "istio-system"),
        ("pilot.example.com:15007", {}, "istio-system"),
        ("pilot.example.com:15007", {"ISTIO_NAMESPACE": "mesh"}, "mesh"),
    ],
)
def test_with_mutual_tls_the_control_plane_must_prove_who_it_is(
    discovery: str,
    environment: dict[str, str],
    namespace: str,
) -> None:
    flags = {**POD_FLAGS, "discoveryAddress": discovery, "controlPlaneAuthPolicy": "MUTUAL_TLS"}
    settings = parse_proxy_settings("sidecar", flags, {**POD_ENVIRONMENT, **environment}, "")
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/istio-pilot-service-account"
    assert settings.control_plane_identity == identity
    v3, v2 = (json.loads(render_bootstrap(settings, flavour))["static_resources"]["clusters"][1] for flavour in ("v3", "v2"))
    validation = v3["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
    assert validation["match_typed_subject_alt_names"] == [{"san_type": "URI", "matcher": {"exact": identity}}]
    assert v2["tls_context"]["common_tls_context"]["validation_context"]["verify_subject_alt_name"] == [identity]


def test_without_mutual_tls_there_is_none() -> None:
    assert "transport_socket" not in cluster("xds-grpc")
    assert "tls_context" not in cluster("xds-grpc", "v2")


def test_the_administration_port_is_the_one_that_was_asked_for() -> None:
    made = rendered(proxyAdminPort="15999")
    assert made["admin"]["address"]["socket_address"] == {"protocol": "TCP", "address": "127.0.0.1", "port_value": 15999}
    assert endpoint(cluster("prometheus_stats", proxyAdminPort="15999")) == ("127.0.0.1", 15999)


@pytest.mark.parametrize("flavour", ["v3", "v2"])
def test_parts_that_are_off_are_left_out(flavour: str) -> None:
    bare = rendered(flavour, zipkinAddress="")
    assert "tracing" not in bare
    assert "stats_sinks" not in bare
    assert [c["name"] for c in bare["static_resources"]["clusters"]] == ["prometheus_stats", "xds-grpc"]
    full = rendered(flavour, statsdUdpAddress="10.0.0.9:9125")
    assert "tracing" in full
    assert "stats_sinks" in full


def test_durations_are_written_in_seconds() -> None:
    assert cluster("xds-grpc", connectTimeout="500ms")["connect_timeout"] == "0.500s"
    assert rendered("v2", discoveryRefreshDelay="1m0s")["dynamic_resources"]["ads_config"]["refresh_delay"] == "60s"


BAD = {
    "role": ({}, "gateway", "role"),
    "ip": ({"ip": "10.0.0"}, "sidecar", "--ip"),
    "drain of half a second": ({"drainDuration": "1.5s"}, "sidecar", "--drainDuration"),
    "drain of two hours": ({"drainDuration": "2h"}, "sidecar", "--drainDuration"),
    "shutdown before drain": ({"parentShutdownDuration": "45s"}, "sidecar", "--parentShutdownDuration"),
    "refresh too often": ({"discoveryRefreshDelay": "10ms"}, "sidecar", "--discoveryRefreshDelay"),
    "timeout too long": ({"connectTimeout": "31s"}, "sidecar", "--connectTimeout"),
    "address without port": ({"discoveryAddress": "istio-pilot"}, "sidecar", "--discoveryAddress"),
    "bare IPv6": ({"discoveryAddress": "fd00::1:15007"}, "sidecar", "--discoveryAddress"),
    "zipkin port": ({"zipkinAddress": "zipkin:70000"}, "sidecar", "--zipkinAddress"),
    "admin port": ({"proxyAdminPort": "0"}, "sidecar", "--proxyAdminPort"),
    "policy": ({"controlPlaneAuthPolicy": "TLS"}, "sidecar", "--controlPlaneAuthPolicy"),
    "log level": ({"proxyLogLevel": "loud"}, "sidecar", "--proxyLogLevel"),
    "concurrency": ({"concurrency": "9999"}, "sidecar", "--concurrency"),
    "application port": ({"applicationPorts": "80,x"}, "sidecar", "--applicationPorts"),
    "statsd by name": ({"statsdUdpAddress": "statsd:9125"}, "sidecar", "--statsdUdpAddress"),
    "id with a tilde": ({"id": "a~b"}, "sidecar", "--id"),
    "host with two dots": ({"discoveryAddress": "a..b:80"}, "sidecar", "--discoveryAddress"),
    "half a bracket": ({"discoveryAddress": "[::1:80"}, "sidecar", "--discoveryAddress"),
    "administration at the metrics": ({"proxyAdminPort": "15090"}, "sidecar", "--proxyAdminPort"),
    "IPv4 in brackets": ({"discoveryAddress": "[1.2.3.4]:80"}, "sidecar", "--discoveryAddress"),
    "half an IPv4 in brackets": ({"discoveryAddress": "[1.2.3]:80"}, "sidecar", "--discoveryAddress"),
    "no IPv4": ({"discoveryAddress": "256.1.1.1:80"}, "sidecar", "--discoveryAddress"),
    "address with a scope": ({"ip": "fe80::1%eth0"}, "sidecar", "--ip"),
    "status port of the administration": ({"statusPort": "15000"}, "sidecar", "--statusPort"),
    "status port of the metrics": ({"statusPort": "15090"}, "sidecar", "--statusPort"),
    "missing file": ({"customConfigFile": "/nowhere.json"}, "sidecar", "--customConfigFile"),
}


@pytest.mark.parametrize(("flags", "role", "named"), BAD.values(), ids=list(BAD))
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    flags: dict[str, str],
    role: str,
    named: str,
    tmp_path: Path,
) -> None:
    words = [f"--{name}={value}" for name, value in {**POD_FLAGS, **flags}.items()]
    output = tmp_path / "envoy.json"
    line = refused(call("bootstrap", role, *words, "-o", str(output), environment=POD_ENVIRONMENT))
    assert line.startswith(f"istio-init: error: {named}")
    assert not output.exists()


@pytest.mark.parametrize(
    "text", ["[1]", "a: [", "x: .nan", "x: 2020-01-01", "? [1]\n: 2", "a: 2020-99-99", "a: !!int x", "[" * 5000]
)
def test_an_override_that_is_no_object_of_json_values_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    line = refused(call("bootstrap", "--ip", "10.1.1.1", "--bootstrap-override", str(file)))
    assert "--bootstrap-override" in line


def test_an_override_is_laid_over_the_result(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("static_resources:\n  clusters:\n  - {name: xds-grpc, connect_timeout: 9s}\n  - {name: mine}\n", "utf-8")
    made = json.loads(call("bootstrap", "--ip", "10.1.1.1", "--bootstrap-override", str(file)).stdout)
    clusters = made["static_resources"]["clusters"]
    assert [c["name"] for c in clusters] == ["prometheus_stats", "xds-grpc", "mine"]
    assert clusters[1]["connect_timeout"] == "9s"
    assert clusters[1]["type"] == "STRICT_DNS"


def test_merging_goes_deep_and_lists_without_names_are_replaced() -> None:
    rendered_part = {"a": {"b": 1, "c": [1, 2]}, "l": [{"name": "x", "v": 1}], "n": 1}
    override = {"a": {"c": [3]}, "l": [{"name": "y"}, {"name": "x", "w": 2}], "n": None}
    assert merge(rendered_part, override) == {
        "a": {"b": 1, "c": [3]},
        "l": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}],
        "n": None,
    }


def test_a_custom_file_is_used_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "custom.json"
    file.write_text("{ }\n", encoding="utf-8")
    assert call("bootstrap", "--ip", "10.1.1.1", "--customConfigFile", str(file)).stdout == "{ }\n"


def test_the_file_is_readable_by_all_and_whole(tmp_path: Path) -> None:
    output = tmp_path / "envoy.json"
    output.write_text("old", encoding="utf-8")
    done = call("bootstrap", "-o", str(output), environment=POD_ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(output.read_text(encoding="utf-8"))["node"]["id"].startswith("sidecar~10.1.1.1~")
    assert output.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["envoy.json"]


def test_metadata_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\$ISTIO_META_X"):
        read_metadata("sidecar", {"ISTIO_META_X": "a\udcff"})


def test_a_control_plane_without_a_namespace_cannot_be_identified() -> None:
    with pytest.raises(InvalidInput, match="POD_NAMESPACE"):
        parse_proxy_settings("sidecar", {"controlPlaneAuthPolicy": "MUTUAL_TLS"}, {}, "10.1.1.1")


def test_a_forgotten_value_does_not_swallow_the_next_flag() -> None:
    assert "--serviceCluster" in refused(call("bootstrap", "--ip", "10.1.1.1", "--serviceCluster", "--id", "x"))


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path) -> None:
    done = call("bootstrap", "--ip", "10.1.1.1", "-o", "/dev/stdout")
    assert done.returncode == 0
    assert json.loads(done.stdout)["admin"]
    link = tmp_path / "link.json"
    link.symlink_to("file.json")
    assert call("bootstrap", "--ip", "10.1.1.1", "-o", str(link)).returncode == 0
    assert link.is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.json", "link.json"]


def test_a_directory_is_no_output_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert "--output" in refused(call("bootstrap", "--ip", "10.1.1.1", "-o", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_custom_file_takes_no_override(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}", encoding="utf-8")
    line = refused(call("bootstrap", "--ip", "10.1.1.1", "--customConfigFile", str(file), "--bootstrap-override", str(file)))
    assert "--bootstrap-override" in line


def test_two_additions_by_one_name_are_both_made() -> None:
    assert merge([{"name": "x", "a": 1}], [{"name": "x", "b": 2}, {"name": "x", "c": 3}]) == [
        {"name": "x", "a": 1, "b": 2, "c": 3}
    ]
    assert merge([{"name": "x"}], [{"name": [1]}]) == [{"name": [1]}]


def test_the_help_lists_every_flag() -> None:
    shown = call("bootstrap", "--help").stdout
    assert [option.name for option in OPTIONS if f"--{option.name} " not in shown] == []
