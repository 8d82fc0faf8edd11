"""One document of a manifest: what has pods in it is changed, and everything else is handed on. Pure."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject.pod import Workload
from istio_init.kubernetes.inject.settings import INJECT
from istio_init.kubernetes.inject.template import TEXTS, inject_template, uninject_template
from istio_init.kubernetes.manifest import GROUPS, KINDS, is_list

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_init.kubernetes.inject.settings import InjectSettings
    from istio_init.kubernetes.inject.template import Injection, Json

    Change = Callable[[Json, Json, str], Injection]  # a document, its pod template, and where it is


TO_END = ("Job", "CronJob")
NEVER_ENDS = "a Job does not end while its proxy runs: use --layout current --native-sidecar"


def inject_document(document: Any, settings: InjectSettings, where: str) -> tuple[Any, tuple[str, ...]]:
    """Inject each pod template of a document.

    Args:
        document: any object of Kubernetes, or a List of them; it is not changed.
        settings: what the command line says.
        where: the file and the document.

    Returns:
        The document, and a line for each pod template about what became of it.

    Raises:
        InvalidInput: an annotation or a part of the template is not allowed.
    """
    return _changed(document, partial(_inject, settings), where)


def uninject_document(document: Any, where: str) -> tuple[Any, tuple[str, ...]]:
    """Take out what was injected into a document; otherwise as `inject_document`."""
    return _changed(document, lambda _, template, place: uninject_template(template, where=place), where)


def _inject(settings: InjectSettings, document: Json, template: Json, where: str) -> Injection:
    namespace = str(_metadata(document).get("namespace") or "default")
    kind = document["kind"]
    workload = Workload(_name(document), namespace, kind, str(document.get("apiVersion") or ""))
    made = inject_template(template, settings, workload, where)
    warnings = [NEVER_ENDS] if made.template is not None and kind in TO_END and not settings.native_sidecar else []
    if template is not document and any(INJECT in (_metadata(document).get(part) or ()) for part in TEXTS):
        warnings.append(f"{INJECT} of the {kind} itself has no effect: it belongs to the metadata of the pod template")
    return made._replace(note="; ".join((made.note, *warnings)))


def _changed(document: Any, change: Change, where: str) -> tuple[Any, tuple[str, ...]]:
    if is_list(document):
        done = [_changed(item, change, f"{where}: item {index}") for index, item in enumerate(document["items"], start=1)]
        return {**document, "items": [item for item, _ in done]}, tuple(note for _, notes in done for note in notes)
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in KINDS or _group(document) not in GROUPS:
        return document, ()
    way = KINDS[kind]
    injection = change(document, _at(document, way, where), where)
    note = f"{where}: {kind} {_name(document)!r}: {injection.note}"
    return document if injection.template is None else _put(document, way, injection.template), (note,)


def _group(document: Json) -> str:
    return str(document.get("apiVersion") or "").rpartition("/")[0]


def _at(document: Json, way: Sequence[str], where: str) -> Json:
    for depth, name in enumerate(way, start=1):
        document = document.get(name)  # type: ignore[assignment] # looked at in the next line
        if not isinstance(document, dict):
            raise InvalidInput(where, f"{'.'.join(way[:depth])} is no object", "a manifest as Kubernetes has it")
    return document


def _put(document: Json, way: Sequence[str], template: Json) -> Json:
    if not way:
        return template
    return {**document, way[0]: _put(document[way[0]], way[1:], template)}


def _metadata(document: Json) -> Json:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _name(document: Json) -> str:
    metadata = _metadata(document)
    return str(metadata.get("name") or str(metadata.get("generateName") or "unnamed").rstrip("-"))
