"""QAT-like devices where the scenarios have an edu: every DMA scenario says the same of them.

On usdm. What the C library does otherwise does not depend on the device, and the run of all scenarios has it; that its
mappings reach this device, too, and what it leaves mapped, a few scenarios show.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions

# They ask for a DMA while the device is no bus master: it does not even read its requests then.
FOR_AN_EDU = {"bus_master_off", "bus_master_off_unmapped"}
# A mapping that the device reaches, one that has ended, and what the library is known to do otherwise.
ON_BOTH = ("roundtrip_user_buffer", "read_after_unmap", "free_nonzero_keeps_content", "after_unregister")


def run(out: Path, *names: str, **options: object) -> dict[str, CellResult]:
    paths = tuple(scenarios_dir() / name for name in names)
    result = run_scenarios(RunOptions(paths=paths, out=out, models=("qat",), **options), Progress())  # type: ignore[arg-type]
    assert not result.interrupted
    return {cell.scenario: cell for cell in result.cells}


@pytest.fixture(scope="module")
def dma(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellResult]:
    return run(tmp_path_factory.mktemp("qat") / "out", "dma", fetch=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(file.stem for file in (scenarios_dir() / "dma").glob("*.yaml")))
def test_dma_scenario(dma: dict[str, CellResult], name: str) -> None:
    cell = dma[f"dma/{name}"]
    if name in FOR_AN_EDU:
        assert cell.outcome is Outcome.SKIP
        assert "while it is no bus master" in cell.message
        return
    assert cell.outcome is Outcome.PASS, cell_text(cell)
    assert cell.start == "clone"
    assert has_no_edu(Path(cell.folder))


def has_no_edu(side: Path) -> bool:
    script = (side / "qemu.sh").read_text()
    return "Left out, because nobody serves them here: " in script and '"driver": "edu"' not in script


@pytest.mark.timeout(300)
def test_on_the_c_library_too(tmp_path: Path) -> None:
    found = run(tmp_path / "out", *(f"dma/{name}.yaml" for name in ON_BOTH), implementation="both", fetch=True)
    assert set(found) == {f"dma/{name}" for name in ON_BOTH}
    for cell in found.values():
        assert cell.outcome is Outcome.PASS, cell_text(cell)
        assert all(has_no_edu(Path(cell.folder) / side) for side in ("usdm", "libusdm"))


@pytest.mark.timeout(300)
def test_behind_other_iommus_and_behind_none(tmp_path: Path) -> None:
    """Without an IOMMU it is on the kernel that allows that; a machine with AMD's is booted."""
    found = run(tmp_path / "both", "virtio/unmapped_read.yaml", implementation="both", fetch=True)
    found |= run(tmp_path / "usdm", "amd/unmapped.yaml", "noiommu/roundtrip.yaml", fetch=True)
    assert set(found) == {"virtio/unmapped_read", "amd/unmapped", "noiommu/roundtrip"}
    for cell in found.values():
        assert cell.outcome is Outcome.PASS, cell_text(cell)
        assert "--model qat" in cell.rerun


@pytest.mark.parametrize("qemu", ["7.2", "10.0"])
def test_an_older_qemu_is_skipped_and_no_guest_is_started(tmp_path: Path, qemu: str) -> None:
    (cell,) = run(tmp_path / "out", "dma/unmapped_read.yaml", qemu=(qemu,), fetch=True).values()
    assert cell.outcome is Outcome.SKIP
    assert f"needs QEMU >=10.1 with vfio-user-pci for model: qat, this is {qemu}." in cell.message
    assert not list((tmp_path / "out").glob("*/qemu.log"))
