"""The bare tier on the three QEMU builds: every scenario that comes with the project, and what must make one fail."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from harness.errors import FailureClass
from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress, RunResult
from harness.run import run_scenarios
from harness.run.options import RunOptions

BUILDS = ("7.2", "10.0", "11.1")
FOLDER = scenarios_dir() / "bare"


def run(where: Path, *paths: Path, qemu: tuple[str, ...] = ("11.1",), progress: Progress | None = None) -> RunResult:
    options = RunOptions(paths=paths, qemu=qemu, out=where, timeout=60.0, fetch=True)
    return run_scenarios(options, progress or Progress())


def test_every_scenario_passes_on_every_build(tmp_path: Path) -> None:
    result = run(tmp_path / "run", FOLDER, qemu=BUILDS)
    bad = [cell_text(one) for one in result.cells if one.outcome not in (Outcome.PASS, Outcome.SKIP)]
    assert not bad, "\n".join(bad)
    scenarios = {one.file for one in result.cells}
    assert len(result.cells) == len(scenarios) * len(BUILDS)
    assert {one.file for one in result.cells if one.outcome is Outcome.PASS} == scenarios
    cell = next(one for one in result.cells if one.outcome is Outcome.PASS)
    left = {file.name for file in Path(cell.folder).iterdir()}
    assert {"qemu.log", "qtest.log", "qemu.sh", "qemu.stderr", "verdict.json"} <= left
    assert cell.versions is not None
    assert cell.versions.kernel == ""


@pytest.mark.parametrize(
    ("scenario", "old", "new", "check"),
    [
        ("write_unmapped", "reason: 0x05, step", "reason: 0x06, step", "faults"),
        ("write_unmapped", "address: 0x900000, reason: 0x05, step", "address: 0x901000, reason: 0x05, step", "faults"),
        ("page_2m", "- check: {address: 0x523000", "- check: {address: 0x524000", "step 4 (check)"),
        ("overflow", "overflow: true", "overflow: false", "step 3 (registers)"),
        ("fault_event", "interrupts: [0x41]", "interrupts: [0x42]", "step 2 (dma_read)"),
        ("no_faults_context", "domain: d, no_faults: true", "domain: d", "step 4 (registers)"),
        ("testdev", "result: mismatch", "result: blocked", "step 2 (dma_write)"),
    ],
)
def test_a_wrong_expectation_fails(tmp_path: Path, scenario: str, old: str, new: str, check: str) -> None:
    text = (FOLDER / f"{scenario}.yaml").read_text()
    assert old in text
    file = tmp_path / "broken.yaml"
    file.write_text(text.replace(old, new))
    (cell,) = run(tmp_path / "run", file).cells
    assert (cell.outcome, cell.failure_class) == (Outcome.FAIL, FailureClass.EXPECTATION)
    assert cell.message.startswith(f"{check}: "), cell.message


class Killer(Progress):
    """Kills the QEMU of the run when its steps begin."""

    def cell_stage(self, scenario: str, stage: str) -> None:
        if stage == "steps":
            from harness.machine import emulator

            (process,) = emulator._running
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[attr-defined]


def test_a_qemu_that_dies_is_an_emulator_crash_at_once(tmp_path: Path) -> None:
    before = threading.active_count()
    (cell,) = run(tmp_path / "run", FOLDER / "pass_through.yaml", progress=Killer()).cells
    assert (cell.outcome, cell.failure_class) == (Outcome.ERROR, FailureClass.EMULATOR_CRASH)
    assert "signal 9" in cell.message
    assert threading.active_count() <= before + 1


def test_no_image_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> CellResult:
        raise AssertionError("an image was looked for")

    monkeypatch.setattr("harness.run.resources._image", none)
    (cell,) = run(tmp_path / "run", FOLDER / "write_unmapped.yaml").cells
    assert cell.outcome is Outcome.PASS
    assert "--kernel" not in cell.rerun


def test_a_qemu_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.bare.argv._topology", lambda spec: iter([{"driver": "no-such-device"}]))
    (cell,) = run(tmp_path / "run", FOLDER / "write_unmapped.yaml").cells
    assert (cell.outcome, cell.failure_class) == (Outcome.ERROR, FailureClass.INFRASTRUCTURE)
    assert "no-such-device" in cell.message
    assert "qemu.sh" in (cell.hint or "")
