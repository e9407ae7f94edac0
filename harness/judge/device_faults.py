"""A device's own log of its DMAs against the faults in QEMU's trace: a third witness of every fault.

A transfer goes in pieces of at most a page wherever it may be refused. Each refused piece must have a fault of the same
requester in the trace, of the same access and in the piece's page, and each of its faults such a piece. A function that
must not access memory is refused before the IOMMU is asked, so without a fault; where the IOMMU does not translate, an
address without memory is refused without one, too; and so is a write to a page that can be read only, once QEMU's IOTLB
has the page because of a read. Of a transfer that was cut short neither side is held to anything within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.fault import describe, evidence_faults
from harness.fault.pci import without_domain_0
from harness.fault.reasons import is_interrupt_reason
from harness.fault.trace import PAGE_SHIFT, page_of
from harness.judge.device_ranges import expand
from harness.judge.device_responses import response_problems
from harness.judge.words import listed
from harness.results import Check, Evidence, FaultRecord, Run, StepEvidence, Transfer

_ENDED = "ended unfinished, by a reset, a lost connection or bus mastering switched off"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A refused piece of a transfer."""

    transfer: Transfer
    first: int
    size: int

    def has(self, fault: FaultRecord) -> bool:
        """Whether a fault can be of this piece."""
        page = page_of(fault.address)
        if page is None or fault.access not in (None, self.transfer.access):
            return False
        return self.first >> PAGE_SHIFT <= page <= (self.first + self.size - 1) >> PAGE_SHIFT

    def cached(self, ranges: Iterable[Run], reads: Iterable[Transfer]) -> bool:
        """Whether it is a write to a page that can be read only and has been read, which QEMU refuses silently."""
        if self.transfer.access != "write":
            return False
        first, end = self.first >> PAGE_SHIFT << PAGE_SHIFT, self.first + self.size
        if not any(start <= self.first and end <= stop and access == "r" for start, stop, access in expand(ranges)):
            return False
        return any(one.iova < end and first < one.iova + one.size for one in reads)

    def __str__(self) -> str:
        note = f" ({self.transfer.note})" if self.transfer.note else ""
        return f"a refused {self.transfer.access} of {self.size} bytes at {self.first:#x}{note}"


def check_device_faults(evidence: Evidence) -> tuple[list[Check], tuple[str, ...]]:
    """Check what devices say of their DMAs, one check for each device whose model has a log; and notes for people.

    Args:
        evidence: what ran.
    """
    faults = evidence_faults(evidence)
    checks: list[Check] = []
    notes: list[str] = []
    for name in evidence.served:
        address = without_domain_0(evidence.devices.get(name, "")).lower()
        device = _Device(name, address, [fault for fault in faults if fault.requester == address])
        for seen in evidence.steps:
            device.step(seen)
        device.end()
        device.disagreements += response_problems(name, evidence)
        checks.append(device.check())
        notes += device.notes()
    return checks, tuple(notes)


class _Device:
    """One device over the steps.

    Attributes:
        disagreements: in words.
    """

    def __init__(self, name: str, address: str, faults: list[FaultRecord]) -> None:
        self.name = name
        self.address = address
        self.disagreements: list[str] = []
        self._faults = faults
        self._waiting: list[FaultRecord] = []  # whose transfer was not over when the device was asked
        self._translated = True
        self._ranges: tuple[Run, ...] = ()
        self._reads: list[Transfer] = []
        self._transfers = self._refused = self._more = self._interrupts = 0
        self._master_off = self._bare = self._cached = self._cut = self._cut_pieces = 0

    def step(self, seen: StepEvidence) -> None:
        """Compare what both say of a step."""
        mine = [fault for fault in self._faults if fault.step == seen.index]
        interrupts = [fault for fault in mine if _is_interrupt(fault)]
        self._interrupts += len(interrupts)
        mine = [fault for fault in mine if fault not in interrupts]
        news = seen.devices.get(self.name)
        if news is None:
            return
        was_translated, belief = self._translated, news.believed
        self._translated = belief.translated if belief is not None else was_translated
        if news.ranges is not None:
            self._ranges = news.ranges
            mapped = list(expand(news.ranges))
            # What is not mapped any more is not in the IOTLB either.
            self._reads = [one for one in self._reads if any(a <= one.iova < b for a, b, _ in mapped)]
        self._reads += [one for one in news.transfers if one.access == "read" and not one.refused]
        self._transfers += len(news.transfers) + news.more
        self._more += news.more
        pieces = [_Piece(one, *piece) for one in news.transfers for piece in one.refused]
        self._refused += len(pieces)
        where = f"step {seen.index} ({seen.kind})"
        for piece in pieces:
            if not piece.transfer.bus_master:
                self._master_off += 1
            elif not any(piece.has(fault) for fault in (*self._waiting, *mine)):
                if piece.transfer.cut:
                    self._cut_pieces += 1
                elif not (was_translated and self._translated):
                    self._bare += 1
                elif piece.cached(self._ranges, self._reads):
                    self._cached += 1
                else:
                    self.disagreements.append(f"{where}: the device tells of {piece}, the trace of no such fault")
        # Of these nobody heard the whole end, so any fault within them is theirs.
        cut = [_Piece(one, one.iova, one.size) for one in news.transfers if one.cut]
        before = len(mine)
        mine = [fault for fault in mine if not any(piece.has(fault) for piece in cut)]
        self._cut += before - len(mine)
        may = [piece for piece in pieces if piece.transfer.bus_master]
        for fault in self._waiting:
            if not any(piece.has(fault) for piece in may):
                self._alone(fault)
        self._waiting = [fault for fault in mine if not any(piece.has(fault) for piece in may)]
        if news.more:
            self._waiting.clear()

    def end(self) -> None:
        """No further step comes."""
        for fault in self._waiting:
            self._alone(fault)
        self._waiting.clear()

    def _alone(self, fault: FaultRecord) -> None:
        self.disagreements.append(f"step {fault.step}: the trace tells of {describe(fault)}, the device of no such DMA")

    def check(self) -> Check:
        """The word on the device."""
        expected = "the device's log and QEMU's trace tell of the same refused DMAs, the driver's responses too"
        counts = f"{self._transfers} transfers, {self._refused} pieces of them refused, {len(self._faults)} faults"
        observed = listed(self.disagreements) or counts
        message = f"the device and the trace agree: {counts}"
        if self.disagreements:
            message = f"expected that {expected}, observed {observed}"
        return Check(
            name=f"device {self.name}: faults",
            passed=not self.disagreements,
            message=message,
            expected=expected,
            observed=observed,
        )

    def notes(self) -> Iterator[str]:
        """What was not compared, and why."""
        if self._more:
            yield f"{self.name}: its log lacks {self._more} of its transfers, so those are not compared with the trace"
        if self._master_off:
            yield f"{self.name}: {self._master_off} pieces were refused without a fault, because it was no bus master"
        if self._bare:
            yield f"{self.name}: {self._bare} pieces were refused without a fault, because the IOMMU did not translate"
        if self._cached:
            yield f"{self.name}: {self._cached} writes to read-only pages were refused without a fault, by QEMU's IOTLB"
        if self._cut:
            yield f"{self.name}: {self._cut} faults are of DMAs that {_ENDED}"
        if self._cut_pieces:
            yield f"{self.name}: {self._cut_pieces} pieces without a fault are of DMAs that {_ENDED}"
        if self._interrupts:
            yield f"{self.name}: {self._interrupts} faults of interrupts, of which its log of DMAs does not tell"


def _is_interrupt(fault: FaultRecord) -> bool:
    return fault.access == "interrupt" or (fault.reason is not None and is_interrupt_reason(fault.reason))
