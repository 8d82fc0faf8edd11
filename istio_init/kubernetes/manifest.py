"""Extracts the arguments and variables of the init container and the proxy from a pod's manifest. Pure.

Source: Kubernetes' API reference, `PodSpec` and `Container`.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.core.limits import TOO_DEEP, check_aliases, check_depth, check_digits, counted, read_json
from istio_init.rules.commands import IPTABLES_COMMAND
from istio_init.rules.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, Any]

INIT = "istio-init"
PROXY = "istio-proxy"
OUR_FLAGS = frozenset(flag for option in OPTIONS for flag in option.flags)
# Placeholder for the pod's address, which is unknown until it runs; from RFC 5737's documentation block, so never in use.
PLACEHOLDER_ADDRESS = "192.0.2.1"
# The first argument of a current init container; flags without a command are those of Istio 1.0.
# Paths from a manifest to its pod template: the manifest of a pod itself, of a workload, and of a CronJob.
ITSELF, TEMPLATE, JOB_TEMPLATE = (), ("spec", "template"), ("spec", "jobTemplate", "spec", "template")
POD_PATHS = (ITSELF, TEMPLATE, JOB_TEMPLATE)
KINDS = {
    "Pod": ITSELF,
    "CronJob": JOB_TEMPLATE,
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"), TEMPLATE),
}
# The API groups of these kinds, including past ones; other groups may have kinds of the same name.
GROUPS = frozenset({"", "apps", "batch", "extensions"})
REFERENCE = re.compile(r"\$\$|\$\(([^)]+)\)")
ALLOWED = f"a manifest of one pod or workload with an init container {INIT} and a container {PROXY}"


class Container(NamedTuple):
    """A container's arguments and environment.

    Attributes:
        words: its arguments, without the program and, for the proxy, without the command `proxy`. Those of the init
            container start with `istio-iptables` if that is their command.
        environ: its variables, except those only known at run time, such as those from a Secret.
    """

    words: tuple[str, ...]
    environ: dict[str, str]


class Manifest(NamedTuple):
    """A pod's two halves, as read from its manifest.

    Attributes:
        rules: the init container.
        proxy: the proxy's container.
        run_as_uid: the user that the proxy's container runs as, or None if the image decides.
        run_as_gid: the group, likewise.
        container_ports: names of the other containers with the TCP ports that they declare.
    """

    rules: Container
    proxy: Container
    run_as_uid: int | None
    run_as_gid: int | None
    container_ports: tuple[tuple[str, int], ...]


def read_manifest(text: str, where: str) -> Manifest:
    """Find the two halves of a pod in a manifest of one or more documents.

    Args:
        text: YAML or JSON.
        where: the flag and the file, for errors.

    Raises:
        InvalidInput: the text is not YAML, does not contain exactly one pod with both halves, or has a member of the wrong
            type.
    """
    try:
        return find_halves(read_yaml(text))
    except ValueError as error:
        raise InvalidInput(where, str(error), ALLOWED) from None


def is_list(document: Any) -> bool:
    """Return whether a document is a `List`, or a list of one kind, such as `PodList`."""
    return (
        isinstance(document, dict) and str(document.get("kind")).endswith("List") and isinstance(document.get("items"), list)
    )


def container_ports(spec: Json) -> Iterator[tuple[str, int]]:
    """List the names of the app's containers with the TCP ports that they declare; other protocols are not captured.

    Args:
        spec: a `PodSpec`; its native sidecars count as app containers.

    Raises:
        ValueError: a member has the wrong type.
    """
    sidecars = [
        one for one in _objects(spec.get("initContainers"), "initContainers") if one.get("restartPolicy") == "Always"
    ]
    for container in (*_objects(spec.get("containers"), "containers"), *sidecars):
        if container.get("name") == PROXY:
            continue
        for port in _objects(container.get("ports"), "ports"):
            if port.get("protocol", "TCP") == "TCP":
                yield str(container.get("name")), _number(port.get("containerPort"), "containerPort")


def read_yaml(text: str) -> list[Any]:
    """Parse the documents of a YAML stream, or a JSON document.

    Raises:
        ValueError: the text is neither, or exceeds a limit of `istio_init.core.limits`.
    """
    with suppress(json.JSONDecodeError):
        return [read_json(text)]  # YAML is not quite a superset of JSON: tabs differ
    documents = _load_yaml(text)
    for document in documents:
        check_depth(document)
    return documents


def _load_yaml(text: str) -> list[Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.values = counted(self.values)
            return super().compose_node(parent, index)

        def construct_yaml_int(self, node: Any) -> int:
            check_digits(node.value)
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        if "&" in text and "*" in text:  # without an anchor and an alias there is nothing to expand
            check_aliases(yaml.parse(text, Loader))
        return list(yaml.load_all(text, Loader))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    # Constructors of scalar values can raise any of these.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"not valid YAML: {error}"
        raise ValueError(message) from None


class _ManifestPod(NamedTuple):
    """A pod, or pod template, of a manifest.

    Attributes:
        fields: values of the downward API, by `fieldPath`.
        spec: the `PodSpec`.
    """

    fields: dict[str, str]
    spec: Json

    def containers(self, kind: str) -> list[Json]:
        return _objects(self.spec.get(kind), kind)

    def init(self) -> Json | None:
        """Find the init container that writes the rules: by name, else by its command or flags."""
        found = self.containers("initContainers")
        named = [one for one in found if one.get("name") == INIT]
        return next(iter(named or [one for one in found if _has_our_flags(_words(one, {}))]), None)

    def proxy(self) -> Json | None:
        """Find the proxy, which may be a native sidecar."""
        found = (*self.containers("containers"), *self.containers("initContainers"))
        return next((one for one in found if one.get("name") == PROXY), None)


def find_halves(documents: Sequence[Any]) -> Manifest:
    """Find the two halves of a pod in documents.

    Raises:
        ValueError: there is not exactly one pod with both, or a member has the wrong type.
    """
    pods = [pod for document in documents for pod in _pods(document)]
    with_a_half = [pod for pod in pods if pod.init() is not None or pod.proxy() is not None]
    if not pods:
        raise ValueError("no pod found")
    if len(with_a_half) > 1:
        names = ", ".join(pod.fields["metadata.name"] for pod in with_a_half)
        raise ValueError(f"found {len(with_a_half)} pods with a proxy or rules ({names})")
    pod = (with_a_half or pods)[0]
    init, proxy = pod.init(), pod.proxy()
    if init is None:
        raise ValueError(f"pod {pod.fields['metadata.name']!r} has no init container {INIT}")
    if proxy is None:
        raise ValueError(f"pod {pod.fields['metadata.name']!r} has no container {PROXY}")
    return Manifest(
        rules=_rules(init, pod.fields),
        proxy=_proxy(proxy, pod.fields),
        run_as_uid=_run_as(pod.spec, proxy, "runAsUser"),
        run_as_gid=_run_as(pod.spec, proxy, "runAsGroup"),
        container_ports=tuple(container_ports(pod.spec)),
    )


def _pods(document: Any) -> Iterator[_ManifestPod]:
    if is_list(document):
        for item in document["items"]:
            yield from _pods(item)
        return
    metadata = _member(document, "metadata")
    for path in POD_PATHS:
        spec = _member(document, *path, "spec")
        if "containers" in spec:
            inner = _member(document, *path, "metadata")
            name, namespace = inner.get("name") or metadata.get("name"), metadata.get("namespace")
            fields = {
                "metadata.name": str(name or "unnamed"),
                "metadata.namespace": str(namespace or "default"),
                "spec.serviceAccountName": str(spec.get("serviceAccountName") or "default"),
                "status.podIP": PLACEHOLDER_ADDRESS,
                "status.hostIP": PLACEHOLDER_ADDRESS,
            }
            yield _ManifestPod(fields, spec)


def _rules(container: Json, fields: Mapping[str, str]) -> Container:
    environ = _environ(container, fields)
    words = _words(container, environ)
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    command = words[:first][-1:]  # the flags follow a program and possibly a command
    return Container((*(command if command == (IPTABLES_COMMAND,) else ()), *words[first:]), environ)


def _proxy(container: Json, fields: Mapping[str, str]) -> Container:
    environ = _environ(container, fields)
    words = _words(container, environ)
    if "proxy" not in words:
        raise ValueError(f"the arguments of container {PROXY} lack the command 'proxy'")
    return Container(words[words.index("proxy") + 1 :], environ)


def _has_our_flags(words: Sequence[str]) -> bool:
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    return IPTABLES_COMMAND in words or (bool(flags) and flags <= OUR_FLAGS)


def _words(container: Json, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return `command` and `args`; without a `command`, the image's entrypoint precedes them."""
    name = container.get("name")
    words = [*_list(container.get("command"), "command"), *_list(container.get("args"), "args")]
    for word in words:
        if not isinstance(word, str):
            raise _wrong_type(f"container {name!r}: argument {word!r} is not a string; quote it")
    return tuple(_expand(word, environ) for word in words)


def _environ(container: Json, fields: Mapping[str, str]) -> dict[str, str]:
    environ: dict[str, str] = {}
    for entry in _objects(container.get("env"), "env"):
        name, value = str(entry.get("name")), entry.get("value") or ""
        if not isinstance(value, str):
            raise _wrong_type(f"variable {name}: {value!r} is not a string; quote it")
        path = str(_member(entry, "valueFrom", "fieldRef").get("fieldPath"))
        if "valueFrom" not in entry:
            environ[name] = _expand(value, environ)
        elif path in fields:
            environ[name] = fields[path]
    return environ


def _expand(text: str, environ: Mapping[str, str]) -> str:
    """Expand `$(NAME)` references as the kubelet does: unknown ones are kept, and `$$` is a literal dollar."""
    return REFERENCE.sub(lambda found: environ.get(found[1], found[0]) if found[1] else "$", text)


def _run_as(spec: Json, container: Json, member: str) -> int | None:
    """Read an ID; the container's security context takes precedence over the pod's."""
    for owner in (container, spec):
        value = _member(owner, "securityContext").get(member)
        if value is not None:
            return _number(value, member)
    return None


def _wrong_type(problem: str) -> ValueError:
    """Make the error for a value of the wrong JSON type: the manifest is invalid, not the program."""
    return ValueError(problem)


def _number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(f"{what}: {value!r} is not an integer")
    return value


def _member(value: Any, *names: str) -> Json:
    """Return the object at a path of members, or an empty one if any of them is missing or not an object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong_type(f"{what} is not a list")
    return value


def _objects(value: Any, what: str) -> list[Json]:
    found = _list(value, what)
    if not all(isinstance(one, dict) for one in found):
        raise _wrong_type(f"{what} has an item that is not an object")
    for one in found:
        if not isinstance(one.get("name"), (str, NoneType)):
            raise _wrong_type(f"{what}: name {one['name']!r} is not a string; quote it")
    return found
