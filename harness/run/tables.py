"""What the vIOMMU's own tables say of a step's range, read by the host after the guest has answered.

VFIO's map and unmap return when the tables are changed and the IOMMU's caches flushed, so there is nothing to wait for.
"""

from __future__ import annotations

import time
from typing import Any

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.guest import Guest
from harness.machine.memory import PhysicalMemory
from harness.machine.spec import DeviceSpec
from harness.machine.vtd import Run, Way, find_requester

KIND = "mappings"
"""The kind of step that asks for it."""


def add_tables(guest: Guest, kind: str, args: dict[str, Any], answer: dict[str, Any], deadline: Deadline) -> None:
    """Add ``tables`` to the values of a step that asks for them and met no error; leave every other one alone.

    Args:
        guest: the guest that answered.
        kind: the step's kind.
        args: its arguments.
        answer: the worker's answer.
        deadline: until when it must be done.

    Raises:
        InfrastructureError: QEMU did not give the memory; or the tables are of a kind that nothing here makes.
        EmulatorCrash: QEMU was ended by a signal.
    """
    if kind == KIND and not answer.get("error"):
        device = next(one for one in guest.spec.devices if one.name == args["device"])
        answer["values"]["tables"] = read_tables(guest, device, answer["values"]["iova"], args["size"], deadline)


def read_tables(guest: Guest, device: DeviceSpec, first: int, size: int, deadline: Deadline) -> dict[str, Any]:
    """What the vIOMMU does with a device's DMA to a range.

    Args:
        guest: a guest with intel-iommu, or without a vIOMMU.
        device: whose requester ID it is.
        first: the first IOVA.
        size: bytes, >= 1.
        deadline: until when it must be done.

    Returns:
        JSON values: ``way`` in words; ``untranslated`` (every IOVA is the physical address itself); ``runs``, pieces as
        ``[iova, physical address, bytes, bytes of a page, "r", "w" or "rw"]``, ascending; where there are page tables
        ``stage``, ``levels``, ``domain``; ``mode`` of the root table, and ``asked``, the machine's; ``reads`` and
        ``seconds``, what it cost.

    Raises:
        InfrastructureError, EmulatorCrash: see :func:`add_tables`.
    """
    if guest.spec.iommu == "none":
        return {"way": "no IOMMU", "untranslated": True, "runs": []}
    if guest.spec.iommu != "intel":
        raise InfrastructureError(f"the tables of {guest.spec.iommu}-iommu are not in the guest's memory")
    began = time.monotonic()
    bus, slot, function = device.bdf
    with PhysicalMemory(guest.emulator, deadline) as memory:
        found = find_requester(memory, bus << 8 | slot << 3 | function)
        if found.way is Way.NESTED:
            raise InfrastructureError(f"{device.name} is translated by nested tables, which are not followed here")
        values: dict[str, Any] = {"way": str(found.way), "untranslated": found.way.untranslated, "runs": []}
        if found.mode is not None:
            values["mode"] = found.mode.name.lower()
            values["asked"] = "scalable" if guest.spec.scalable else "legacy"
        if found.tables is not None:
            tables = found.tables
            values |= {"stage": tables.stage.name, "levels": tables.levels, "domain": tables.domain}
            values["runs"] = [_row(run) for run in tables.runs(memory, first, size)]
    return {**values, "reads": memory.reads, "seconds": round(time.monotonic() - began, 6)}


def _row(run: Run) -> list[int | str]:
    return [run.iova, run.physical, run.size, run.page, "r" * run.read + "w" * run.write]
