"""A pair of NVMe queues: commands that the controller reads, completions that it writes.

Polled: a completion is there when its phase bit has the other value than in the round before (NVM Express Base
Specification 2.0, 4.2.4). One command runs at a time, so the queues are never full.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ENTRIES = 64
"""A submission queue of as many entries of 64 bytes fills a page."""

_COMMAND_SIZE = 64
# opcode and command identifier, namespace, 2 reserved, metadata, PRP1, PRP2, command dwords 10 to 15
_COMMAND = struct.Struct("<IIQQQQ6I")
_COMPLETION_WORDS = 4
_PHASE = 1 << 16
_STATUS_SHIFT = 17
# The controller is told of this many completions at once: a register costs more than the rest. The queue has room.
_HEAD_TOLD = 16
# How often a completion is looked for before the caller's check of the controller and of the time is called.
_LOOKS = 500


class QueuePair:
    """A submission queue and its completion queue, a page each."""

    def __init__(self, commands: memoryview, completions: memoryview) -> None:
        """Take the queues' pages: one as bytes, one as words of 4 bytes."""
        self._commands = commands
        self._completions = completions

    def begin(self, registers: memoryview, tail_doorbell: int, head_doorbell: int) -> None:
        """Begin with empty queues.

        Args:
            registers: The controller's, as words of 4 bytes.
            tail_doorbell: Index of the submission queue's doorbell.
            head_doorbell: Index of the completion queue's doorbell.
        """
        self._registers, self._tail_doorbell, self._head_doorbell = registers, tail_doorbell, head_doorbell
        # A completion of an earlier life has the phase bit that is waited for.
        self._completions[:] = memoryview(bytes(self._completions.nbytes)).cast("I")
        self._tail = 0
        self._head = 0
        self._phase = _PHASE

    def run(
        self,
        opcode: int,
        check: Callable[[], None],
        *,
        namespace: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        dwords: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0),
    ) -> tuple[int, int]:
        """Run one command to its end.

        Args:
            opcode: Which command.
            check: Called now and then while there is no completion; raises when there will be none.
            namespace: Namespace identifier.
            prp1: Address of the data.
            prp2: Address of the rest of the data, or of the list of its pages.
            dwords: Command dwords 10 to 15.

        Returns:
            The status (0 is success; 8 bits of code, then 3 of type) and dword 0 of the completion.
        """
        tail, head = self._tail, self._head
        _COMMAND.pack_into(
            self._commands, tail * _COMMAND_SIZE, opcode | tail << 16, namespace, 0, 0, prp1, prp2, *dwords
        )
        self._tail = tail = (tail + 1) % ENTRIES
        completions, phase, at = self._completions, self._phase, head * _COMPLETION_WORDS + 3
        self._registers[self._tail_doorbell] = tail
        while completions[at] & _PHASE != phase:
            for _ in range(_LOOKS):
                if completions[at] & _PHASE == phase:
                    break
            else:
                check()
        status, result = completions[at] >> _STATUS_SHIFT, completions[at - 3]
        self._head = head = (head + 1) % ENTRIES
        if not head:
            self._phase = phase ^ _PHASE
        if not head % _HEAD_TOLD:
            self._registers[self._head_doorbell] = head
        return status, result
