"""What the result of a cell depends on, as a hash: while it is the same, the result is worth keeping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from harness import __version__
from harness.qualify.plan import Item
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario
from harness.sources import sources_hash

# What neither runs nor judges a cell: a report that looks different is no reason to run a thousand guests again.
_APART: Final = ("cli", "report", "plugin", "pytest_plugin.py", "qualified", "qualify", "repro")
# What of ``qualify`` makes a cell, or runs it on a worker.
_RUNS: Final = ("qualify/plan.py", "qualify/remote")
_DIGITS: Final = 16

WORDS: Final[Mapping[str, str]] = {
    "scenario": "the scenario's file changed",
    "point": "the point is made otherwise",
    "rule": "the matrix expects something else there",
    "qemu": "the QEMU build changed",
    "image": "the guest's image changed",
    "payload": "usdm or the guest's worker changed",
    "library": "the C library changed",
    "module": "the test module changed",
    "accelerator": "the accelerator changed",
    "limits": "the deadlines changed",
    "harness": "harness itself changed",
}
"""The parts of a fingerprint, and what it means when one is not as it was."""


def made_of(item: Item, resources: Resources, options: RunOptions) -> dict[str, str]:
    """What a cell's result depends on, by the names of :data:`WORDS`.

    Args:
        item: the cell; it can run.
        resources: builds, images, payload.
        options: deadlines, and how guests are started.
    """
    cell = item.cell
    emulation = resources.emulations[cell.qemu]
    found = {
        "scenario": _file_hash(cell.scenario.file),
        "qemu": emulation.build.key[:_DIGITS],
        "limits": f"{options.timeout:g} {options.boot_timeout:g}",
        "harness": f"{__version__} {_sources()}",
    }
    if isinstance(cell.scenario, BareScenario):
        return found
    found |= {
        "point": _hash([cell.point.values, cell.model, cell.implementation, cell.libusdm, options.start]),
        "image": resources.images[cell.kernel].key[:_DIGITS],
        "payload": resources.payload.key[:_DIGITS],
        "accelerator": emulation.accelerator.accelerator,
    }
    if item.expectation is not None:
        rule = item.expectation.rule
        found["rule"] = _hash([dict(rule.reasons), rule.expect, dict(rule.steps)])
    library = resources.library_of(cell.libusdm) if cell.oracle == "libusdm" else None
    if library is not None:
        found["library"] = library.key[:_DIGITS]
    if cell.oracle == "kernel" and cell.kernel in resources.modules:
        found["module"] = resources.modules[cell.kernel].key[:_DIGITS]
    return found


def fingerprint(parts: Mapping[str, str]) -> str:
    """The hash over what :func:`made_of` gives: 64 hex digits."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, in words."""
    return [words for part, words in WORDS.items() if before.get(part) != now.get(part)]


@cache
def _sources() -> str:
    """Hash of harness' own sources, as far as they run and judge cells."""
    return sources_hash(counts)[:_DIGITS]


def counts(file: Path) -> bool:
    """Whether a source file of harness, by its path below the package, has a part in what a result is."""
    return file.parts[0] not in _APART or any(file.is_relative_to(one) for one in _RUNS)


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:_DIGITS]
