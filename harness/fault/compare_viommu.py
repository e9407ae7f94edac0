"""How the kernel's log and QEMU's trace are compared behind virtio-iommu and amd-iommu.

Neither has a fault register that drops records: each refused word is an event for the guest. Linux prints ten lines of
a kind in five seconds and no more: of virtio-iommu's faults ten of all devices, of AMD-Vi's ten of each device. QEMU's
virtio-iommu has 256 buffers for events, which matters to nobody who sees ten lines.

QEMU's amd-iommu (11.1) fills in an event wrongly: of the requester it has the device and function, but bus 0; the
address is 0; the access is in bits of the flags that mean something else. So of AMD-Vi's lines only that is compared
which is right, and a note says so. Should a later QEMU write the right bus or address, they are compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.fault.pci import without_domain_0
from harness.fault.rate_limit import INTERVAL, Bucket
from harness.fault.trace import page_of
from harness.results import FaultRecord

_LINES: Final = 10


def is_viommu(record: FaultRecord) -> bool:
    """Whether a record is of virtio-iommu or AMD-Vi."""
    return record.vendor in ("virtio", "amd")


def fits_viommu(record: FaultRecord, fault: FaultRecord) -> bool:
    """Whether a line of the kernel's log can tell of a fault of the trace.

    Args:
        record: the kernel's.
        fault: the trace's.
    """
    if record.vendor != fault.vendor or record.reason not in (None, fault.reason):
        return False
    requester = without_domain_0(record.requester)
    own = requester == fault.requester
    same_page = page_of(record.address) == page_of(fault.address)
    if record.vendor == "amd":
        return (own or requester == _on_bus_0(fault.requester)) and (same_page or record.address == 0)
    # virtio-iommu says the access only where there is a mapping that does not allow it.
    return own and (record.address is None or same_page) and record.access in (None, fault.access)


def explain_viommu(faults: Sequence[FaultRecord], printed: Sequence[int]) -> list[str | None]:
    """For each fault that was not printed: why, or None when nothing explains it.

    Args:
        faults: the trace's faults in order of time, collapsed.
        printed: how many lines of the kernel's log belong to each.
    """
    causes: list[str | None] = []
    buckets: dict[str, Bucket] = {}
    for fault, count in zip(faults, printed, strict=True):
        whose = _on_bus_0(fault.requester) if fault.vendor == "amd" else ""
        bucket = buckets.setdefault(whose, Bucket(_LINES))
        if count:
            bucket.take(fault.time, count)
        cause = f"the kernel's rate limit ({_LINES} lines printed in the {INTERVAL:g} s before)"
        causes.append(cause if not count and bucket.empty(fault.time) else None)
    return causes


def limits_of(faults: Sequence[FaultRecord], printed: Sequence[int]) -> tuple[str, ...]:
    """What the emulator is known to write wrongly into the events of these faults, where the kernel printed any."""
    amd = {fault.requester for fault, count in zip(faults, printed, strict=True) if count and fault.vendor == "amd"}
    if not amd:
        return ()
    names = ", ".join(f"{_on_bus_0(one)} for {one}" for one in sorted(amd) if one != _on_bus_0(one))
    return (
        "only the device, the function and the number of AMD-Vi's lines were compared: QEMU's amd-iommu writes neither "
        f"the bus of a requester{names and f' ({names})'} nor the address nor the access into its event log",
    )


def _on_bus_0(requester: str) -> str:
    return "00" + requester[2:]
