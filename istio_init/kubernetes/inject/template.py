"""Injects a pod template, and reverts that. Pure."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput, shorten
from istio_init.core.limits import read_json
from istio_init.kubernetes.inject import istio_1_0, istio_1_30
from istio_init.kubernetes.inject.pod import Additions, PodTemplate, check_ports, read_ports
from istio_init.kubernetes.inject.settings import INJECT, STATUS, InjectSettings, PodAnnotations, wants_injection
from istio_init.kubernetes.manifest import INIT, PROXY
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, entry, find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.kubernetes.inject.pod import Workload

Json = dict[str, Any]

ADDITIONS = {ISTIO_1_0: istio_1_0.additions, ISTIO_1_30: istio_1_30.additions}
LISTS = ("initContainers", "containers", "volumes")
TEXTS = ("labels", "annotations")
# A member of the status annotation: the members that were present but empty before the injection.
EMPTY = "empty"
ALLOWED = "a valid Kubernetes pod"
MAX_ANNOTATIONS = 256 * 1024  # bytes of all names and values; Kubernetes refuses more (TotalAnnotationSizeLimitB)
ALLOWED_STATUS = "a value written by `istio-init inject`"


class Injection(NamedTuple):
    """The result of injecting or uninjecting a pod template.

    Attributes:
        template: the new template, or None if it is unchanged.
        note: the outcome, and the reason if nothing was changed.
    """

    template: Json | None
    note: str


def inject_template(template: Json, settings: InjectSettings, workload: Workload, where: str) -> Injection:
    """Add the init container, the proxy and their volumes.

    Args:
        template: a Pod or PodTemplateSpec, `{"metadata": …, "spec": …}`; not modified.
        settings: the command line's settings.
        workload: the pod's owner.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: an annotation or a member of the template is not allowed.
    """
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    labels, annotations = (_texts(metadata, kind, where) for kind in TEXTS)
    _limit_annotations(annotations, where)
    reason = _skip_reason(spec, labels, annotations, where)
    if reason:
        return Injection(None, reason)
    parsed = PodAnnotations.read(annotations, settings, where)
    names = tuple(str(one.get("name")) for one in _objects(spec, "containers", where))
    account = str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")
    ports = read_ports(spec, where)
    warnings = (*parsed.warnings, *check_ports(ports, parsed, where), *_user_warnings(spec, settings, where))
    pod = PodTemplate(workload, labels, annotations, account, names, ports, parsed, settings)
    additions = entry(ADDITIONS, settings.layout, "injection")(pod)
    _reject_volume_conflicts(spec, additions, where)
    note = "; ".join((f"injected (layout {find(settings.layout).name}, namespace {shorten(workload.namespace)})", *warnings))
    return Injection(_apply(template, additions, where), note)


def uninject_template(template: Json, *, where: str) -> Injection:
    """Remove what `inject_template` added.

    Args:
        template: a Pod or PodTemplateSpec; not modified.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: the status annotation is invalid, or a member of the template has the wrong type.
    """
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    text = _texts(metadata, "annotations", where).get(STATUS)
    if text is None:
        return Injection(None, "unchanged: not injected")
    status = _read_status(text, where)
    empty = status[EMPTY]
    for member in LISTS:
        if status[member]:
            remaining = [one for one in _objects(spec, member, where) if one.get("name") not in status[member]]
            _restore(spec, member, remaining, f"spec.{member}", empty)
    status["annotations"].append(STATUS)
    for member in TEXTS:
        kept = {key: value for key, value in _texts(metadata, member, where).items() if key not in status[member]}
        if status[member]:
            _restore(metadata, member, kept, f"metadata.{member}", empty)
    result = {**template, "spec": spec}
    _restore(result, "metadata", metadata, "metadata", empty)
    return Injection(deepcopy(result), "sidecar removed")


def _skip_reason(spec: Json, labels: dict[str, str], annotations: dict[str, str], where: str) -> str:
    if STATUS in annotations:
        _read_status(annotations[STATUS], where)
        return "already injected"
    if spec.get("hostNetwork") is True:
        return "not injected: hostNetwork is set, so the rules would apply to the host"
    if not wants_injection(labels, annotations, where):
        return f"not injected: disabled by {INJECT}"
    containers = _objects(spec, "containers", where)
    for container in (*containers, *_objects(spec, "initContainers", where)):
        if container.get("name") in (INIT, PROXY):
            return f"not injected: it already has a container {container['name']}, which this program did not add"
    return "" if containers else "not injected: it has no containers"


def _limit_annotations(annotations: dict[str, str], where: str) -> None:
    size = sum(len(text.encode(errors="surrogatepass")) for item in annotations.items() for text in item)
    if size > MAX_ANNOTATIONS:
        raise InvalidInput(f"{where}: annotations", f"they have {size} bytes", f"up to {MAX_ANNOTATIONS}, as in Kubernetes")


def _user_warnings(spec: Json, settings: InjectSettings, where: str) -> Iterator[str]:
    """Warn if the pod's security context keeps istio-1.0's init container, which does not override it, from being root."""
    context = _object(spec, "securityContext", where)
    if (
        settings.traits.is_privileged
        and not settings.unprivileged
        and (context.get("runAsUser") or context.get("runAsNonRoot"))
    ):
        yield "the pod's securityContext keeps the init container from running as root, as it must: use --unprivileged"


def _reject_volume_conflicts(spec: Json, additions: Additions, where: str) -> None:
    existing = {one.get("name") for one in _objects(spec, "volumes", where)}
    for volume in additions.volumes:
        if volume["name"] in existing:
            problem = f"the pod already has a volume {volume['name']!r}, which the proxy needs"
            raise InvalidInput(where, problem, "another name")


def _apply(template: Json, additions: Additions, where: str) -> Json:
    """Apply the additions, and record them in the status annotation."""
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    lists = {"initContainers": additions.init_containers, "containers": additions.containers, "volumes": additions.volumes}
    texts = {"labels": additions.labels, "annotations": additions.annotations}
    empty = {
        **_empty_members(template, "metadata", ["metadata"]),
        **_empty_members(metadata, "metadata.", [*filter(texts.get, TEXTS), "annotations"]),
        **_empty_members(spec, "spec.", filter(lists.get, LISTS)),
    }
    names = {member: [one["name"] for one in added] or None for member, added in lists.items()}
    record = {**names, "imagePullSecrets": None, **additions.status, **({EMPTY: empty} if empty else {})}
    status = {"version": hashlib.sha256(_line([lists, texts]).encode()).hexdigest(), **record}
    texts["annotations"] = {**texts["annotations"], STATUS: _line(status)}
    for member, added in lists.items():
        if added:
            there = _objects(spec, member, where)
            spec[member] = [*added, *there] if member == "initContainers" and additions.init_first else [*there, *added]
    for kind, more in texts.items():
        if more:
            metadata[kind] = {**_texts(metadata, kind, where), **more}
    return deepcopy({**template, "metadata": metadata, "spec": spec})


def _empty_members(owner: Json, prefix: str, members: Iterable[str]) -> Json:
    """Record the members that are present but empty: null, `[]` or `{}`."""
    return {
        prefix if prefix == member else f"{prefix}{member}": owner[member]
        for member in members
        if member in owner and not owner[member]
    }


def _restore(owner: Json, member: str, value: Any, path: str, empty: Json) -> None:
    """Set a member to its remaining value; if nothing remains, restore its original empty value, if any."""
    if value:
        owner[member] = value
    elif path in empty:
        owner[member] = empty[path]
    else:
        owner.pop(member, None)


def _read_status(text: str, where: str) -> Json:
    """Parse a status annotation, ours or Istio's, and fill in missing members."""
    annotation = f"{where}: annotation {STATUS}"
    try:
        status = read_json(text)
    except ValueError as error:
        raise InvalidInput(annotation, f"{text!r} is not JSON: {error}", ALLOWED_STATUS) from None
    if not isinstance(status, dict) or not isinstance(status.get(EMPTY, {}), dict):
        raise InvalidInput(annotation, f"{text!r} is not an injection status", ALLOWED_STATUS)
    for member in (*LISTS, *TEXTS):
        names = status.get(member) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInput(annotation, f"{member} is not a list of names", ALLOWED_STATUS)
        status[member] = names
    return {EMPTY: {}, **status}


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(owner: Json, member: str, where: str) -> Json:
    """Return a copy of a member that is an object, or an empty object if it is missing."""
    value = owner.get(member)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(where, f"{member} is not an object", ALLOWED)
    return dict(value or {})


def _objects(owner: Json, member: str, where: str) -> list[Json]:
    value = owner.get(member)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidInput(where, f"{member} is not a list of objects", ALLOWED)
    for one in value:
        if not isinstance(one.get("name"), (str, NoneType)):
            raise InvalidInput(where, f"{member}: name {one['name']!r} is not a string", "a quoted string")
    return value


def _texts(metadata: Json, member: str, where: str) -> dict[str, str]:
    texts = _object(metadata, member, where)
    for key, value in texts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput(f"{where}: {member.removesuffix('s')} {key}", f"{value!r} is not a string", "a quoted string")
    return texts
