"""Guest memory through pmemsave: what QEMU is asked for, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.memory import PhysicalMemory


class FakeQemu:
    """An emulator and its monitor in one: memory whose bytes are their addresses' lowest."""

    def __init__(self) -> None:
        self.qmp = self
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.files: list[int] = []
        self.short = 0
        self.late = ""

    def run(self, command: Coroutine[Any, Any, Any], deadline: Deadline) -> Any:
        return asyncio.run(command)

    async def add_file(self, file: int) -> tuple[int, int]:
        self.files.append(os.dup(file))
        return self.files[-1], 5

    async def execute(self, command: str, arguments: dict[str, Any]) -> object:
        self.asked.append((command, arguments))
        if command == self.late:
            raise TimeoutError
        if command == "pmemsave":
            first, size = arguments["val"], arguments["size"] - self.short
            Path(arguments["filename"]).write_bytes(bytes(place & 0xFF for place in range(first, first + size)))
        return {}


@pytest.fixture
def qemu():
    one = FakeQemu()
    yield one
    for file in one.files:
        os.close(file)


def test_reads(qemu):
    with PhysicalMemory(qemu, Deadline.after(5)) as memory:
        assert memory(0x1000, 16) == bytes(range(16))
        assert memory(0xFED90020, 8) == bytes(range(0x20, 0x28))
        assert memory.reads == 2
    name = f"/proc/self/fd/{qemu.files[0]}"
    assert qemu.asked == [
        ("pmemsave", {"val": 0x1000, "size": 16, "filename": name}),
        ("pmemsave", {"val": 0xFED90020, "size": 8, "filename": name}),
        ("remove-fd", {"fdset-id": 5}),
    ]
    assert len(qemu.files) == 1


def test_nothing_is_handed_over_before_the_first_read(qemu):
    with PhysicalMemory(qemu, Deadline.after(5)):
        pass
    assert (qemu.files, qemu.asked) == ([], [])


def test_no_descriptor_is_left(qemu):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with PhysicalMemory(qemu, Deadline.after(5)) as memory:
        memory(0, 1)
    os.close(qemu.files.pop())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_fewer_bytes_than_asked_for_are_an_error(qemu):
    qemu.short = 1
    with pytest.raises(InfrastructureError, match="gave 7 of 8 bytes of the guest's memory at 0x40"):  # noqa: SIM117
        with PhysicalMemory(qemu, Deadline.after(5)) as memory:
            memory(0x40, 8)
    # After an error nothing more is asked.
    assert [command for command, _ in qemu.asked] == ["pmemsave"]


@pytest.mark.parametrize(
    ("command", "message"), [("pmemsave", "give the guest's memory at 0x40"), ("remove-fd", "take a file back")]
)
def test_an_answer_that_does_not_come(qemu, command, message):
    qemu.late = command
    with pytest.raises(InfrastructureError, match=f"QEMU did not {message} in time"):  # noqa: SIM117
        with PhysicalMemory(qemu, Deadline.after(5)) as memory:
            memory(0x40, 8)
