"""What a review is answered, without a network."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject import Injection, InjectSettings, Workload, inject_template
from istio_init.kubernetes.webhook.review import WARNING_LENGTH, Answer, Json, Outcome, answer, read_request, workload_of
from istio_init.rules.layout import CURRENT
from tests.webhook import stand_in
from tests.webhook.reviews import POD, UID, bare_pod, encoded, patched, pod, review


def asked(of: Json) -> Answer:
    return answer(encoded(of), stand_in.inject)


def told_apart(pod: Json, **request: str | None) -> str:
    """Give NAMESPACE/WORKLOAD as the injector was told them."""
    containers = patched(pod, asked(review(pod, UID, **request)).review)["spec"]["containers"]
    return str(containers[-1]["image"])


# A pod that is injected.


def test_the_patch_gives_the_injected_pod() -> None:
    injected = stand_in.inject(POD, Workload("productpage-v1", "bookinfo"), "").template
    found = asked(review(POD))
    assert patched(POD, found.review) == injected != POD
    assert found.outcome == Outcome.INJECTED


def test_an_answer_is_a_review_of_v1_that_repeats_the_id() -> None:
    found = asked(review(POD, uid="another-id")).review
    assert set(found) == {"apiVersion", "kind", "response"}
    assert (found["apiVersion"], found["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert set(found["response"]) == {"uid", "allowed", "patchType", "patch"}
    assert found["response"]["uid"] == "another-id"


def test_a_dry_run_is_answered_alike() -> None:
    found = asked(review(POD, dryRun=True))
    assert found.review == asked(review(POD)).review
    assert "(dry run)" in found.note


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(before=st.dictionaries(st.text(max_size=3), JSON_VALUES), after=st.dictionaries(st.text(max_size=3), JSON_VALUES))
def test_whatever_an_injector_changes_the_patch_changes(before: Json, after: Json) -> None:
    old, new = {**POD, "spec": before}, {**POD, "spec": after}
    found = answer(encoded(review(old)), lambda *_, **__: Injection(copy.deepcopy(new), ""))
    # Python's own comparison takes 1 for True.
    assert json.dumps(patched(old, found.review), sort_keys=True) == json.dumps(new, sort_keys=True)


# Who the pod is.


def test_a_pod_without_a_namespace_is_in_that_of_its_request() -> None:
    assert told_apart(bare_pod("lonely")) == "bookinfo/lonely"
    assert told_apart(bare_pod("lonely"), namespace="elsewhere") == "elsewhere/lonely"


def test_the_namespace_of_the_request_goes_before_the_pods_own() -> None:
    named = bare_pod("lonely")
    named["metadata"]["namespace"] = "claimed"
    assert told_apart(named) == "bookinfo/lonely"
    assert told_apart(named, namespace=None) == "claimed/lonely"


def test_the_namespace_is_not_written_into_the_pod() -> None:
    assert "namespace" not in patched(POD, asked(review(POD)).review)["metadata"]


def owned(kind: str, name: str, **metadata: object) -> Json:
    made = copy.deepcopy(POD)
    reference = {"apiVersion": "example/v1", "kind": kind, "name": name, "uid": "1", "controller": True}
    made["metadata"].update(metadata, ownerReferences=[{**reference, "controller": False, "name": "other"}, reference])
    return made


@pytest.mark.parametrize(
    ("made", "name", "kind", "version"),
    [
        (POD, "productpage-v1", "Deployment", "apps/v1"),
        (owned("ReplicaSet", "plain", labels={}), "plain", "ReplicaSet", "example/v1"),
        (owned("StatefulSet", "database"), "database", "StatefulSet", "example/v1"),
        (owned("DaemonSet", "agent-12345678"), "agent-12345678", "DaemonSet", "example/v1"),
        (owned("Job", "once"), "once", "Job", "example/v1"),
        (owned("Job", "nightly-29384756"), "nightly", "CronJob", "example/v1"),
        (bare_pod("own"), "own", "Pod", "v1"),
        ({**POD, "metadata": {"generateName": "generated-"}}, "generated", "Pod", "v1"),
    ],
)
def test_a_pod_is_known_by_what_made_it(made: Json, name: str, kind: str, version: str) -> None:
    assert workload_of(read_request(encoded(review(made)))) == Workload(name, "bookinfo", kind, version)
    assert told_apart(made) == f"bookinfo/{name}"


# Pods that are denied, and those that are left alone.


DENIAL = "pod bookinfo/productpage-v1-6b746f74dc-*: annotation test: 'denied' is not allowed (allowed: anything else)"


def test_a_denial_says_why_in_a_status() -> None:
    found = asked(review(pod(test="denied")))
    assert found.outcome == Outcome.DENIED
    assert found.review["response"] == {
        "uid": UID,
        "allowed": False,
        "status": {"status": "Failure", "reason": "Invalid", "code": 422, "message": DENIAL},
    }


@pytest.mark.parametrize("member", ["volumes", "containers", "initContainers"])
def test_a_pod_with_a_name_that_is_no_text_is_denied_with_the_reason(member: str) -> None:
    strange = {**POD, "spec": {**POD["spec"], member: [{"name": ["x"]}]}}
    found = judged(strange)
    assert found.outcome == Outcome.DENIED
    message = found.review["response"]["status"]["message"]
    assert message.endswith(f"{member}: name ['x'] is not a string (allowed: a quoted string)")


def allowed_with_a_warning(found: Answer) -> str:
    assert found.outcome == Outcome.LEFT_ALONE
    assert set(found.review["response"]) == {"uid", "allowed", "warnings"}
    assert found.review["response"]["allowed"] is True
    (warning,) = found.review["response"]["warnings"]
    assert len(warning) <= WARNING_LENGTH
    assert warning.isprintable()
    return str(warning)


def test_a_pod_that_is_left_alone_is_allowed_without_a_patch() -> None:
    warning = allowed_with_a_warning(asked(review(pod(test="alone"))))
    assert warning == "istio-init: pod bookinfo/productpage-v1-6b746f74dc-*: not injected: on request"


def test_a_long_warning_is_one_short_line() -> None:
    found = answer(encoded(review(POD)), lambda *_, **__: Injection(None, "long\nand\tbroken " * 50))
    allowed_with_a_warning(found)


DEPLOYMENT = {"group": "apps", "version": "v1", "kind": "Deployment"}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"kind": DEPLOYMENT}, "not apps/v1 Deployment"),
        ({"kind": {"group": "", "version": "v2", "kind": "Pod"}}, "not v2 Pod"),
        ({"kind": {"group": "", "version": "v1", "kind": "Node"}}, "not v1 Node"),
        ({"kind": None}, "not an unspecified kind"),
        ({"operation": "UPDATE", "oldObject": POD}, "the operation is UPDATE"),
        ({"operation": "DELETE", "object": None, "oldObject": POD, "name": "gone"}, "the operation is DELETE"),
        ({"operation": None}, "the operation is missing"),
        ({"operation": "UPDATE", "subResource": "ephemeralcontainers"}, "not their subresource 'ephemeralcontainers'"),
        ({"operation": "CREATE", "subResource": "binding", "object": None}, "not their subresource 'binding'"),
    ],
)
def test_what_is_no_new_pod_is_allowed_untouched(request_: Json, reason: str) -> None:
    assert reason in allowed_with_a_warning(asked(review(POD, **request_)))


def test_a_kind_without_a_group_is_of_the_core_group() -> None:
    assert asked(review(POD, kind={"version": "v1", "kind": "Pod"})).outcome == Outcome.INJECTED


# What is no review.

GOOD = review(POD)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "body: is not valid JSON"),
    "cut": (encoded(GOOD)[:-40], "body: is not valid JSON"),
    "not UTF-8": (b'{"kind": "\xff"}', "body: is not valid JSON"),
    "no JSON": (b"kind: AdmissionReview", "body: is not valid JSON"),
    "NaN": (b"[NaN]", "body: is not valid JSON: NaN"),
    "too deep": (b"[" * 100_000, "body: is not valid JSON: it has more than 100 levels"),
    "a bit too deep": (b"[" * 101 + b"]" * 101, "body: is not valid JSON: it has more than 100 levels"),
    "a number too long to read": (b"[" + b"9" * 5000 + b"]", "body: is not valid JSON: it has an integer of more than 100"),
    "a list": (b"[]", "body: is not a JSON object"),
    "v1beta1": (
        encoded({**GOOD, "apiVersion": "admission.k8s.io/v1beta1"}),
        "apiVersion: 'admission.k8s.io/v1beta1' is not supported (allowed: admission.k8s.io/v1)",
    ),
    "no version": (encoded({"kind": "AdmissionReview"}), "apiVersion: None"),
    "another kind": (encoded({**GOOD, "kind": "Pod"}), "kind: 'Pod' is not supported (allowed: AdmissionReview)"),
    "a kind that is an object": (encoded({**GOOD, "kind": {"long": "x" * 500}}), "kind: {'long': 'xxx"),
    "no request": (encoded({**GOOD, "request": None}), "request.uid: is missing"),
    "a request that is a list": (encoded({**GOOD, "request": []}), "request: [] has the wrong type (allowed: dict)"),
    "no id": (encoded(review(POD, uid="")), "request.uid: is missing"),
    "a number for an id": (encoded(review(POD, uid=7)), "uid: 7 has the wrong type"),  # type: ignore[arg-type] # on purpose
    "no pod": (encoded(review(None)), "request.object: not a pod"),
    "a pod that is text": (encoded(review("pod")), "object: 'pod' has the wrong type"),  # type: ignore[arg-type] # on purpose
    "no spec": (encoded(review({"metadata": {}})), "request.object: not a pod"),
    "a dry run that is text": (encoded(review(POD, dryRun="yes")), "dryRun: 'yes' has the wrong type (allowed: bool)"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=list(BAD))
def test_what_is_no_review_is_refused_with_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        answer(body, stand_in.inject)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300


@given(st.recursive(JSON_VALUES, lambda inner: st.dictionaries(st.sampled_from(["request", "kind", "object"]), inner)))
def test_no_json_makes_it_stumble(value: object) -> None:
    with pytest.raises(InvalidInput):
        answer(json.dumps(value).encode(), stand_in.inject)


@given(st.dictionaries(st.sampled_from(list(GOOD["request"])), JSON_VALUES), JSON_VALUES, JSON_VALUES)
def test_no_request_makes_it_stumble(members: Json, metadata: object, spec: object) -> None:
    strange = {**GOOD["request"], "object": {"metadata": metadata, "spec": spec}, **members}
    try:
        found = answer(encoded({**GOOD, "request": strange}), lambda *_, **__: Injection(None, ""))
    except InvalidInput:
        return
    assert found.review["response"]["uid"] == strange["uid"]
    assert found.review["response"]["allowed"] is True


# Both halves of a pod.


def really_injected() -> Json:
    made = inject_template(POD, InjectSettings(layout=CURRENT), Workload("productpage-v1", "bookinfo"), "x").template
    assert made is not None
    return made


def judged(made: Json) -> Answer:
    def inject(template: Json, workload: Workload, where: str) -> Injection:
        return inject_template(template, InjectSettings(layout=CURRENT), workload, where)

    return answer(encoded(review(made)), inject)


def test_halves_that_agree_are_not_mentioned() -> None:
    found = judged(really_injected())
    assert found.review["response"]["warnings"] == ["istio-init: pod bookinfo/productpage-v1-6b746f74dc-*: already injected"]


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("1337", "1338", "-u is 1338, but Envoy runs as uid 1337"),
        ("15001", "15000", "-p is 15000, the port of Envoy's administration"),
        ("REDIRECT", "TPROXY", "-m is TPROXY, but ISTIO_META_INTERCEPTION_MODE tells the control plane REDIRECT"),
    ],
)
def test_an_injected_pod_whose_halves_contradict_each_other_is_allowed_with_a_warning(
    old: str, new: str, warning: str
) -> None:
    made = really_injected()
    (rules,) = (one for one in made["spec"]["initContainers"] if one["name"] == "istio-init")
    rules["args"] = [new if word == old else word for word in rules["args"]]
    found = judged(made)
    assert found.review["response"]["allowed"]
    assert [line for line in found.review["response"]["warnings"] if line.startswith(f"istio-init: {warning}")]
    assert warning in found.note


def test_an_injector_whose_halves_contradict_each_other_is_told_of() -> None:
    def inject(template: Json, workload: Workload, where: str) -> Injection:
        made = inject_template(template, InjectSettings(layout=CURRENT), workload, where)
        assert made.template is not None
        (rules,) = (one for one in made.template["spec"]["initContainers"] if one["name"] == "istio-init")
        rules["args"] = ["1338" if word == "1337" else word for word in rules["args"]]
        return made

    found = answer(encoded(review(POD)), inject)
    assert found.outcome == Outcome.INJECTED
    assert [line[:60] for line in found.review["response"]["warnings"]] == [
        "istio-init: -u is 1338, but Envoy runs as uid 1337: its own "
    ]


@pytest.mark.parametrize("kind", ["initContainers", "containers"])
def test_halves_that_cannot_be_read_are_reported_as_not_compared(kind: str) -> None:
    made = really_injected()
    (half,) = (one for one in made["spec"][kind] if one["name"] in ("istio-init", "istio-proxy"))
    half["args"] = [*half["args"], "--a-flag-of-theirs", "1"]
    found = judged(made)
    assert found.review["response"]["allowed"]
    _, warning = found.review["response"]["warnings"]
    half_name = {"initContainers": "init container istio-init", "containers": "container istio-proxy"}[kind]
    assert warning.startswith(f"istio-init: its rules and its proxy were not compared: {half_name}: --a-flag-of-theirs")


def test_a_pod_without_a_half_is_not_compared() -> None:
    made = really_injected()
    del made["spec"]["initContainers"]
    assert len(judged(made).review["response"]["warnings"]) == 1
