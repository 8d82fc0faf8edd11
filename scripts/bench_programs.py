# ruff: noqa: INP001 - a part of scripts/bench, not a module of a package
"""What scripts/bench measures: pods, this project's program in the forms that people install, and other programs."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docker"))
from start import write_start  # noqa: E402 - the image's own way to start

BUILD = ROOT / "build"
TOOLS = ROOT / ".venv"  # has pip and matplotlib; made by scripts/setup
PYTHON = "/usr/bin/python3"  # Debian's own, as in the image

CIDRS = "{cidrs}"  # in a word of a command: the excluded CIDRs go here
CLEAN = "clean"
NAME = "istio-init"

# Today's arguments, without -x.
TODAY: tuple[str, ...] = (
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-b",
    "*",
)
TODAY += ("-d", "15090,15021,15020")


class Pod(NamedTuple):
    """What an init container is asked for."""

    name: str
    title: str
    words: tuple[str, ...]  # of this project's command line, without -x


PODS = (
    Pod("today", "A pod of today's Istio", TODAY),
    Pod("1.0", "A pod of Istio 1.0", ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-b", "9080", "-d", "")),
    Pod("tproxy", "A pod of today's Istio, with TPROXY", tuple("TPROXY" if word == "REDIRECT" else word for word in TODAY)),
)
# In a pod of this name the other ways to reach the rules are measured, too: flags → what is excluded.
WAYS_IN = "today"
WAYS = {
    ("--backend", "nft"): CIDRS,
    ("--backend", "restore", "--iptables-variant", "legacy"): "",
    ("--backend", "libiptc"): "",
}


class Command(NamedTuple):
    """A command line that is measured."""

    words: tuple[str, ...]

    @property
    def takes_cidrs(self) -> bool:
        """Whether it can be told of excluded CIDRs."""
        return any(CIDRS in word for word in self.words)

    def excluding(self, cidrs: str) -> tuple[str, ...]:
        """Put excluded CIDRs, separated by commas, where they belong."""
        return tuple(word.replace(CIDRS, cidrs) for word in self.words)


class Program(NamedTuple):
    """A program that is measured in one pod."""

    name: str
    apply: Command
    clean: Command | None


class Peer(NamedTuple):
    """A command of another program: for the pod of that name, or to clean."""

    scenario: str
    name: str
    command: Command


def parse_peer(text: str) -> Peer:
    """Read SCENARIO:NAME=COMMAND.

    Raises:
        ValueError: if it is not of that form, or its program cannot be run.
    """
    scenario, colon, rest = text.partition(":")
    name, equals, line = rest.partition("=")
    scenarios = (*(pod.name for pod in PODS), CLEAN)
    if not (colon and equals and name and line.strip()) or scenario not in scenarios:
        raise ValueError(f"{text!r} is not SCENARIO:NAME=COMMAND with a scenario of {', '.join(scenarios)}")
    program, *arguments = shlex.split(line)
    found = shutil.which(program)
    if found is None:
        raise ValueError(f"{program!r} is no program that can be run")
    return Peer(scenario, name, Command((str(Path(found).absolute()), *arguments)))


def check_peers(peers: list[Peer]) -> None:
    """See that peers can be told apart, and that each has something to clean.

    Raises:
        ValueError: if not.
    """
    for peer in peers:
        if peer.name.startswith(NAME):
            raise ValueError(f"a peer cannot be called {peer.name}: names that begin with {NAME} are this project's")
        if sum(other[:2] == peer[:2] for other in peers) > 1:
            raise ValueError(f"two peers are {peer.scenario}:{peer.name}")
        if peer.scenario == CLEAN and not any(other.name == peer.name for other in peers if other.scenario != CLEAN):
            raise ValueError(f"{CLEAN}:{peer.name} has nothing to clean: {peer.name} is a peer of no pod")


class Ours(NamedTuple):
    """This project's program: the words that start it in each form, with flags that are the same for all."""

    image: tuple[str, ...]
    venv: tuple[str, ...]
    flags: tuple[str, ...]

    def in_pod(self, pod: Pod) -> list[Program]:
        """List what is measured of it in a pod; the first is what others are compared with."""
        ways = {(NAME, *way): (self.image, way, excluded) for way, excluded in WAYS.items() if pod.name == WAYS_IN}
        named = {(NAME,): (self.image, self.flags, CIDRS), (f"{NAME},", "venv"): (self.venv, self.flags, ""), **ways}
        return [
            Program(" ".join(name), Command((*start, *pod.words, *flags, "-x", excluded)), Command((*start, CLEAN, *flags)))
            for name, (start, flags, excluded) in named.items()
        ]

    def dry_run(self) -> Command:
        """Give a run that reads and writes no rules."""
        return Command((*self.image, *TODAY, "--dry-run"))


def programs_of(pod: Pod, ours: Ours, peers: list[Peer]) -> list[Program]:
    """List all that is measured in a pod."""
    cleaning = {peer.name: peer.command for peer in peers if peer.scenario == CLEAN}
    others = [Program(peer.name, peer.command, cleaning.get(peer.name)) for peer in peers if peer.scenario == pod.name]
    return ours.in_pod(pod) + others


def make_image_form() -> tuple[str, ...]:
    """Install what the container image has, compiled as there, and give the words that start it there."""
    place = BUILD / "bench-image"
    if _is_outdated(place):
        shutil.rmtree(place, ignore_errors=True)
        _pip("install", "--quiet", "--no-compile", "--target", str(place), *_from_wheels())
        subprocess.run([PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", place], check=True)
        write_start(place / NAME, PYTHON, str(place))
        _stamp(place)
    return (str(place / NAME),)


def make_venv_form() -> tuple[str, ...]:
    """Install as `pip install` does, and give the words that start it."""
    place = BUILD / "bench-venv"
    if _is_outdated(place):
        subprocess.run([PYTHON, "-m", "venv", "--clear", "--without-pip", place], check=True)
        _pip("--python", str(place / "bin" / "python3"), "install", "--quiet", *_from_wheels())
        _stamp(place)
    return (str(place / "bin" / "istio-init"),)


def _from_wheels() -> tuple[str, ...]:
    """Build this checkout and fetch what it needs, once for both forms, and give the words that tell pip to install that."""
    place = BUILD / "bench-wheels"
    if _is_outdated(place):
        shutil.rmtree(place, ignore_errors=True)
        _pip("wheel", "--quiet", "--use-pep517", "--wheel-dir", str(place), str(ROOT))
        _stamp(place)
    return ("--no-index", "--find-links", str(place), NAME)


def _is_outdated(place: Path) -> bool:
    """Tell whether a source has changed since a form was made."""
    stamp = place / "made-from"
    outdated = not stamp.is_file() or stamp.read_text(encoding="ascii") != _digest()
    if outdated:
        print(f"scripts/bench: making build/{place.name} of this checkout", file=sys.stderr, flush=True)  # noqa: T201 - progress
    return outdated


def _stamp(place: Path) -> None:
    (place / "made-from").write_text(_digest(), encoding="ascii")


def _digest() -> str:
    sources = (Path(__file__), ROOT / "pyproject.toml", *sorted((ROOT / "istio_init").rglob("*.py")))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _pip(*arguments: str) -> None:
    subprocess.run([TOOLS / "bin" / "pip", "--disable-pip-version-check", *arguments], check=True)
