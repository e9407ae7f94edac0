"""Every scenario that comes with the project, on a real guest; and USDM broken on purpose, which they must notice."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.paths import scenarios_dir, usdm_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress, RunResult
from harness.run import run_scenarios
from harness.run.options import RunOptions
from harness.scenario import Scenario, find_scenarios, load_scenario
from harness.scenario.defects import DEFECTS
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES
from harness.scenario.machine import Machine

# Those without a guest have a test of their own: test_bare.py.
FILES = [file for file in find_scenarios([scenarios_dir()]) if file.parent.name != "bare"]


def _booted() -> list[Path]:
    """What a clone may do otherwise: one of each machine, each kind of device, and each reason of a fault.

    Not those with a virtual machine inside: it boots for longer than all others together, and does so for the template.
    Nor those that are booted anyway, nor remap, whose addresses are physical ones: each guest has others. Nor those
    that record what the kernel does, most of whose time is the kernel's own, the same in both.
    """
    chosen: list[Path] = []
    done: set[str] = set()
    for file in sorted(FILES, key=_order):
        scenario = load_scenario(file)
        assert isinstance(scenario, Scenario)
        machine = scenario.machine
        devices = machine.devices.values()
        does = {machine.model_dump_json(exclude={"devices"}), *(device.model for device in devices)}
        if file.parent.name == "dma":
            does |= {str(fault.reason) for fault in scenario.expect.faults}
        wanted = not machine.vm and machine.iommu != "amd" and file.parent.name != "remap"
        wanted = wanted and not scenario.uses("kernel_driver")
        if wanted and not does <= done:
            done |= does
            chosen.append(file)
    return sorted(chosen)


def _order(file: Path) -> tuple[bool, int, int, Path]:
    """DMA scenarios first, those that do most before the others; of the others those with most kinds of devices."""
    scenario = load_scenario(file)
    assert isinstance(scenario, Scenario)
    is_dma = file.parent.name == "dma"
    kinds = len({step.kind for step in scenario.steps})
    models = len({device.model for device in scenario.machine.devices.values()})
    return not is_dma, -models, -kinds if is_dma else kinds, file


def _machine(file: Path) -> Machine:
    scenario = load_scenario(file)
    assert isinstance(scenario, Scenario)
    return scenario.machine


BOOTED = _booted()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Path, CellResult]]:
    """All scenarios on clones, and those of BOOTED on guests that were booted for them.

    On clones first on usdm and on the scenario's oracle; then those that are for one only on that, and for a newer
    kernel on that. Those whose oracle is the kernel are on one that has a test module then: they run once more, on usdm
    alone and on the kernel that they have by default. A few of these take long and leave a core alone, so the booted
    ones run beside them. A virtual machine inside a guest boots for longer than all others, so that begins first.
    """
    out = Path(os.environ.get("HARNESS_TEST_OUT") or tmp_path_factory.mktemp("run") / "out")
    outs = {name: tmp_path_factory.mktemp(name) / "out" for name in ("inner", "booted", "alone", "newer")}
    with_vm = {file for file in FILES if _machine(file).vm}
    booting = RunOptions(paths=tuple(BOOTED), out=outs["booted"], fresh_boot=True)
    with ThreadPoolExecutor(2) as beside:
        inner = beside.submit(others, with_vm, outs["inner"], "6.12")
        rest = tuple(file for file in FILES if file not in with_vm)
        both = run_scenarios(RunOptions(paths=rest, out=out, implementation="both", fetch=True), Progress())
        assert not both.interrupted
        booted = beside.submit(run_scenarios, booting, Progress())
        again = {Path(cell.file) for cell in both.cells if cell.oracle is not None and cell.oracle.name == "kernel"}
        on_usdm = others({*skipped(both.cells), *again}, outs["alone"], "6.12")
        alone = {file: cell for file, cell in on_usdm.items() if file not in again}
        newer = others(skipped(alone.values()), outs["newer"], "7.2")
    return {
        "cloned": by_file(both) | inner.result() | alone | newer,
        "again": {file: on_usdm[file] for file in again},
        "booted": by_file(booted.result()),
    }


@pytest.fixture(scope="session")
def cloned(runs: dict[str, dict[Path, CellResult]]) -> dict[Path, CellResult]:
    return runs["cloned"]


def skipped(cells: Iterable[CellResult]) -> set[Path]:
    return {Path(cell.file) for cell in cells if cell.outcome is Outcome.SKIP}


def others(files: set[Path], out: Path, kernel: str) -> dict[Path, CellResult]:
    """Some on usdm alone; of those on 6.12, what needs options that it lacks runs on lab."""
    if not files:
        return {}
    paths = tuple(sorted(files))
    options = RunOptions(paths=paths, out=out, kernels=(kernel,), auto_kernel=kernel == "6.12", fetch=True)
    return by_file(run_scenarios(options, Progress()))


@pytest.fixture(scope="session")
def booted(runs: dict[str, dict[Path, CellResult]]) -> dict[Path, CellResult]:
    return runs["booted"]


def by_file(run: RunResult) -> dict[Path, CellResult]:
    return {Path(cell.file): cell for cell in run.cells}


@pytest.mark.timeout(1500)
def test_the_runs_cover_all_scenarios(cloned: dict[Path, CellResult], booted: dict[Path, CellResult]):
    assert set(cloned) == set(FILES)
    assert set(booted) == set(BOOTED)
    # QEMU cannot freeze a guest with AMD's IOMMU.
    assert {file for file, cell in cloned.items() if cell.start != "clone"} == set(scenarios_dir().glob("amd/*.yaml"))
    assert {cell.start for cell in booted.values()} == {"boot"}
    assert sum(cell.implementation == "both" for cell in cloned.values()) > 90


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_scenario(cloned: dict[Path, CellResult], file: Path):
    cell = cloned[file]
    assert cell.outcome is Outcome.PASS, cell_text(cell)
    for evidence in (cell.evidence, *([cell.reference] if cell.implementation == "both" else [])):
        assert evidence is not None
        assert len(evidence.steps) > 0
    assert cell.versions is not None
    assert len(cell.versions.template) == (64 if cell.start == "clone" else 0)
    folder = Path(cell.folder)
    for side in ("usdm", cell.oracle.name) if cell.oracle is not None and cell.implementation == "both" else (".",):
        for name in ("console.log", "kernel.log", "qmp.log", "qemu.log", "qemu.sh"):
            assert (folder / side / name).is_file(), (side, name)
    assert (folder / "verdict.json").is_file()


@pytest.mark.timeout(1500)
def test_every_known_defect_of_the_c_library_is_seen(cloned: dict[Path, CellResult]):
    seen = {one.defect for cell in cloned.values() if cell.verdict for one in cell.verdict.findings}
    assert set(DEFECTS) <= seen


@pytest.mark.timeout(1500)
def test_every_known_difference_of_the_kernel_is_seen(cloned: dict[Path, CellResult]):
    on_kernel = [cell for cell in cloned.values() if cell.oracle is not None and cell.oracle.name == "kernel"]
    assert len(on_kernel) > 20
    assert all(cell.evidence is not None and cell.reference is not None for cell in on_kernel)
    seen = {one.defect for cell in on_kernel if cell.verdict for one in cell.verdict.findings}
    assert seen == set(KERNEL_DIFFERENCES)


@pytest.mark.timeout(1500)
def test_what_has_the_kernel_as_its_oracle_passes_on_the_default_kernel_too(runs: dict[str, dict[Path, CellResult]]):
    again = runs["again"].values()
    assert [cell_text(cell) for cell in again if cell.outcome is not Outcome.PASS] == []
    assert {cell.implementation for cell in again} == {"usdm"}
    default = [cell for cell in again if cell.versions is not None and cell.versions.kernel.startswith("6.12.")]
    assert len(default) > 20


def judged(cell: CellResult) -> dict[str, object]:
    """What a verdict says, without what differs from guest to guest: times, and addresses within the program."""
    assert cell.verdict is not None, cell_text(cell)
    traced = [fault for fault in cell.verdict.faults if fault.witness == "trace"]
    checks = [(check.name.removeprefix("usdm: "), check.passed, check.expected) for check in cell.verdict.checks]
    return {
        "outcome": cell.outcome,
        "checks": [check for check in checks if not check[0].startswith(("libusdm: ", "kernel: ", "both "))],
        "faults": {(fault.requester, fault.access, fault.address, fault.reason, fault.step) for fault in traced},
        "steps": [step.kind for step in cell.evidence.steps] if cell.evidence else [],
    }


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", BOOTED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_clone_and_a_booted_guest_come_to_the_same_verdict(
    cloned: dict[Path, CellResult], booted: dict[Path, CellResult], file: Path
):
    assert judged(cloned[file]) == judged(booted[file])


@pytest.mark.timeout(1500)
def test_a_clones_device_moves_data_and_both_witnesses_see_what_is_refused(cloned: dict[Path, CellResult]):
    """Looked at here without the judge: steps, QEMU's trace, the guest's kernel log."""
    moved = cloned[scenarios_dir() / "dma/roundtrip_user_buffer.yaml"].evidence
    assert moved is not None
    values = {step.kind: step.values for step in moved.steps}
    assert values["dma_read"]["completed"] is values["dma_write"]["completed"] is True
    assert values["compare"]["equal"] is True
    refused = cloned[scenarios_dir() / "dma/unmapped_write.yaml"]
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
    # A template of a usdm of its own is twice the work of a boot.
    options = RunOptions(paths=paths, usdm=usdm, out=tmp_path / "out", fresh_boot=len(paths) < 2, fetch=True)
    result = run_scenarios(options, Progress())
    return {cell.scenario: cell for cell in result.cells}


@pytest.mark.timeout(600)
def test_unmap_without_the_ioctl_is_noticed(tmp_path: Path):
    ioctl = "removed = size if container is None else container.unmap(iova, size)"
    usdm = broken_usdm(tmp_path, "space.py", ioctl, "removed = size")
    cells = outcomes(tmp_path, usdm, "dma/read_after_unmap", "dma/write_after_unmap", "dma/unmapped_read")
    assert cells["dma/read_after_unmap"].outcome is Outcome.FAIL, cell_text(cells["dma/read_after_unmap"])
    assert cells["dma/write_after_unmap"].outcome is Outcome.FAIL, cell_text(cells["dma/write_after_unmap"])
    assert cells["dma/unmapped_read"].outcome is Outcome.PASS, "it unmaps nothing"


@pytest.mark.timeout(600)
def test_an_address_in_the_msi_window_is_noticed(tmp_path: Path):
    usdm = broken_usdm(
        tmp_path, "iova.py", "for first, last in sorted(ranges):", "for first, last in [(0, (1 << 48) - 1)]:"
    )
    cells = outcomes(tmp_path, usdm, "usdm/map_skips_msi_window")
    assert cells["usdm/map_skips_msi_window"].outcome is Outcome.FAIL, cell_text(cells["usdm/map_skips_msi_window"])


@pytest.mark.timeout(600)
def test_ranges_that_are_half_unmapped_or_open_both_ways_are_noticed(tmp_path: Path):
    """One guest for two mistakes, each of which another scenario notices."""
    usdm = broken_usdm(tmp_path, "dma_domain.py", "last[2] + last[3] - first[2])", "first[3])")
    both = "DMA_TO_DEVICE: READ, DMA_FROM_DEVICE"
    text = (usdm / "dma_range.py").read_text()
    assert text.count(both) == 1
    (usdm / "dma_range.py").write_text(text.replace(both, "DMA_TO_DEVICE: READ | WRITE, DMA_FROM_DEVICE"))
    cells = outcomes(tmp_path, usdm, "iova/unlink_hole", "iova/mirror", "iova/to_device")
    assert cells["iova/unlink_hole"].outcome is Outcome.PASS, "it unmaps one link at a time"
    for scenario, word in (("iova/mirror", "observed a leak: "), ("iova/to_device", "observed writable 2")):
        verdict = cells[scenario].verdict
        assert verdict is not None, cell_text(cells[scenario])
        assert word in " ".join(check.message for check in verdict.checks if not check.passed), scenario


@pytest.mark.timeout(600)
def test_a_translation_kept_after_unmap_is_noticed(tmp_path: Path):
    release = "            self._iovas.release(iova, size)\n        if removed"
    usdm = broken_usdm(tmp_path, "space.py", f"            self.regions.leave(entry)\n{release}", release)
    cells = outcomes(tmp_path, usdm, "usdm/translate_every_page")
    assert cells["usdm/translate_every_page"].outcome is Outcome.FAIL, cell_text(cells["usdm/translate_every_page"])
