"""What a fault record says, field by field, in sentences: requester, address, PASID, flags; and the status register."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.fault.known import KnownRange, find_range
from harness.fault.pci import Pf, Requester
from harness.fault.vendors import AMD_FLAG_BITS, AMD_FLAG_WORDS
from harness.results import FaultRecord, StatusLine

MSI_WINDOW: Final = range(0xFEE00000, 0xFEF00000)
"""The addresses at which x86 takes interrupts: a DMA to them is never translated as one to memory."""

STATUS_BITS: Final[tuple[tuple[int, str, str], ...]] = (
    (1 << 0, "PFO", "a fault was lost because the record registers were full"),
    (1 << 1, "PPF", "at least one fault record was pending"),
    (1 << 2, "AFO", "the advanced fault log overflowed"),
    (1 << 3, "APF", "a record in the advanced fault log was pending"),
    (1 << 4, "IQE", "the invalidation queue has an error"),
    (1 << 5, "ICE", "an invalidation of a device's TLB was answered wrongly"),
    (1 << 6, "ITE", "an invalidation of a device's TLB was not answered in time"),
    (1 << 7, "PRO", "the page request queue overflowed"),
)
"""The bits of VT-d's fault status register: mask, name, meaning. Bits 8 to 15 are FRI, the first record's index."""


@dataclass(frozen=True)
class Context:
    """What is known beside the log.

    Args:
        pfs: PFs of which the requester may be a VF.
        aw_bits: width of the IOMMU's addresses in bits, or None.
        ranges: IOVAs that a run mapped, or None when no run was named.
    """

    pfs: Sequence[Pf] = ()
    aw_bits: int | None = None
    ranges: Sequence[KnownRange] | None = field(default=None)


def vf_of(fault: FaultRecord, pfs: Sequence[Pf]) -> tuple[Pf, int] | None:
    """The nearest PF before the requester of which it is a VF, and the VF's number from 1."""
    requester = Requester.parse(fault.requester)
    if requester is None:
        return None
    found = [(pf, number) for pf in pfs if (number := pf.vf_number(requester)) is not None]
    return min(found, key=lambda one: one[1], default=None)


def above_width(fault: FaultRecord, context: Context) -> bool:
    """Whether the address needs more bits than the IOMMU translates."""
    return fault.address is not None and context.aw_bits is not None and fault.address >> context.aw_bits != 0


def facts(fault: FaultRecord, context: Context) -> tuple[str, ...]:
    """What the record says, one sentence for each thing."""
    return (*_requester(fault, context), *_address(fault, context), *_rest(fault))


def _requester(fault: FaultRecord, context: Context) -> Iterator[str]:
    requester = Requester.parse(fault.requester)
    if requester is None:
        return
    yield (
        f"requester {requester}: bus {requester.bus:#04x}, device {requester.device:#04x}, function"
        f" {requester.function}, requester ID {requester.rid:#06x}"
    )
    found = vf_of(fault, context.pfs)
    if found is not None:
        pf, number = found
        yield f"VF {number} (virtfn{number - 1}) of the PF {pf.address}, at offset {pf.offset}, stride {pf.stride}"
    elif any(pf.address.rid == requester.rid for pf in context.pfs):
        yield "the PF itself"
    elif context.pfs:
        yield f"no VF of {', '.join(str(pf.address) for pf in context.pfs)}"


def _address(fault: FaultRecord, context: Context) -> Iterator[str]:
    if fault.index is not None:
        yield f"index {fault.index:#x} of the interrupt remapping table"
    if fault.address is None:
        if fault.access != "interrupt":
            yield "the log does not say the address"
        return
    place = "page aligned" if fault.address & 0xFFF == 0 else f"{fault.address & 0xFFF:#x} bytes into a page"
    if fault.vendor in ("intel", "xen", "freebsd"):
        place += " (VT-d records whole pages)"
    yield f"address {fault.address:#x}: {place}, needs {max(1, fault.address.bit_length())} bits"
    if fault.address in MSI_WINDOW:
        yield "inside the MSI window 0xfee00000-0xfeefffff: an interrupt, or a wild pointer"
    if above_width(fault, context):
        yield f"above the width of the IOMMU: {context.aw_bits} bits end at {(1 << (context.aw_bits or 0)) - 1:#x}"
    elif context.aw_bits is not None:
        yield f"within the {context.aw_bits} bits of the IOMMU"
    if context.ranges is not None:
        known = find_range(context.ranges, fault.address)
        yield "in no mapping that the run knows" if known is None else known.describe(fault.address)


def _rest(fault: FaultRecord) -> Iterator[str]:
    if fault.pasid is not None:
        yield f"PASID {fault.pasid:#x}: the address is one of a process, not of the device"
    if fault.flags is not None:
        names = [name for name, bit in AMD_FLAG_BITS.items() if fault.flags & bit]
        words = ", ".join(f"{name} ({AMD_FLAG_WORDS[name]})" for name in names) or "none set"
        if not fault.flags & AMD_FLAG_BITS["PR"] and fault.reason == 2:
            words += "; PR clear: the page was not present"
        yield f"flags {fault.flags:#06x}: {words}"


def status_sentence(status: StatusLine) -> str:
    """A fault status register, bit by bit."""
    bits = [f"{name} ({meaning})" for mask, name, meaning in STATUS_BITS if status.value & mask]
    index = f", FRI {status.index}: the first record's index" if status.pending or status.index else ""
    return f"fault status register {status.value:#x}: {', '.join(bits) or 'no bit set'}{index}"
