"""Injects one document of a manifest; documents without pods pass through unchanged. Pure."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from istio_init.core.errors import InvalidInput, shorten
from istio_init.kubernetes.inject.pod import Workload
from istio_init.kubernetes.inject.settings import INJECT
from istio_init.kubernetes.inject.template import TEXTS, inject_template, uninject_template
from istio_init.kubernetes.manifest import GROUPS, KINDS, is_list

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_init.kubernetes.inject.settings import InjectSettings
    from istio_init.kubernetes.inject.template import Injection, Json

    Change = Callable[[Json, Json, str], Injection]  # a document, its pod template, and their location


RUN_TO_COMPLETION = ("Job", "CronJob")
NEVER_ENDS = "the Job will not complete while its proxy runs: use --layout current --native-sidecar"


def inject_document(document: Any, settings: InjectSettings, where: str) -> tuple[Any, tuple[str, ...]]:
    """Inject each pod template of a document.

    Args:
        document: any Kubernetes object, or a List of them; not modified.
        settings: the command line's settings.
        where: the file and the document, for errors.

    Returns:
        The new document, and a note about the outcome for each pod template.

    Raises:
        InvalidInput: an annotation or a member of the template is not allowed.
    """
    return _changed(document, partial(_inject, settings), where)


def uninject_document(document: Any, where: str) -> tuple[Any, tuple[str, ...]]:
    """Remove what was injected into a document; see `inject_document`."""
    return _changed(document, lambda _, template, place: uninject_template(template, where=place), where)


def _inject(settings: InjectSettings, document: Json, template: Json, where: str) -> Injection:
    namespace = str(_metadata(document).get("namespace") or "default")
    kind = document["kind"]
    workload = Workload(_name(document), namespace, kind, str(document.get("apiVersion") or ""))
    made = inject_template(template, settings, workload, where)
    warnings = (
        [NEVER_ENDS] if made.template is not None and kind in RUN_TO_COMPLETION and not settings.native_sidecar else []
    )
    if template is not document and any(INJECT in _object(_metadata(document).get(part)) for part in TEXTS):
        warnings.append(f"{INJECT} on the {kind} itself has no effect: it must be in the pod template's metadata")
    return made._replace(note="; ".join((made.note, *warnings)))


def _changed(document: Any, change: Change, where: str) -> tuple[Any, tuple[str, ...]]:
    if is_list(document):
        done = [_changed(item, change, f"{where}: item {index}") for index, item in enumerate(document["items"], start=1)]
        return {**document, "items": [item for item, _ in done]}, tuple(note for _, notes in done for note in notes)
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in KINDS or _group(document) not in GROUPS:
        return document, ()
    path = KINDS[kind]
    injection = change(document, _at(document, path, where), where)
    note = f"{where}: {kind} {shorten(_name(document))!r}: {injection.note}"
    return document if injection.template is None else _put(document, path, injection.template), (note,)


def _group(document: Json) -> str:
    return str(document.get("apiVersion") or "").rpartition("/")[0]


def _at(document: Json, path: Sequence[str], where: str) -> Json:
    for depth, name in enumerate(path, start=1):
        member = document.get(name)
        if not isinstance(member, dict):
            raise InvalidInput(where, f"{'.'.join(path[:depth])} is not an object", "a valid Kubernetes manifest")
        document = member
    return document


def _put(document: Json, path: Sequence[str], template: Json) -> Json:
    if not path:
        return template
    return {**document, path[0]: _put(document[path[0]], path[1:], template)}


def _metadata(document: Json) -> Json:
    return _object(document.get("metadata"))


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _name(document: Json) -> str:
    metadata = _metadata(document)
    return str(metadata.get("name") or str(metadata.get("generateName") or "unnamed").rstrip("-"))
