"""A pod's manifest → what its init container and its proxy are given. Pure.

Source: Kubernetes' API reference, `PodSpec` and `Container`.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.rules.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, Any]

INIT = "istio-init"
PROXY = "istio-proxy"
OUR_FLAGS = frozenset(flag for option in OPTIONS for flag in option.flags)
# Stands for the pod's address, which is known only when it runs: of RFC 5737's block for examples, so nobody has it.
PLACEHOLDER_ADDRESS = "192.0.2.1"
# Today's command of the init container, and the first of its arguments; flags alone are those of Istio 1.0.
IPTABLES_COMMAND = "istio-iptables"
# From a manifest to its pod: it is one, or it has a template, or a template of one that has a template.
IT_IS_ONE, TEMPLATE, JOB_TEMPLATE = (), ("spec", "template"), ("spec", "jobTemplate", "spec", "template")
WAYS_TO_A_POD = (IT_IS_ONE, TEMPLATE, JOB_TEMPLATE)
KINDS = {
    "Pod": IT_IS_ONE,
    "CronJob": JOB_TEMPLATE,
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"), TEMPLATE),
}
# The API groups that these are of, now or in former versions; others have kinds of the same names.
GROUPS = frozenset({"", "apps", "batch", "extensions"})
REFERENCE = re.compile(r"\$\$|\$\(([^)]+)\)")
ALLOWED = f"a manifest of one pod, or of what makes pods, with the init container {INIT} and the container {PROXY}"


class Container(NamedTuple):
    """What a container is started with.

    Attributes:
        words: its arguments; without the program and, for the proxy, without the word `proxy`. Those of the rules begin
            with `istio-iptables` where that is the command.
        environ: its variables, without those that only a running pod has, such as those from a Secret.
    """

    words: tuple[str, ...]
    environ: dict[str, str]


class Manifest(NamedTuple):
    """What a manifest says about a pod's two halves.

    Attributes:
        rules: the init container.
        proxy: the container of the proxy.
        run_as_uid: the user that the proxy's container runs as, or None where its image decides.
        run_as_gid: the group, likewise.
        container_ports: the name of each other container, and a TCP port that it declares.
    """

    rules: Container
    proxy: Container
    run_as_uid: int | None
    run_as_gid: int | None
    container_ports: tuple[tuple[str, int], ...]


def read_manifest(text: str, where: str) -> Manifest:
    """Find the two halves in a manifest of one or more YAML documents, one of which is or makes their pod.

    Args:
        text: YAML or JSON.
        where: the flag and the file that gave it.

    Raises:
        InvalidInput: it is no YAML, or does not have both halves exactly once, or a part of them has the wrong type.
    """
    try:
        return _halves(read_yaml(text))
    except ValueError as error:
        raise InvalidInput(where, str(error), ALLOWED) from None


def is_list(document: Any) -> bool:
    """Tell whether a document holds others in its `items`: `List`, or a list of one kind, such as `PodList`."""
    return (
        isinstance(document, dict) and str(document.get("kind")).endswith("List") and isinstance(document.get("items"), list)
    )


def container_ports(spec: Json) -> Iterator[tuple[str, int]]:
    """Give the name of each container of the app, and a TCP port that it declares; nothing else is captured.

    Args:
        spec: a `PodSpec`; its init containers that go on running count, too.

    Raises:
        ValueError: a part of it has the wrong type.
    """
    lasting = [one for one in _objects(spec.get("initContainers"), "initContainers") if one.get("restartPolicy") == "Always"]
    for container in (*_objects(spec.get("containers"), "containers"), *lasting):
        if container.get("name") == PROXY:
            continue
        for port in _objects(container.get("ports"), "ports"):
            if port.get("protocol", "TCP") == "TCP":
                yield str(container.get("name")), _number(port.get("containerPort"), "containerPort")


def read_yaml(text: str) -> list[Any]:
    """Give the documents of a YAML file, or the only one of a JSON file.

    Raises:
        ValueError: it is neither.
    """
    import yaml

    with suppress(ValueError, RecursionError):
        return [json.loads(text)]  # nearly all of JSON is YAML, but tabs are not
    try:
        return list(yaml.safe_load_all(text))
    # The parser lets through whatever a value's own constructor raises.
    except (yaml.YAMLError, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        message = f"cannot be read as YAML: {error}"
        raise ValueError(message) from None


class _Pod(NamedTuple):
    """A pod as a manifest has it.

    Attributes:
        fields: what its containers' variables may refer to, by `fieldPath`.
        spec: the `PodSpec`.
    """

    fields: dict[str, str]
    spec: Json

    def containers(self, kind: str) -> list[Json]:
        return _objects(self.spec.get(kind), kind)

    def init(self) -> Json | None:
        """Find the container that writes the rules: by its name, else by its command or its flags."""
        found = self.containers("initContainers")
        named = [one for one in found if one.get("name") == INIT]
        return next(iter(named or [one for one in found if _has_our_flags(_words(one, {}))]), None)

    def proxy(self) -> Json | None:
        """Find the proxy, which may also be an init container that goes on running."""
        found = (*self.containers("containers"), *self.containers("initContainers"))
        return next((one for one in found if one.get("name") == PROXY), None)


def _halves(documents: Sequence[Any]) -> Manifest:
    pods = [pod for document in documents for pod in _pods(document)]
    with_a_half = [pod for pod in pods if pod.init() is not None or pod.proxy() is not None]
    if not pods:
        raise ValueError("there is no pod in it")
    if len(with_a_half) > 1:
        names = ", ".join(pod.fields["metadata.name"] for pod in with_a_half)
        raise ValueError(f"there are {len(with_a_half)} pods with a proxy or rules in it ({names})")
    pod = (with_a_half or pods)[0]
    init, proxy = pod.init(), pod.proxy()
    if init is None:
        raise ValueError(f"the pod {pod.fields['metadata.name']!r} has no init container {INIT}")
    if proxy is None:
        raise ValueError(f"the pod {pod.fields['metadata.name']!r} has no container {PROXY}")
    return Manifest(
        rules=_rules(init, pod.fields),
        proxy=_proxy(proxy, pod.fields),
        run_as_uid=_run_as(pod.spec, proxy, "runAsUser"),
        run_as_gid=_run_as(pod.spec, proxy, "runAsGroup"),
        container_ports=tuple(container_ports(pod.spec)),
    )


def _pods(document: Any) -> Iterator[_Pod]:
    if is_list(document):
        for item in document["items"]:
            yield from _pods(item)
        return
    metadata = _member(document, "metadata")
    for way in WAYS_TO_A_POD:
        spec = _member(document, *way, "spec")
        if "containers" in spec:
            inner = _member(document, *way, "metadata")
            name, namespace = inner.get("name") or metadata.get("name"), metadata.get("namespace")
            fields = {
                "metadata.name": str(name or "unnamed"),
                "metadata.namespace": str(namespace or "default"),
                "spec.serviceAccountName": str(spec.get("serviceAccountName") or "default"),
                "status.podIP": PLACEHOLDER_ADDRESS,
                "status.hostIP": PLACEHOLDER_ADDRESS,
            }
            yield _Pod(fields, spec)


def _rules(container: Json, fields: Mapping[str, str]) -> Container:
    environ = _environ(container, fields)
    words = _words(container, environ)
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    command = words[:first][-1:]  # before the flags stand a program and perhaps a command of its own
    return Container((*(command if command == (IPTABLES_COMMAND,) else ()), *words[first:]), environ)


def _proxy(container: Json, fields: Mapping[str, str]) -> Container:
    environ = _environ(container, fields)
    words = _words(container, environ)
    if "proxy" not in words:
        raise ValueError(f"the arguments of the container {PROXY} have no word 'proxy'")
    return Container(words[words.index("proxy") + 1 :], environ)


def _has_our_flags(words: Sequence[str]) -> bool:
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    return IPTABLES_COMMAND in words or (bool(flags) and flags <= OUR_FLAGS)


def _words(container: Json, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Give the command line as far as the manifest has it; without a `command` the image's entrypoint comes before."""
    name = container.get("name")
    words = [*_list(container.get("command"), "command"), *_list(container.get("args"), "args")]
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"container {name!r}: the argument {word!r} is no text; write it in quotes")  # noqa: TRY004 - of the input
    return tuple(_expand(word, environ) for word in words)


def _environ(container: Json, fields: Mapping[str, str]) -> dict[str, str]:
    environ: dict[str, str] = {}
    for entry in _objects(container.get("env"), "env"):
        name, value = str(entry.get("name")), entry.get("value") or ""
        if not isinstance(value, str):
            raise ValueError(f"variable {name}: {value!r} is no text; write it in quotes")  # noqa: TRY004 - of the input
        path = str(_member(entry, "valueFrom", "fieldRef").get("fieldPath"))
        if "valueFrom" not in entry:
            environ[name] = _expand(value, environ)
        elif path in fields:
            environ[name] = fields[path]
    return environ


def _expand(text: str, environ: Mapping[str, str]) -> str:
    """Put in variables as the kubelet does: `$(NAME)`; an unknown one stays as it is, and `$$` is a dollar."""
    return REFERENCE.sub(lambda found: environ.get(found[1], found[0]) if found[1] else "$", text)


def _run_as(spec: Json, container: Json, member: str) -> int | None:
    """Read an id: what the container says goes before what the pod says."""
    for owner in (container, spec):
        value = _member(owner, "securityContext").get(member)
        if value is not None:
            return _number(value, member)
    return None


def _number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what}: {value!r} is no number")  # noqa: TRY004 - of the input
    return value


def _member(value: Any, *names: str) -> Json:
    """Go down into objects; where there is none on the way, or at its end, give an empty one."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")  # noqa: TRY004 - of the input
    return value


def _objects(value: Any, what: str) -> list[Json]:
    found = _list(value, what)
    if not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{what} has an item that is no object")
    return found
