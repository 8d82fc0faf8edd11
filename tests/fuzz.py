"""Random inputs: whatever they are, an answer must come of them, or an error of ours, and never a traceback."""

from __future__ import annotations

import io
import json
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from istio_init.cli.main import run
from istio_init.core.errors import IstioInitError
from istio_init.kubernetes.inject.documents import inject_document, uninject_document
from istio_init.kubernetes.inject.settings import InjectSettings
from istio_init.kubernetes.inject.template import inject_template
from istio_init.kubernetes.inject.text import rewrite
from istio_init.kubernetes.webhook.review import answer
from istio_init.rules.kernel.nf_tables_text import describe
from istio_init.rules.layout import CURRENT
from istio_init.rules.model import Family
from istio_init.rules.render.iptables import parse_save, render_restore
from istio_init.rules.render.nft_listing import parse_listing
from tests.cases import CASES
from tests.cases_current import CASES_CURRENT
from tests.webhook.reviews import POD, encoded, review

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = (InjectSettings(), InjectSettings(layout=CURRENT))
WORDS = (
    *("", "*", "0", "-1", "65536", "99999999999999999999", "1337", "15001,,15006", "true", "TPROXY", "root", "no-such-user"),
    *("10.0.0.0/8", "10.0.0.0/33", "::/0", "fe80::1%lo", "-", "--", "-x", "a=b", "{}", "[[", "\n", "\0", "\ud800", "é"),
    *("x" * 5000, "9" * 5000),
)
MANIFEST = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: &labels {app: web}}
spec:
  selector: {matchLabels: *labels}
  template:
    metadata:
      labels: *labels
      annotations: {sidecar.istio.io/inject: "true", traffic.sidecar.istio.io/excludeInboundPorts: "9090"}
    spec:
      containers:
      - name: web
        image: web:1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}}
      volumes: [{name: data, emptyDir: {}}]
"""
SAVED = "".join(render_restore(case.plan(), family) for case in (CASES[0], CASES_CURRENT[0]) for family in Family)
LISTING: Any = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "istio-init", "handle": 1}},
        {"chain": {"name": "nat_OUTPUT", "type": "nat", "hook": "output", "prio": -100, "policy": "accept"}},
        {"chain": {"name": "nat_ISTIO_OUTPUT"}},
        {
            "rule": {
                "chain": "nat_ISTIO_OUTPUT",
                "expr": [
                    {
                        "match": {
                            "op": "==",
                            "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                            "right": {"set": [22]},
                        }
                    },
                    {"counter": {"packets": 0, "bytes": 0}},
                    {"jump": {"target": "nat_ISTIO_REDIRECT"}},
                ],
            }
        },
    ]
}


class Fault(NamedTuple):
    """An input of which a traceback came."""

    kind: str
    given: object
    traceback: str


def fuzz(count: int, seed: int) -> Iterator[Fault]:
    """Try inputs of all kinds in turn, in this process and namespace; nothing is written."""
    random = Random(seed)  # noqa: S311 - to be the same each time
    kinds = list(KINDS.items())
    for number in range(count):
        kind, (choose, use) = kinds[number % len(kinds)]
        given = choose(random)
        try:
            with redirect_stdout(_Output()), redirect_stderr(_Output()):
                use(given)
        except (IstioInitError, OSError):
            pass
        except BaseException:  # noqa: BLE001 - to be told
            yield Fault(kind, given, traceback.format_exc())


class _Output(io.TextIOWrapper):
    """Takes what is printed, as a terminal or a file would, which cannot be given lone surrogates."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace")


def _mutated_words(random: Random, words: list[str]) -> list[str]:
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(words) + 1)
        what = random.randrange(4)
        if what == 0:
            words[place:place] = [random.choice(WORDS)]
        elif what == 1:
            del words[place : place + 1]
        elif what == 2:
            words[place : place + 1] = [random.choice(WORDS)]
        else:
            words[place : place + 1] = ["".join(words[place : place + 2])]
    return words


def _mutated_text(random: Random, text: str) -> str:
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.choice((0, 1, 1, 8, 40)))
        put = random.choice(("", text[start:end] * 2, random.choice(WORDS), chr(random.randrange(1, 0x3000))))
        text = text[:start] + put + text[end:]
    return text


def _mutated_value(random: Random, value: Any) -> Any:
    """Replace something within a value, at any depth, by something else."""
    other: tuple[Any, ...] = (None, 0, -1, 1.5, True, "", "x", [], {}, [None], {"": ""}, random.choice(WORDS), 10**400)
    if random.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return random.choice(other)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [*value[:place], _mutated_value(random, value[place]), *value[place + 1 :]]
    name = random.choice([*value])
    return {**value, name: _mutated_value(random, value[name])}


def _command(random: Random) -> tuple[list[str], dict[str, str]]:
    name = random.choice(("apply", "istio-iptables"))
    case = random.choice(CASES + CASES_CURRENT)
    words = _mutated_words(random, list(case.flags))
    environment = {key: random.choice((value, *WORDS)) for key, value in case.environment.items()}
    form = ["--format", random.choice(("restore", "commands", "nft", "json", "table"))] if name == "apply" else []
    return [name, "--dry-run", *form, "--layout", case.layout, *words], environment


def _bootstrap(random: Random) -> tuple[list[str], dict[str, str]]:
    flags = ["--ip", "10.0.0.1", "--serviceCluster", "web", "--discoveryAddress", "pilot:15010", "--concurrency", "2"]
    environment = {"ISTIO_META_X": random.choice(WORDS), "ISTIO_METAJSON_Y": random.choice(WORDS), "POD_NAME": "a"}
    return ["bootstrap", "sidecar", *_mutated_words(random, flags)], environment


def _run(given: tuple[list[str], dict[str, str]]) -> None:
    words, environment = given
    clean = {name: value for name, value in environment.items() if "\0" not in value and value.isascii()}
    with mock.patch.dict(os.environ, clean):
        run([word for word in words if "\0" not in word])  # no process can be given these


def _inject(text: str) -> None:
    for settings in SETTINGS:
        rewrite(text, "text", lambda document, where: inject_document(document, settings, where))  # noqa: B023 - used at once
    rewrite(text, "text", uninject_document)


def _review(body: bytes) -> None:
    answer(body, lambda template, workload, where: inject_template(template, SETTINGS[1], workload, where))


def _expressions(random: Random) -> bytes:
    return bytes(random.choice((0, 1, 2, 4, 8, 12, 255, random.randrange(256))) for _ in range(random.randrange(64)))


KINDS: dict[str, tuple[Callable[[Random], Any], Callable[[Any], object]]] = {
    "command line": (_command, _run),
    "bootstrap": (_bootstrap, _run),
    "manifest": (lambda random: _mutated_text(random, MANIFEST), _inject),
    "review": (lambda random: encoded(_mutated_value(random, review(POD))), _review),
    "iptables-save": (lambda random: _mutated_text(random, SAVED), parse_save),
    "nft": (lambda random: json.dumps(_mutated_value(random, LISTING)), parse_listing),
    "nf_tables": (_expressions, describe),
}
