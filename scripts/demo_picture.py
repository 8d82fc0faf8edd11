# ruff: noqa: INP001 - part of a script, not of a package
"""The demo's picture: two pods, and the hops of one request between them, as SVG. Pure."""

from __future__ import annotations

from html import escape
from textwrap import wrap
from typing import NamedTuple

WIDTH, MARGIN = 1460, 40
POD_WIDTH, POD_TOP, POD_HEIGHT = 650, 110, 320
BOX_WIDTH, BOX_HEIGHT = 190, 74
RULES_WIDTH = 160
APP_Y, ENVOY_Y, RULES_Y = POD_TOP + 76, POD_TOP + 216, POD_TOP + 76  # the tops of the boxes
IN_Y, OUT_Y = ENVOY_Y + 22, ENVOY_Y + 56  # where a redirected connection enters Envoy, and where Envoy's own leaves it
LINE = 19  # pixels between two lines of text
INK, PAPER, FRAME, APP, ENVOY, PATH, QUIET = "#1f2933", "#ffffff", "#cbd2d9", "#e3f8ff", "#efe7fd", "#d64545", "#616e7c"
RULES = "#fff3c4"
WRAP = 84  # characters per line of a note, whose column is as wide as a pod
HOPS_IN_FIRST_POD = 3


class Note(NamedTuple):
    """A note about one hop: its number in the picture, its title, and its evidence, one item per line."""

    number: int
    title: str
    evidence: str


class Style(NamedTuple):
    """The style of a text."""

    size: int
    colour: str = INK
    bold: bool = False
    anchor: str = "start"
    mono: bool = False


HEADLINE, SUBTITLE = Style(26, bold=True), Style(15, QUIET)
POD_NAME, POD_DETAIL = Style(18, bold=True), Style(14, QUIET)
BOX_NAME, BOX_DETAIL = POD_NAME._replace(anchor="middle"), POD_DETAIL._replace(anchor="middle")
NUMBER, NOTE, EVIDENCE = Style(15, PAPER, bold=True, anchor="middle"), Style(16, bold=True), Style(12, QUIET, mono=True)
FONT = 'font-family="Helvetica, Arial, sans-serif"'
ROOM = f'y="{POD_TOP}" width="{POD_WIDTH}" height="{POD_HEIGHT}" rx="14" fill="none" stroke="{FRAME}"'
HEAD = f'<path d="M0,0 L10,5 L0,10 z" fill="{PATH}"/>'


class Box(NamedTuple):
    """A box for a process of a pod, or for its rules."""

    x: int
    y: int
    colour: str
    name: str
    detail: str
    width: int = BOX_WIDTH
    height: int = BOX_HEIGHT


class Column(NamedTuple):
    """The x positions of a pod's boxes: its rules are next to the other pod, its processes on the far side."""

    pod: int
    process: int
    rules: int


LEFT = Column(MARGIN, MARGIN + 30, MARGIN + POD_WIDTH - 30 - RULES_WIDTH)
RIGHT = Column(WIDTH - MARGIN - POD_WIDTH, WIDTH - MARGIN - 30 - BOX_WIDTH, WIDTH - MARGIN - POD_WIDTH + 30)


def draw(pods: tuple[tuple[str, str], tuple[str, str]], notes: list[Note]) -> str:
    """Draw the path.

    Args:
        pods: name and address of the client's pod and of the server's.
        notes: one per hop, in order.
    """
    columns = [_wrapped(notes[:HOPS_IN_FIRST_POD]), _wrapped(notes[HOPS_IN_FIRST_POD:])]
    below = POD_TOP + POD_HEIGHT
    height = below + 60 + max(sum(LINE * (len(evidence) + 1) + 12 for _, evidence in lines) for lines in columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">',
        f"{HEAD}</marker></defs>",
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(MARGIN, 50, "One request, from app to app through both Envoys", HEADLINE),
        _text(MARGIN, 80, "The numbers refer to the evidence below each pod, all of it from this run.", SUBTITLE),
        *_pod(LEFT.pod, *pods[0]),
        *_pod(RIGHT.pod, *pods[1]),
        *_boxes(),
        *_arrows(),
        *_notes(columns[0], LEFT.pod, below + 50),
        *_notes(columns[1], RIGHT.pod, below + 50),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _pod(x: int, name: str, address: str) -> list[str]:
    return [
        f'<rect x="{x}" {ROOM}/>',
        _text(x + 20, POD_TOP + 32, f"pod {name}", POD_NAME),
        _text(x + 20, POD_TOP + 54, f"{address}: a network namespace with rules by istio-init", POD_DETAIL),
    ]


def _boxes() -> list[str]:
    rules_height = ENVOY_Y + BOX_HEIGHT - RULES_Y
    boxes = (
        Box(LEFT.process, APP_Y, APP, "app", "uid 1000, curl"),
        Box(LEFT.process, ENVOY_Y, ENVOY, "Envoy", "uid 1337, port 15001"),
        Box(LEFT.rules, RULES_Y, RULES, "rules", "ISTIO_OUTPUT", RULES_WIDTH, rules_height),
        Box(RIGHT.rules, RULES_Y, RULES, "rules", "ISTIO_INBOUND", RULES_WIDTH, rules_height),
        Box(RIGHT.process, APP_Y, APP, "app", "uid 1000, port 9080"),
        Box(RIGHT.process, ENVOY_Y, ENVOY, "Envoy", "uid 1337, port 15001"),
    )
    return [part for box in boxes for part in _box(box)]


def _box(box: Box) -> list[str]:
    middle = box.x + box.width // 2
    size = f'width="{box.width}" height="{box.height}" rx="8" stroke="{INK}"'
    return [
        f'<rect x="{box.x}" y="{box.y}" {size} fill="{box.colour}"/>',
        _text(middle, box.y + 32, box.name, BOX_NAME),
        _text(middle, box.y + 54, box.detail, BOX_DETAIL),
    ]


def _arrows() -> list[str]:
    """Draw the hops: from the app to its Envoy, from there to the other Envoy, and on to the other app."""
    app_y, processes = APP_Y + BOX_HEIGHT + 20, LEFT.process + BOX_WIDTH
    turn, entry = LEFT.rules + RULES_WIDTH // 2, RIGHT.rules + RULES_WIDTH // 2
    app_x, up = LEFT.process + BOX_WIDTH // 2, RIGHT.process + BOX_WIDTH // 2
    return [
        _arrow(f"M{app_x},{APP_Y + BOX_HEIGHT} V{app_y} H{turn} V{IN_Y} H{processes + 3}"),
        _arrow(f"M{processes},{OUT_Y} H{RIGHT.process - 3}"),
        _arrow(f"M{up},{ENVOY_Y} V{APP_Y + BOX_HEIGHT + 3}"),
        _number(turn, (app_y + IN_Y) // 2, 1),
        _number(LEFT.process, ENVOY_Y, 2),
        _number(turn, OUT_Y, 3),
        _number(entry, OUT_Y, 4),
        _number(RIGHT.process + BOX_WIDTH, ENVOY_Y, 5),
        _number(RIGHT.process + BOX_WIDTH, APP_Y, 6),
    ]


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{PATH}" stroke-width="3" marker-end="url(#head)"/>'


def _number(x: int, y: int, number: int) -> str:
    return f'<circle cx="{x}" cy="{y}" r="14" fill="{PATH}"/>' + _text(x, y + 5, str(number), NUMBER)


def _wrapped(notes: list[Note]) -> list[tuple[Note, list[str]]]:
    return [(note, [part for line in note.evidence.splitlines() for part in _lines(line)]) for note in notes]


def _lines(evidence: str) -> list[str]:
    kept = evidence.replace("  ", " ").replace(" → ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    return wrap(kept, WRAP, break_on_hyphens=False)


def _notes(lines: list[tuple[Note, list[str]]], x: int, y: int) -> list[str]:
    parts = []
    for note, evidence in lines:
        parts += [_number(x + 14, y - 5, note.number), _text(x + 42, y, note.title, NOTE)]
        for text in evidence:
            y += LINE
            parts.append(_text(x + 42, y, text, EVIDENCE))
        y += LINE + 12
    return parts


def _text(x: int, y: int, text: str, style: Style) -> str:
    family = ' font-family="DejaVu Sans Mono, Consolas, monospace"' if style.mono else ""
    weight = ' font-weight="bold"' if style.bold else ""
    look = f'font-size="{style.size}" fill="{style.colour}" text-anchor="{style.anchor}"{weight}{family}'
    return f'<text x="{x}" y="{y}" {look}>{escape(text)}</text>'
