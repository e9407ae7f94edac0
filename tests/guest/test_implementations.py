"""The same steps on an oracle: what nobody knew of fails, what has gone fails, and versions are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import Implementation, RunOptions


def run(out: Path, *files: Path, on: Implementation, libusdm: str = "26.08") -> list[CellResult]:
    options = RunOptions(paths=files, out=out, implementation=on, libusdm=libusdm, fetch=True)
    return list(run_scenarios(options, Progress()).cells)


def changed(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A copy of a scenario with one piece of text replaced."""
    text = (scenarios_dir() / name).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
    file = tmp_path / "changed.yaml"
    file.write_text(text.replace(old, new))
    return file


@pytest.mark.timeout(600)
def test_a_difference_that_no_scenario_names_fails(tmp_path: Path):
    known = "    libusdm: {defect: D1, expect: {translation: contiguous}}\n"
    file = changed(tmp_path, "usdm/remap_after_unmap.yaml", known, "")
    (cell,) = run(tmp_path / "out", file, on="both")
    assert cell.outcome is Outcome.FAIL
    assert cell.verdict is not None
    failed = {check.name for check in cell.verdict.checks if not check.passed}
    assert any(name.startswith("both do step") for name in failed), cell_text(cell)
    assert any(name.startswith("libusdm: step") for name in failed)
    assert not any(name.startswith("usdm: ") for name in failed)
    assert cell.verdict.findings == ()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("scenario", "expect", "on", "known", "instead"),
    [
        (
            "usdm/type1v2_container.yaml",
            "  - unmap: {buffer: a, size: 8K}\n    expect: {returns: 0}\n",
            "libusdm",
            "D6",
            "{defect: D6, expect: {error: CFailure, returns: -1}}",
        ),
        (
            "iova/hole.yaml",
            "  - iova_sync: {range: r0, size: 4K}\n    expect: {returns: 0}\n",
            "kernel",
            "K14",
            "{differs: K14, expect: {error: KernelRefused, returns: -2}}",
        ),
    ],
    ids=["libusdm", "kernel"],
)
def test_what_is_known_and_not_seen_any_more_fails(
    tmp_path: Path, scenario: str, expect: str, on: Implementation, known: str, instead: str
):
    file = changed(tmp_path, scenario, expect, f"{expect}    {on}: {instead}\n")
    (cell,) = run(tmp_path / "out", file, on=on)
    assert cell.outcome is Outcome.FAIL, cell_text(cell)
    assert f"known as {known}" in cell.message


@pytest.mark.timeout(600)
def test_a_difference_of_the_kernel_that_no_scenario_names_fails(tmp_path: Path):
    known = "    kernel: {differs: K14, expect: {returns: 0}}\n"
    file = changed(tmp_path, "iova/hole.yaml", known, "")
    (cell,) = run(tmp_path / "out", file, on="both")
    assert cell.outcome is Outcome.FAIL, cell_text(cell)
    assert cell.verdict is not None
    failed = [check for check in cell.verdict.checks if not check.passed]
    names = {check.name.partition(": ")[0] for check in failed}
    assert names == {"kernel", f"both do step {failed[0].step} (iova_sync)"}
    assert cell.verdict.findings == ()


@pytest.mark.timeout(600)
def test_an_older_library_is_judged_by_what_is_known_of_it(tmp_path: Path):
    names = ("libusdm/a01_near_2mib_aligned", "usdm/free_ends_translation", "usdm/map_overlap", "usdm/hugepages_quota")
    cells = run(tmp_path / "out", *(scenarios_dir() / f"{name}.yaml" for name in names), on="libusdm", libusdm="24.02")
    by_name = {cell.scenario: cell for cell in cells}
    aligned = by_name["libusdm/a01_near_2mib_aligned"]
    assert aligned.outcome is Outcome.PASS, cell_text(aligned)
    assert aligned.verdict is not None
    assert [(one.defect, one.step) for one in aligned.verdict.findings] == [("A1", 2), ("A1", 3)]
    assert by_name["usdm/free_ends_translation"].outcome is Outcome.PASS
    assert "no function for the step map" in by_name["usdm/map_overlap"].message
    assert "needs libusdm >=26.08" in by_name["usdm/hugepages_quota"].message
