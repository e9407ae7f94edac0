"""How many commands a second an emulated NVMe PF and its VF complete for the user-space driver in a guest.

The program that measures is ``dma_in_guest.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from figures import Figure, Figures
from guests import KERNEL, QEMU
from programs import run_in_clone

from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

_ROUND_SECONDS = 120.0
_DEVICES = {"pf": "02:00.0", "vf": "02:01.2"}
_MACHINE = MachineSpec(
    devices=(DeviceSpec("pf", "nvme", _DEVICES["pf"], vfs=16), DeviceSpec("vf", "vf", _DEVICES["vf"], of="pf"))
)
_PROGRAM = Path(__file__).with_name("dma_in_guest.py")


def measure(figures: Figures, resources: Resources, rounds: int, scratch: Path, say: Callable[[str], None]) -> None:
    """Take every figure of the NVMe driver.

    Args:
        figures: where they go.
        resources: build, image, accelerator.
        rounds: how many values each figure gets.
        scratch: an existing folder, for the guest's run folder.
        say: told what goes on.
    """
    folder = scratch / "dma-speed"
    folder.mkdir()
    say(f"NVMe, {rounds} rounds in one guest")
    plan = resources.plan(_MACHINE, QEMU, KERNEL, folder)
    options = {"rounds": rounds, "devices": _DEVICES}
    for row, values in run_in_clone(plan, _PROGRAM, options, rounds * _ROUND_SECONDS, say).items():
        for value in values:
            figures.add(Figure(f"NVMe {row}", "/s"), value)
