"""One pod template: injected, or given back. Pure."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject import current, istio_1_0
from istio_init.kubernetes.inject.pod import Pieces, Pod, check_ports, read_ports
from istio_init.kubernetes.inject.settings import INJECT, STATUS, InjectSettings, Wishes, wants_injection
from istio_init.kubernetes.manifest import INIT, PROXY
from istio_init.rules.options import CURRENT, ISTIO_1_0

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.kubernetes.inject.pod import Workload

Json = dict[str, Any]

PIECES = {ISTIO_1_0: istio_1_0.pieces, CURRENT: current.pieces}
LISTS = ("initContainers", "containers", "volumes")
TEXTS = ("labels", "annotations")
# The status annotation's own member: what was there, but empty, before something was added to it.
EMPTY = "empty"
ALLOWED = "a pod as Kubernetes has it"
ALLOWED_STATUS = "what `istio-init inject` wrote"


class Injection(NamedTuple):
    """What became of a pod template.

    Attributes:
        template: the changed one, or None where it is left alone.
        note: what was done, or why nothing was.
    """

    template: Json | None
    note: str


def inject_template(template: Json, settings: InjectSettings, workload: Workload, where: str) -> Injection:
    """Add the init container, the proxy and what they need.

    Args:
        template: `{"metadata": …, "spec": …}`, as a Pod or a PodTemplateSpec is; it is not changed.
        settings: what the command line says.
        workload: what makes the pod.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: an annotation or a part of the template is not allowed.
    """
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    labels, annotations = (_texts(metadata, kind, where) for kind in TEXTS)
    reason = _why_not(spec, labels, annotations, where)
    if reason:
        return Injection(None, reason)
    wishes = Wishes.read(annotations, settings, where)
    names = tuple(str(one.get("name")) for one in _objects(spec, "containers", where))
    account = str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")
    ports = read_ports(spec, where)
    warnings = (*wishes.warnings, *check_ports(ports, wishes, where), *_user_warnings(spec, settings, where))
    pod = Pod(workload, labels, annotations, account, names, ports, wishes, settings)
    pieces = PIECES[settings.layout](pod)
    _refuse_taken_names(spec, pieces, where)
    note = "; ".join((f"injected (layout {settings.layout}, namespace {workload.namespace})", *warnings))
    return Injection(_with(template, pieces, where), note)


def uninject_template(template: Json, *, where: str) -> Injection:
    """Take out what `inject_template` added.

    Args:
        template: as for `inject_template`; it is not changed.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: the status annotation is not one of ours, or a part of the template has the wrong type.
    """
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    text = _texts(metadata, "annotations", where).get(STATUS)
    if text is None:
        return Injection(None, "left alone: it is not injected")
    status = _read_status(text, where)
    empty = status[EMPTY]
    for member in LISTS:
        if status[member]:
            remaining = [one for one in _objects(spec, member, where) if one.get("name") not in status[member]]
            _put_back(spec, member, remaining, f"spec.{member}", empty)
    status["annotations"].append(STATUS)
    for member in TEXTS:
        kept = {key: value for key, value in _texts(metadata, member, where).items() if key not in status[member]}
        if status[member]:
            _put_back(metadata, member, kept, f"metadata.{member}", empty)
    result = {**template, "spec": spec}
    _put_back(result, "metadata", metadata, "metadata", empty)
    return Injection(deepcopy(result), "given back")


def _why_not(spec: Json, labels: dict[str, str], annotations: dict[str, str], where: str) -> str:
    if STATUS in annotations:
        _read_status(annotations[STATUS], where)
        return "already injected"
    if spec.get("hostNetwork") is True:
        return "left alone: it is in its host's network (hostNetwork), whose rules are the host's"
    if not wants_injection(labels, annotations, where):
        return f"left alone: {INJECT} says so"
    containers = _objects(spec, "containers", where)
    for container in (*containers, *_objects(spec, "initContainers", where)):
        if container.get("name") in (INIT, PROXY):
            return f"left alone: it has a container {container['name']} that this program did not add"
    return "" if containers else "left alone: it has no containers"


def _user_warnings(spec: Json, settings: InjectSettings, where: str) -> Iterator[str]:
    """Tell where a pod says of all its containers what istio-1.0's init container does not gainsay, and root it must be."""
    context = _object(spec, "securityContext", where)
    if (
        settings.layout == ISTIO_1_0
        and not settings.unprivileged
        and (context.get("runAsUser") or context.get("runAsNonRoot"))
    ):
        yield "the pod's securityContext keeps the init container from being root, which it must be: use --unprivileged"


def _refuse_taken_names(spec: Json, pieces: Pieces, where: str) -> None:
    taken = {one.get("name") for one in _objects(spec, "volumes", where)}
    for volume in pieces.volumes:
        if volume["name"] in taken:
            problem = f"the pod has a volume {volume['name']!r}, which is the name of one of the proxy's"
            raise InvalidInput(where, problem, "another name")


def _with(template: Json, pieces: Pieces, where: str) -> Json:
    """Add the pieces, and the annotation that says which they are."""
    metadata, spec = _object(template, "metadata", where), _object(template, "spec", where)
    lists = {"initContainers": pieces.init_containers, "containers": pieces.containers, "volumes": pieces.volumes}
    texts = {"labels": pieces.labels, "annotations": pieces.annotations}
    empty = {
        **_emptiness(template, "metadata", ["metadata"]),
        **_emptiness(metadata, "metadata.", [*filter(texts.get, TEXTS), "annotations"]),
        **_emptiness(spec, "spec.", filter(lists.get, LISTS)),
    }
    names = {member: [one["name"] for one in added] or None for member, added in lists.items()}
    record = {**names, "imagePullSecrets": None, **pieces.status, **({EMPTY: empty} if empty else {})}
    status = {"version": hashlib.sha256(_line([lists, texts]).encode()).hexdigest(), **record}
    texts["annotations"] = {**texts["annotations"], STATUS: _line(status)}
    for member, added in lists.items():
        if added:
            there = _objects(spec, member, where)
            spec[member] = [*added, *there] if member == "initContainers" and pieces.init_first else [*there, *added]
    for kind, more in texts.items():
        if more:
            metadata[kind] = {**_texts(metadata, kind, where), **more}
    return deepcopy({**template, "metadata": metadata, "spec": spec})


def _emptiness(owner: Json, prefix: str, members: Iterable[str]) -> Json:
    """Note which members are there, but empty: null, a list or an object without anything in it."""
    return {
        prefix if prefix == member else f"{prefix}{member}": owner[member]
        for member in members
        if member in owner and not owner[member]
    }


def _put_back(owner: Json, member: str, value: Any, path: str, empty: Json) -> None:
    """Set a member to what is left of it; of nothing is left what was there before."""
    if value:
        owner[member] = value
    elif path in empty:
        owner[member] = empty[path]
    else:
        owner.pop(member, None)


def _read_status(text: str, where: str) -> Json:
    """Read a status annotation, ours or Istio's, and fill in what it does not have."""
    place = f"{where}: annotation {STATUS}"
    try:
        status = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(place, f"{text!r} is not JSON: {error}", ALLOWED_STATUS) from None
    if not isinstance(status, dict) or not isinstance(status.get(EMPTY, {}), dict):
        raise InvalidInput(place, f"{text!r} is no status", ALLOWED_STATUS)
    for member in (*LISTS, *TEXTS):
        names = status.get(member) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInput(place, f"{member} is no list of names", ALLOWED_STATUS)
        status[member] = names
    return {EMPTY: {}, **status}


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(owner: Json, member: str, where: str) -> Json:
    """Give a copy of a member that is an object, or an empty one where there is none."""
    value = owner.get(member)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(where, f"{member} is no object", ALLOWED)
    return dict(value or {})


def _objects(owner: Json, member: str, where: str) -> list[Json]:
    value = owner.get(member)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidInput(where, f"{member} is no list of objects", ALLOWED)
    return value


def _texts(metadata: Json, member: str, where: str) -> dict[str, str]:
    texts = _object(metadata, member, where)
    for key, value in texts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput(f"{where}: {member.removesuffix('s')} {key}", f"{value!r} is no text", "text, in quotes")
    return texts
