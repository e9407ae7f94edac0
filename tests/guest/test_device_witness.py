"""The device as a witness against USDM itself: a copy that maps wrongly is found out, each way of it at its step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.judge import judge
from harness.paths import usdm_dir
from harness.report import cell_text
from harness.results import CellResult, Check, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions
from harness.scenario import Scenario, load_scenario

# Each defect belongs to mappings of one size, so that one guest shows them all.
BROKEN = """

_right_map, _right_unmap = AttachedContainer.map, AttachedContainer.unmap


def _map(self, vaddr, iova, size):
    if size == 0x3000:  # too long
        size += 0x1000
    elif size == 0x5000:  # too short
        size -= 0x1000
    elif size == 0x6000:  # in two pieces
        _right_map(self, vaddr, iova, 0x2000)
        vaddr, iova, size = vaddr + 0x2000, iova + 0x2000, 0x4000
    right = self._map
    if size == 0x7000:  # for reads only
        self._map = vfio_uapi.map_dma(0, 0, 0, vfio_uapi.MAP_FLAG_READ)
    try:
        _right_map(self, vaddr, iova, size)
    finally:
        self._map = right


def _unmap(self, iova, size):
    if size == 0x2000:  # forgotten
        return size
    if size == 0x6000:  # the second piece forgotten
        return _right_unmap(self, iova, 0x2000) + 0x4000
    if size == 0x3000:
        return _right_unmap(self, iova, 0x4000) - 0x1000
    if size == 0x5000:
        return _right_unmap(self, iova, 0x4000) + 0x1000
    return _right_unmap(self, iova, size)


AttachedContainer.map, AttachedContainer.unmap = _map, _unmap
"""
SCENARIO = """
title: Mappings of every size
source: made for this test
machine: {devices: {qat0: {model: qat, at: "02:00.0"}}}
steps:
  - buffer: {as: m, size: 1M}
  - register: {device: qat0}
  - bus_master: {device: qat0, enabled: true}
  - map: {buffer: m, size: 4K}
  - unmap: {buffer: m, size: 4K}
  - map: {buffer: m, offset: 64K, size: 8K}
  - unmap: {buffer: m, offset: 64K, size: 8K}
  - map: {buffer: m, offset: 128K, size: 12K}
  - map: {buffer: m, offset: 192K, size: 20K}
  - map: {buffer: m, offset: 256K, size: 24K}
  - unmap: {buffer: m, offset: 256K, size: 24K}
  - map: {buffer: m, offset: 320K, size: 28K}
  - dma_read: {device: qat0, iova: 0x90000000, size: 16}
  - unregister: {device: qat0}
expect:
  faults:
    - {device: qat0, access: read, address: 0x90000000, reason: 0x06}
"""
WRONG = {
    6: "expected nothing at {0}, observed a leak: rw at {0}",
    7: "expected rw at {0}, observed a mapping that is too long: rw at {1} too",
    8: "expected rw at {0}, observed a mapping that is too short: nothing at {1}",
    10: "expected nothing at {1}, observed a leak: rw at {1}",
    11: "expected rw at {0}, observed r at {0}",
}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("witness") / "sizes.yaml"
    file.write_text(SCENARIO)
    return file


def run(scenario: Path, out: Path, usdm: Path | None = None) -> CellResult:
    """Run it; another `usdm` in a guest that is booted, because a template for that one alone would take longer."""
    fresh = usdm is not None
    options = RunOptions(paths=(scenario,), qemu=("11.1",), out=out, fetch=True, fresh_boot=fresh, usdm=usdm)
    return run_scenarios(options, Progress()).cells[0]


def of_devices(cell: CellResult) -> list[Check]:
    assert cell.verdict is not None, cell_text(cell)
    return [check for check in cell.verdict.checks if check.name.startswith("device ")]


def span(iova: int, size: int) -> str:
    return f"{iova:#x}-{iova + size - 1:#x} ({size >> 10}K)"


@pytest.mark.timeout(200)
def test_a_usdm_that_maps_wrongly(scenario: Path, tmp_path: Path):
    broken = tmp_path / "usdm"
    shutil.copytree(usdm_dir(), broken, ignore=shutil.ignore_patterns("__pycache__"))
    with (broken / "container.py").open("a") as file:
        file.write(BROKEN)
    cell = run(scenario, tmp_path / "out", broken)
    assert cell.outcome is Outcome.FAIL, cell_text(cell)
    failed = [check for check in of_devices(cell) if not check.passed]
    assert cell.evidence is not None
    iovas = {seen.index: seen.values.get("iova", 0) for seen in cell.evidence.steps}
    places = {
        6: (span(iovas[5], 0x2000), ""),
        7: (span(iovas[7], 0x3000), span(iovas[7] + 0x3000, 0x1000)),
        8: (span(iovas[8], 0x5000), span(iovas[8] + 0x4000, 0x1000)),
        10: ("", span(iovas[9] + 0x2000, 0x4000)),
        11: (span(iovas[11], 0x7000), ""),
    }
    # Each once, where it was first seen, and nothing else of it failed: USDM itself did not notice.
    wanted = {step: words.format(*places[step]) for step, words in WRONG.items()}
    assert {check.step: check.message for check in failed} == wanted
    assert len(failed) == len(wanted)
    assert cell.verdict is not None
    assert [check for check in cell.verdict.checks if not check.passed] == failed


@pytest.mark.timeout(200)
def test_the_same_steps_on_the_real_one_and_a_driver_that_lies(scenario: Path, tmp_path: Path):
    cell = run(scenario, tmp_path / "out")
    assert cell.outcome is Outcome.PASS, cell_text(cell)
    assert [check.name for check in of_devices(cell)] == [
        "device qat0: presence",
        "device qat0: mappings",
        "device qat0: faults",
    ]
    assert cell.evidence is not None
    steps = list(cell.evidence.steps)
    loaded = load_scenario(scenario)
    assert isinstance(loaded, Scenario)
    refused = steps[12]
    # What the device saw is real; only the driver's word on it is not, or the trace's.
    for values, trace, words in (
        ({"status": "done"}, refused.trace, "the driver says done, the device tells of a refused read at 0x90000000"),
        ({"status": "write_refused"}, refused.trace, "the driver says write_refused, the device made no write"),
        ({"status": "read_refused"}, (), "the trace of no such fault"),
    ):
        steps[12] = refused.model_copy(update={"values": refused.values | values, "trace": trace})
        verdict = judge(loaded, cell.evidence.model_copy(update={"steps": tuple(steps)}))
        found = next(check for check in verdict.checks if check.name == "device qat0: faults")
        assert not found.passed
        assert words in found.message
    steps[12] = refused.model_copy(update={"values": refused.values | {"status": "read_refused"}})
    assert judge(loaded, cell.evidence.model_copy(update={"steps": tuple(steps)})).passed
