"""Every scenario that comes with the project, on a real guest; and USDM broken on purpose, which they must notice."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from harness.paths import scenarios_dir, usdm_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress, RunResult
from harness.run import run_scenarios
from harness.run.options import RunOptions
from harness.scenario import find_scenarios

FILES = find_scenarios([scenarios_dir()])


@pytest.fixture(scope="session")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """All of them in one run, as a person starts it."""
    out = Path(os.environ.get("HARNESS_TEST_OUT") or tmp_path_factory.mktemp("run") / "out")
    return run_scenarios(RunOptions(out=out, fetch=True), Progress())


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """All of them on guests that were booted for them."""
    return run_scenarios(RunOptions(out=tmp_path_factory.mktemp("booted") / "out", fresh_boot=True), Progress())


def cell_of(run: RunResult, file: Path) -> CellResult:
    (cell,) = [cell for cell in run.cells if Path(cell.file) == file]
    return cell


@pytest.mark.timeout(1500)
def test_the_runs_cover_all_scenarios(cloned: RunResult, booted: RunResult):
    assert len(cloned.cells) == len(booted.cells) == len(FILES) >= 25
    assert not cloned.interrupted
    assert {cell.start for cell in cloned.cells} == {"clone"}
    assert {cell.start for cell in booted.cells} == {"boot"}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_scenario(cloned: RunResult, file: Path):
    cell = cell_of(cloned, file)
    assert cell.outcome is Outcome.PASS, cell_text(cell)
    assert cell.evidence is not None
    assert len(cell.evidence.steps) > 0
    assert cell.versions is not None
    assert len(cell.versions.template) == 64
    folder = Path(cell.folder)
    for name in ("verdict.json", "console.log", "kernel.log", "qmp.log", "qemu.log", "qemu.sh"):
        assert (folder / name).is_file(), name


def judged(cell: CellResult) -> dict[str, object]:
    """What a verdict says, without what differs from guest to guest: times, and addresses within the program."""
    assert cell.verdict is not None, cell_text(cell)
    traced = [fault for fault in cell.verdict.faults if fault.witness == "trace"]
    return {
        "outcome": cell.outcome,
        "checks": [(check.name, check.passed, check.expected) for check in cell.verdict.checks],
        "faults": {(fault.requester, fault.access, fault.address, fault.reason, fault.step) for fault in traced},
        "steps": [step.kind for step in cell.evidence.steps] if cell.evidence else [],
    }


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_clone_and_a_booted_guest_come_to_the_same_verdict(cloned: RunResult, booted: RunResult, file: Path):
    assert judged(cell_of(cloned, file)) == judged(cell_of(booted, file))


@pytest.mark.timeout(1500)
def test_a_clones_device_moves_data_and_both_witnesses_see_what_is_refused(cloned: RunResult):
    """Looked at here without the judge: steps, QEMU's trace, the guest's kernel log."""
    moved = cell_of(cloned, scenarios_dir() / "dma/roundtrip_user_buffer.yaml").evidence
    assert moved is not None
    values = {step.kind: step.values for step in moved.steps}
    assert values["dma_read"]["completed"] is values["dma_write"]["completed"] is True
    assert values["compare"]["equal"] is True
    refused = cell_of(cloned, scenarios_dir() / "dma/unmapped_write.yaml")
    assert refused.evidence is not None
    (write,) = [step for step in refused.evidence.steps if step.kind == "dma_write"]
    assert any("vtd_dmar_fault" in line for line in write.trace)
    log = "\n".join(refused.evidence.kernel_log)
    assert re.search(r"DMAR: \[DMA Write.*\] Request device \[(0000:)?02:00\.0\] fault addr (0x)?900000 ", log), log
    assert refused.verdict is not None
    assert {(fault.witness, fault.requester, fault.address) for fault in refused.verdict.faults} == {
        ("trace", "02:00.0", 0x900000),
        ("kernel", "02:00.0", 0x900000),
    }


def broken_usdm(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """A copy of the working tree's usdm with one piece of text replaced."""
    folder = tmp_path / "usdm"
    shutil.copytree(usdm_dir(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))
    return folder


def outcomes(tmp_path: Path, usdm: Path, *scenarios: str) -> dict[str, CellResult]:
    paths = tuple(scenarios_dir() / f"{name}.yaml" for name in scenarios)
    result = run_scenarios(RunOptions(paths=paths, usdm=usdm, out=tmp_path / "out", fetch=True), Progress())
    return {cell.scenario: cell for cell in result.cells}


@pytest.mark.timeout(600)
def test_unmap_without_the_ioctl_is_noticed(tmp_path: Path):
    usdm = broken_usdm(
        tmp_path, "space.py", "removed = self.container.unmap(region.iova, region.size)", "removed = region.size"
    )
    cells = outcomes(tmp_path, usdm, "dma/read_after_unmap", "dma/write_after_unmap", "dma/unmapped_read")
    assert cells["dma/read_after_unmap"].outcome is Outcome.FAIL
    assert cells["dma/write_after_unmap"].outcome is Outcome.FAIL
    assert cells["dma/unmapped_read"].outcome is Outcome.PASS, "it unmaps nothing"


@pytest.mark.timeout(600)
def test_an_address_in_the_msi_window_is_noticed(tmp_path: Path):
    usdm = broken_usdm(
        tmp_path, "iova.py", "for first, last in sorted(ranges):", "for first, last in [(0, (1 << 48) - 1)]:"
    )
    cells = outcomes(tmp_path, usdm, "usdm/map_skips_msi_window")
    assert cells["usdm/map_skips_msi_window"].outcome is Outcome.FAIL


@pytest.mark.timeout(600)
def test_a_translation_kept_after_unmap_is_noticed(tmp_path: Path):
    unmapped = "            removed = self.container.unmap(region.iova, region.size)\n"
    usdm = broken_usdm(tmp_path, "space.py", f"{unmapped}        self.regions.remove(region)\n", unmapped)
    cells = outcomes(tmp_path, usdm, "usdm/translate_every_page")
    assert cells["usdm/translate_every_page"].outcome is Outcome.FAIL
