"""Qualifications side by side where the axes are not the same."""

from __future__ import annotations

import pytest

from harness.qualified.compare import compare
from harness.qualified.records import Qualification, QualifiedCell
from harness.results import CellResult, Outcome


def made(*cells: tuple[dict[str, str], Outcome]) -> Qualification:
    """A qualification of one scenario at some points."""
    axes: dict[str, tuple[str, ...]] = {}
    found = []
    for point, outcome in cells:
        for axis, value in point.items():
            axes[axis] = tuple(dict.fromkeys((*axes.get(axis, ()), value)))
        name = f"dma/a [{', '.join(f'{axis} {value}' for axis, value in point.items())}]"
        result = CellResult(scenario=name, title="t", source="s", file="f", outcome=outcome, seconds=1.0)
        found.append(QualifiedCell(name=name, scenario="dma/a", point=point, attempts=(result,)))
    return Qualification(started="", axes=axes, cells=tuple(found), planned=len(found))


ONE = {"qemu": "11.1"}
PASS, FAIL = Outcome.PASS, Outcome.FAIL


def on(**more: str) -> dict[str, str]:
    return {**ONE, **more}


def test_an_axis_more_hides_no_failure() -> None:
    now = made((on(vcpus="1"), FAIL), (on(vcpus="2"), FAIL))
    found = compare(made((ONE, PASS)), now)
    assert found.newly_failing == ("dma/a [qemu 11.1, vcpus 1]", "dma/a [qemu 11.1, vcpus 2]")
    assert (found.gone, found.new, found.newly_passing) == ((), (), ())


def test_an_axis_less_hides_no_failure() -> None:
    before = made((on(vcpus="1"), PASS), (on(vcpus="2"), PASS), (on(vcpus="4"), FAIL))
    found = compare(before, made((ONE, FAIL)))
    assert found.newly_failing == ("dma/a [qemu 11.1]",)
    assert (found.gone, found.new) == ((), ())


def test_what_was_not_there_before_is_new() -> None:
    now = made((on(vcpus="1"), PASS), (on(vcpus="2"), PASS), ({"qemu": "7.2", "vcpus": "1"}, FAIL))
    found = compare(made((ONE, PASS)), now)
    assert found.new == ("dma/a [qemu 7.2, vcpus 1]",)
    assert found.newly_failing == ()


@pytest.mark.parametrize("model", ["edu", "qat"])
def test_where_both_have_several_names_must_be_equal(model: str) -> None:
    before = made((on(vcpus="1"), PASS), (on(vcpus="2"), PASS))
    found = compare(before, made((on(model=model), FAIL), (on(model="e"), FAIL)))
    assert len(found.gone) == len(found.new) == 2
    assert found.newly_failing == ()
