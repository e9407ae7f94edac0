"""1,024 scattered pages as one range of the two-step DMA mapping API, against a call for each page, in a guest.

The program that measures is ``iova_in_guest.py``. It runs on the stock kernel, and on the lab kernel for IOMMUFD.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from figures import Figure, Figures
from guests import KERNEL, QEMU
from programs import run_in_clone

from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

LAB = "lab"
_ROUND_SECONDS = 60.0
_DEVICE = "02:00.0"
_MACHINE = MachineSpec(devices=(DeviceSpec("edu0", "edu", _DEVICE),))
_PROGRAM = Path(__file__).with_name("iova_in_guest.py")


def measure(figures: Figures, resources: Resources, rounds: int, scratch: Path, say: Callable[[str], None]) -> None:
    """Take every figure of ranges and of single mappings.

    Args:
        figures: where they go.
        resources: build, images (with the lab kernel), accelerator.
        rounds: how many values each time gets.
        scratch: an existing folder, for the guests' run folders.
        say: told what goes on.
    """
    for kernel, backends in ((KERNEL, ["VFIO"]), (LAB, ["VFIO", "IOMMUFD"])):
        folder = scratch / f"iova-speed-{kernel}"
        folder.mkdir()
        say(f"ranges of IOVAs, kernel {kernel}, {rounds} rounds in one guest")
        plan = resources.plan(_MACHINE, QEMU, kernel, folder)
        options = {"rounds": rounds, "device": _DEVICE, "backends": backends}
        add_rows(figures, kernel, run_in_clone(plan, _PROGRAM, options, _ROUND_SECONDS * (rounds + 2), say))


def add_rows(figures: Figures, kernel: str, measured: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Add what each way takes for all pages, and how often the range's time goes into the others'."""
    for way, found in measured.items():
        row = f"1,024 pages, kernel {kernel}, {way}"
        for what, number in found["counts"].items():
            mib = what == "IOVA bytes"
            figures.add(
                Figure(f"{row}: {'IOVAs' if mib else what}", "MB" if mib else ""), number / (2**20 if mib else 1)
            )
        for what, values in found["seconds"].items():
            for value in values:
                figures.add(Figure(f"{row}: {what}", "s"), value)
        backend = way.partition(":")[0]
        ours = measured[f"{backend}: one range"]["seconds"]
        if found["seconds"] is not ours:
            for what, values in found["seconds"].items():
                for theirs, mine in zip(values, ours[what], strict=True):
                    figures.add(Figure(f"{row}: {what} / one range", "x"), theirs / mine)
