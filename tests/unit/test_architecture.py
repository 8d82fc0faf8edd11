"""The house rules that can be read from the source: which way imports run, how long things are, and what tests cover."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import istio_init
from istio_init.core.errors import IstioInitError
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS, Layout, find
from istio_init.rules.model import MatchKind, Mode, TargetKind
from istio_init.rules.options import OPTIONS
from tests.cases import CASES
from tests.cases_current import CASES_CURRENT
from tests.sweeps import sweep
from tests.unit.test_cli_apply import ERRORS

if TYPE_CHECKING:
    from istio_init.core.option import Option

PACKAGE = Path(istio_init.__file__).parent
MODULES = {
    ".".join(("istio_init", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Halves that are one room; the others are a room for each of their modules and packages.
WHOLE = ("core", "lab", "cli")
# From the bottom up: a room imports from those before it, and from itself.
ROOMS = (
    "core",
    "rules",
    "rules.model",
    "rules.values",
    "rules.intervals",
    "rules.packet",
    "rules.matches",
    "rules.layout",
    "rules.options",
    "rules.settings",
    "rules.layouts",
    "rules.changes",
    "rules.handover",
    "rules.render",
    "rules.walk",
    "rules.ahead",
    "rules.environment",
    "rules.kernel",
    "rules.run_flags",
    "rules.commands",
    "rules.validation",
    "",  # the package's own names
    "sidecar",
    "sidecar.bootstrap",
    "sidecar.launcher",
    "kubernetes",
    "kubernetes.agreement",
    "kubernetes.manifest",
    "kubernetes.halves",
    "kubernetes.inject",
    "kubernetes.webhook",
    "lab",
    "cli",
    "__main__",
)
PURE = (
    "rules.model",
    "rules.values",
    "rules.intervals",
    "rules.packet",
    "rules.matches",
    "rules.layout",
    "rules.options",
    "rules.settings",
    "rules.layouts",
    "rules.changes",
    "rules.handover",
    "rules.render",
    "rules.walk",
    "rules.ahead",
    "sidecar.bootstrap",
    "kubernetes.agreement",
    "kubernetes.manifest",
    "kubernetes.inject",
)
EFFECTS = frozenset({"subprocess", "socket", "_socket", "os", "pwd", "grp", "fcntl", "ctypes", "iptc", "pyroute2", "click"})

# Who alone may import what.
OWNERS = {
    "subprocess": {"istio_init.lab.client"},
    "pyroute2": {"istio_init.lab.network", "istio_init.rules.validation.probe_network"},
    "_socket": {"istio_init.core.light"},
    "_signal": {"istio_init.core.light"},
    "_collections": {"istio_init.core.light"},
    "ruamel": {f"istio_init.kubernetes.inject.{name}" for name in ("fragments", "text", "tree")},
    "watchdog": {"istio_init.core.watch"},
    "aiohttp": {f"istio_init.kubernetes.webhook.{name}" for name in ("bodies", "connections", "server")},
    "prometheus_client": {"istio_init.kubernetes.webhook.metrics"},
    "grpc": {"istio_init.lab.control_plane"},
    "cryptography": {"istio_init.lab.certificates"},
    "dnslib": {"istio_init.lab.resolver"},
    "iptc": {"istio_init.rules.kernel.iptc_library"},
    "pwd": {"istio_init.rules.environment"},
    "grp": {"istio_init.rules.environment"},
}

# What the lab starts by itself.
PROGRAMS = {f"istio_init.lab.{name}" for name in ("app", "control_plane", "resolver", "sandbox", "supervisor")}

# What works in copies of its process (fork(2)) has to end them.
COPIES = {"istio_init.rules.kernel.libiptc"}

each_module = sweep("module", MODULES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room(module: str) -> str:
    half, *rest = module.split(".")[1:] or [""]
    return half if half in WHOLE or not rest else f"{half}.{rest[0]}"


@cache
def imports(module: str) -> frozenset[str]:
    """List what a module imports, anywhere in it: modules of this package in full, of others the top name."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            # `from package import module` means the module.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in MODULES else str(node.module) for name in names)
    return frozenset(name if name.split(".")[0] == "istio_init" else name.split(".")[0] for name in found)


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} <= set(ROOMS)


@each_module
def test_imports_run_downwards(module: str) -> None:
    allowed = ROOMS[: ROOMS.index(room(module)) + 1]
    inside = {name for name in imports(module) if name.split(".")[0] == "istio_init"}
    assert {name for name in inside if room(name) not in allowed} == set()


def test_the_halves_of_a_pod_do_not_know_each_other() -> None:
    # Envoy's configuration has nothing to do with rules; the package's own names are those of the rules.
    strangers = [
        (module, name)
        for module in MODULES
        for name in imports(module)
        if room(module).startswith("sidecar") and room(name) != "core" and not room(name).startswith("sidecar")
        if name.startswith("istio_init")
    ]
    assert strangers == []


@sweep("module", [module for module in MODULES if room(module) in PURE])
def test_pure_modules_do_not_reach_the_machine(module: str) -> None:
    assert imports(module) & EFFECTS == set()


@sweep(("library", "owners"), OWNERS.items(), ids=list(OWNERS))
def test_a_library_that_reaches_the_machine_has_one_owner(library: str, owners: set[str]) -> None:
    assert {module for module in MODULES if library in imports(module)} == owners


@each_module
def test_only_the_command_line_prints_exits_or_knows_click(module: str) -> None:
    if room(module) in ("cli", "__main__") or module in PROGRAMS:
        return
    called = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    allowed = {"os._exit"} if module in COPIES else set()
    assert called & {"print", "input", "exit", "quit", "sys.exit", "os._exit"} == allowed
    assert "click" not in imports(module)


@each_module
def test_programs_are_started_in_three_places(module: str) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    starts = any(name.startswith(("os.posix_spawn", "os.spawn", "os.popen")) for name in called)
    assert starts == (module in {f"istio_init.{name}" for name in ("core.runner", "core.processes", "lab.supervisor")})


@each_module
def test_nothing_goes_through_a_shell(module: str) -> None:
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    assert [keyword.arg for call in calls for keyword in call.keywords if keyword.arg == "shell"] == []
    assert {ast.unparse(call.func) for call in calls} & {"os.system", "os.popen", "eval", "exec"} == set()


@each_module
def test_modules_and_functions_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400
    long = [
        node.name
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 50
    ]
    assert long == []


@each_module
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(tree(module))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_public_names_are_sorted_and_exist() -> None:
    listed = {
        module: ast.literal_eval(node.value)
        for module in MODULES
        for node in tree(module).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    assert "istio_init" in listed
    for module, names in listed.items():
        assert names == sorted(set(names))
        assert [name for name in names if not hasattr(import_module(module), name)] == []


def test_a_dry_run_does_not_import_what_is_slow_to_import() -> None:
    slow = [
        "aiohttp",
        "asyncio",
        "dataclasses",
        "iptc",
        "ipaddress",
        "json",
        "logging",
        "pathlib",
        "prometheus_client",
        "pyroute2",
        "ruamel",
        "subprocess",
        "yaml",
    ]
    program = (
        "import sys; before = set(sys.modules); from istio_init.cli.main import run; assert run(['-n', '-b', '9080']) == 0; "
        f"print(*sorted((set(sys.modules) - before) & set({slow})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.split() == []


# What each pod start would wait for; `core.light` has stand-ins for the first line's.
SLOW = {
    *("typing", "enum", "contextlib", "signal", "re", "functools", "collections", "subprocess", "socket", "inspect"),
    *("importlib", "locale", "json", "ipaddress", "pathlib", "dataclasses", "shlex", "tempfile", "logging", "datetime"),
    *("click", "pyroute2", "iptc", "yaml", "watchdog", "ctypes", "difflib", "gettext", "selectors", "threading"),
}


@pytest.mark.parametrize(
    "words",
    [
        ["apply", "-u", "1337", "-i", "10.0.0.0/8", "-b", "9080"],
        [
            "istio-iptables",
            "-p=15001",
            "-u",
            "1337",
            "-m",
            "TPROXY",
            "-i",
            "*",
            "-x",
            "10.0.0.0/8",
            "-b",
            "*",
            "--redirect-dns",
        ],
        ["clean"],
    ],
    ids=lambda words: words[0],
)
def test_what_pods_wait_for_imports_nothing_slow(words: list[str]) -> None:
    # In the image's form: without `site`, which imports some of these by itself. In a network namespace of its own.
    program = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
from istio_init.cli.main import run
status = run({words!r})
print(status, *sorted(sys.modules))
"""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" -I -S -c "$1"', sys.executable, program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    status, *imported = done.stdout.split()
    assert status == "0", done.stderr
    assert SLOW.intersection(imported) == set()


SETTINGS_OF = [(layout, option) for option in OPTIONS for layout in LAYOUTS.values() if layout.variables_of(option)]
CASES_OF = {ISTIO_1_0: CASES, ISTIO_1_30: CASES_CURRENT}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
# Kinds that no rule of a layout has.
UNUSED_MATCHES = {
    ISTIO_1_0: {
        *(MatchKind.IN_INTERFACE, MatchKind.SOURCE_PORT, MatchKind.DESTINATION_PORTS),
        *(MatchKind.CTDIR, MatchKind.MARK, MatchKind.CONNMARK),
    },
    ISTIO_1_30: {MatchKind.SOCKET},
}
UNUSED_TARGETS = {
    ISTIO_1_0: {TargetKind.DROP, TargetKind.SAVE_MARK, TargetKind.RESTORE_MARK, TargetKind.ZONE},
    ISTIO_1_30: {TargetKind.REJECT},
}


def test_every_case_is_in_the_table_of_its_layout() -> None:
    assert set(CASES_OF) == set(LAYOUTS)
    assert [case.name for layout, cases in CASES_OF.items() for case in cases if find(case.layout).name != layout] == []


@sweep(
    ("layout", "flag"),
    [
        (layout.name, flag)
        for option in OPTIONS
        for layout in LAYOUTS.values()
        if layout.has(option)
        for flag in option.flags
    ],
)
def test_every_flag_has_a_case(layout: str, flag: str) -> None:
    assert [case.name for case in CASES_OF[layout] if flag in case.flags] != []


@sweep(("layout", "option"), SETTINGS_OF)
def test_every_setting_has_a_case_with_its_variable(layout: Layout, option: Option) -> None:
    variables = set(layout.variables_of(option))
    assert [case.name for case in CASES_OF[layout.name] if variables & set(case.environment)] != []


@each_layout
def test_every_mode_and_kind_of_rule_of_a_layout_has_a_case(layout: str) -> None:
    chains = [chain for case in CASES_OF[layout] for chain in case.plan().chains]
    rules = [rule for chain in chains for rule in (*chain.inserted, *chain.rules)]
    assert {match.kind for rule in rules for match in rule.matches} == set(MatchKind) - UNUSED_MATCHES[layout]
    assert {rule.target.kind for rule in rules} == set(TargetKind) - UNUSED_TARGETS[layout]
    assert {value for case in CASES_OF[layout] for value in (*case.flags, *case.environment.values())} >= set(Mode)


def test_every_kind_of_rule_is_used_by_a_layout() -> None:
    assert set.intersection(*UNUSED_MATCHES.values()) == set()
    assert set.intersection(*UNUSED_TARGETS.values()) == set()


def error_classes(base: type[IstioInitError] = IstioInitError) -> set[type[IstioInitError]]:
    return {base}.union(*(error_classes(one) for one in base.__subclasses__()))


def test_every_kind_of_error_has_a_test_of_its_exit_code() -> None:
    assert {kind for kind in error_classes() if kind.__module__.startswith("istio_init.")} == set(ERRORS)
    assert {kind.exit_code for kind in ERRORS} == {1, 2, 3, 4, 5, 126}
