"""The page: what is worked out here goes through the templates, and comes out as one file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from harness import __version__
from harness.qualified.records import NotRun, Qualification, QualifiedCell
from harness.report.html.charts import charts_of
from harness.report.html.detail import SYMBOLS, WORDS, detail_of
from harness.report.html.grid import failing_first, grid_of, title_of
from harness.report.points import as_point, by_reason, point_text
from harness.report.text import clean, is_web_link, one_line, write_text
from harness.report.verdict import BAD, counts_text, sentence, totals

_CHUNK: Final = 24
_NAMES: Final = 40
_PLAIN: Final = 1_500_000
"""Bytes of details that are in the page as they are; further ones are packed like those of passing cells."""


@dataclass(frozen=True, slots=True)
class Group:
    """What was not run for one reason: the reason, points, the first lines in words, and how many lines there are."""

    reason: str
    count: int
    names: tuple[str, ...]
    lines: int


def html_report(one: Qualification, root: Path | None = None) -> str:
    """The whole page.

    Args:
        one: the qualification.
        root: the folder of its results, for logs of cells that were moved with it.
    """
    environment = _environment()
    detail = environment.get_template("cell.html.j2")

    def render(number: int) -> str:
        return detail.render(one=detail_of(number, one.cells[number], root))

    plain: dict[int, Markup] = {}
    used = 0
    for number in failing_first(one.cells):
        text = render(number)
        used += len(text)
        if plain and used > _PLAIN:
            break
        plain[number] = Markup(text)  # noqa: S704 - rendered by the template, which escapes
    rest = sorted(set(range(len(one.cells))) - set(plain), key=lambda number: (one.cells[number].scenario, number))
    chunks, places = _pack(rest, render)
    style, script = _static("report.css"), _static("report.js")
    return environment.get_template("report.html.j2").render(
        one=one,
        title=one_line(one.title) or "Run",
        verdict=sentence(one),
        state=_state(one),
        counts=counts_text(one),
        totals=totals(one.cells),
        grid=grid_of(one),
        plain=plain,
        places=places,
        chunks=chunks,
        packed_failures=sum(one.cells[number].standing in BAD for number in rest),
        not_run=_not_run(one),
        not_run_points=sum(item.points for item in one.not_run),
        numbers={cell.name: number for number, cell in enumerate(one.cells)},
        charts=charts_of(one),
        common=_common(one.cells),
        words={str(key): word for key, word in WORDS.items()},
        symbols={str(key): symbol for key, symbol in SYMBOLS.items()},
        version=__version__,
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def write_html(one: Qualification, path: Path, root: Path | None = None) -> Path:
    """Write the page and return the file's path."""
    return write_text(path, html_report(one, root))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_static), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["weblink"] = is_web_link
    environment.filters |= {
        "line": lambda text: one_line(str(text)),
        "clean": lambda text: clean(str(text)),
        "seconds": _seconds,
        "px": lambda value: f"{value:.1f}".removesuffix(".0"),
        "axis": title_of,
        "point": lambda values: point_text(as_point(values)),
    }
    return environment


@cache
def _static(name: str) -> str:
    return (files("harness.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pack(numbers: Sequence[int], render: Callable[[int], str]) -> tuple[list[str], dict[int, str]]:
    """Details of cells as compressed pieces, and where each cell's is: ``piece.position``.

    Neighbours are alike (one scenario on several points), so pieces of several compress to a fraction.
    """
    chunks: list[str] = []
    places: dict[int, str] = {}
    for first in range(0, len(numbers), _CHUNK):
        part = numbers[first : first + _CHUNK]
        places |= {number: f"{len(chunks)}.{position}" for position, number in enumerate(part)}
        data = json.dumps([render(number) for number in part]).encode()
        chunks.append(base64.b64encode(gzip.compress(data, 9, mtime=0)).decode())
    return chunks, places


def _state(one: Qualification) -> str:
    """``fail``, ``open`` while cells are left, ``pass``; ``none`` when nothing was run."""
    if not one.cells:
        return "none"
    if any(cell.standing in BAD for cell in one.cells):
        return "fail"
    return "pass" if one.complete else "open"


def _not_run(one: Qualification) -> list[Group]:
    return [
        Group(reason.text, reason.points, tuple(map(_what, reason.entries[:_NAMES])), len(reason.entries))
        for reason in by_reason(one.not_run)
    ]


def _what(item: NotRun) -> str:
    """``dma/unmapped_read (kernel 6.1), 4 points``."""
    where = one_line(point_text(as_point(item.point)))
    number = f", {item.points} points" if item.points > 1 else ""
    return one_line(item.scenario or "every scenario") + (f" ({where})" if where else "") + number


def _common(cells: Iterable[QualifiedCell]) -> dict[str, list[tuple[str, int]]]:
    """Versions and how many cells had each, for the environment."""
    found: dict[str, Counter[str]] = {}
    for cell in cells:
        versions = cell.result.versions
        if versions is None:
            continue
        named = {
            "QEMU": versions.qemu_build,
            "kernel": versions.kernel,
            "image": f"{versions.image} {versions.image_key[:12]}".strip(),
            "oracle": str(versions.oracle or ""),
            "accelerator": f"{versions.accelerator}: {versions.accelerator_reason}".rstrip(": "),
            "payload": versions.payload[:12],
            "Python of the guest": versions.guest_python,
            "Python of the host": versions.python,
            "harness": versions.harness,
        }
        for name, value in named.items():
            if value:
                found.setdefault(name, Counter())[one_line(value)] += 1
    return {name: counter.most_common(12) for name, counter in found.items()}


def _seconds(value: float) -> str:
    """``0.004 s``, ``1.2 s``, ``4 min 10 s``, ``1 h 2 min``."""
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"
