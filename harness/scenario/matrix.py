"""A matrix: which scenarios are run on which points, where their expectations differ, and what is known to fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from harness.qualified.fits import fits_pattern, fits_point
from harness.qualified.records import AXES, KnownFailure
from harness.scenario.base import Model
from harness.scenario.point import CMDLINES, VIOMMUS, Rule
from harness.scenario.values import Seconds, Text

Combine = Literal["all", "pairs", "each"]

VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "qemu": ("7.2", "10.0", "11.1", "system"),
    "kernel": ("6.1", "6.12", "7.2", "lab"),
    "viommu": tuple(VIOMMUS),
    "cmdline": tuple(CMDLINES),
    "implementation": ("usdm", "libusdm-26.08", "libusdm-24.02", "kernel", "both"),
    "model": ("edu", "qat"),
}
"""The values of the axes that have names."""

NUMBERS: Final[Mapping[str, range]] = {"hugepages": range(1 << 16), "vcpus": range(1, 65)}
"""The values of the axes that are numbers."""

DEFAULTS: Final[Mapping[str, str]] = {"qemu": "11.1", "kernel": "6.12", "implementation": "usdm", "model": "edu"}
"""What an axis is at that a matrix does not name; the others are then as the scenario has them."""

Values = dict[str, Any]
"""Axis to a value or a list of them, as a file has it; ``matrix_load`` says what is wrong with it."""


class SelectionModel(Model):
    """Scenarios, and the points that they are run on."""

    scenarios: tuple[Text, ...] = Field(
        default=("*",),
        strict=False,
        min_length=1,
        description="Ids, folders, or patterns as a shell has them, below the scenarios folder: dma, usdm/map_*.",
    )
    axes: Values = Field(
        default_factory=dict, description="Axis to the list of its values; an axis left out is at its default."
    )
    combine: Combine = Field(
        default="all",
        description="all: every point. pairs: every pair of values of two axes at least once. each: the first value of "
        "each axis, and each other value once with the other axes at their first.",
    )


class ExclusionModel(Model):
    """Points that are not run, and why."""

    when: Values = Field(description="Axis to a value or a list of them; all axes must be so.")
    scenarios: tuple[Text, ...] = Field(default=("*",), strict=False, min_length=1, description="Of these scenarios.")
    why: Text = Field(description="The reason, for whoever reads what was not run.")


class InclusionModel(Model):
    """A point besides."""

    at: Values = Field(description="Axis to value; an axis left out is at its default.")
    scenarios: tuple[Text, ...] = Field(default=("*",), strict=False, min_length=1, description="Of these scenarios.")


class ExpectationModel(Model):
    """What scenarios expect on some points in place of what their files say."""

    scenarios: tuple[Text, ...] = Field(default=("*",), strict=False, min_length=1, description="Of these scenarios.")
    when: Values = Field(description="Axis to a value or a list of them; all axes must be so.")
    why: Text = Field(description="Why it is different there; reports say it.")
    reasons: Values = Field(
        default_factory=dict, description="Fault reason of the file to the fault reason there: {5: mapping}."
    )
    expect: dict[str, Any] | None = Field(
        default=None, description="Replaces the scenario's whole expect, with the same keys."
    )
    steps: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Id of a step, or its position from 0, to what replaces its expect."
    )


class LimitsModel(Model):
    """How long things may take, and how often they are tried."""

    slower: Annotated[float, Field(gt=1, le=100)] = Field(
        default=1.5, strict=False, description="How many times as long a cell's steps may take as before."
    )
    retries: int = Field(
        default=1, ge=0, le=5, description="How often a cell is tried again after an error of infrastructure or boot."
    )
    timeout: Seconds = Field(default=120.0, description="For the steps of a scenario that names none.")
    boot_timeout: Seconds = Field(default=120.0, description="For a guest to become ready.")


class MatrixModel(Model):
    """A matrix file."""

    matrix: Text = Field(description="What the matrix is called; the key makes the file a matrix.")
    source: Text | None = Field(default=None, description="What asks for it.")
    description: Text | None = Field(default=None, description="What a reader should know besides.")
    scenarios: tuple[Text, ...] | None = Field(default=None, strict=False, min_length=1, description="As in parts.")
    axes: Values | None = Field(default=None, description="As in parts; beside them it is one more part.")
    combine: Combine | None = Field(default=None, description="As in parts.")
    parts: tuple[SelectionModel, ...] = Field(
        default=(), strict=False, description="Several selections of scenarios with axes of their own."
    )
    exclude: tuple[ExclusionModel, ...] = Field(default=(), strict=False, description="Points that are not run.")
    include: tuple[InclusionModel, ...] = Field(default=(), strict=False, description="Points besides.")
    expectations: tuple[ExpectationModel, ...] = Field(
        default=(), strict=False, description="Where expectations differ, and why. The first that fits counts."
    )
    known_failures: Text | None = Field(
        default=None, description="The file of known failures, beside the matrix: known-failures.yaml."
    )
    limits: LimitsModel = Field(default_factory=LimitsModel, description="Deadlines, retries, what counts as slower.")


@dataclass(frozen=True, slots=True)
class Selection:
    """Scenarios, and the axes of their points.

    Args:
        patterns: ids, folders and patterns.
        axes: axis to its values as words, in the order of :data:`AXES`.
        combine: which of their combinations.
        line: where it stands in the file.
    """

    patterns: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    combine: Combine
    line: int = 0


@dataclass(frozen=True, slots=True)
class Where:
    """Some scenarios on some points.

    Args:
        patterns: ids, folders and patterns.
        when: axis to the values that it may have; an axis that is not in it may have any.
        line: where it stands in the file.
    """

    patterns: tuple[str, ...]
    when: Mapping[str, tuple[str, ...]]
    line: int = 0

    def fits(self, scenario: str, point: Mapping[str, str]) -> bool:
        """Whether a scenario on a point is meant.

        Args:
            scenario: its id.
            point: axis to value, of every axis.
        """
        return fits_point(self.when, point) and fits_pattern(self.patterns, scenario)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What is not run.

    Args:
        where: what.
        why: one line.
    """

    where: Where
    why: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """Where expectations differ.

    Args:
        where: what.
        rule: how, and why.
    """

    where: Where
    rule: Rule


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as it was read.

    Args:
        title: what it calls itself.
        file: the file.
        text: its text, and that of the known failures: what makes it this matrix.
        root: the scenarios folder that patterns start from.
        files: the scenarios below it, by id.
        selections: what is run; inclusions are selections of one point.
        exclusions: what is not.
        expectations: the first that fits counts.
        known: the known failures, also those that have expired.
        limits: deadlines and retries.
    """

    title: str
    file: Path
    text: str
    root: Path
    files: Mapping[str, Path]
    selections: tuple[Selection, ...]
    exclusions: tuple[Exclusion, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    known: tuple[KnownFailure, ...] = ()
    limits: LimitsModel = field(default_factory=LimitsModel)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The axes that the matrix names, and their values in the order in which they come."""
        found: dict[str, dict[str, None]] = {axis: {} for axis in AXES}
        for selection in self.selections:
            for axis, values in selection.axes.items():
                found[axis].update(dict.fromkeys(values))
        return {axis: tuple(values) for axis, values in found.items() if values}


def impossible(point: Mapping[str, str]) -> str | None:
    """Why there cannot be a guest at a point, as one line; None where there can.

    Args:
        point: axis to value, of some axes; what it does not name is no reason.
    """
    qemu, viommu = point.get("qemu"), point.get("viommu", "")
    if viommu == "amd" and qemu in ("7.2", "10.0"):
        return f"amd-iommu remaps no DMA in QEMU {qemu}, it does from 11 on"
    if point.get("model") == "qat" and qemu in ("7.2", "10.0"):
        return f"model qat needs vfio-user, which QEMU {qemu} has not; it came with 10.1"
    if viommu == "none" and point.get("cmdline", "default") != "default":
        return f"cmdline {point['cmdline']} is about the IOMMU, and viommu none is a machine without"
    if point.get("implementation") == "kernel" and point.get("kernel") not in (None, "7.2"):
        return f"the kernel's dma_iova functions are run by a test module for kernel 7.2, not for {point['kernel']}"
    return None
