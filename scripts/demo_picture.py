# ruff: noqa: INP001 - a part of a script, not a module of a package
"""The demonstration's picture: two pods, and the legs of one request between them, as SVG. Pure."""

from __future__ import annotations

from html import escape
from textwrap import wrap
from typing import NamedTuple

WIDTH, MARGIN = 1240, 40
POD_WIDTH, POD_TOP, POD_HEIGHT = 500, 110, 330
BOX_WIDTH, BOX_HEIGHT = 190, 74
LINE = 19  # pixels between two lines of text
INK, PAPER, FRAME, APP, ENVOY, PATH, QUIET = "#1f2933", "#ffffff", "#cbd2d9", "#e3f8ff", "#efe7fd", "#d64545", "#616e7c"
WRAP = 150  # characters of a note in one line


class Note(NamedTuple):
    """What is said of one leg: its number in the picture, what it is, and the evidence, a line a piece."""

    number: int
    title: str
    evidence: str


class Style(NamedTuple):
    """How a text looks."""

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
BOX = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" stroke="{INK}"'
HEAD = f'<path d="M0,0 L10,5 L0,10 z" fill="{PATH}"/>'


class Box(NamedTuple):
    """A process of a pod."""

    x: int
    y: int
    colour: str
    name: str
    detail: str


def draw(pods: tuple[tuple[str, str], tuple[str, str]], notes: list[Note]) -> str:
    """Draw the path.

    Args:
        pods: name and address of the pod that calls, and of the one that is called.
        notes: one for each leg, in order.
    """
    lines = [(note, [part for line in note.evidence.splitlines() for part in wrap(line, WRAP)]) for note in notes]
    height = POD_TOP + POD_HEIGHT + 60 + sum(LINE * (len(evidence) + 1) + 12 for _, evidence in lines)
    left, right = MARGIN, WIDTH - MARGIN - POD_WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">',
        f"{HEAD}</marker></defs>",
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(MARGIN, 50, "One request, from app to app through both Envoys", HEADLINE),
        _text(MARGIN, 80, "The numbers are those of the evidence below, all of it from this run.", SUBTITLE),
        *_pod(left, *pods[0]),
        *_pod(right, *pods[1]),
        *_boxes(left, right),
        *_arrows(left, right),
        *_notes(lines, POD_TOP + POD_HEIGHT + 50),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _pod(x: int, name: str, address: str) -> list[str]:
    return [
        f'<rect x="{x}" {ROOM}/>',
        _text(x + 20, POD_TOP + 32, f"pod {name}", POD_NAME),
        _text(x + 20, POD_TOP + 54, f"{address}: a network namespace with rules by istio-init", POD_DETAIL),
    ]


def _boxes(left: int, right: int) -> list[str]:
    app_y, envoy_y = POD_TOP + 80, POD_TOP + 230
    boxes = (
        Box(left + 30, app_y, APP, "app", "uid 1000, curl"),
        Box(left + POD_WIDTH - 30 - BOX_WIDTH, envoy_y, ENVOY, "Envoy", "uid 1337, port 15001"),
        Box(right + 30, envoy_y, ENVOY, "Envoy", "uid 1337, port 15001"),
        Box(right + POD_WIDTH - 30 - BOX_WIDTH, app_y, APP, "app", "uid 1000, port 9080"),
    )
    return [part for box in boxes for part in _box(box)]


def _box(box: Box) -> list[str]:
    middle = box.x + BOX_WIDTH // 2
    return [
        f'<rect x="{box.x}" y="{box.y}" {BOX} fill="{box.colour}"/>',
        _text(middle, box.y + 32, box.name, BOX_NAME),
        _text(middle, box.y + 54, box.detail, BOX_DETAIL),
    ]


def _arrows(left: int, right: int) -> list[str]:
    app_y, envoy_y = POD_TOP + 80 + BOX_HEIGHT // 2, POD_TOP + 230 + BOX_HEIGHT // 2
    first_envoy, second_envoy = left + POD_WIDTH - 30 - BOX_WIDTH, right + 30
    first_middle, second_middle = first_envoy + BOX_WIDTH // 2, second_envoy + BOX_WIDTH // 2
    last_app = right + POD_WIDTH - 30 - BOX_WIDTH
    between = (first_envoy + BOX_WIDTH + second_envoy) // 2
    return [
        _arrow(f"M{left + 30 + BOX_WIDTH},{app_y} L{first_middle},{app_y} L{first_middle},{envoy_y - BOX_HEIGHT // 2 - 3}"),
        _arrow(f"M{first_envoy + BOX_WIDTH},{envoy_y} L{second_envoy - 3},{envoy_y}"),
        _arrow(f"M{second_middle},{envoy_y - BOX_HEIGHT // 2} L{second_middle},{app_y} L{last_app - 3},{app_y}"),
        _number(first_middle, app_y, 1),
        _number(first_envoy + BOX_WIDTH - 4, envoy_y - BOX_HEIGHT // 2, 2),
        _number(between - 34, envoy_y, 3),
        _number(between + 34, envoy_y, 4),
        _number(second_envoy + 4, envoy_y - BOX_HEIGHT // 2, 5),
        _number(last_app, app_y - BOX_HEIGHT // 2, 6),
    ]


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{PATH}" stroke-width="3" marker-end="url(#head)"/>'


def _number(x: int, y: int, number: int) -> str:
    return f'<circle cx="{x}" cy="{y}" r="14" fill="{PATH}"/>' + _text(x, y + 5, str(number), NUMBER)


def _notes(lines: list[tuple[Note, list[str]]], y: int) -> list[str]:
    parts = []
    for note, evidence in lines:
        parts += [_number(MARGIN + 14, y - 5, note.number), _text(MARGIN + 42, y, note.title, NOTE)]
        for text in evidence:
            y += LINE
            parts.append(_text(MARGIN + 42, y, text, EVIDENCE))
        y += LINE + 12
    return parts


def _text(x: int, y: int, text: str, style: Style) -> str:
    family = ' font-family="DejaVu Sans Mono, Consolas, monospace"' if style.mono else ""
    weight = ' font-weight="bold"' if style.bold else ""
    look = f'font-size="{style.size}" fill="{style.colour}" text-anchor="{style.anchor}"{weight}{family}'
    return f'<text x="{x}" y="{y}" {look}>{escape(text)}</text>'
