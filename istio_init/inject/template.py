"""One pod template: injected, or given back. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from istio_init.inject.settings import InjectSettings

Json = dict[str, Any]


class Injection(NamedTuple):
    """What became of a pod template.

    Attributes:
        template: the changed one, or None where it is left alone.
        note: what was done, or why nothing was.
    """

    template: Json | None
    note: str


def inject_template(template: Json, settings: InjectSettings, *, name: str, namespace: str, where: str) -> Injection:
    """Add the init container, the proxy and what they need.

    Args:
        template: `{"metadata": …, "spec": …}`, as a Pod or a PodTemplateSpec is; it is not changed.
        settings: what the command line says.
        name: of the workload, or of the pod.
        namespace: that it is in.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: an annotation or a part of the template is not allowed.
    """
    raise NotImplementedError


def uninject_template(template: Json, *, where: str) -> Injection:
    """Take out what `inject_template` added.

    Args:
        template: as for `inject_template`; it is not changed.
        where: the file and the document, for errors.

    Raises:
        InvalidInput: the status annotation is not one of ours.
    """
    raise NotImplementedError
