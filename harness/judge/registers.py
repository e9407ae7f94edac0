"""The fault registers against QEMU's trace: what an IOMMU with one fault recording register must say after each step.

Intel Virtualization Technology for Directed I/O, 7.2.1 "Primary Fault Logging": while FSTS.PFO is set nothing is
recorded; a fault of a requester whose record is pending may be left out ("compression"); a fault that finds no free
register sets PFO and is lost. QEMU's unit has one register, and always compresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.fault.pci import requester_name
from harness.fault.reasons import describe, is_interrupt_reason
from harness.results import FaultRecord, StepEvidence

KEY: Final = "registers"
"""The name in a step's values under which the registers are, as they were after it."""

_INDEX_SHIFT: Final = 48
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Registers:
    """What the fault registers said.

    Args:
        recorded: F.
        overflow: FSTS.PFO.
        pending: FSTS.PPF.
        interrupt_pending: FECTL.IP.
        source_id: SID.
        reason: FR.
        read: T.
        info: FI.
        step: the step after which they were read.
    """

    recorded: bool = False
    overflow: bool = False
    pending: bool = False
    interrupt_pending: bool = False
    source_id: int = 0
    reason: int = 0
    read: bool = False
    info: int = 0
    step: int = 0

    @classmethod
    def of(cls, step: StepEvidence) -> Registers | None:
        """What was read after a step; None when the evidence does not have it."""
        values: Any = step.values.get(KEY)
        names = ("recorded", "overflow", "pending", "interrupt_pending", "source_id", "reason", "read", "info")
        if not isinstance(values, dict) or not all(isinstance(values.get(name), int) for name in names):
            return None
        return cls(**{name: values[name] for name in names}, step=step.index)

    def fault(self) -> FaultRecord | None:
        """The fault that is recorded, or None."""
        if not self.recorded:
            return None
        interrupt = is_interrupt_reason(self.reason)
        return FaultRecord(
            witness="registers",
            requester=requester_name(self.source_id),
            access="interrupt" if interrupt else "read" if self.read else "write",
            address=None if interrupt else self.info,
            reason=self.reason,
            step=self.step,
            index=self.info >> _INDEX_SHIFT if interrupt else None,
        )


def _same(register: FaultRecord | None, fault: FaultRecord | None) -> bool:
    """Whether the register holds this fault of the trace; of an address it has the page."""
    if register is None or fault is None:
        return register is fault
    if (register.requester, register.access, register.reason) != (fault.requester, fault.access, fault.reason):
        return False
    if register.address is None or fault.address is None:
        return register.address is fault.address and register.index == fault.index
    return register.address == fault.address // _PAGE * _PAGE


class FaultRegister:
    """A model of the registers that is fed with the trace, step by step.

    Attributes:
        recorded: the faults that were in the register, as it had them.
        notes: faults of the trace that were not, and why.
    """

    def __init__(self) -> None:
        self._held: FaultRecord | None = None
        self._overflow = False
        self.recorded: list[FaultRecord] = []
        self.notes: list[str] = []

    def step(self, step: StepEvidence, faults: Sequence[FaultRecord]) -> list[str]:
        """One more step: what the registers should have said after it and did not, in words.

        Args:
            step: what the step left.
            faults: its faults in the trace, each by itself, in order.
        """
        before = self._held
        if step.kind == "reset":
            self._held, self._overflow = None, False
        elif step.kind == "clear_fault":
            what = step.args.get("what", "all")
            self._held = self._held if what == "overflow" else None
            self._overflow = self._overflow and what == "record"
        lost: dict[str, list[FaultRecord]] = {}
        for fault in faults:
            cause = self._take(fault)
            # A DMA that is refused word by word is one fault, recorded once.
            if cause is not None and not _alike(fault, self._held, before):
                lost.setdefault(cause, []).append(fault)
        self.notes += [
            f"step {step.index}: not in the register because of {cause}: {describe(those[0])}"
            for cause, those in lost.items()
        ]
        seen = Registers.of(step)
        if seen is None:
            return [f"step {step.index}: the fault registers were not read"]
        record = seen.fault()
        if record is not None and self._held is not before:
            self.recorded.append(record)
        problems = []
        if not _same(record, self._held):
            held = "nothing" if self._held is None else describe(self._held)
            problems.append(f"the register with {'nothing' if record is None else describe(record)}, not {held}")
        if seen.overflow != self._overflow:
            problems.append(f"overflow {str(seen.overflow).lower()}")
        if seen.pending != (self._held is not None):
            problems.append(f"pending {str(seen.pending).lower()}")
        return [f"step {step.index}: {one}" for one in problems]

    def _take(self, fault: FaultRecord) -> str | None:
        """Record a fault, or say why it is lost."""
        if self._overflow:
            return "an overflow before"
        if self._held is None:
            self._held = fault
            return None
        if self._held.requester == fault.requester:
            return "compression: a record of the same requester is pending"
        self._overflow = True
        return "overflow: a record of another requester is pending"


def _alike(fault: FaultRecord, held: FaultRecord | None, before: FaultRecord | None) -> bool:
    """Whether a fault is but another word of the one that this very step has recorded."""
    if held is None or held is before or held.address is None or fault.address is None:
        return False
    same = (fault.requester, fault.access, fault.reason) == (held.requester, held.access, held.reason)
    return same and fault.address // _PAGE == held.address // _PAGE
