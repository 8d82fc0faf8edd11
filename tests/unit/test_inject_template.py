"""What is added to one pod template, and how it is taken out again."""

from __future__ import annotations

import json
from copy import deepcopy
from time import process_time
from typing import Any

import pytest

from istio_init.cli import proxy
from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.agreement import MESH_PORTS, Pair, contradictions
from istio_init.kubernetes.halves import read_rules, read_words
from istio_init.kubernetes.inject import (
    InjectSettings,
    Workload,
    inject_document,
    inject_template,
    uninject_document,
    uninject_template,
)
from istio_init.kubernetes.inject.documents import NEVER_ENDS
from istio_init.kubernetes.inject.settings import PROXY_IMAGE_ANNOTATION, STATUS, STATUS_PORT, TRAFFIC
from istio_init.kubernetes.inject.template import MAX_ANNOTATIONS
from istio_init.kubernetes.manifest import KINDS, read_manifest
from istio_init.rules.layout import find
from istio_init.sidecar.bootstrap.settings import parse_proxy_settings
from tests.schemas import validate
from tests.sweeps import sweep
from tests.unit.inject_pods import (
    INIT_1_0,
    ISTIO_1_0,
    NATIVE,
    PROXY_1_0,
    SETTINGS,
    TODAY,
    VOLUMES_1_0,
    WHERE,
    Json,
    flag,
    init_of,
    injected,
    proxy_of,
    template,
)

each_setting = sweep("settings", SETTINGS.values(), ids=list(SETTINGS))
TRAFFIC_PREFIX = "traffic.sidecar.istio.io/"


def test_a_pod_of_istio_1_0_has_exactly_what_istio_1_0_added() -> None:
    got = injected(template())
    assert got["spec"]["initContainers"] == [INIT_1_0]
    assert got["spec"]["containers"] == [*template()["spec"]["containers"], PROXY_1_0]
    assert got["spec"]["volumes"] == VOLUMES_1_0
    status = json.loads(got["metadata"]["annotations"].pop(STATUS))
    assert len(status.pop("version")) == 64
    assert status == {
        "initContainers": ["istio-init"],
        "containers": ["istio-proxy"],
        "volumes": ["istio-envoy", "istio-certs"],
        "imagePullSecrets": None,
    }
    assert got["metadata"] == {"labels": {"app": "productpage", "version": "v1"}, "annotations": {}}


def test_an_unprivileged_init_container_has_two_capabilities() -> None:
    context = init_of(injected(template(), SETTINGS["unprivileged"]))["securityContext"]
    assert context["privileged"] is False
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}


def test_a_pod_of_today_has_todays_shape() -> None:
    got = injected(template(), TODAY)
    assert init_of(got)["args"] == [
        *("istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", ""),
        *("-b", "*", "-d", "15090,15021,15020", "--log_output_level=default:info"),
    ]
    assert init_of(got)["securityContext"]["capabilities"] == {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}
    context = proxy_of(got)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (1337, 1337, True)
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert proxy_of(got)["readinessProbe"]["httpGet"] == {"path": "/healthz/ready", "port": 15021}
    assert flag(proxy_of(got), "--statusPort") == "15021"
    mounted = [mount["name"] for mount in proxy_of(got)["volumeMounts"]]
    assert mounted == [volume["name"] for volume in got["spec"]["volumes"]]
    assert {"istio-envoy", "istio-data", "istio-podinfo", "istio-token", "istiod-ca-cert", "workload-socket"} < set(mounted)
    assert got["metadata"]["labels"]["service.istio.io/canonical-name"] == "productpage"
    assert got["metadata"]["labels"]["security.istio.io/tlsMode"] == "istio"
    assert got["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "productpage"


def test_a_native_sidecar_is_an_init_container_that_goes_on_before_the_pods_own() -> None:
    own = {"name": "migrate", "image": "migrate:1"}
    got = injected(template(initContainers=[own]), NATIVE)
    assert [one["name"] for one in got["spec"]["initContainers"]] == ["istio-init", "istio-proxy", "migrate"]
    assert proxy_of(got)["restartPolicy"] == "Always"
    assert [one["name"] for one in got["spec"]["containers"]] == ["productpage"]


@pytest.mark.parametrize("settings", [ISTIO_1_0, TODAY], ids=["istio-1.0", "current"])
def test_other_rules_come_after_the_pods_own_init_containers(settings: InjectSettings) -> None:
    got = injected(template(initContainers=[{"name": "migrate"}]), settings)
    assert [one["name"] for one in got["spec"]["initContainers"]] == ["migrate", "istio-init"]


def test_all_tcp_ports_of_the_app_are_captured_once() -> None:
    containers = [
        {"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]},
        {"name": "b", "ports": [{"containerPort": 81, "protocol": "TCP"}, {"containerPort": 80}]},
        {"name": "c"},
    ]
    lasting = {"name": "d", "restartPolicy": "Always", "ports": [{"containerPort": 82}]}
    over = {"name": "e", "ports": [{"containerPort": 83}]}
    got = injected(template(containers=containers, initContainers=[lasting, over]))
    assert flag(init_of(got), "-b") == "80,81,82"
    assert flag(init_of(injected(template(containers=[{"name": "c"}]))), "-b") == ""


def test_the_certificates_are_those_of_the_service_account() -> None:
    volumes = {one["name"]: one for one in injected(template(serviceAccountName="shop"))["spec"]["volumes"]}
    assert volumes["istio-certs"]["secret"]["secretName"] == "istio.shop"


def test_the_control_plane_and_traces_go_where_the_options_say() -> None:
    elsewhere: dict[str, Any] = {"discovery_address": "pilot.mesh:15010", "zipkin_address": "tracing.mesh:9411"}
    for settings in (ISTIO_1_0, TODAY):
        proxy = proxy_of(injected(template(), settings._replace(**elsewhere)))
        assert flag(proxy, "--discoveryAddress") == "pilot.mesh:15010"
        assert flag(proxy, "--zipkinAddress") == "tracing.mesh:9411"
        assert "--zipkinAddress" not in proxy_of(injected(template(), settings._replace(zipkin_address="")))["args"]


def test_a_pod_without_labels_is_called_as_its_proxy_or_its_workload() -> None:
    assert flag(proxy_of(injected(template(labels={}))), "--serviceCluster") == "istio-proxy"
    today = injected(template(labels={}), TODAY)
    assert flag(proxy_of(today), "--serviceCluster") == "productpage-v1"
    assert today["metadata"]["labels"]["service.istio.io/canonical-name"] == "productpage-v1"


def test_text_of_the_pod_is_never_expanded_by_the_kubelet() -> None:
    env = {one["name"]: one.get("value") for one in proxy_of(injected(template({"note": "$(POD_NAME)"})))["env"]}
    assert env["ISTIO_METAJSON_ANNOTATIONS"] == '{"note":"$$(POD_NAME)"}\n'


# Annotations


GOOD = {
    "sidecar.istio.io/interceptionMode": ("TPROXY", "-m"),
    f"{TRAFFIC_PREFIX}includeInboundPorts": ("80,8000-8100", "-b"),
    f"{TRAFFIC_PREFIX}excludeOutboundIPRanges": ("10.1.0.0/16", "-x"),
    f"{TRAFFIC_PREFIX}includeOutboundIPRanges": ("10.0.0.0/8,192.168.0.0/16", "-i"),
    f"{TRAFFIC_PREFIX}includeOutboundPorts": ("443", "-q"),
    f"{TRAFFIC_PREFIX}excludeOutboundPorts": ("3306,6379", "-o"),
    f"{TRAFFIC_PREFIX}excludeInterfaces": ("eth1,net+", "-c"),
    "istio-init/excludeInboundCIDRs": ("10.2.0.0/16", "--exclude-inbound-cidrs"),
    "istio-init/excludeOutboundPortsForUIDs": ("tcp:5432:1000", "--exclude-outbound-ports-for-uids"),
    "istio-init/dnsPort": ("15153", "--dns-port"),
    "istio-init/forwardDNS": ("true", "--forward-dns"),
    "istio-init/jump": ("first", "--jump"),
}
BAD = {
    "sidecar.istio.io/interceptionMode": "NONE",
    f"{TRAFFIC_PREFIX}includeInboundPorts": "80,http",
    f"{TRAFFIC_PREFIX}excludeInboundPorts": "*",
    f"{TRAFFIC_PREFIX}excludeOutboundIPRanges": "10.0.0.0/33",
    f"{TRAFFIC_PREFIX}includeOutboundIPRanges": "*,10.0.0.0/8",
    f"{TRAFFIC_PREFIX}includeOutboundPorts": "0",
    f"{TRAFFIC_PREFIX}excludeOutboundPorts": "65536",
    f"{TRAFFIC_PREFIX}excludeInterfaces": "eth 0",
    "istio-init/excludeInboundCIDRs": "*",
    "istio-init/excludeOutboundPortsForUIDs": "tcp:5432",
    "istio-init/dnsPort": "0",
    "istio-init/forwardDNS": "2",
    "istio-init/jump": "0",
    STATUS_PORT: "15090",
    PROXY_IMAGE_ANNOTATION: "my proxy",
    "sidecar.istio.io/inject": "maybe",
    STATUS: "yes",
}


def test_every_annotation_of_the_rules_has_a_good_and_a_bad_value() -> None:
    assert set(TRAFFIC) == {*GOOD, f"{TRAFFIC_PREFIX}excludeInboundPorts"}
    assert set(TRAFFIC) < set(BAD)


@sweep("annotation", GOOD)
def test_an_annotation_decides_its_flag(annotation: str) -> None:
    text, name = GOOD[annotation]
    assert flag(init_of(injected(template({annotation: text}), TODAY)), name) == text
    if name in ("-q", "-o", "-c", "--dns-port", "--forward-dns"):
        with pytest.raises(InvalidInput, match=f"annotation {annotation}: layout istio-1.0 does not support it"):
            injected(template({annotation: text}))
    else:
        assert flag(init_of(injected(template({annotation: text}))), name) == text


@sweep("annotation", BAD)
def test_a_bad_value_is_refused_and_the_annotation_named(annotation: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        injected(template({annotation: BAD[annotation]}), TODAY)
    assert caught.value.where == f"{WHERE}: annotation {annotation}"
    assert caught.value.allowed


def test_a_word_that_is_neither_yes_nor_no_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match=r"'maybe' is neither true nor false .allowed: .*true.*, y, yes, on, n, no, off"):
        injected(template({"sidecar.istio.io/inject": "maybe"}))


def test_a_value_that_is_no_text_is_refused_and_the_annotation_named() -> None:
    no_text: Any = {"sidecar.istio.io/inject": False}
    with pytest.raises(InvalidInput, match=f"^{WHERE}: annotation sidecar.istio.io/inject: False is not a string"):
        injected(template(no_text))


def test_annotations_that_kubernetes_refuses_for_their_size_are_not_read() -> None:
    largest = {"a": "é" * (MAX_ANNOTATIONS // 2 - 1), "b": ""}
    assert injected(template(largest))["metadata"]["annotations"]["b"] == ""
    with pytest.raises(InvalidInput, match=rf"document 2: annotations: they have {MAX_ANNOTATIONS + 1} bytes"):
        injected(template({**largest, "b": "x"}))


@pytest.mark.parametrize("part", ["a", "a/", "-", "a.a:"])
def test_an_image_of_any_length_is_refused_at_once(part: str) -> None:
    of = template({PROXY_IMAGE_ANNOTATION: part * (250_000 // len(part)) + "!"})
    started = process_time()
    with pytest.raises(InvalidInput, match="is not an image reference"):
        injected(of)
    assert process_time() - started < 0.1


def test_excluded_inbound_ports_stand_beside_the_proxys_own() -> None:
    annotations = {f"{TRAFFIC_PREFIX}excludeInboundPorts": "22"}
    assert flag(init_of(injected(template(annotations), TODAY)), "-d") == "15090,15021,22,15020"
    every = {**annotations, f"{TRAFFIC_PREFIX}includeInboundPorts": "*"}
    assert flag(init_of(injected(template(every))), "-d") == "22"


def test_an_annotation_without_effect_is_told() -> None:
    annotations = {f"{TRAFFIC_PREFIX}excludeInboundPorts": "22"}
    note = inject_template(template(annotations), ISTIO_1_0, Workload("x", "y"), WHERE).note
    assert "excludeInboundPorts has no effect" in note


def test_an_annotation_that_is_misspelled_is_told() -> None:
    for name in (f"{TRAFFIC_PREFIX}excludeoutboundports", f"{TRAFFIC_PREFIX}excludeOutboundIPRange", "istio-init/dnsport"):
        note = inject_template(template({name: "80"}), TODAY, Workload("x", "y"), WHERE).note
        assert f"annotation {name} is unknown" in note


@pytest.mark.parametrize("settings", [ISTIO_1_0, TODAY], ids=["istio-1.0", "current"])
@pytest.mark.parametrize(("port", "owner"), [("9080", "container productpage"), ("15001", "outbound"), ("15053", "DNS")])
def test_readiness_is_not_served_where_somebody_else_listens(port: str, owner: str, settings: InjectSettings) -> None:
    with pytest.raises(InvalidInput, match=f"^{WHERE}: annotation {STATUS_PORT}: port {port} is used by .*{owner}"):
        injected(template({STATUS_PORT: port}), settings)


@pytest.mark.parametrize(
    ("ports", "told"), [("9080,15090", [15090]), ("15000:15006", [15000, 15001, 15006]), ("*", []), ("80", [])]
)
def test_inbound_ports_that_are_the_proxys_are_told(ports: str, told: list[int]) -> None:
    of = template({f"{TRAFFIC_PREFIX}includeInboundPorts": ports})
    note = inject_template(of, TODAY, Workload("x", "y"), WHERE).note
    assert [port for port in MESH_PORTS if f"includeInboundPorts lists port {port}" in note] == told


def test_a_port_that_the_proxy_has_is_told_and_one_that_is_none_is_refused() -> None:
    of = template()
    of["spec"]["containers"][0]["ports"] = [{"containerPort": 15090}]
    note = inject_template(of, TODAY, Workload("x", "y"), WHERE).note
    assert "container productpage declares port 15090, which the proxy uses (metrics for Prometheus)" in note
    of["spec"]["containers"][0]["ports"] = [{"containerPort": 99999}]
    with pytest.raises(InvalidInput, match=f"^{WHERE}: container productpage declares port 99999"):
        injected(of)


@pytest.mark.parametrize("context", [{"runAsNonRoot": True}, {"runAsUser": 1000}, {"runAsUser": 0}, {}])
def test_a_pod_that_keeps_the_init_container_from_being_root_is_told(context: Json) -> None:
    def note(settings: InjectSettings) -> str:
        return inject_template(template(securityContext=context), settings, Workload("x", "y"), WHERE).note

    assert ("use --unprivileged" in note(ISTIO_1_0)) == any(context.values())
    for settings in (ISTIO_1_0._replace(unprivileged=True), TODAY):
        assert "--unprivileged" not in note(settings)
        own = init_of(injected(template(securityContext=context), settings))["securityContext"]
        assert (own["runAsUser"], own["runAsNonRoot"]) == (0, False)


def test_the_port_of_readiness_can_be_chosen() -> None:
    annotations = {STATUS_PORT: "15999", f"{TRAFFIC_PREFIX}includeInboundPorts": "*"}
    for settings, excluded in ((ISTIO_1_0, "15999"), (TODAY, "15090,15021,15999")):
        got = injected(template(annotations), settings)
        assert flag(proxy_of(got), "--statusPort") == "15999"
        assert proxy_of(got)["readinessProbe"]["httpGet"]["port"] == 15999
        assert flag(init_of(got), "-d") == excluded
    assert flag(proxy_of(injected(template({STATUS_PORT: "15999"}))), "--applicationPorts") == "9080"


def test_readiness_can_be_switched_off() -> None:
    got = injected(template({STATUS_PORT: "0"}), TODAY)
    assert flag(init_of(got), "-d") == "15090,15021"
    assert not {"readinessProbe", "startupProbe"} & set(proxy_of(got))


def test_the_proxys_image_can_be_chosen() -> None:
    got = injected(template({PROXY_IMAGE_ANNOTATION: "registry:5000/mesh/proxy:1@sha256:" + "0" * 64}))
    assert proxy_of(got)["image"].startswith("registry:5000/")
    assert init_of(got)["image"] == ISTIO_1_0.init_image


@each_setting
def test_under_tproxy_the_proxy_is_root_of_its_own_group(settings: InjectSettings) -> None:
    got = proxy_of(injected(template({"sidecar.istio.io/interceptionMode": "TPROXY"}), settings))
    context = got["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (0, 1337)
    assert context["capabilities"]["add"] == ["NET_ADMIN"]
    assert {"name": "ISTIO_META_INTERCEPTION_MODE", "value": "TPROXY"} in got["env"]


# What is left alone

INJECT = "sidecar.istio.io/inject"
LEFT_ALONE = {
    "host network": (template(hostNetwork=True), "hostNetwork"),
    "annotation": (template({INJECT: "false"}), INJECT),
    "label": (template(labels={INJECT: "false"}), INJECT),
    "label before annotation": (template({INJECT: "true"}, {INJECT: "no"}), INJECT),
    "a proxy": (template(containers=[{"name": "istio-proxy"}]), "istio-proxy"),
    "rules": (template(initContainers=[{"name": "istio-init"}]), "istio-init"),
    "no containers": (template(containers=[]), "no containers"),
}


@each_setting
@sweep(("of", "word"), LEFT_ALONE.values(), ids=list(LEFT_ALONE))
def test_what_is_left_alone_has_a_note_that_says_why(of: Json, word: str, settings: InjectSettings) -> None:
    found = inject_template(of, settings, Workload("x", "y"), WHERE)
    assert found.template is None
    assert found.note.startswith("not injected: ")
    assert word in found.note


def test_a_pod_that_says_yes_is_injected() -> None:
    assert injected(template({INJECT: "false"}, {INJECT: "true"}))
    assert injected(template({INJECT: "true"}))
    assert injected(template({INJECT: ""}))


@each_setting
def test_injecting_twice_changes_nothing(settings: InjectSettings) -> None:
    again = inject_template(injected(template(), settings), settings, Workload("x", "y"), WHERE)
    assert again == (None, "already injected")


@each_setting
def test_what_is_given_is_not_changed(settings: InjectSettings) -> None:
    given = template({"a": "b"}, initContainers=[{"name": "x"}], volumes=[{"name": "v"}])
    before = deepcopy(given)
    got = injected(given, settings)
    got["spec"]["containers"][0]["image"] = "changed"
    got["metadata"]["labels"]["app"] = "changed"
    assert given == before


def test_a_volume_of_the_same_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="volume 'istio-envoy'"):
        injected(template(volumes=[{"name": "istio-envoy", "emptyDir": {}}]))


BROKEN: dict[str, Any] = {
    "metadata": {"metadata": [], "spec": {}},
    "spec": {"spec": "x"},
    "containers": template(containers={}),
    "a container": template(containers=["x"]),
    "a port": template(containers=[{"name": "a", "ports": [{"containerPort": "http"}]}]),
    "volumes": template(volumes={}),
    "a volume's name": template(volumes=[{"name": 7}]),
    "a volume's name that is a list": template(volumes=[{"name": ["istio-envoy"]}]),
    "a container's name": template(containers=[{"name": {"istio-proxy": 1}}]),
    "an init container's name": template(initContainers=[{"name": True}]),
    "a port's name": template(containers=[{"name": "a", "ports": [{"name": 80, "containerPort": 80}]}]),
}


@pytest.mark.parametrize("of", BROKEN.values(), ids=list(BROKEN))
def test_what_is_no_pod_is_refused(of: Json) -> None:
    with pytest.raises(InvalidInput, match=f"^{WHERE}"):
        injected(of)


def test_a_name_that_is_no_text_is_shown_and_one_that_is_null_is_none() -> None:
    with pytest.raises(InvalidInput, match=r"volumes: name \['x'\] is not a string \(allowed: a quoted string\)"):
        injected(template(volumes=[{"name": ["x"]}]))
    assert injected(template(volumes=[{"name": None, "emptyDir": {}}]))["spec"]["volumes"][0] == {
        "name": None,
        "emptyDir": {},
    }


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (InjectSettings(layout="x"), "--layout"),
        (InjectSettings(native_sidecar=True), "--native-sidecar"),
        (InjectSettings(init_image=""), "--init-image"),
        (InjectSettings(proxy_image="a b"), "--proxy-image"),
        (InjectSettings(discovery_address="pilot"), "--discoveryAddress"),
        (InjectSettings(zipkin_address="zipkin:x"), "--zipkinAddress"),
    ],
)
def test_bad_settings_are_refused_by_their_flag(settings: InjectSettings, where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings.checked()
    assert caught.value.where == where


# Back again

REVERSIBLE: dict[str, Json] = {
    "plain": template(),
    "annotations": template({"a": "b", "traffic.sidecar.istio.io/excludeInboundPorts": "22"}),
    "no metadata": {"spec": template()["spec"]},
    "null metadata": {"metadata": None, "spec": template()["spec"]},
    "empty annotations": {"metadata": {"annotations": {}, "labels": None}, "spec": template()["spec"]},
    "empty lists": template(initContainers=[], volumes=None),
    "all there": template(initContainers=[{"name": "x"}], volumes=[{"name": "v"}], nodeName="n"),
    "labels of its own": template(labels={"service.istio.io/canonical-name": "mine"}),
}


@each_setting
@sweep("of", REVERSIBLE.values(), ids=list(REVERSIBLE))
def test_what_was_added_is_taken_out_and_nothing_else(of: Json, settings: InjectSettings) -> None:
    back = uninject_template(injected(of, settings), where=WHERE).template
    assert back == of
    assert json.dumps(back) == json.dumps(of)  # the order, too


def test_what_came_later_stays() -> None:
    got = injected(template())
    got["spec"]["volumes"].append({"name": "later"})
    got["metadata"]["annotations"]["later"] = "x"
    back = uninject_template(got, where=WHERE).template
    assert back == template({"later": "x"}, volumes=[{"name": "later"}])


def test_what_istio_injected_can_be_taken_out() -> None:
    status = (
        '{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["istio-envoy"],"imagePullSecrets":null}'
    )
    got = template({STATUS: status}, initContainers=[{"name": "istio-init"}], volumes=[{"name": "istio-envoy"}])
    assert uninject_template(got, where=WHERE).template == template()


def test_a_pod_that_is_not_injected_stays_as_it_is() -> None:
    assert uninject_template(template(), where=WHERE) == (None, "unchanged: not injected")


@pytest.mark.parametrize("status", ["", "[]", '{"volumes":"x"}', '{"containers":[1]}', '{"empty":[]}', "[" * 200])
def test_a_status_of_nobodys_is_refused(status: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{WHERE}: annotation {STATUS}: "):
        uninject_template(template({STATUS: status}), where=WHERE)


# Whole documents, as Kubernetes and the check of both halves see them

API = {"Pod": "v1", "ReplicationController": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}


def document(kind: str, of: Json) -> Json:
    made: Json = {
        "apiVersion": API.get(kind, "apps/v1"),
        "kind": kind,
        "metadata": {"name": "productpage", "namespace": "shop"},
    }
    selector = {"selector": {"matchLabels": {"app": "productpage"}}}
    job = {"template": {**of, "spec": {**of["spec"], "restartPolicy": "Never"}}}
    match kind:
        case "Pod":
            made["metadata"].update(of["metadata"])
            made["spec"] = of["spec"]
        case "Job":
            made["spec"] = job
        case "CronJob":
            made["spec"] = {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}}
        case "ReplicationController":
            made["spec"] = {"template": of}
        case "StatefulSet":
            made["spec"] = {**selector, "serviceName": "productpage", "template": of}
        case _:
            made["spec"] = {**selector, "template": of}
    return made


def template_in(made: Json) -> Json:
    for name in KINDS[made["kind"]]:
        made = made[name]
    return made


def agree(made: Json) -> None:
    """Read both halves as the pod will have them, and find nothing between them."""
    found = read_manifest(json.dumps(made), "x")
    rules = read_rules(found.rules.words, found.rules.environ, "init")
    words = read_words(proxy.COMMAND.options, found.proxy.words, "the proxy", "proxy")
    settings = parse_proxy_settings("sidecar", words, found.proxy.environ, "192.0.2.1")
    uid = 1337 if found.run_as_uid is None else found.run_as_uid
    pair = Pair(rules, settings, frozenset(), uid, found.run_as_gid, found.container_ports)
    assert contradictions(pair) == ()
    assert rules.warnings == ()


ANNOTATED = [None, {"sidecar.istio.io/interceptionMode": "TPROXY"}, {STATUS_PORT: "15020"}]


@sweep("kind", KINDS)
def test_the_proxy_of_today_is_told_what_makes_its_pod(kind: str) -> None:
    made, _ = inject_document(document(kind, template()), NATIVE, "f")
    (_, proxy) = template_in(made)["spec"]["initContainers"]
    variables = {one["name"]: one.get("value") for one in proxy["env"]}
    where = "namespaces/$(POD_NAMESPACE)"
    assert variables["ISTIO_META_OWNER"] == f"kubernetes://apis/{made['apiVersion']}/{where}/{kind.lower()}s/productpage"
    # The kubelet puts in only what stands before.
    names = list(variables)
    assert names.index("POD_NAMESPACE") < names.index("ISTIO_META_OWNER")


def test_a_word_about_injection_that_stands_beside_the_template_is_told() -> None:
    beside = document("Deployment", template())
    beside["metadata"]["annotations"] = {"sidecar.istio.io/inject": "false"}
    _, (note,) = inject_document(beside, TODAY, "f")
    assert "injected (layout istio-1.30" in note
    assert "sidecar.istio.io/inject on the Deployment itself has no effect" in note
    of_pod = document("Pod", template({"sidecar.istio.io/inject": "false"}))
    _, (note,) = inject_document(of_pod, TODAY, "f")
    assert "has no effect" not in note


@each_setting
@sweep("annotations", ANNOTATED, ids=["plain", "tproxy", "readiness"])
@sweep("kind", KINDS)
def test_every_kind_is_injected_valid_and_agrees(
    kind: str, annotations: dict[str, str] | None, settings: InjectSettings
) -> None:
    plain = document(kind, template(annotations))
    validate(plain)
    made, notes = inject_document(plain, settings, "f")
    never_ends = f"; {NEVER_ENDS}" if kind in ("Job", "CronJob") and not settings.native_sidecar else ""
    assert notes == (f"f: {kind} 'productpage': injected (layout {find(settings.layout).name}, namespace shop){never_ends}",)
    validate(made)
    agree(made)
    assert uninject_document(made, "f")[0] == plain


def test_every_member_of_a_list_is_injected() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    items = [document("Pod", template()), service, document("CronJob", template(hostNetwork=True))]
    plain = {"apiVersion": "v1", "kind": "List", "items": items}
    made, notes = inject_document(plain, ISTIO_1_0, "f")
    validate(made)
    agree(made)
    assert [note.split(": ")[1] for note in notes] == ["item 1", "item 3"]
    assert made["items"][1:] == items[1:]
    assert uninject_document(made, "f")[0] == plain


@pytest.mark.parametrize(
    "other",
    [
        None,
        "text",
        [],
        {},
        {"kind": "Rollout", "spec": {"template": template()}},
        {"kind": []},
        {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "spec": {"tasks": []}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Deployment", "spec": {"template": template()}},
    ],
)
def test_what_has_no_pods_is_handed_on(other: object) -> None:
    assert inject_document(other, ISTIO_1_0, "f") == (other, ())


def test_a_workload_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^f: spec\.template is not an object"):
        inject_document({"kind": "Deployment", "spec": {}}, ISTIO_1_0, "f")


def test_a_name_that_kubernetes_makes_up_is_known_by_its_beginning() -> None:
    pod = {**document("Pod", template(labels={})), "metadata": {"generateName": "web-"}}
    made, _ = inject_document(pod, TODAY, "f")
    assert made["metadata"]["labels"]["service.istio.io/canonical-name"] == "web"
