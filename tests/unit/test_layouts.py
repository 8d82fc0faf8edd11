"""The registry of layouts: each name, alias and trait in one place, and no name falls through."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import istio_init
from istio_init import Settings, build_plan, render
from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject import InjectSettings, Workload, inject_template
from istio_init.kubernetes.inject import settings as inject_settings
from istio_init.kubernetes.inject import template as inject
from istio_init.lab import settings as lab
from istio_init.rules import layout, layouts
from istio_init.rules.environment import read_settings
from istio_init.rules.layout import ALIASES, CURRENT, ISTIO_1_0, ISTIO_1_30, LAYOUTS, NAMES, entry, find, names_with
from istio_init.rules.model import BUILTIN_CHAINS, OWN_CHAINS, Plan
from istio_init.rules.settings import NO_ACCOUNTS, parse_settings
from tests.cases import CASES
from tests.cases_current import CASES_CURRENT
from tests.unit.program import call

if TYPE_CHECKING:
    from collections.abc import Callable

TABLES = {
    "layouts.BUILD": layouts.BUILD,
    "inject.settings.INJECT_LAYOUTS": inject_settings.INJECT_LAYOUTS,
    "inject.template.ADDITIONS": inject.ADDITIONS,
    "lab.settings.LAB_LAYOUTS": lab.LAB_LAYOUTS,
}


def test_names_are_versioned_and_an_alias_is_found_as_what_it_stands_for() -> None:
    assert list(LAYOUTS) == [ISTIO_1_0, ISTIO_1_30] == ["istio-1.0", "istio-1.30"]
    assert ALIASES == {CURRENT: ISTIO_1_30}
    assert [find(name).name for name in NAMES] == [ISTIO_1_0, ISTIO_1_30, ISTIO_1_30]
    assert all(row.name == name for name, row in LAYOUTS.items())
    assert names_with(lambda row: row.captures_ipv6) == (ISTIO_1_30,)


def test_an_alias_makes_the_same_rules() -> None:
    plans = [build_plan(Settings.of(name, inbound_ports="*", service_cidrs="*")) for name in (CURRENT, ISTIO_1_30)]
    assert plans[0].chains == plans[1].chains != ()
    assert [plan.layout for plan in plans] == [CURRENT, ISTIO_1_30]


def test_the_flag_takes_an_alias() -> None:
    words = ("-n", "-b", "*", "-i", "*")
    texts = [call("apply", "--layout", name, *words).stdout for name in (CURRENT, ISTIO_1_30)]
    assert texts[0].replace(f"# {CURRENT},", f"# {ISTIO_1_30},") == texts[1] != ""


POD: dict[str, Any] = {"metadata": {}, "spec": {"containers": [{"name": "app"}]}}
ENTRANCES: dict[str, Callable[[str], object]] = {
    "find": find,
    "Settings.of": Settings.of,
    "parse_settings": lambda name: parse_settings({}, NO_ACCOUNTS, name),
    "read_settings": lambda name: read_settings({}, {}, name),
    "build_plan": lambda name: build_plan(Settings()._replace(layout=name)),
    "InjectSettings": lambda name: InjectSettings(layout=name).checked(),
    "inject_template": lambda name: inject_template(POD, InjectSettings(layout=name), Workload("a", "b"), "x"),
    "mesh_pods": lambda name: lab.mesh_pods(lab.LabSettings(layout=name)),
    "lab rules": lambda name: lab.LabSettings(layout=name).rules,
}


@pytest.mark.parametrize("name", ["ambient", "", "istio-1.1", "Current", "istio-1.0 "])
@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=list(ENTRANCES))
def test_an_unknown_name_raises_everywhere(entrance: Callable[[str], object], name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        entrance(name)
    assert repr(name) in raised.value.problem
    assert [known for known in NAMES if known not in raised.value.allowed] == []


@pytest.mark.parametrize("command", ["apply", "istio-iptables", "inject", "lab up"])
def test_an_unknown_name_is_bad_input_of_every_command(command: str) -> None:
    done = call(*command.split(), "--layout", "ambient")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'ambient'" in done.stderr
    assert ", ".join(NAMES) in done.stderr


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_table_has_an_entry_for_every_layout_and_no_other(table: dict[str, object]) -> None:
    assert list(table) == list(LAYOUTS)


def test_a_layout_that_a_table_lacks_raises() -> None:
    assert entry({ISTIO_1_30: 1}, CURRENT, "demo") == 1
    with pytest.raises(InvalidInput, match=r"'istio-1\.0' has no demo"):
        entry({ISTIO_1_30: 1}, ISTIO_1_0, "demo")


def test_a_third_layout_gets_its_own_rules_and_falls_into_no_other_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    third = LAYOUTS[ISTIO_1_30]._replace(name="istio-1.99", version=(1, 99), inbound_port=16006, is_root_proxy=True)
    monkeypatch.setitem(layout.LAYOUTS, third.name, third)
    monkeypatch.setitem(layouts.BUILD, third.name, lambda settings: Plan(settings.layout, ()))
    settings = Settings.of(third.name, outbound_ports="80")
    assert (settings.inbound_capture_port, settings.proxy_uids, settings.outbound_ports) == (16006, (1337, 0), ("80",))
    plan = build_plan(settings)
    assert plan == Plan(third.name, ())
    assert "istio-1.99" in render(plan, "json")
    with pytest.raises(InvalidInput, match=r"'istio-1\.99' has no injection"):
        InjectSettings(layout=third.name).checked()
    with pytest.raises(InvalidInput, match=r"'istio-1\.99' has no lab"):
        _ = lab.LabSettings(layout=third.name).rules


def test_every_chain_of_ours_is_known_whatever_the_layout_is() -> None:
    made = {chain.name for case in (*CASES, *CASES_CURRENT) for chain in case.plan().chains} - BUILTIN_CHAINS
    assert made == OWN_CHAINS


def test_nothing_compares_the_name_of_a_layout() -> None:
    constants = {"ISTIO_1_0", "ISTIO_1_30"}
    package = Path(istio_init.__file__).parent

    def names(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return node.value in NAMES
        text = ast.unparse(node)
        return text.split(".")[-1] in constants or text.endswith(("settings.layout", "plan.layout", "layout.name"))

    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare) and any(map(names, (node.left, *node.comparators)))
    ]
    # A table of another part may lack an entry.
    assert found == [f"rules/layout.py:{line}" for line in lines_of("layout.name not in table")]


def lines_of(text: str) -> list[int]:
    source = Path(layout.__file__).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(source, start=1) if text in line]
