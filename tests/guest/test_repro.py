"""Lines that people sent, made to happen again on real guests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.agent.nvme_memory import place_of
from harness.fault import parse_kernel_log

SEED = "DMAR:[DMA Read] Request device [02:01.2] fault addr 900000 DMAR:[fault reason 06] PTE Read access is not set"
OLD = """\
[ 1234.5] dmar: DRHD: handling fault status reg 3
[ 1234.6] dmar: DMAR:[DMA Write] Request device [02:00.0] fault addr 7f3a5b000
[ 1234.6] DMAR:[fault reason 05] PTE Write access is not set
"""
WIDE = "DMAR: [DMA Read NO_PASID] Request device [0001:01:00.0] fault addr 0x1000000000000 [fault reason 0x04] beyond"


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
