"""A manifest's text: only what is added changes, and it is given back to the byte."""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject import InjectSettings, inject_document, uninject_document
from istio_init.kubernetes.inject.text import rewrite
from tests.sweeps import sweep
from tests.unit.inject_pods import NATIVE, SETTINGS, TODAY, Json, template
from tests.unit.test_inject_template import document

each_setting = sweep("chosen", SETTINGS.values(), ids=list(SETTINGS))

STYLES = """\
# The first line is a comment.
apiVersion: v1
kind:   List
items:
    - kind: Pod # of one
      metadata:   {name: a,   labels: {app: "no"}}
      spec:
        initContainers:
        # Why it waits.
        - name:  wait
          args: [a,
             'b']   # a tail
        # The end of these.
        containers:
        - {name: c, ports: [{containerPort: 80}]}

        volumes: []   # none yet
    # The last.
    - kind: CronJob
      metadata: {name: b}
      spec:
        jobTemplate:
          spec:
            template:
              metadata:
                annotations: # none yet
              spec: {containers: [{name: x}], initContainers: null,
                volumes: [ ]}
"""
DOCUMENTS = """\
---
kind: Pod
metadata:
  name: q
  annotations: {"quoted": 'one', plain: two}
spec:
    containers:
      -
        name: x
        args:\x20
          - |+
            kept

            lines


---
# Of others.
kind: Service
spec: {ports: [{port: 0x50}]}
...
---
kind: Pod
metadata: {name: z, annotations: null}
spec:
  initContainers:
  volumes:
  - name: &name v
    emptyDir: {}
  - name: w
    configMap: {name: *name}
  containers:
  - name: a # the end"""
PLAIN = yaml.safe_dump(document("Deployment", template()), sort_keys=False)
DATA = document("Deployment", template(initContainers=[{"name": "é"}]))
TEXTS = {
    "plain": PLAIN,
    "no line break at the end": PLAIN.rstrip("\n"),
    "Windows": PLAIN.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + PLAIN,
    "styles": STYLES,
    "documents": DOCUMENTS,
    "JSON": json.dumps(DATA, indent=2) + "\n",
    "JSON with tabs": json.dumps(DATA, indent="\t"),
    "JSON in one line": json.dumps(DATA, separators=(",", ":")),
    "JSON of Windows": json.dumps(DATA, indent=4).replace("\n", "\r\n"),
    "wide": yaml.safe_dump(DATA, indent=4, sort_keys=False, explicit_start=True),
}


@cache
def inject(text: str, chosen: InjectSettings) -> str:
    return rewrite(text, "f", partial(_inject, chosen))[0]


def _inject(chosen: InjectSettings, of: Json, where: str) -> tuple[Json, tuple[str, ...]]:
    return inject_document(of, chosen, where)


def uninject(text: str) -> str:
    return rewrite(text, "f", uninject_document)[0]


def load(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text.replace("\t", " ")))


@each_setting
@sweep("text", TEXTS.values(), ids=list(TEXTS))
def test_what_was_added_to_a_text_is_taken_out_to_the_byte(text: str, chosen: InjectSettings) -> None:
    made = inject(text, chosen)
    assert made.count("istio-proxy") >= 2
    assert uninject(made) == text


@each_setting
@sweep("text", TEXTS.values(), ids=list(TEXTS))
def test_no_line_of_the_text_is_lost_or_moved(text: str, chosen: InjectSettings) -> None:
    made = iter(inject(text, chosen))
    assert all(character in made for character in text.replace("null", ""))  # each behind the one before


@each_setting
@sweep("text", TEXTS.values(), ids=list(TEXTS))
def test_the_text_says_what_the_data_say(text: str, chosen: InjectSettings) -> None:
    wanted = [inject_document(one, chosen, "f")[0] for one in load(text)]
    assert load(inject(text, chosen)) == wanted


@each_setting
@sweep("text", TEXTS.values(), ids=list(TEXTS))
def test_injecting_a_text_twice_changes_nothing(text: str, chosen: InjectSettings) -> None:
    made = inject(text, chosen)
    assert inject(made, chosen) == made


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("JSON")])
def test_json_stays_json(name: str) -> None:
    made = inject(TEXTS[name], TODAY)
    assert json.loads(made)["spec"]["template"]["spec"]["containers"][1]["name"] == "istio-proxy"
    assert "é" not in made or "é" in TEXTS[name]
    assert made.count("\n") == 0 or "one line" not in name


def test_what_is_added_is_indented_as_the_text_is() -> None:
    indented = "kind: Pod\nmetadata:\n    name: a\nspec:\n    containers:\n      - name: x\n"
    assert "\n      - name: istio-proxy\n" in inject(indented, InjectSettings())
    assert "\n    volumes:\n      - name: istio-envoy\n" in inject(indented, InjectSettings())
    flush = "kind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: x\n"
    assert "\n  volumes:\n  - name: istio-envoy\n    emptyDir:\n      medium: Memory\n" in inject(flush, InjectSettings())


def test_a_comment_stays_with_what_it_is_about() -> None:
    made = inject(STYLES, NATIVE)
    assert "        # Why it waits.\n        - name:  wait\n" in made
    assert "        initContainers:\n        - name: istio-init\n" in made


@pytest.mark.parametrize("word", ["no", "on", "1e3", "0o17", "0x1f", "1:30", "~", "null", "2020-01-01", "1_000", ".inf"])
def test_text_that_looks_like_something_else_is_quoted(word: str) -> None:
    pod = document("Pod", template(labels={"app": word}))
    made = inject(json.dumps(pod), InjectSettings())
    block = inject(yaml.safe_dump(pod, default_style='"'), InjectSettings())
    assert load(made) == load(block)
    assert f'\n    - "{word}"\n' in block  # of --serviceCluster


def test_what_has_nothing_to_inject_is_handed_on_as_it_is() -> None:
    for text in ("", "# only a comment\n", "kind: Service\n", "---\n---\n", "kind: [ \n ]"):
        assert inject(text, TODAY) == text


@pytest.mark.parametrize(
    "text", ["a: [", "{", "a: b: c", "kind: Pod\nkind: Pod\n", "a: !x y", "\x00", "[" * 200, "a\n\t- b"]
)
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^f: not valid YAML"):
        inject(text, TODAY)


SHARED = """\
kind: List
items:
- kind: Pod
  metadata: &m {name: a}
  spec: &s
    containers: [{name: x}]
- {kind: Pod, metadata: *m, spec: *s}
"""
MERGED = """\
kind: Pod
base: &b
  containers: [{name: x}]
metadata: {name: a}
spec:
  <<: *b
  nodeName: n
"""


TAGGED = """\
kind: Pod
spec:
  containers: [{name: x}]
  volumes: !!seq []
"""


@pytest.mark.filterwarnings("error")
def test_an_anchor_may_be_used_again() -> None:
    text = "a: &a b\nc: &a d\ne: *a\n"
    assert rewrite(text, "f", lambda document, _: (document, (document["e"],))) == (text, ("d",))


@pytest.mark.parametrize("text", [SHARED, MERGED, TAGGED], ids=["anchor", "merge key", "tag"])
def test_a_pod_that_shares_its_parts_or_tags_them_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^f: .*allowed: a pod without YAML anchors"):
        inject(text, TODAY)


def test_an_injected_text_that_another_program_wrote_anew_can_be_given_back() -> None:
    for name, text in TEXTS.items():
        before = load(text.removeprefix("\ufeff"))
        again = yaml.safe_dump_all(load(inject(text, NATIVE)), sort_keys=True)
        assert load(uninject(again)) == before, name


@pytest.mark.parametrize("word", ["~", "Null", '!!null "null"'])
def test_other_words_for_null_come_back_as_null(word: str) -> None:
    text = "kind: Pod\nspec:\n  containers: [{name: x}]\n  volumes: %s # none\n"
    assert uninject(inject(text % word, TODAY)) == text % "null"


NAMES = st.text("abcxyz-", min_size=1, max_size=6)
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12) | NAMES
MAPS = st.none() | st.dictionaries(NAMES, VALUES, max_size=3)
PORT = st.fixed_dictionaries({"containerPort": st.integers(1, 65535)})
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES},
        optional={"args": st.lists(VALUES, max_size=3), "ports": st.lists(PORT, max_size=3)},
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip
# Not `just([])`: one list in two places is written with an anchor.
LISTS: st.SearchStrategy[Any] = st.none() | st.builds(list) | st.lists(st.fixed_dictionaries({"name": NAMES}), max_size=2)
TEMPLATES: st.SearchStrategy[Json] = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries({"containers": CONTAINERS}, optional={"initContainers": LISTS, "volumes": LISTS})},
    optional={"metadata": st.none() | st.fixed_dictionaries({}, optional={"labels": MAPS, "annotations": MAPS})},
)
WRITERS = st.sampled_from(
    [
        partial(yaml.safe_dump, sort_keys=False),
        partial(yaml.safe_dump, indent=4, width=20, allow_unicode=True),
        partial(yaml.safe_dump, default_flow_style=True, width=30),
        partial(yaml.safe_dump, default_flow_style=None, line_break="\r\n"),
        partial(yaml.safe_dump, default_style='"', explicit_start=True, explicit_end=True),
        json.dumps,
        partial(json.dumps, indent="\t"),
        partial(json.dumps, indent=3, ensure_ascii=False),
    ]
)


@settings(max_examples=30, deadline=None)
@given(TEMPLATES, st.sampled_from(["Deployment", "CronJob"]), WRITERS, st.sampled_from(list(SETTINGS.values())))
def test_any_text_is_given_back_to_the_byte(of: Json, kind: str, write: Any, chosen: InjectSettings) -> None:
    text = write(document(kind, of))
    text = text.replace('!!null "null"', "null")  # see the test of other words for null
    made = inject(text, chosen)
    assert "istio-proxy" in made
    assert inject(made, chosen) == made
    assert uninject(made) == text
