# ruff: noqa: INP001 - a part of scripts/bench, not a module of a package
"""What scripts/bench tells: tables, and a picture."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench_programs import PYTHON
from bench_runs import APPLY, RUN_TIMEOUT, Row, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench_programs import Pod

NOTE = f"""\
ratio: that of istio-init (first line) to the command, in the same round; the median of all rounds.
≤: no more than what any command begins with here, so it cannot be told how much less.
A run of more than {RUN_TIMEOUT:.0f} s is stopped, and its command left out of the larger sizes."""


class Measured(NamedTuple):
    """All that was measured in one pod."""

    pod: Pod
    lives: dict[str, Row]  # apply, second apply, clean
    sizes: dict[int, Row]  # excluded CIDRs → applies


class Table(NamedTuple):
    """Figures for people."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(pods: list[Measured], floors: Row) -> Iterator[Table]:
    """Put the figures into tables."""
    least = floors["true"].kibibytes
    for pod, lives, sizes in pods:
        larger = {f"{APPLY}, {size:,} CIDRs": row for size, row in sizes.items()}
        yield Table(
            f"{pod.title} ({pod.name})",
            ("run", "command", "runs", "wall", "ratio", "CPU", "ratio", "peak memory"),
            [
                (what, name, str(len(runs)), *_figures(next(iter(row.values())), runs, least))
                for what, row in {**lives, **larger}.items()
                for name, runs in row.items()
            ],
        )
    yield Table(
        "Less than an apply",
        ("command", "wall", "CPU", "peak memory"),
        [(name, _time(runs, "wall"), _time(runs, "cpu"), _memory(runs, least)) for name, runs in floors.items()],
    )


def _figures(ours: Samples, runs: Samples, least: int) -> tuple[str, ...]:
    if not runs:
        return ("fails", "", "", "", "")
    ratios = ["" if runs is ours or not ours else ratio(ours, runs, measure) for measure in ("wall", "cpu")]
    return (_time(runs, "wall"), ratios[0], _time(runs, "cpu"), ratios[1], _memory(runs, least))


def ratio(ours: Samples, other: Samples, measure: str) -> str:
    """Compare runs of the same rounds; if one was stopped, no ratio can be told but a bound of it."""
    if ours.stopped:
        return ""
    pairs = zip(ours, other, strict=False)  # what was stopped has not had all the rounds
    found = statistics.median(getattr(one, measure) / getattr(another, measure) for one, another in pairs)
    return f"{'< ' * other.stopped}{found:.3f}"


def _time(runs: Samples, measure: str) -> str:
    seconds: float = getattr(runs, measure)
    return "> " * runs.stopped + (f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.3g} s")


def _memory(runs: Samples, least: int) -> str:
    return f"{'≤ ' * (runs.kibibytes <= least * 1.02)}{runs.kibibytes / 1024:.1f} MiB"


def machine(path: str) -> str:
    """Say when and on what this was measured."""
    iptables = subprocess.check_output(["iptables", "--version"], env={"PATH": path}, text=True).strip()  # noqa: S607 - found on that PATH
    python = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    cpu = model[1] if model else platform.machine()
    return f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, {os.cpu_count()} CPUs, Linux {os.uname().release}, {iptables}, {python}"


def render(table: Table, *, markdown: bool) -> str:
    """Write a table as plain text, or as Markdown."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    left = [name in {"run", "command"} for name in table.header]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True)]
        return f"| {' | '.join(padded)} |" if markdown else "   ".join(padded).rstrip()

    rule = [":".ljust(w, "-") if to_left else ":".rjust(w, "-") for w, to_left in zip(widths, left, strict=True)]
    lines = [f"**{table.title}**" if markdown else table.title, "", line(table.header)]
    return "\n".join([*lines, *[line(rule)] * markdown, *map(line, table.rows)])


def plot(pods: list[Measured], file: Path) -> None:
    """Draw the time of each command over the number of excluded CIDRs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    drawn = [(pod.name, {0: lives[APPLY], **sizes}) for pod, lives, sizes in pods if sizes]
    for pod, sizes in drawn:
        for name in sizes[min(sizes.keys() - {0})]:
            runs = {size: row[name] for size, row in sizes.items() if name in row}
            label = f"{pod}: {name} ({_time(runs[max(runs)], 'wall')} with {max(runs):,})"
            axes.plot(list(runs), [of_size.wall for of_size in runs.values()], "o-", label=label)
    ticks = sorted({size for _, sizes in drawn for size in sizes})
    axes.set_xscale("symlog", linthresh=10)  # a plain logarithm has no place for 0
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.yaxis.set_major_formatter("{x:g} s")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("excluded CIDRs")
    axes.set_ylabel("time of one apply, median")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
