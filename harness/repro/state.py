"""What an IOMMU has to be like so that it refuses an access for the line's reason, and the steps to that."""

from __future__ import annotations

from dataclasses import dataclass

from harness.fault import reason_name
from harness.fault.decode import MSI_WINDOW
from harness.repro.kinds import State
from harness.repro.place import NotReproducible
from harness.results import FaultRecord

BEYOND_WIDTH, NO_WRITE, NO_READ = 0x04, 0x05, 0x06
# The same number of virtio-iommu and of AMD's IO_PAGE_FAULT.
NO_MAPPING = 0x02
VTD = ("intel", "xen", "freebsd")
"""Whose lines are about VT-d, where it does not matter who prints them."""

IN_A_GUEST = (BEYOND_WIDTH, NO_WRITE, NO_READ)
"""The reasons of VT-d that Linux comes to."""

_PERMISSION = {NO_WRITE: "write", NO_READ: "read"}
_WIDTHS = (48, 39)
_PAGE = 0x1000
# Small enough for a page whose last bytes are asked for, a multiple of what every device can do.
_EDU_BYTES = 16
_NVME_BYTES = 512


@dataclass(frozen=True, slots=True)
class Approach:
    """The way to a fault in a guest.

    Args:
        aw_bits: address width of the vIOMMU.
        before: steps, as YAML lines, that bring the IOMMU into the state.
        access: the step that is refused, without its dash.
        words: the state in words.
    """

    aw_bits: int
    before: tuple[str, ...]
    access: str
    words: str


def approach(record: FaultRecord, device: str, state: State, *, sectors: bool) -> Approach:
    """How a guest's IOMMU comes to refuse the access of a fault record.

    Args:
        record: access, address and reason of it are looked at.
        device: the function's name in the scenario.
        state: what the page at the address is like.
        sectors: whether the device moves whole sectors of 512 bytes only.

    Raises:
        NotReproducible: Linux does not bring an IOMMU there, or the emulator does not refuse such an access.
    """
    address, reason = record.address, record.reason
    if reason is None:
        raise NotReproducible("the line lacks the reason", hint="it may have been cut off")
    if record.access == "interrupt":
        raise _not_by_linux(record)
    if record.access is None or address is None:
        raise NotReproducible("the line lacks the access or the address", hint="it may have been cut off")
    _refuse_window(address, record.access)
    size = _NVME_BYTES if sectors else _EDU_BYTES
    step = f"dma_{record.access}: {{device: {device}, iova: {address:#x}, size: {size}}}"
    if record.vendor in VTD and reason == BEYOND_WIDTH:
        return Approach(_width(address), (), step, "the address is beyond the IOMMU's width")
    if record.vendor in VTD and reason not in _PERMISSION:
        raise _not_by_linux(record)
    if record.vendor not in VTD and reason != NO_MAPPING:
        raise _not_by_linux(record)
    if record.vendor in VTD and _PERMISSION[reason] != record.access:
        raise NotReproducible(f"reason 0x{reason:02x} is about a {_PERMISSION[reason]}, the line about another access")
    if address >> _WIDTHS[0]:
        raise NotReproducible(
            f"{address:#x} is beyond 48 bits, the emulated IOMMU's largest width, where the reason is another one"
        )
    return Approach(_WIDTHS[0], *_permission(device, address, size, record.access, state, step))


def _not_by_linux(record: FaultRecord) -> NotReproducible:
    name = reason_name(record.reason, record.vendor)
    return NotReproducible(
        f"Linux does not bring an IOMMU into the state of reason 0x{record.reason or 0:02x} ({name})"
    )


def _refuse_window(address: int, access: str) -> None:
    if address in MSI_WINDOW:
        raise NotReproducible(
            f"{address:#x} is in the interrupt address range, 0xfee00000 to 0xfeefffff, where the emulated IOMMU takes "
            f"a {access} for an interrupt and does not refuse it",
            hint="on hardware, look at what made the device write its message, or a pointer that was not set",
        )


def _width(address: int) -> int:
    for width in _WIDTHS:
        if address >> width:
            return width
    raise NotReproducible(
        f"{address:#x} is within 39 bits, the emulated IOMMU's smallest width, so it is not refused with reason 0x04"
    )


def _permission(
    device: str, address: int, size: int, access: str, state: State, step: str
) -> tuple[tuple[str, ...], str, str]:
    page = address & -_PAGE
    buffer = ("- buffer: {as: page, size: 4K}",)

    def mapping(rights: str) -> str:
        return f"- container_map: {{device: {device}, buffer: page, size: 4K, iova: {page:#x}, access: {rights}}}"

    if state is State.NEVER_MAPPED:
        return (), step, "nothing is mapped at the address"
    if (address - page) + size > _PAGE:
        raise NotReproducible(f"an access of {size} bytes at {address:#x} would reach the next page")
    if state is State.UNMAPPED:
        before = (
            *buffer,
            mapping("read_write"),
            f"- dma_{access}: {{device: {device}, iova: {address:#x}, size: {size}}}",
            f"- container_unmap: {{device: {device}, iova: {page:#x}, size: 4K}}",
        )
        return before, step, "the page was mapped, used and unmapped"
    if access != "write":
        raise NotReproducible("a read-only mapping refuses writes, and the line is about a read")
    # QEMU's IOTLB would hold the page after a read, and then refuse a write without a fault: so nothing comes before.
    return (*buffer, mapping("read")), step, "the page is mapped read-only"
