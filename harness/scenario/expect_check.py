"""Checks of what a scenario expects of a step: counts that the step has, and differences that are some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from harness.oracle_traits import TRAITS
from harness.scenario.base import Model
from harness.scenario.expect import (
    FaultsOnKernel,
    FaultsOnLibrary,
    KernelDeviation,
    LibraryDeviation,
    ScenarioExpect,
    StepExpect,
)
from harness.scenario.problems import suggest
from harness.scenario.steps import ORACLES
from harness.scenario.yaml_marks import Path_

COUNTS: Final[Mapping[str, tuple[str, ...]]] = {
    "container_info": ("mappings_left",),
    "map_each": ("done",),
    "unmap_each": ("done",),
    "iova_link_each": ("done",),
    "iova_info": ("in_use", "links", "synced", "mappings", "reserved"),
    "hugepages": ("total", "free"),
    "threads": ("done", "wrong"),
    "mappings": ("mapped", "unmapped", "wrong", "readable", "writable"),
    "enable_vfs": ("vfs", "groups"),
    "disable_vfs": ("vfs", "closed"),
    "unbind": ("closed",),
    "unplug": ("closed",),
    "surprise_removal": ("asked", "closed"),
    "physical_address": ("contiguous",),
}
"""The counts that a kind of step has; of a kind that is not here, any name may be one."""

_OF_STEPS: Final[Mapping[str, type[Model]]] = {"libusdm": LibraryDeviation, "kernel": KernelDeviation}
_OF_ALL: Final[Mapping[str, type[Model]]] = {"libusdm": FaultsOnLibrary, "kernel": FaultsOnKernel}

Found = tuple[Path_, str, str | None, bool]
"""Where, the message, a hint, and whether the problem is the key."""


def check_expectations(raw: Mapping[str, Any], kind: str, path: Path_) -> Iterator[Found]:
    """What is wrong in the expectations of a step.

    Args:
        raw: the step as it stands in the file.
        kind: its kind.
        path: where it is.
    """
    offered = COUNTS.get(kind, ())
    yield from _unknown_counts(raw.get("expect"), offered, (*path, "expect"), f"a count of {kind}")
    for oracle in ORACLES:
        other = raw.get(oracle)
        if not isinstance(other, Mapping):
            continue
        kept = TRAITS[oracle].counts.get(kind)
        what = f"a count of {kind}" + ("" if kept is None else f" that the {oracle} keeps")
        yield from _unknown_counts(other.get("expect"), kept or offered, (*path, oracle, "expect"), what)
        ours, theirs = _said(StepExpect, raw.get("expect", {})), _said(_OF_STEPS[oracle], other)
        if ours is not None and theirs is not None and ours == theirs.get("expect", {}):
            yield _no_difference((*path, oracle), "the step's own")


def check_faults_differ(expect: Mapping[str, Any], path: Path_) -> Iterator[Found]:
    """The oracles whose faults are said to differ from the scenario's, and do not.

    Args:
        expect: the scenario's expectation as it stands in the file.
        path: where it is.
    """
    for oracle in ORACLES:
        other = expect.get(oracle)
        if isinstance(other, Mapping):
            ours, theirs = _said(ScenarioExpect, {"faults": expect.get("faults", ())}), _said(_OF_ALL[oracle], other)
            if ours is not None and theirs is not None and ours["faults"] == theirs.get("faults", ()):
                yield _no_difference((*path, oracle), "the scenario's own")


def _no_difference(path: Path_, whose: str) -> Found:
    message = f"expected an expectation that differs from {whose}, found the same"
    return path, message, f"take {path[-1]} away, or write what is seen instead", True


def _unknown_counts(expect: Any, offered: tuple[str, ...], path: Path_, what: str) -> Iterator[Found]:
    counts = expect.get("counts") if isinstance(expect, Mapping) else None
    for name in counts if offered and isinstance(counts, Mapping) else ():
        if name not in offered:
            hint = suggest(str(name), list(offered), "these are:")
            yield (*path, "counts", name), f"expected {what}, found '{name}'", hint, True


def _said(model: type[Model], raw: Any) -> dict[str, Any] | None:
    """What is said, with the keys that were written; None for one that is not well formed."""
    try:
        return model.model_validate(raw).model_dump(exclude_unset=True)
    except ValidationError:
        return None
