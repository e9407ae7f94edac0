"""How many commands a second an emulated NVMe PF and its VF complete for the user-space driver in a guest.

The program that measures is ``dma_in_guest.py``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from figures import Figure, Figures
from guests import KERNEL, QEMU

from harness.deadline import Deadline
from harness.guest.freeze import get_template
from harness.guest.guest import running_guest
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

_BOOT_SECONDS = 120.0
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
    plan = resources.plan(_MACHINE, QEMU, KERNEL, folder)
    plan = replace(plan, template=get_template(plan, _BOOT_SECONDS, say))
    with running_guest(plan, _BOOT_SECONDS, lambda stage: None) as guest:
        say(f"NVMe, {rounds} rounds in one guest")
        deadline = Deadline.after(rounds * _ROUND_SECONDS)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        options = shlex.quote(json.dumps({"rounds": rounds, "devices": _DEVICES}))
        result = guest.run(f"python3 -I - {options}", deadline, stdin=_PROGRAM.read_bytes())
    if result.status:
        raise RuntimeError(f"{_PROGRAM.name} failed in the guest: {result.stderr.decode(errors='replace')}")
    for row, values in json.loads(result.stdout).items():
        for value in values:
            figures.add(Figure(f"NVMe {row}", "/s"), value)
