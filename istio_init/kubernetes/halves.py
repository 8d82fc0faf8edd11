"""The two halves of a pod, read as their containers read them: what they are given on the command line and by variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from istio_init.core.argv import read
from istio_init.core.errors import InvalidInput
from istio_init.core.option import read_values
from istio_init.kubernetes.agreement import Pair, contradictions
from istio_init.kubernetes.manifest import INIT, PLACEHOLDER_ADDRESS, PROXY, find_halves
from istio_init.rules.commands import APPLY, IPTABLES_COMMAND, ISTIO_IPTABLES
from istio_init.rules.environment import ENVIRONMENT_FILES, collect
from istio_init.rules.model import PROXY_UID
from istio_init.rules.run_flags import RunFlags
from istio_init.rules.settings import NO_ACCOUNTS, Settings, parse_settings
from istio_init.sidecar.bootstrap import PROXY_OPTIONS
from istio_init.sidecar.bootstrap.settings import ROLE, parse_proxy_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_init.core.option import Option


def read_rules(words: Sequence[str], environ: Mapping[str, str], where: str) -> Settings:
    """Read what an init container is given, as `apply` reads it, or as `istio-iptables` where that is the first word.

    Neither this machine's own environment files nor its users, addresses and name servers are the pod's, so they do not
    count. Nor do files that the pod's variables name: they are the pod's, and must not be looked for on this machine.

    Raises:
        InvalidInput: a flag or a variable is not allowed; `where` says whose it is.
    """
    is_today = list(words[:1]) == [IPTABLES_COMMAND]
    options = ISTIO_IPTABLES if is_today else APPLY
    given = read_words(options, words[1:] if is_today else words, where, IPTABLES_COMMAND if is_today else "apply")
    no_files = dict.fromkeys((name for name, _ in ENVIRONMENT_FILES), os.devnull)
    try:
        layout = read_values([option for option in options if option.name == "layout"], given)["layout"]
        if is_today:
            RunFlags.of(given, environ, layout)  # these flags make no rule, but they must be right
        return parse_settings(collect(given, {**environ, **no_files}, layout), NO_ACCOUNTS, layout)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.where}", error.problem, error.allowed) from None


def pod_contradictions(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what the two halves of a pod contradict each other in.

    Nothing is said of a pod that lacks a half.

    Raises:
        InvalidInput: a half has a flag or a value that this program does not know; it may be another program's.
    """
    try:
        found = find_halves([pod])
    except ValueError:
        return ()
    rules = read_rules(found.rules.words, found.rules.environ, f"init container {INIT}")
    where = f"container {PROXY}"
    given = read_words(PROXY_OPTIONS, found.proxy.words, where, "proxy")
    role = given.get("role") or ROLE.default or ""
    try:
        proxy = parse_proxy_settings(role, given, found.proxy.environ, PLACEHOLDER_ADDRESS)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.where}", error.problem, error.allowed) from None
    uid = PROXY_UID if found.run_as_uid is None else found.run_as_uid
    pair = Pair(rules, proxy, run_as_uid=uid, run_as_gid=found.run_as_gid, container_ports=found.container_ports)
    return contradictions(pair)


def read_words(options: Sequence[Option], words: Sequence[str], where: str, command: str) -> dict[str, Any]:
    """Read a command line, without running it.

    Raises:
        InvalidInput: it is not one of the command's; `where` says whose it is.
    """
    try:
        return read(options, words, command)
    except InvalidInput as error:
        raise InvalidInput(where, f"{error.where}: {error.problem}", error.allowed) from None
