"""The check that a pod's rules and its proxy fit together: its options, and where the two halves come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.core.log import Level
from istio_init.core.option import Kind, Option, read_values, whole_number
from istio_init.kubernetes.halves import read_rules, read_words
from istio_init.rules.model import PROXY_UID
from istio_init.rules.values import ID_MAX
from istio_init.sidecar.bootstrap import PROXY_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.core.log import Log
    from istio_init.rules.settings import Settings
    from istio_init.sidecar.bootstrap.settings import ProxySettings


AGREEMENT_OPTIONS = (
    Option("interception", ("--interception",), metavar="FLAGS", kind=Kind.LINE,
           help="Check that the proxy fits the rules that istio-init makes of these flags, written as one word: "
           "\"-u 1337 -i '*' -b 9080\", or today's, \"istio-iptables -u 1337 -b '*'\". Users and groups are numbers. "
           "A contradiction is bad input."),
    Option("manifest", ("--manifest",), metavar="FILE", is_path=True,
           help="Check the same of a pod's manifest, which gives both halves: the init container istio-init, and the "
           "container istio-proxy, whose variables count instead of the environment; flags given here win over its "
           "own. Its address is not known: unless --ip gives it, 192.0.2.1 stands for it."),
    Option("run_as_uid", ("--run-as-uid",), metavar="UID", parse=whole_number(0, ID_MAX),
           help=f"User that Envoy runs as, for the check. Default: runAsUser of the manifest, else {PROXY_UID}."),
)  # fmt: skip


class CheckedPod(NamedTuple):
    """The configuration of a pod's proxy, and what is known of its other half.

    Attributes:
        given: the options of the proxy's command line, and of the manifest.
        environ: the proxy's variables.
        rules: the settings of the interception; None if no check was requested.
        run_as_uid: the user that Envoy runs as.
        run_as_gid: its group, or None if not specified.
        container_ports: see `istio_init.kubernetes.agreement.Pair`.
    """

    given: Mapping[str, Any]
    environ: Mapping[str, str]
    rules: Settings | None = None
    run_as_uid: int = PROXY_UID
    run_as_gid: int | None = None
    container_ports: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> CheckedPod:
        """Read the options of `AGREEMENT_OPTIONS`.

        Raises:
            InvalidInput: a flag or the manifest is not allowed.
        """
        values = read_values(AGREEMENT_OPTIONS, given)
        flags, manifest, uid = values["interception"], values["manifest"], values["run_as_uid"]
        if manifest is not None:
            if flags is not None:
                raise InvalidInput("--manifest", "the manifest has the flags that --interception gives", "one of the two")
            return _of_manifest(manifest, given, uid)
        if flags is not None:
            rules = read_rules(_split(flags), {}, "--interception")
            return cls(given, os.environ, rules, PROXY_UID if uid is None else uid)
        if uid is not None:
            problem = "it is compared with the rules, and none were given"
            raise InvalidInput("--run-as-uid", problem, "with --interception or --manifest")
        return cls(given, os.environ)


def require_agreement(pod: CheckedPod, settings: ProxySettings, text: str, log: Log) -> bool:
    """Log each contradiction between a proxy and its rules, and return whether they agree.

    Args:
        pod: both halves; without rules nothing is compared.
        settings: the proxy's.
        text: the bootstrap file.
        log: where the outcome goes.

    Raises:
        InvalidInput: `text` is a user's own file, and is not YAML.
    """
    if pod.rules is None:
        return True
    from istio_init.kubernetes.agreement import Pair, contradictions, listener_ports
    from istio_init.kubernetes.manifest import read_yaml

    try:
        listeners = frozenset().union(*map(listener_ports, read_yaml(text)))
    except ValueError as error:
        raise InvalidInput("--customConfigFile", str(error), "JSON or YAML") from None
    pair = Pair(pod.rules, settings, listeners, pod.run_as_uid, pod.run_as_gid, pod.container_ports)
    found = contradictions(pair)
    for line in found:
        log.write(Level.ERROR, line)
    if found:
        return False
    ports = f"outbound port {pod.rules.envoy_port}, inbound port {pod.rules.inbound_capture_port}"
    log.write(Level.INFO, f"both halves agree: {ports}, uid {pod.run_as_uid}, {pod.rules.mode}")
    return True


def _of_manifest(path: str, given: Mapping[str, Any], uid: int | None) -> CheckedPod:
    from istio_init.core.files import read_text
    from istio_init.kubernetes.manifest import INIT, PLACEHOLDER_ADDRESS, PROXY, read_manifest

    where = f"--manifest {path}"
    manifest = read_manifest(read_text(path, "--manifest"), where)
    known_uid = PROXY_UID if manifest.run_as_uid is None else manifest.run_as_uid
    return CheckedPod(
        {**read_words(PROXY_OPTIONS, manifest.proxy.words, f"{where}: container {PROXY}", "proxy"), **given},
        {"INSTANCE_IP": PLACEHOLDER_ADDRESS, **manifest.proxy.environ},
        read_rules(manifest.rules.words, manifest.rules.environ, f"{where}: init container {INIT}"),
        known_uid if uid is None else uid,
        manifest.run_as_gid if uid is None else None,
        manifest.container_ports,
    )


def _split(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidInput("--interception", f"{text!r}: {error}", "flags as a shell splits them") from None
