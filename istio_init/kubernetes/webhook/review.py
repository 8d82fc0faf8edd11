"""Answers AdmissionReviews. Pure.

Source: Kubernetes' API reference, `admission.k8s.io/v1`, and its chapter on dynamic admission control.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from istio_init.core.errors import InvalidInput, shorten
from istio_init.core.limits import read_json
from istio_init.kubernetes.halves import pod_contradictions
from istio_init.kubernetes.inject.pod import Workload
from istio_init.kubernetes.webhook.patch import difference

if TYPE_CHECKING:
    from istio_init.kubernetes.inject import Injection

Json = dict[str, Any]
T = TypeVar("T")

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"
POD = {"group": "", "version": "v1", "kind": "Pod"}
UNPROCESSABLE = 422  # the API server's own code for an object with an invalid value
SHOWN_LENGTH = 80  # characters of an invalid value in an error
WARNING_LENGTH = 256  # characters; the API server may truncate longer warnings
JOB_OF_A_CRON_JOB = re.compile(r"(.+)-\d{8,10}")  # the CronJob controller appends the time in minutes (formerly seconds)


class Outcome(StrEnum):
    """The outcome of a review; the values are labels of a metric."""

    INJECTED = "injected"
    LEFT_ALONE = "left_alone"
    DENIED = "denied"


class Answer(NamedTuple):
    """The answer to a review.

    Attributes:
        review: the AdmissionReview to return.
        outcome: the outcome of the review.
        note: the pod and its outcome, for the log.
    """

    review: Json
    outcome: Outcome
    note: str


class Injector(Protocol):
    """Adds the sidecar to a pod."""

    def __call__(self, template: Json, workload: Workload, where: str) -> Injection:
        """Return the pod with the sidecar, or the reason why it is not injected.

        Args:
            template: the pod; not modified.
            workload: the owner of the pod, such as its Deployment, or the pod itself.
            where: the prefix of errors.

        Raises:
            InvalidInput: the pod or one of its annotations is not allowed.
        """


class Request(NamedTuple):
    """The relevant members of an AdmissionRequest.

    Attributes:
        uid: the ID that the answer must echo.
        kind: `group`, `version` and `kind` of the object.
        subresource: such as `ephemeralcontainers`; empty for the object itself.
        operation: CREATE, UPDATE, DELETE or CONNECT.
        name: the object's name; empty if the API server has yet to generate it.
        namespace: the object's namespace, which its metadata may lack.
        dry_run: whether the object will not be persisted.
        pod: the object; empty if there is none.
    """

    uid: str
    kind: Json
    subresource: str
    operation: str
    name: str
    namespace: str
    dry_run: bool
    pod: Json


def answer(body: bytes | bytearray, inject: Injector) -> Answer:
    """Answer one review.

    Args:
        body: the AdmissionReview, as JSON.
        inject: adds the sidecar.

    Raises:
        InvalidInput: the body is not an AdmissionReview that can be answered.
    """
    request = read_request(body)
    pod_name = _title(request)
    where = f"pod {pod_name}"
    note = f"{where} (dry run)" if request.dry_run else where
    reason = _skip_reason(request)
    if reason:
        return _not_injected(request, f"{note}: not injected: {reason}")
    if not isinstance(request.pod.get("spec"), dict):
        raise InvalidInput("request.object", "not a pod", "a Pod with a spec")
    try:
        injection = inject(request.pod, workload_of(request), where)
    except InvalidInput as error:
        status = {"status": "Failure", "reason": "Invalid", "code": UNPROCESSABLE, "message": str(error)}
        return Answer(_review(request, allowed=False, status=status), Outcome.DENIED, f"{note}: denied: {error}")
    wrong = _wrong(injection.template or request.pod)
    if injection.template is None:
        return _not_injected(request, f"{note}: {injection.note}", wrong)
    patch = json.dumps(list(difference(request.pod, injection.template))).encode()
    warnings = {"warnings": [_warning(line) for line in wrong]} if wrong else {}
    answered = _review(request, allowed=True, patchType="JSONPatch", patch=b64encode(patch).decode("ascii"), **warnings)
    return Answer(answered, Outcome.INJECTED, "; ".join((f"{note}: {injection.note}", *wrong)))


def _wrong(pod: Json) -> tuple[str, ...]:
    """Return what does not fit in a pod with both halves, or why nobody could tell."""
    try:
        return pod_contradictions(pod)
    except InvalidInput as error:
        return (f"its rules and its proxy were not compared: {error}",)


def read_request(body: bytes | bytearray) -> Request:
    """Parse an AdmissionReview.

    Raises:
        InvalidInput: it is not an AdmissionReview, has an unsupported version, or lacks a member that an answer needs.
    """
    try:
        review = read_json(body, parse_constant=_reject_constant)
    except ValueError as error:
        raise InvalidInput("body", f"is not valid JSON: {error}", f"an {API_VERSION} {KIND}") from None
    if not isinstance(review, dict):
        raise InvalidInput("body", "is not a JSON object", f"an {API_VERSION} {KIND}")
    for member, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if review.get(member) != expected:
            raise InvalidInput(member, f"{_shortened(review.get(member))} is not supported", expected)
    request = _member(review, "request", dict, {})
    uid = _member(request, "uid", str, "")
    if not uid:
        raise InvalidInput("request.uid", "is missing", "the ID of the request")
    pod = _member(request, "object", dict, {})
    return Request(
        uid=uid,
        kind=_member(request, "kind", dict, {}),
        subresource=_member(request, "subResource", str, ""),
        operation=_member(request, "operation", str, ""),
        name=_member(request, "name", str, ""),
        namespace=_member(request, "namespace", str, "") or str(_metadata(pod).get("namespace") or "default"),
        dry_run=_member(request, "dryRun", bool, default=False),
        pod=pod,
    )


def workload_of(request: Request) -> Workload:
    """Return the owner of a pod: the Deployment of its ReplicaSet, the CronJob of its Job, its controller, or itself.

    The API server generates a pod's name from `generateName` only after admission.
    """
    metadata = _metadata(request.pod)
    references = metadata.get("ownerReferences")
    owners = (
        [one for one in references if isinstance(one, dict) and one.get("controller")]
        if isinstance(references, list)
        else []
    )
    if not owners:
        name = request.name or str(metadata.get("name") or "") or str(metadata.get("generateName") or "").rstrip("-")
        return Workload(name, request.namespace)
    kind, name, version = (str(owners[0].get(member) or "") for member in ("kind", "name", "apiVersion"))
    labels = metadata.get("labels")
    template_hash = labels.get("pod-template-hash") if isinstance(labels, dict) else None
    if kind == "ReplicaSet" and template_hash:
        return Workload(name.removesuffix(f"-{template_hash}"), request.namespace, "Deployment", version)
    of_cron_job = JOB_OF_A_CRON_JOB.fullmatch(name) if kind == "Job" else None
    if of_cron_job:
        return Workload(of_cron_job[1], request.namespace, "CronJob", version)
    return Workload(name, request.namespace, kind, version)


def _skip_reason(request: Request) -> str:
    if {**request.kind, "group": request.kind.get("group") or ""} != POD:
        group, version, kind = (str(request.kind.get(part) or "") for part in ("group", "version", "kind"))
        found = f"{group}/{version} {kind}".strip("/ ")
        return f"only v1 Pods are injected, not {shorten(found) or 'an unspecified kind'}"
    if request.subresource:
        return f"only pods are injected, not their subresource {_shortened(request.subresource)}"
    if request.operation != "CREATE":
        return f"only new pods are injected; the operation is {shorten(request.operation) or 'missing'}, not CREATE"
    return ""


def _not_injected(request: Request, note: str, wrong: tuple[str, ...] = ()) -> Answer:
    answered = _review(request, allowed=True, warnings=[_warning(line) for line in (note, *wrong)])
    return Answer(answered, Outcome.LEFT_ALONE, "; ".join((note, *wrong)))


def _warning(text: str) -> str:
    # A warning becomes an HTTP header, so it must be a single line.
    return " ".join(f"istio-init: {text}".split())[:WARNING_LENGTH]


def _review(request: Request, **response: Any) -> Json:
    return {"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": request.uid, **response}}


def _title(request: Request) -> str:
    metadata = _metadata(request.pod)
    generated = metadata.get("generateName")
    own = request.name or metadata.get("name") or (f"{generated}*" if generated else "unnamed")
    return shorten(f"{request.namespace}/{own}")


def _metadata(pod: Json) -> Json:
    metadata = pod.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _member(owner: Json, name: str, kind: type[T], default: T) -> T:
    value = owner.get(name)
    if value is None:  # Go serializes empty values as null
        return default
    if not isinstance(value, kind):
        raise InvalidInput(name, f"{_shortened(value)} has the wrong type", kind.__name__)
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}…"


def _reject_constant(name: str) -> None:
    """Reject NaN and infinities, which Python's parser accepts but JSON does not have."""
    raise ValueError(name)
