"""1,024 scattered pages by the kernel's own functions: as ranges of the two-step DMA mapping API, and a call for each.

Its NVMe driver reads them at once, behind VT-d. A request of the controller has 128 KiB at most there: these are 32
ranges of 32 pages. Pieces that end within their page cannot be a range, and dma_map_phys is called for each.
The program that measures is ``iova_kernel_in_guest.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from figures import Figure, Figures
from guests import QEMU
from iova_kernel_in_guest import RANGE, STREAM
from programs import run_in_clone

from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

KERNEL = "7.2"
"""The kernel that the resources must have an image of."""

_ROUND_SECONDS = 60.0
_DEVICE = "02:00.0"
_MACHINE = MachineSpec(devices=(DeviceSpec("nvme0", "nvme", _DEVICE),))
_PROGRAM = Path(__file__).with_name("iova_kernel_in_guest.py")


def measure(figures: Figures, resources: Resources, rounds: int, scratch: Path, say: Callable[[str], None]) -> None:
    """Take every figure of the kernel's mappings.

    Args:
        figures: where they go.
        resources: build, images (with that of KERNEL), accelerator.
        rounds: how many values each time gets.
        scratch: an existing folder, for the guest's run folder.
        say: told what goes on.

    Raises:
        RuntimeError: the program in the guest failed.
    """
    folder = scratch / "iova-kernel"
    folder.mkdir()
    say(f"the kernel's own mappings, kernel {KERNEL}, {rounds} rounds in one guest")
    plan = resources.plan(_MACHINE, QEMU, KERNEL, folder)
    options = {"rounds": rounds, "device": _DEVICE}
    add_rows(figures, run_in_clone(plan, _PROGRAM, options, _ROUND_SECONDS * (rounds + 2), say))


def add_rows(figures: Figures, measured: dict[str, list[dict[str, float]]]) -> None:
    """Add what each way takes for all pages, and how often the ranges' time goes into the calls'."""
    for way, values in measured.items():
        row = f"1,024 pages, kernel {KERNEL}, its NVMe driver, {way}"
        for value in values:
            for what in ("ranges", "mappings", "unmappings"):
                figures.add(Figure(f"{row}: {what}", ""), value[what])
            for what in ("mapping", "unmapping"):
                figures.add(Figure(f"{row}: {what}", "s"), value[what])
    for what in ("mapping", "unmapping"):
        for mine, theirs in zip(measured[RANGE], measured[STREAM], strict=True):
            name = f"1,024 pages, kernel {KERNEL}, its NVMe driver, {what}: {STREAM} / {RANGE}"
            figures.add(Figure(name, "x"), theirs[what] / mine[what])
