"""Real images and QEMU builds: reproducible, verified, and every build and kernel really runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image.build import build_image, find_image
from harness.machine.builds import find_build
from harness.machine.probe import capabilities
from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("vmlinux", "initrd.img")}


@pytest.mark.timeout(600)
def test_the_same_packages_give_the_same_bytes_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    first = find_image("trixie")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another, longer place"))
    with pytest.raises(InfrastructureError, match="not in the cache"):
        build_image("trixie", offline=True, say=said.append)
    second = build_image("trixie", say=said.append)
    assert any("downloading" in text for text in said)
    if first.key != second.key:
        # The archive has newer packages than this machine's image; then the comparison needs a second new build.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
        first = build_image("trixie", say=said.append)
    assert first.key == second.key
    assert digests(first.folder) == digests(second.folder)
    assert first.packages == second.packages
    assert "libc6" in second.packages

    # Offline it is found; truncated it is noticed, and built again only when that is allowed.
    assert build_image("trixie", offline=True, say=pytest.fail) == second
    second.initrd.write_bytes(second.initrd.read_bytes()[:-4096])
    with pytest.raises(InfrastructureError, match=r"initrd\.img was changed"):
        build_image("trixie", offline=True, say=said.append)
    rebuilt = build_image("trixie", say=said.append)
    assert digests(rebuilt.folder) == digests(first.folder)


@pytest.mark.parametrize("name", ["7.2", "10.0", "11.1"])
def test_a_fetched_build_has_what_a_machine_needs(name: str):
    found = capabilities(find_build(name))
    assert found.machine_type == f"pc-q35-{name}"
    assert found.sandbox
    assert {"intremap", "caching-mode", "aw-bits"} <= found.properties["intel-iommu"]
    assert "dma_mask" in found.properties["edu"]


@pytest.mark.timeout(600)
def test_every_qemu_and_every_kernel_shows_the_same(tmp_path: Path):
    """One good DMA and one fault on three emulators and two kernels; on each once the refusal without a vIOMMU."""

    def run(names: tuple[str, ...], qemu: tuple[str, ...], kernels: tuple[str, ...], out: str) -> list[CellResult]:
        paths = tuple(scenarios_dir() / f"{name}.yaml" for name in names)
        options = RunOptions(paths=paths, qemu=qemu, kernels=kernels, out=tmp_path / out, fetch=True)
        return list(run_scenarios(options, Progress()).cells)

    dma, refused = ("dma/roundtrip_user_buffer", "dma/unmapped_read"), ("usdm/no_iommu_group",)
    cells = run(dma, ("7.2", "10.0", "11.1"), ("6.12", "7.2"), "dma")
    # Each combination is a template more, and the refusal comes from the kernel alone.
    cells += run(refused, ("7.2", "11.1"), ("6.12",), "refused") + run(refused, ("10.0",), ("7.2",), "refused-7.2")
    assert len(cells) == 15
    for cell in cells:
        assert cell.outcome is Outcome.PASS, cell_text(cell)
        assert cell.start == "clone"
        assert cell.versions is not None
        # Each build takes its state in the way that it knows.
        address = "fd:state" if cell.versions.qemu.startswith("7.2.") else "file:/"
        assert f'"uri": "{address}' in (Path(cell.folder) / "qmp.log").read_text()
