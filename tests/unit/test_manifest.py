"""What is read from a pod's manifest."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.manifest import Manifest, read_manifest

Json = dict[str, Any]

RULES = ["-p", "15001", "-u", "1337", "-b", "9080", "-d", ""]
INIT: Json = {"name": "istio-init", "args": RULES}
PROXY: Json = {"name": "istio-proxy", "args": ["proxy", "sidecar", "--serviceCluster", "productpage"]}
APP: Json = {"name": "productpage", "ports": [{"containerPort": 9080}]}


def spec(init: Json = INIT, proxy: Json = PROXY, **others: object) -> Json:
    return {"initContainers": [init], "containers": [APP, proxy], **others}


def pod(of: Json, **metadata: str) -> Json:
    return {"kind": "Pod", "metadata": {"name": "productpage", **metadata}, "spec": of}


def read(*documents: object) -> Manifest:
    return read_manifest(yaml.safe_dump_all(documents), "--manifest pod.yaml")


WORKLOADS = {
    "Pod": pod(spec()),
    "Deployment": {"metadata": {"name": "productpage"}, "spec": {"template": {"spec": spec()}}},
    "CronJob": {"metadata": {"name": "productpage"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": spec()}}}}},
}


@pytest.mark.parametrize("document", WORKLOADS.values(), ids=list(WORKLOADS))
def test_both_halves_are_found_in_whatever_makes_a_pod(document: Json) -> None:
    found = read(document)
    assert found.rules.words == tuple(RULES)
    assert found.proxy.words == ("sidecar", "--serviceCluster", "productpage")
    assert (found.run_as_uid, found.run_as_gid) == (None, None)
    assert found.container_ports == (("productpage", 9080),)


def test_pods_of_a_list_are_found() -> None:
    items = [{"kind": "Service"}, pod({"containers": [APP]}), WORKLOADS["Deployment"]]
    assert read({"kind": "List", "items": items}).rules.words == tuple(RULES)
    assert read({"kind": "PodList", "items": [pod(spec())]}).rules.words == tuple(RULES)
    with pytest.raises(InvalidInput, match="2 pods"):
        read({"kind": "List", "items": [pod(spec()), pod(spec())]})


def test_todays_command_is_told_from_bare_flags() -> None:
    today = ("istio-iptables", "-p", "15001", "-z", "15006", "-b", "$(PORTS)", "--redirect-dns")
    env = [{"name": "PORTS", "value": "80"}]
    wanted = (*today[:6], "80", "--redirect-dns")
    assert read(pod(spec({"name": "istio-init", "args": [*today], "env": env}))).rules.words == wanted
    other_name = {"name": "rules", "command": ["pilot-agent"], "args": [*today], "env": env}
    assert read(pod(spec(other_name))).rules.words == wanted


def test_ports_of_an_init_container_that_goes_on_are_the_apps() -> None:
    lasting = {"name": "logs", "restartPolicy": "Always", "ports": [{"containerPort": 24224}]}
    over = {"name": "migrate", "ports": [{"containerPort": 1}]}
    found = read(pod({"initContainers": [INIT, lasting, over], "containers": [APP, PROXY]}))
    assert found.container_ports == (("productpage", 9080), ("logs", 24224))


def test_other_documents_and_pods_outside_the_mesh_are_passed_over() -> None:
    outside = pod({"containers": [{"name": "client"}]})
    assert read(None, {"kind": "Service", "spec": {"ports": []}}, outside, pod(spec())).rules.words == tuple(RULES)


def test_a_manifest_may_be_json() -> None:
    assert read_manifest('{"spec":\t{"initContainers": [{"name": "istio-init"}], "containers": '
                         '[{"name": "istio-proxy", "args": ["proxy"]}]}}', "--manifest x").proxy.words == ()  # fmt: skip


def test_an_init_container_by_another_name_is_known_by_its_flags() -> None:
    other = {"name": "wait", "args": ["--timeout", "5"]}
    ours = {"name": "rules", "args": ["-u", "1337", "--istio-inbound-ports=80"]}
    found = read(pod({"initContainers": [other, ours], "containers": [PROXY]}))
    assert found.rules.words == ("-u", "1337", "--istio-inbound-ports=80")


def test_the_name_goes_before_the_flags() -> None:
    first = {"name": "rules", "args": ["-u", "5"]}
    assert read(pod({"initContainers": [first, INIT], "containers": [PROXY]})).rules.words == tuple(RULES)


def test_the_proxy_may_be_an_init_container_that_goes_on() -> None:
    sidecar = {**PROXY, "restartPolicy": "Always"}
    found = read(pod({"initContainers": [INIT, sidecar], "containers": [APP]}))
    assert found.proxy.words[0] == "sidecar"
    assert found.container_ports == (("productpage", 9080),)


def test_programs_and_commands_before_the_flags_are_left_out() -> None:
    init = {"name": "istio-init", "command": ["istio-init", "apply"], "args": RULES}
    proxy = {"name": "istio-proxy", "command": ["/usr/local/bin/pilot-agent"], "args": ["proxy", "router"]}
    found = read(pod(spec(init, proxy)))
    assert found.rules.words == tuple(RULES)
    assert found.proxy.words == ("router",)


def field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_variables_are_read_as_the_pod_will_have_them() -> None:
    env = [
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("NODE", "spec.nodeName"),
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
        {"name": "EMPTY"},
        {"name": "PLAIN", "value": "a $(POD_NAME) $(NODE) $$(POD_NAME)"},
    ]
    proxy = {**PROXY, "args": ["proxy", "--domain", "$(POD_NAMESPACE).svc.cluster.local"], "env": env}
    found = read(pod(spec(proxy=proxy), namespace="shop"))
    assert found.proxy.environ == {
        "POD_NAME": "productpage",
        "POD_NAMESPACE": "shop",
        "INSTANCE_IP": "192.0.2.1",
        "EMPTY": "",
        "PLAIN": "a productpage $(NODE) $(POD_NAME)",
    }
    assert found.proxy.words == ("--domain", "shop.svc.cluster.local")


def test_a_manifest_without_a_namespace_is_one_of_the_default_namespace() -> None:
    proxy = {**PROXY, "env": [field("POD_NAMESPACE", "metadata.namespace")]}
    assert read(pod(spec(proxy=proxy))).proxy.environ == {"POD_NAMESPACE": "default"}


def test_the_proxys_own_user_goes_before_the_pods() -> None:
    both = {"runAsUser": 1000, "runAsGroup": 2000}
    found = read(pod(spec(proxy={**PROXY, "securityContext": {"runAsUser": 0}}, securityContext=both)))
    assert (found.run_as_uid, found.run_as_gid) == (0, 2000)


def test_ports_that_are_not_captured_do_not_count() -> None:
    app = {"name": "dns", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]}
    proxy = {**PROXY, "ports": [{"containerPort": 15090}]}
    found = read(pod({"initContainers": [INIT], "containers": [app, proxy]}))
    assert found.container_ports == (("dns", 53),)


BAD = {
    "no pod": ([{"kind": "Service"}], "no pod"),
    "only text": (["hello"], "no pod"),
    "no init container": ([pod({"containers": [PROXY]})], "'productpage' has no init container istio-init"),
    "no proxy": ([pod({"initContainers": [INIT], "containers": [APP]})], "'productpage' has no container istio-proxy"),
    "nothing injected": ([pod({"containers": [APP]})], "no init container istio-init"),
    "two pods": ([pod(spec()), pod(spec())], r"2 pods .*\(productpage, productpage\)"),
    "a proxy that is none": ([pod(spec(proxy={"name": "istio-proxy"}))], "lack the command 'proxy'"),
    "a number": ([pod(spec({"name": "istio-init", "args": ["-p", 15001]}))], "15001 is not a string; quote it"),
    "a variable's number": (
        [pod(spec(proxy={**PROXY, "env": [{"name": "X", "value": 5}]}))],
        "variable X: 5 is not a string",
    ),
    "no list of containers": ([pod({"containers": {}})], "containers is not a list"),
    "no objects": ([pod({"containers": ["x"]})], "containers has an item that is not an object"),
    "no list of arguments": ([pod(spec({"name": "istio-init", "args": "-p 15001"}))], "args is not a list"),
    "no user": ([pod(spec(securityContext={"runAsUser": "me"}))], "runAsUser: 'me' is not an integer"),
    "a container's name": (
        [pod({"initContainers": [INIT], "containers": [{"name": 7}, PROXY]})],
        "containers: name 7 is not",
    ),
    "a variable's name": ([pod(spec(proxy={**PROXY, "env": [{"name": ["X"]}]}))], r"env: name \['X'\] is not a string"),
    "no port": ([pod({**spec(), "containers": [{"ports": [{}]}, PROXY]})], "containerPort: None is not an integer"),
}


@pytest.mark.parametrize(("documents", "problem"), BAD.values(), ids=list(BAD))
def test_a_manifest_without_both_halves_is_refused(documents: list[object], problem: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^--manifest pod\.yaml: .*{problem}"):
        read(*documents)


@pytest.mark.parametrize("text", ["", "a: [", "x: 2020-99-99", "a: !!int x", "[" * 5000, "a: b: c", "\x00"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--manifest pod\.yaml"):
        read_manifest(text, "--manifest pod.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["istio-init", "istio-proxy", "proxy", "-u", "$(X)"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "template", "containers", "initContainers", "name", "args", "env", "value", "ports"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(VALUES, VALUES, VALUES)
def test_any_manifest_is_read_or_refused(init: object, proxy: object, others: object) -> None:
    with suppress(InvalidInput):
        assert isinstance(read(others, pod({"initContainers": [init], "containers": [proxy]})), Manifest)
    with suppress(InvalidInput):
        assert isinstance(read(pod(spec({**INIT, "env": init}, {**PROXY, "ports": proxy, "args": others}))), Manifest)
