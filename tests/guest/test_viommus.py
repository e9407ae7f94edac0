"""virtio-iommu on the oldest QEMU build, which has it without a choice of width; amd-iommu is of no use there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions

PATHS = ("virtio/neighbour", "virtio/read_only_mapping", "amd/unmapped")


@pytest.mark.timeout(300)
def test_on_the_oldest_build(tmp_path: Path):
    paths = tuple(scenarios_dir() / f"{name}.yaml" for name in PATHS)
    run = run_scenarios(RunOptions(paths=paths, qemu=("7.2",), out=tmp_path / "out", fetch=True), Progress())
    cells = {cell.scenario: cell for cell in run.cells}
    for name in PATHS[:2]:
        assert cells[name].outcome is Outcome.PASS, cell_text(cells[name])
    assert cells[PATHS[2]].outcome is Outcome.SKIP
    assert cells[PATHS[2]].message.startswith("needs QEMU >=11 for iommu: amd")
