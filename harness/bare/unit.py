"""The remapping unit's registers, as a driver uses them."""

from __future__ import annotations

from dataclasses import dataclass

from harness.bare.layout import QUEUE
from harness.bare.qtest import Qtest
from harness.errors import InfrastructureError
from harness.machine.vtd import faults, invalidation, registers
from harness.machine.vtd.bits import PAGE
from harness.machine.vtd.faults import FaultRecording
from harness.machine.vtd.invalidation import Scope
from harness.machine.vtd.registers import BASE, RootTableAddress

_DONE = 0x600D
_BUSY = 1 << 63
_STATUS_PAGE = QUEUE + PAGE


@dataclass(frozen=True, slots=True)
class FaultState:
    """What the fault registers say.

    Args:
        status: FSTS.
        control: FECTL.
        record: the fault recording register.
    """

    status: int
    control: int
    record: FaultRecording


class RemappingUnit:
    """The unit behind the registers.

    Args:
        qtest: the connection.
    """

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest
        self.begin()

    def begin(self) -> None:
        """Read what the unit can do, and forget what was done to it: it is as after a reset."""
        self._enabled = 0
        self._tail = 0
        self._width = invalidation.DESCRIPTOR
        capability, extended = self._qtest.read64(BASE + registers.CAP), self._qtest.read64(BASE + registers.ECAP)
        count = faults.record_count(capability)
        if count != 1:
            raise InfrastructureError(f"this IOMMU has {count} fault recording registers, and only one is understood")
        self._scalable = bool(extended & registers.SMTS)
        self._record = BASE + faults.record_offset(capability)
        self._iotlb = BASE + registers.iotlb_offset(extended)

    @property
    def queued(self) -> bool:
        """Whether invalidation goes through the queue."""
        return bool(self._enabled & registers.QIE)

    def _command(self, bit: int, *, stays: bool) -> None:
        """Write a command with what is enabled already, and see that its bit of GSTS is set."""
        self._qtest.write32(BASE + registers.GCMD, self._enabled | bit)
        status = self._qtest.read32(BASE + registers.GSTS)
        if not status & bit:
            raise InfrastructureError(f"the IOMMU did not take the command {bit:#x}: GSTS is {status:#x}")
        if stays:
            self._enabled |= bit

    def set_root_table(self, address: RootTableAddress | int) -> None:
        """Point to the root table (RTADDR, SRTP); an integer is written as it is."""
        word = address if isinstance(address, int) else address.encode()
        self._qtest.write64(BASE + registers.RTADDR, word)
        self._command(registers.SRTP, stays=False)

    def enable_queue(self) -> None:
        """Set the invalidation queue up: one page, descriptors of 32 bytes where there is scalable mode, else of 16."""
        self._width = invalidation.WIDE if self._scalable else invalidation.DESCRIPTOR
        self._qtest.write64(BASE + registers.IQT, 0)
        self._qtest.write64(BASE + registers.IQA, QUEUE | (registers.DW if self._scalable else 0))
        self._command(registers.QIE, stays=True)
        self._tail = 0

    def enable_translation(self) -> None:
        """Set TE."""
        self._command(registers.TE, stays=True)

    def enable_interrupts(self, table: int) -> None:
        """Point to the interrupt-remapping table (the value of IRTA), and set IRE."""
        self._qtest.write64(BASE + registers.IRTA, table)
        self._command(registers.SIRTP, stays=False)
        self._command(registers.IRE, stays=True)

    def disable(self) -> None:
        """Clear TE and IRE."""
        self._enabled &= registers.QIE
        self._qtest.write32(BASE + registers.GCMD, self._enabled)
        status = self._qtest.read32(BASE + registers.GSTS)
        if status & (registers.TE | registers.IRE):
            raise InfrastructureError(f"the IOMMU did not stop: GSTS is {status:#x}")

    # ---- invalidation

    def invalidate_context(self, scope: Scope, domain: int = 0, source_id: int = 0) -> None:
        """Forget context entries."""
        if self.queued:
            self._submit(invalidation.context_cache(scope, domain, source_id))
            return
        command = invalidation.context_command(scope, domain, source_id)
        self._qtest.write64(BASE + registers.CCMD, command)
        self._finished(BASE + registers.CCMD, "CCMD")

    def invalidate_iotlb(self, scope: Scope, domain: int = 0, address: int = 0, order: int = 0) -> None:
        """Forget translations."""
        if self.queued:
            self._submit(invalidation.iotlb(scope, domain, address, order))
            return
        if scope is Scope.SELECTIVE:
            self._qtest.write64(self._iotlb, invalidation.invalidate_address(address, order))
        self._qtest.write64(self._iotlb + 8, invalidation.iotlb_command(scope, domain))
        self._finished(self._iotlb + 8, "IOTLB")

    def submit(self, descriptor: bytes) -> None:
        """Have a descriptor of the queue done.

        Raises:
            InfrastructureError: the queue is off, or the unit does not take it.
        """
        if not self.queued:
            raise InfrastructureError("this invalidation needs the queue, which is off")
        self._submit(descriptor)

    def _submit(self, descriptor: bytes) -> None:
        self._qtest.write32(_STATUS_PAGE, 0)
        for one in (descriptor, invalidation.wait(_STATUS_PAGE, _DONE)):
            self._qtest.write(QUEUE + self._tail, one.ljust(self._width, b"\0"))
            self._tail = (self._tail + self._width) % PAGE
        self._qtest.write64(BASE + registers.IQT, self._tail)
        if self._qtest.read32(_STATUS_PAGE) != _DONE:
            status = self._qtest.read32(BASE + faults.FSTS)
            raise InfrastructureError(f"the IOMMU did not take the descriptor {descriptor.hex()}: FSTS is {status:#x}")

    def _finished(self, register: int, name: str) -> None:
        # The emulated unit has done it when the write returns.
        if self._qtest.read64(register) & _BUSY:
            raise InfrastructureError(f"the IOMMU did not finish the invalidation of {name}")

    # ---- faults

    def faults(self) -> FaultState:
        """Read the fault registers; nothing is cleared."""
        return FaultState(
            self._qtest.read32(BASE + faults.FSTS),
            self._qtest.read32(BASE + faults.FECTL),
            FaultRecording.decode(self._qtest.read(self._record, FaultRecording.SIZE)),
        )

    def clear_record(self) -> None:
        """Clear F of the fault recording register."""
        self._qtest.write32(self._record + 12, faults.F >> 32)

    def clear_overflow(self) -> None:
        """Clear FSTS.PFO."""
        self._qtest.write32(BASE + faults.FSTS, faults.PFO)

    def fault_event(self, address: int, data: int, *, masked: bool) -> None:
        """Set the message of the fault event, and whether it is masked."""
        self._qtest.write32(BASE + faults.FEDATA, data)
        self._qtest.write32(BASE + faults.FEADDR, address & 0xFFFF_FFFF)
        self._qtest.write32(BASE + faults.FEUADDR, address >> 32)
        self._qtest.write32(BASE + faults.FECTL, faults.IM if masked else 0)
