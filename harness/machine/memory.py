"""A guest's physical memory, read from outside while the guest runs, memory-mapped registers included.

QEMU's ``pmemsave`` writes a range to a file that it opens by name. The name is that of a descriptor which it was
handed, a memory file of this process: so nothing is left on a disk, and no text has to be parsed as with the monitor's
``xp``. A clone's RAM is private to its QEMU, so its file is of no use here.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.emulator import Emulator

_T = TypeVar("_T")


class PhysicalMemory:
    """Reads the memory of one machine. A context manager; nothing is opened before the first read.

    Args:
        emulator: its QEMU.
        deadline: until when everything must have been read.
    """

    def __init__(self, emulator: Emulator, deadline: Deadline) -> None:
        self._emulator = emulator
        self._deadline = deadline
        self._file = -1
        self._name = ""
        self._set = -1
        self.reads = 0

    def __enter__(self) -> PhysicalMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        if error is None:
            self._ask(self._emulator.qmp.execute("remove-fd", {"fdset-id": self._set}), "take a file back")

    def __call__(self, address: int, size: int) -> bytes:
        """Read; what is neither RAM nor a device's register reads as QEMU likes.

        Args:
            address: physical address.
            size: bytes, >= 1.

        Raises:
            InfrastructureError: QEMU refused it, ended, or did not answer before the deadline.
            EmulatorCrash: QEMU was ended by a signal.
        """
        if self._file < 0:
            self._file = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
            number, self._set = self._ask(self._emulator.qmp.add_file(self._file), "take a file")
            self._name = f"/proc/self/fd/{number}"
        where = {"val": address, "size": size, "filename": self._name}
        self._ask(self._emulator.qmp.execute("pmemsave", where), f"give the guest's memory at {address:#x}")
        self.reads += 1
        data = os.pread(self._file, size, 0)
        if len(data) != size:
            raise InfrastructureError(f"QEMU gave {len(data)} of {size} bytes of the guest's memory at {address:#x}")
        return data

    def _ask(self, command: Coroutine[Any, Any, _T], what: str) -> _T:
        try:
            return self._emulator.run(command, self._deadline)
        except TimeoutError as error:
            raise InfrastructureError(f"QEMU did not {what} in time") from error
