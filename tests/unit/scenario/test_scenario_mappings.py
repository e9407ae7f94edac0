"""Lint of the step that reads the IOMMU's tables."""

from __future__ import annotations

import pytest
from scenario_said import FILE, HEAD, problems_of, said

from harness.scenario import parse_scenario

STEP = "mappings: {device: edu0, iova: 0x200000, size: 4K}"
PLACE = "mappings: {device: edu0, %s}"


def one(step: str) -> str:
    return f"{HEAD}steps:\n  - {step}\n"


def test_the_device_need_not_be_open():
    (step,) = parse_scenario(one(STEP), FILE).steps
    assert step.args_json() == {"device": "edu0", "offset": 0, "iova": 0x200000, "size": 4096}


@pytest.mark.parametrize("inside", [False, True])
def test_behind_virtio_iommu_there_are_no_tables(inside: bool):
    step = f"fork: {{steps: [{{{STEP}}}]}}" if inside else STEP
    found = problems_of(one(step).replace("machine: {", "machine: {iommu: virtio, "))
    assert "expected no mappings behind virtio-iommu, found mappings" in [problem.message for problem in found]
    assert "use iommu: intel" in str(next(p.hint for p in found if "virtio" in p.message))


def test_not_inside_another_step():
    (found,) = problems_of(one(f"fork: {{steps: [{{{STEP}}}]}}"))
    assert found.message == "expected no mappings inside another step, found one"
    assert found.hint == "the tables are read when the whole step is done: write it behind that one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("size: 4K", "exactly one of buffer, range and iova"),
        ("iova: 0, size: 2K", "a size from 4K to 1G in whole pages"),
        ("iova: 0, size: 0", "a size from 4K to 1G in whole pages"),
        ("iova: 0, size: 2G", "a size from 4K to 1G in whole pages"),
        ("buffer: a, size: 4K", "a buffer that an earlier step made"),
    ],
)
def test_mistakes(arguments: str, message: str):
    (found,) = said(one(PLACE % arguments))
    assert message in found


@pytest.mark.parametrize("key", ["mapped: whole", "page_sizes: [4K, 2M]", "counts: {mapped: 1}"])
def test_what_can_be_expected(key: str):
    text = one(STEP) + f"    expect: {{{key}}}\n"
    assert parse_scenario(text, FILE).steps[0].expect
    other = one("register: {device: edu0}") + f"    expect: {{{key}}}\n"
    assert f"expected a key that fits register, found '{key.split(':')[0]}'" in said(other)[0]
