"""Lines that people sent, made to happen again on real guests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.agent.queue_memory import place_of
from harness.fault import parse_kernel_log
from harness.repro.kinds import Tier
from harness.repro.line import linux_line
from harness.repro.plan import plan
from harness.repro.recipes import RECIPES
from harness.results import FaultRecord, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions

SEED = "DMAR:[DMA Read] Request device [02:01.2] fault addr 900000 DMAR:[fault reason 06] PTE Read access is not set"
OLD = """\
[ 1234.5] dmar: DRHD: handling fault status reg 3
[ 1234.6] dmar: DMAR:[DMA Write] Request device [02:00.0] fault addr 7f3a5b000
[ 1234.6] DMAR:[fault reason 05] PTE Write access is not set
"""
WIDE = "DMAR: [DMA Read NO_PASID] Request device [0001:01:00.0] fault addr 0x1000000000000 [fault reason 0x04] beyond"

NOT_CANONICAL = 0x80
VIRTIO = "virtio_iommu virtio0: page fault from EP 522 at 0x900000 []"
AMD = "vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000a address=0x900000 flags=0x0000]"
NOT_BY_LINUX = "DMAR: [DMA Read NO_PASID] Request device [3d:01.2] fault addr 0x7000 [fault reason 0x02] Present bit"


def repro(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "repro", "--fetch", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("log", "words", "vfs"),
    [
        (SEED, (), 10),
        (OLD, (), 0),
        (OLD, ("--state", "unmapped"), 0),
        (OLD, ("--state", "read-only"), 0),
        (WIDE, (), 0),
    ],
)
def test_the_same_line(log: str, words: tuple[str, ...], vfs: int):
    done = repro("-", "--json", *words, stdin=log)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    (wanted,) = parse_kernel_log(log).records
    (seen,) = parse_kernel_log(found["here"]["line"]).records
    assert found["same"]
    assert found["here"]["printed"]
    assert seen.requester == wanted.requester.removeprefix("0001:")
    assert (seen.access, seen.address, seen.reason) == (wanted.access, wanted.address, wanted.reason)
    assert bool(vfs) == (f"vfs: {vfs}" in Path(found["scenario"]).read_text())


@pytest.mark.parametrize(("log", "requester"), [(VIRTIO, "02:01.2"), (AMD, "02:00.0"), (NOT_BY_LINUX, "3d:01.2")])
def test_the_same_fault_of_another_iommu_or_without_a_guest(log: str, requester: str):
    done = repro("--json", log)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    (wanted,) = parse_kernel_log(log).records
    seen = found["here"]["fault"]
    assert found["same"]
    assert (seen["requester"], seen["vendor"]) == (requester, wanted.vendor)
    assert (seen["address"], seen["reason"]) == (wanted.address, wanted.reason)


def test_the_scenario_that_is_left_passes_by_itself(tmp_path: Path):
    file = tmp_path / "again.yaml"
    done = repro("--write", str(file), SEED)
    assert done.returncode == 0, done.stderr
    assert SEED in done.stdout
    assert "Request device [02:01.2] fault addr 0x900000 [fault reason 0x06]" in done.stdout
    run = subprocess.run(
        [sys.executable, "-m", "harness", "run", str(file)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


def test_another_fault_than_the_wanted_one_is_told(tmp_path: Path):
    """The nvme's own queues are mapped at the upper end of the IOVAs: there the access is not refused."""
    file = tmp_path / "again.yaml"
    mapped = SEED.replace("900000", f"{place_of('02:01.2', ((0, (1 << 48) - 1),)):x}")
    done = repro("--write", str(file), mapped)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not reproduced" in done.stdout
    assert not file.exists()


def test_every_reason_that_the_emulator_gives_happens_again(tmp_path: Path):
    """All of them in one run, on the function 3d:01.2; a scenario passes when exactly its fault was seen."""
    for reason, recipe in RECIPES.items():
        interrupt = recipe.access == "interrupt"
        record = FaultRecord(
            witness="kernel",
            requester="3d:01.2",
            access=recipe.access or "write",
            address=None if interrupt else 0x800000123000 if reason == NOT_CANONICAL else 0x7F0000123000,
            index=7 if interrupt else None,
            reason=reason,
        )
        (tmp_path / f"reason_{reason:02x}.yaml").write_text(plan(record, linux_line(record), tier=Tier.BARE).text)
    run = run_scenarios(RunOptions(paths=(tmp_path,), fetch=True), Progress())
    assert {cell.scenario: cell.message for cell in run.cells if cell.outcome is not Outcome.PASS} == {}
    assert len(run.cells) == len(RECIPES)
    seen = {cell.scenario: {fault.reason for fault in cell.verdict.faults} for cell in run.cells if cell.verdict}
    assert seen == {f"reason_{reason:02x}": {reason} for reason in RECIPES}
