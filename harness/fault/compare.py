"""The two witnesses of faults compared: QEMU's trace saw every one, the guest's kernel printed some of them.

Linux takes a token of a bucket of ten for each status line, each record and the final look for more, and fills the
bucket every five seconds: after three whole reports it falls silent. The emulated IOMMU has one fault register: while
a record is pending there, another fault of the same requester is dropped ("compression"), one of another requester sets
the overflow bit. So a fault that only the trace has may be explained; one that only the kernel has never is. This is
VT-d's way; that of other vIOMMUs is in ``compare_viommu``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from harness.fault.compare_viommu import explain_viommu, fits_viommu, is_viommu, limits_of
from harness.fault.kernel_log import KernelFaults
from harness.fault.pci import without_domain_0
from harness.fault.rate_limit import INTERVAL, Bucket
from harness.fault.reasons import describe
from harness.fault.trace import collapse, page_of
from harness.results import FaultRecord, Record

# Whole reports in one interval of the kernel's rate limit: ten tokens, three for each.
_REPORTS: Final = 3
# How long a record stays pending at most, for the trace's clock: until the guest's interrupt handler has run, which
# under emulation takes milliseconds. The edu device leaves 100 ms between two DMAs, so two steps never mix.
_PENDING: Final = 0.1


class Comparison(Record):
    """Whether the witnesses agree.

    Args:
        agrees: False when a difference is left without an explanation.
        explanations: differences that are explained, and by what; one for each cause.
        unexplained: differences that are not; one for each fault.
    """

    agrees: bool
    explanations: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()


def compare(trace: Iterable[FaultRecord], kernel: KernelFaults) -> Comparison:
    """Compare the faults of the trace with those of the kernel's log.

    Args:
        trace: the trace's faults in order of time; equal ones of a step are taken together.
        kernel: what the kernel's log says.
    """
    faults = collapse(trace)
    printed, strangers = _match(faults, kernel.records)
    others = any(is_viommu(fault) for fault in faults)
    causes = explain_viommu(faults, printed) if others else _explain(faults, printed, kernel)
    unexplained = [f"only the kernel's log has {describe(record)}" for record in strangers]
    grouped: dict[str, list[FaultRecord]] = {}
    for fault, count, cause in zip(faults, printed, causes, strict=True):
        if count == 0 and cause is None:
            unexplained.append(f"only the trace has {describe(fault)}")
        elif count == 0 and cause is not None:
            grouped.setdefault(cause, []).append(fault)
    return Comparison(
        agrees=not unexplained,
        explanations=(*limits_of(faults, printed), *(_sentence(cause, found) for cause, found in grouped.items())),
        unexplained=tuple(unexplained),
    )


def _match(faults: Sequence[FaultRecord], records: Sequence[FaultRecord]) -> tuple[list[int], list[FaultRecord]]:
    """How many kernel records belong to each fault, and the records that belong to none.

    A DMA is refused word by word, and the kernel may clear the register in between, so it may print a fault as often as
    the trace has lines for it, but not more often.
    """
    printed = [0] * len(faults)
    candidates: dict[tuple[object, ...], list[int]] = {}
    by_requester: dict[str, list[int]] = {}
    for index, fault in enumerate(faults):
        candidates.setdefault(_key(fault), []).append(index)
        by_requester.setdefault(fault.requester, []).append(index)
    partial: list[FaultRecord] = []
    strangers: list[FaultRecord] = []
    for record in records:
        if is_viommu(record):
            # What is not said, or wrong, fits several; the kernel prints in the order of the faults.
            free = (i for i, fault in enumerate(faults) if printed[i] < fault.count and fits_viommu(record, fault))
            first = next(free, None)
            if first is None:
                strangers.append(record)
            else:
                printed[first] += 1
        elif record.access is None or record.address is None or record.reason is None:
            # A line that was cut off must not take the place of a whole one.
            partial.append(record)
        elif not _take(faults, printed, candidates.get(_key(record), [])):
            strangers.append(record)
    for record in partial:
        fitting = [i for i in by_requester.get(without_domain_0(record.requester), []) if _fits(record, faults[i])]
        if not _take(faults, printed, fitting):
            strangers.append(record)
    return printed, strangers


def _take(faults: Sequence[FaultRecord], printed: list[int], candidates: Sequence[int]) -> bool:
    """Count a record for the candidate with the fewest so far, the earlier one first; False when none is free."""
    free = [i for i in candidates if printed[i] < faults[i].count]
    if not free:
        return False
    printed[min(free, key=lambda i: printed[i])] += 1
    return True


def _key(fault: FaultRecord) -> tuple[object, ...]:
    return without_domain_0(fault.requester), fault.access, fault.reason, page_of(fault.address)


def _fits(record: FaultRecord, fault: FaultRecord) -> bool:
    """Whether what a line cut off does say is true of the fault."""
    return (
        record.access in (None, fault.access)
        and record.reason in (None, fault.reason)
        and page_of(record.address) in (None, page_of(fault.address))
    )


def _explain(faults: Sequence[FaultRecord], printed: Sequence[int], kernel: KernelFaults) -> list[str | None]:
    """For each fault that was not printed: why, or None when nothing explains it."""
    causes: list[str | None] = [None] * len(faults)
    # One message at least is swallowed for each fault that is not printed, so a count explains no more than as many.
    budget = max(kernel.suppressed, kernel.unreported)
    overflowed = any(status.overflow for status in kernel.status)
    recorded: dict[str, FaultRecord] = {}  # the last fault of each requester that got into the register
    bucket = Bucket(_REPORTS)
    for index, (fault, count) in enumerate(zip(faults, printed, strict=True)):
        if count:
            recorded[fault.requester] = fault
            bucket.take(fault.time, count)
            continue
        same = recorded.get(fault.requester)
        if same is not None and _near(same, fault):
            causes[index] = "the fault register's compression (a record of the same requester was pending)"
        elif overflowed and any(_near(other, fault) for name, other in recorded.items() if name != fault.requester):
            causes[index] = "the fault register's overflow (a record of another requester was pending)"
        elif budget:
            budget -= 1
            recorded[fault.requester] = fault
            causes[index] = _budget_words(kernel)
        elif bucket.empty(fault.time):
            recorded[fault.requester] = fault
            causes[index] = f"the kernel's rate limit (three reports printed in the {INTERVAL:g} s before)"
    return causes


def _near(earlier: FaultRecord, fault: FaultRecord) -> bool:
    """Whether a record of the earlier fault can have been pending when the other one came."""
    if earlier.step != fault.step:
        return False
    return earlier.time is None or fault.time is None or abs(fault.time - earlier.time) <= _PENDING


def _budget_words(kernel: KernelFaults) -> str:
    if kernel.suppressed:
        return f"the kernel's rate limit ({kernel.suppressed} callbacks suppressed)"
    return f"the kernel's rate limit ({kernel.unreported} status lines without a record)"


def _sentence(cause: str, members: Sequence[FaultRecord]) -> str:
    first = describe(members[0])
    if len(members) == 1:
        return f"only the trace has {first}: {cause}"
    return f"only the trace has {len(members)} faults, the first {first}: {cause}"
