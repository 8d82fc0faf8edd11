"""AdmissionReview → its answer. Pure.

Source: Kubernetes' API reference, `admission.k8s.io/v1`, and its chapter on dynamic admission control.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject.pod import Workload
from istio_init.kubernetes.webhook.patch import difference

if TYPE_CHECKING:
    from istio_init.kubernetes.inject import Injection

Json = dict[str, Any]
T = TypeVar("T")

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"
POD = {"group": "", "version": "v1", "kind": "Pod"}
UNPROCESSABLE = 422  # as the API server itself has it for an object with a value that is not allowed
WARNING_LENGTH = 256  # characters, behind which the API server may cut
JOB_OF_A_CRON_JOB = re.compile(r"(.+)-\d{8,10}")  # a CronJob's controller adds the time, in minutes (formerly seconds)


class Outcome(StrEnum):
    """What became of a pod."""

    INJECTED = "injected"
    LEFT_ALONE = "left_alone"
    DENIED = "denied"


class Answer(NamedTuple):
    """What the API server is told.

    Attributes:
        review: the AdmissionReview that goes back.
        outcome: what became of the pod.
        note: in words, and of which pod; for the log.
    """

    review: Json
    outcome: Outcome
    note: str


class Injector(Protocol):
    """Adds the sidecar to a pod."""

    def __call__(self, template: Json, workload: Workload, where: str) -> Injection:
        """Give the pod with the sidecar, or say why it is left alone.

        Args:
            template: the pod, which is not changed.
            workload: what made the pod, such as its Deployment, or the pod itself.
            where: what an error begins with.

        Raises:
            InvalidInput: an annotation, or the pod, is not allowed.
        """


class Request(NamedTuple):
    """A question of the API server's, with the members that matter here.

    Attributes:
        uid: what the answer must repeat.
        kind: `group`, `version` and `kind` of the object.
        subresource: such as `ephemeralcontainers`; empty for the object itself.
        operation: CREATE, UPDATE, DELETE or CONNECT.
        name: the object's; empty where the API server has yet to make one.
        namespace: the object's, which it need not name itself.
        dry_run: nothing will be kept.
        pod: the object; empty where there is none.
    """

    uid: str
    kind: Json
    subresource: str
    operation: str
    name: str
    namespace: str
    dry_run: bool
    pod: Json


def answer(body: bytes, inject: Injector) -> Answer:
    """Answer one review.

    Args:
        body: the AdmissionReview, as JSON.
        inject: what adds the sidecar.

    Raises:
        InvalidInput: the body is not an AdmissionReview that can be answered.
    """
    request = read_request(body)
    pod_name = _title(request)
    where = f"pod {pod_name}"
    note = f"{where} (dry run)" if request.dry_run else where
    reason = _reason_to_leave_alone(request)
    if reason:
        return _left_alone(request, f"{note}: left alone: {reason}")
    if not isinstance(request.pod.get("spec"), dict):
        raise InvalidInput("request.object", "there is no pod in it", "a Pod with its spec")
    try:
        found = inject(request.pod, workload_of(request), where)
    except InvalidInput as error:
        status = {"status": "Failure", "reason": "Invalid", "code": UNPROCESSABLE, "message": str(error)}
        return Answer(_review(request, allowed=False, status=status), Outcome.DENIED, f"{note}: denied: {error}")
    if found.template is None:
        return _left_alone(request, f"{note}: {found.note}")
    patch = json.dumps(list(difference(request.pod, found.template))).encode()
    answered = _review(request, allowed=True, patchType="JSONPatch", patch=b64encode(patch).decode("ascii"))
    return Answer(answered, Outcome.INJECTED, f"{note}: {found.note}")


def read_request(body: bytes) -> Request:
    """Read an AdmissionReview.

    Raises:
        InvalidInput: it is none, or of another version, or lacks what an answer needs.
    """
    try:
        review = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", f"cannot be read as JSON: {error}", f"an {KIND} of {API_VERSION}") from None
    if not isinstance(review, dict):
        raise InvalidInput("body", "is not a JSON object", f"an {KIND} of {API_VERSION}")
    for member, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if review.get(member) != expected:
            raise InvalidInput(member, f"{_shortened(review.get(member))} is not spoken here", expected)
    request = _member(review, "request", dict, {})
    uid = _member(request, "uid", str, "")
    if not uid:
        raise InvalidInput("request.uid", "there is none", "the id of the question, which its answer repeats")
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
    """Tell what made a pod: the Deployment behind its ReplicaSet, the CronJob behind its Job, its owner, or itself.

    The API server makes a pod's own name from `generateName` only after it has asked.
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


def _reason_to_leave_alone(request: Request) -> str:
    if {**request.kind, "group": request.kind.get("group") or ""} != POD:
        group, version, kind = (str(request.kind.get(part) or "") for part in ("group", "version", "kind"))
        return f"only pods of v1 are injected, and this is a {kind or 'thing'} of {group}{'/' if group else ''}{version}"
    if request.subresource:
        return f"only pods themselves are injected, and this is their {request.subresource}"
    if request.operation != "CREATE":
        return f"only new pods are injected, and this is {request.operation or 'no CREATE'}"
    return ""


def _left_alone(request: Request, note: str) -> Answer:
    # A warning travels in an HTTP header: one line.
    warning = " ".join(f"istio-init: {note}".split())[:WARNING_LENGTH]
    answered = _review(request, allowed=True, warnings=[warning])
    return Answer(answered, Outcome.LEFT_ALONE, note)


def _review(request: Request, **response: Any) -> Json:
    return {"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": request.uid, **response}}


def _title(request: Request) -> str:
    metadata = _metadata(request.pod)
    generated = metadata.get("generateName")
    own = request.name or metadata.get("name") or (f"{generated}*" if generated else "unnamed")
    return f"{request.namespace}/{own}"


def _metadata(pod: Json) -> Json:
    metadata = pod.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _member(owner: Json, name: str, kind: type[T], default: T) -> T:
    value = owner.get(name)
    if value is None:  # JSON from Go has null where there is nothing
        return default
    if not isinstance(value, kind):
        raise InvalidInput(name, f"{_shortened(value)} has the wrong type", kind.__name__)
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"  # noqa: PLR2004 - enough to know it by


def _no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which JSON does not have and Python's parser takes."""
    raise ValueError(name)
