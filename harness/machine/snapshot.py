"""Write the state of a stopped machine to a file, and load it into a new QEMU process.

The guest's RAM need not be part of it: with ``x-ignore-shared`` RAM that lies in a shared file stays there, and loading
is a matter of half a megabyte. A build without that capability writes RAM into the stream.
"""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.emulator import Emulator
from harness.machine.probe import Capabilities
from harness.machine.spec import MachineSpec

_IGNORE_SHARED = "x-ignore-shared"
# The "file:" address exists since 8.2; later builds want it, and not a descriptor, for files.
_FILE_ADDRESS = (8, 2)
_FD_NAME = "state"
# An older build loads no state into a machine that has a device which cannot be migrated.
_NVME_MIGRATES = (11, 1)


class Method(StrEnum):
    """Where RAM goes: ``FILE`` leaves it in its shared file, ``STREAM`` puts it into the state."""

    FILE = "file"
    STREAM = "stream"


def best_method(capabilities: Capabilities) -> Method:
    """The fastest method that a build can do."""
    return Method.FILE if _IGNORE_SHARED in capabilities.migration else Method.STREAM


def can_load(capabilities: Capabilities, spec: MachineSpec) -> bool:
    """Whether a build can load a frozen state into a machine, that is, have the machine as a clone."""
    if spec.iommu == "amd":  # amd-iommu keeps QEMU from writing a state
        return False
    return capabilities.version >= _NVME_MIGRATES or all(device.model != "nvme" for device in spec.devices)


def freeze(emulator: Emulator, capabilities: Capabilities, method: Method, state: Path, deadline: Deadline) -> None:
    """Stop a machine and write its state; the process can only be ended afterwards.

    Args:
        emulator: a running machine whose devices can all be migrated.
        capabilities: what its build can do.
        method: where RAM goes; for ``FILE`` the machine must have been started with its RAM in a shared file.
        state: the file; made here.
        deadline: until when it must be done.

    Raises:
        InfrastructureError: QEMU refused it, the disk is full (then ``__cause__`` is an OSError with ENOSPC), or QEMU
            ended.
        TimeoutError: not done before the deadline.
    """

    async def sequence() -> None:
        await emulator.qmp.execute("stop")
        await _capabilities(emulator, method)
        with state.open("wb") as file:
            await _transfer(emulator, "migrate", await _address(emulator, capabilities, state, file.fileno()))

    emulator.run(sequence(), deadline)


def restore(emulator: Emulator, capabilities: Capabilities, method: Method, state: Path, deadline: Deadline) -> None:
    """Load a state into a machine that was started to take it, and let it run.

    Args:
        emulator: started with ``incoming``, and with the RAM file of the state for ``FILE``.
        capabilities: what its build can do.
        method: as it was frozen.
        state: the file that :func:`freeze` wrote.
        deadline: until when it must run.

    Raises:
        InfrastructureError: the state does not fit the machine, or QEMU ended.
        TimeoutError: not done before the deadline.
    """

    async def sequence() -> None:
        await _capabilities(emulator, method)
        with state.open("rb") as file:
            await _transfer(emulator, "migrate-incoming", await _address(emulator, capabilities, state, file.fileno()))
        await emulator.qmp.execute("cont")

    emulator.run(sequence(), deadline)


async def _capabilities(emulator: Emulator, method: Method) -> None:
    wanted = {"events": True, _IGNORE_SHARED: True} if method is Method.FILE else {"events": True}
    states = [{"capability": name, "state": state} for name, state in wanted.items()]
    await emulator.qmp.execute("migrate-set-capabilities", {"capabilities": states})


async def _address(emulator: Emulator, capabilities: Capabilities, path: Path, file: int) -> str:
    if capabilities.version >= _FILE_ADDRESS:
        return f"file:{path}"
    await emulator.qmp.hand_over(_FD_NAME, file)
    return f"fd:{_FD_NAME}"


async def _transfer(emulator: Emulator, command: str, address: str) -> None:
    """Run ``migrate`` or ``migrate-incoming`` to its end."""
    with emulator.qmp.listen("MIGRATION") as events:
        await emulator.qmp.execute(command, {"uri": address})
        async for event in events:
            data = event["data"]
            status = data["status"] if isinstance(data, dict) else None
            if status == "completed":
                return
            if status == "failed":
                break
    answer = await emulator.qmp.execute("query-migrate")
    why = str(answer.get("error-desc") or "no reason given") if isinstance(answer, dict) else "no reason given"
    error = InfrastructureError(f"QEMU could not {'write' if command == 'migrate' else 'load'} its state: {why}")
    if os.strerror(errno.ENOSPC) in why:
        raise error from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise error
