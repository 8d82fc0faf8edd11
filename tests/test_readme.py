"""Every command of the README, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_init.rules.options import OPTIONS
from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [text for language, text in BLOCKS if language == "sh"]
PYTHON = [text for language, text in BLOCKS if language == "python"]

# This test is run by it.
TEST_COMMAND = "scripts/test\n"

# These need an engine; tests/docker/test_readme.py runs them.
CONTAINERS = ("docker ", "docker-compose ")

# A stand-in for the old script, which is not part of this project; the README says where to get it.
OLD_SCRIPT = ROOT / "istio-iptables.sh"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    need_namespaces()
    made = Namespace()
    made.run("ip", "link", "set", "lo", "up")
    yield made
    made.close()


@pytest.fixture
def old_script(commands: str) -> Iterator[None]:
    if OLD_SCRIPT.name not in commands or OLD_SCRIPT.exists():
        yield
        return
    OLD_SCRIPT.write_text("#!/bin/sh\nexec iptables -t nat -S\n", encoding="ascii")
    OLD_SCRIPT.chmod(0o755)
    yield
    OLD_SCRIPT.unlink()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is kept of this checkout: nothing that other runs left in build/ is in the way, whichever Python made it."""
    copied = tmp_path_factory.mktemp("readme") / "istio-init"
    not_kept = shutil.ignore_patterns(".git", ".venv", "build", ".*_cache", ".hypothesis", "__pycache__")
    shutil.copytree(ROOT, copied, ignore=not_kept)
    (copied / "build").mkdir()
    return copied


@pytest.mark.usefixtures("old_script")
@pytest.mark.parametrize(
    "commands",
    [text for text in SHELL if text != TEST_COMMAND and not text.startswith(CONTAINERS)],
    ids=lambda text: text.split("\n")[0],
)
def test_shell_commands_of_the_readme_work(commands: str, namespace: Namespace, checkout: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    enter = ["nsenter", f"--net={namespace.path}"]
    if "pip install" in commands or "scripts/bench" in commands:
        enter = []  # these need a way out to the package index; the first writes no rule, the second in its own namespaces
    # Scripts make environments of their own, which they tell from outdated ones; those here need not be made anew.
    place = ROOT if commands.startswith("scripts/") else checkout
    shell = [*enter, "bash", "-euc", commands]
    done = subprocess.run(
        shell, check=False, capture_output=True, text=True, cwd=place, env={**os.environ, "PATH": path}, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PYTHON, ids=["walk", "apply"])
def test_python_programs_of_the_readme_print_what_it_says(program: str, namespace: Namespace) -> None:
    done = namespace.run(sys.executable, "-c", program)
    promised = [line.removeprefix("# ") for line in program.splitlines() if line.startswith("# ")]
    assert done.stdout.splitlines()[: len(promised)] == promised
    assert bool(promised) or "ISTIO_OUTPUT" in namespace.save("nft")


def test_the_readme_begins_with_two_commands() -> None:
    assert SHELL[:2] == ["scripts/demo\n", TEST_COMMAND]


def test_the_compatibility_table_has_every_flag_and_variable() -> None:
    for option in OPTIONS:
        for word in (*option.flags, *option.variables):
            assert re.search(rf"^\| .*(`{word}`|\b{word}\b)", README, re.MULTILINE), f"{word} has no row"


def test_every_exit_code_is_in_the_readme_and_in_the_help() -> None:
    in_readme = re.findall(r"^\| (\d) \| (.*?)(?:,|;| \|)", README, re.MULTILINE)
    assert [code for code, _ in in_readme] == list("012345")
    shown = subprocess.run([sys.executable, "-m", "istio_init", "--help"], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^ +(\d)  ", shown, re.MULTILINE) == list("012345")


def test_the_example_pod_has_arguments_that_are_accepted() -> None:
    (line,) = re.findall(r"^      args: (\[.*\])$", (ROOT / "docker" / "pod.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    command = [sys.executable, "-m", "istio_init", "--dry-run", *json.loads(line)]
    golden = ROOT / "tests" / "golden" / "files" / "rules" / "pod.restore"
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == golden.read_text(encoding="utf-8")
