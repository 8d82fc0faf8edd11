"""Shared by `inject` and `uninject`: reading and writing manifests."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.cli.command import print_text
from istio_init.core.errors import InvalidInput, IstioInitError
from istio_init.core.files import decode, write_text
from istio_init.core.log import Level, Log
from istio_init.core.option import Kind, Option, read_values
from istio_init.core.reading import ALLOWED, read_all, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Change = Callable[[Any, str], tuple[Any, tuple[str, ...]]]

SUFFIXES = (".yaml", ".yml", ".json")
STANDARD_INPUT = "-"
FLAG = "-f/--filename"
SEPARATOR = "---\n"


MANIFEST_OPTIONS = (
    Option("paths", metavar="[FILE|DIR|-]...", kind=Kind.ARGUMENTS, is_path=True),
    Option("more_paths", ("-f", "--filename"), metavar="FILE|DIR|-", kind=Kind.REPEATED, is_path=True,
           help=f"Manifest, directory of manifests ({', '.join(SUFFIXES)}), or - for standard input; repeatable."),
    Option("output", ("-o", "--output"), metavar="FILE", is_path=True,
           help="Write to this file instead of standard output."),
    Option("in_place", ("--in-place",), kind=Kind.FLAG, help="Update each file in place."),
)  # fmt: skip


class Source(NamedTuple):
    """A manifest.

    Attributes:
        path: its file, or `-`.
        name: its name in messages.
        text: its contents, with original line breaks.
    """

    path: str
    name: str
    text: str


def change_manifests(given: Mapping[str, Any], log: Log, change: Change) -> None:
    """Read, change and write each manifest; nothing is written unless all can be changed.

    Args:
        given: what the command line says of `MANIFEST_OPTIONS`.
        log: the log for notes.
        change: see `istio_init.kubernetes.inject.text.rewrite`.

    Raises:
        InvalidInput: a manifest cannot be read, changed or written, or options conflict.
        IstioInitError: the YAML library is not installed.
    """
    options = read_values(MANIFEST_OPTIONS, given)
    output, in_place = options["output"], options["in_place"]
    if in_place and output is not None:
        raise InvalidInput("--in-place", "conflicts with --output", "one of the two")
    sources = _sources((*options["more_paths"], *options["paths"]))
    if in_place:
        _require_regular(sources)
    try:
        from istio_init.kubernetes.inject.text import rewrite
    except ModuleNotFoundError as error:
        message = f"the module {error.name} is not installed; run: pip install 'istio-init[inject]'"
        raise IstioInitError(message) from None
    done = [(source, *rewrite(source.text, source.name, change)) for source in sources]
    for source, _, notes in done:
        for note in notes or (f"{source.name}: no pods found",):
            log.write(Level.INFO, note)
    if in_place:
        for source, text, _ in done:
            if text != source.text:
                write_text(source.path, text, FLAG, stat.S_IMODE(Path(source.path).stat().st_mode))
        return
    text = _joined([text for _, text, _ in done])
    if output is None:
        print_text(text)
    else:
        write_text(output, text, "--output")


def _sources(paths: tuple[str, ...]) -> list[Source]:
    if not paths:
        raise InvalidInput(FLAG, "no manifest given", "a file, a directory, or - for standard input")
    return [_source(file) for path in paths for file in _files(path)]


def _require_regular(sources: list[Source]) -> None:
    for source in sources:
        if source.path == STANDARD_INPUT or not os.path.isfile(source.path):
            raise InvalidInput("--in-place", f"{source.name} cannot be updated in place", "regular files")


def _files(path: str) -> list[str]:
    if path == STANDARD_INPUT or not os.path.isdir(path):
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise InvalidInput(FLAG, f"no manifests in {path!r}", f"a directory with {', '.join(SUFFIXES)}")
    return found


def _source(path: str) -> Source:
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise InvalidInput(FLAG, "standard input is closed", "a file, a directory, or - for standard input")
        return Source(path, "standard input", decode(_standard_input(), path, FLAG))
    return Source(path, path, decode(read_file(path, FLAG), path, FLAG))


def _standard_input() -> bytes:
    try:
        return read_all(sys.stdin.fileno())
    except (OSError, ValueError) as error:
        raise InvalidInput(FLAG, f"cannot read standard input: {error}", ALLOWED) from None


def _joined(texts: list[str]) -> str:
    """Join several files into one YAML stream."""
    stream = texts[0]
    for text in texts[1:]:
        end = "" if stream.endswith("\n") else "\n"
        stream += end + (text if text.startswith("---") else SEPARATOR + text)
    return stream
