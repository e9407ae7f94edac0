"""Matrix files: what they say, and what is said of mistakes, all at once, with the place and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ConfigurationError
from harness.image.library import library_names
from harness.image.recipe import load_recipe, recipe_names
from harness.machine.builds import BUILDS
from harness.scenario import ScenarioError, find_scenarios, lint, load_scenario
from harness.scenario.matrix import VALUES
from harness.scenario.matrix_load import load_matrix, matrix_problems

Write = Callable[..., Path]


def said(file: Path) -> list[str]:
    return [str(one).removeprefix(f"{one.file.parent}/") for one in matrix_problems(file)]


def test_the_values_of_the_axes_are_those_that_there_are() -> None:
    assert set(VALUES["qemu"]) == set(BUILDS)
    assert set(VALUES["kernel"]) == {load_recipe(name).kernel for name in recipe_names()}
    assert {f"libusdm-{name}" for name in library_names()} <= set(VALUES["implementation"])


def test_a_whole_matrix(write: Write) -> None:
    file = write(
        """
matrix: Release one
axes: {viommu: [intel, virtio], qemu: ["11.1", "7.2"]}
scenarios: [dma]
include: [{at: {kernel: lab}, scenarios: [dma/unmapped_read]}]
exclude: [{when: {qemu: "7.2", viommu: virtio}, why: not asked for}]
expectations: [{when: {viommu: virtio}, reasons: {5: mapping, 0x06: mapping}, why: virtio says it otherwise}]
known_failures: known.yaml
limits: {slower: 2, retries: 2, timeout: 60s}
""",
        """
failures:
  - {scenario: dma/unmapped_*, when: {kernel: lab}, signature: 'faults: .*', class: panic, reason: why,
     link: 'https://example.org/1', until: 2027-03-01}
""",
    )
    matrix = load_matrix(file)
    assert matrix.title == "Release one"
    assert matrix.axes == {"qemu": ("11.1", "7.2"), "kernel": ("lab",), "viommu": ("intel", "virtio")}
    assert len(matrix.selections) == 2
    assert matrix.expectations[0].rule.reasons == {5: "mapping", 6: "mapping"}
    assert matrix.known[0].when == {"kernel": ("lab",)}
    assert matrix.known[0].failure_class == "panic"
    assert matrix.known[0].place == "known.yaml:3"
    assert (matrix.limits.slower, matrix.limits.retries, matrix.limits.timeout) == (2.0, 2, 60.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('axes: {kernal: ["6.12"]}', "m.yaml:2:8: expected an axis, found 'kernal' (hint: did you mean 'kernel'?)"),
        ('axes: {kernel: ["6.13"]}', "found '6.13' (hint: did you mean '6.1"),
        ("axes: {kernel: [6.12]}", 'found 6.12 (hint: write it in quotes: "6.12")'),
        ("axes: {qemu: [10.0]}", 'found 10.0 (hint: write it in quotes: "10.0")'),
        ("axes: {vcpus: [0]}", "expected a number from 1 to 64 for vcpus, found 0"),
        ("axes: {viommu: []}", "expected at least one value, found an empty list"),
        ("axes: {viommu: [intel, intel]}", "m.yaml:2:24: expected each value once, found intel again"),
        ('axes: {viommu: amd, qemu: "7.2"}', "found one that cannot: amd-iommu remaps no DMA in QEMU 7.2"),
        ("axes: {viommu: none, cmdline: pt}", "cmdline pt is about the IOMMU, and viommu none is a machine without"),
        ('axes: {implementation: kernel, kernel: "6.1"}', "by a test module for kernel 7.2, not for 6.1"),
        ("axes: {implementation: kernel}", "by a test module for kernel 7.2, not for 6.12"),
        ('axes: {model: qat, qemu: "10.0"}', "model qat needs vfio-user, which QEMU 10.0 has not"),
        ('include: [{at: {viommu: amd, qemu: "7.2"}}]', "m.yaml:2:12: expected a point that can be"),
        (
            "scenarios: [dna]",
            "expected the id of a scenario, a folder or a pattern, found 'dna' (hint: did you mean 'dma'?)",
        ),
        ("scenarios: []", "expected at least one item, found an empty list"),
        (
            "exclude: [{when: {kernel: lab}, why: none}]",
            "m.yaml:2:11: expected an entry that fits a point of the matrix",
        ),
        ("exclude: [{when: {}, why: none}]", "expected a point, found nothing"),
        ("exclude: [{when: {viommu: virtio}}]", "expected 'why' in item 1 of exclude, found none"),
        ("expectations: [{when: {viommu: virtio}, why: x}]", "expected what differs, found nothing"),
        ("expectations: [{when: {viommu: virtio}, reasons: {5: mapping}}]", "expected 'why' in item 1 of expectations"),
        (
            "expectations: [{when: {viommu: virtio}, reasons: {5: maping}, why: x}]",
            "m.yaml:2:54: expected a fault reason, found 'maping' (hint: did you mean 'mapping'?)",
        ),
        (
            "expectations: [{when: {viommu: virtio}, reasons: {five: mapping}, why: x}]",
            "m.yaml:2:51: expected a fault reason, found 'five' (hint: a code of VT-d from 1 to 255",
        ),
        ("expectations: [{when: {viommu: virtio}, reasons: {5: 0}, why: x}]", "expected a fault reason, found 0"),
        (
            "expectations: [{when: {viommu: virtio}, reasons: {0x500: 5}, why: x}]",
            "expected a fault reason, found 1280",
        ),
        ("limits: {retries: 9}", "expected a number of at most 5, found 9"),
        ("limits: {slower: 1}", "expected a number of more than 1.0, found 1"),
        ("combine: some", "expected all, pairs or each, found 'some'"),
        ("known_failures: no.yaml", "expected a known failures file, found nothing there"),
        ("axes: {viommu: [intel-iommu]}", "did you mean 'intel'?"),
        ("axis: {}", "expected a known key in the matrix, found 'axis' (hint: did you mean 'axes'?)"),
    ],
)
def test_a_mistake_has_a_place_and_a_remedy(write: Write, text: str, wanted: str) -> None:
    found = said(write(f"matrix: M\n{text}\n"))
    assert any(wanted in one for one in found), found


def test_what_is_no_matrix_is_called_so(folder: Path, write: Write) -> None:
    assert "expected a matrix file, found nothing there" in said(folder / "nope.yaml")[0]
    assert "expected a matrix file, found a folder (hint: name the file)" in said(folder)[0]
    assert "expected a matrix, found an empty file (hint: a matrix begins with 'matrix: ...')" in said(write(""))[0]
    scenario = folder / "dma" / "unmapped_read.yaml"
    (only,) = said(scenario)
    assert f"expected a matrix, found a scenario (hint: run it: harness run {scenario})" in only


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    file = write(
        'matrix: M\naxes: {kernal: ["6.12"], viommu: [itnel]}\nscenarios: [dna]\nknown_failures: known.yaml\n',
        "failures:\n  - {scenario: dna, signature: '(', reason: r, link: here, until: someday}\n",
    )
    found = said(file)
    assert [one.split(":")[0] for one in found] == ["m.yaml"] * 3 + ["known.yaml"] * 3, found
    with pytest.raises(ScenarioError, match="6 problems"):
        load_matrix(file)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("signature: '(x', reason: r, link: 'https://e.org', until: 2027-01-01", "expected a regular expression"),
        (
            "signature: '.*', reason: r, link: 'https://e.org', until: 2027-01-01",
            "a signature that is not in every text",
        ),
        (
            "signature: x, class: fail, reason: r, link: docs/a.md, until: 2027-01-01",
            "expected boot, panic, hang, lost-guest, emulator-crash or infrastructure, found 'fail'",
        ),
        ("signature: x, reason: r, until: 2027-01-01", "expected 'link' in item 1 of failures, found none"),
        ("signature: x, reason: r, link: somewhere, until: 2027-01-01", "expected a link, found 'somewhere'"),
        ("signature: x, reason: r, link: 'https://e.org', until: 2027-02-30", "expected a date, found '2027-02-30'"),
        ("signature: x, reason: r, link: 'https://e.org'", "expected 'until' in item 1 of failures, found none"),
        ("when: {vcpu: 2}, signature: x, reason: r, link: docs/a.md, until: 2027-01-01", "did you mean 'vcpus'?"),
    ],
)
def test_a_mistake_in_known_failures(write: Write, entry: str, wanted: str) -> None:
    file = write("matrix: M\nknown_failures: known.yaml\n", f"failures:\n  - {{scenario: dma, {entry}}}\n")
    found = said(file)
    assert any(wanted in one for one in found), found


def test_an_entry_that_has_expired_is_no_mistake_of_the_file(write: Write) -> None:
    entry = "{scenario: dma, signature: x, reason: r, link: docs/a.md, until: 2020-01-01}"
    file = write("matrix: M\nknown_failures: known.yaml\n", f"failures:\n  - {entry}\n")
    assert load_matrix(file).known[0].until.year == 2020


def test_a_folder_of_scenarios_may_hold_matrices(write: Write, folder: Path) -> None:
    file = write("matrix: M\naxes: {kernal: []}\n", "failures: []\n")
    assert file not in find_scenarios([folder])
    assert len(find_scenarios([folder])) == 7
    assert ["kernal" in str(one) for one in lint([folder])] == [True]
    with pytest.raises(ConfigurationError, match="expected a scenario, found a matrix") as caught:
        load_scenario(file)
    assert caught.value.hint == f"harness qualify {file}"


def test_the_matrices_of_the_project_are_right() -> None:
    from harness.paths import scenarios_dir

    for name in ("release", "smoke"):
        assert load_matrix(scenarios_dir() / f"{name}.yaml").selections
