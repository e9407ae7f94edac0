"""What the kernel's own view of the Intel IOMMU's tables says (CONFIG_INTEL_IOMMU_DEBUGFS), where it has one."""

from __future__ import annotations

import ctypes
import os

from harness.agent.outcome import StepError
from usdm.vfio import full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DEBUGFS = "/sys/kernel/debug"
_PAGE = 4096
_READ, _WRITE = 1, 2
_ACCESS = ("", "r", "w", "rw")
_LEVELS = 5
_NOTHING = "0x0000000000000000"
_ADDRESS = (1 << 52) - 1 & ~(_PAGE - 1)


class NotMounted(StepError):
    """The kernel has debugfs and did not mount it."""


def runs(address: str, first: int, size: int, root: str = DEBUGFS) -> list[list[int | str]] | None:
    """Return what a device's page tables map in a range, ascending; None where the kernel has no such files.

    Args:
        address: The device, e.g. `02:00.0`.
        first: The first IOVA.
        size: Bytes.
        root: Where debugfs is, or is to be mounted; another folder in tests.

    Returns:
        Pieces `[iova, physical address, bytes, bytes of a page, "r", "w" or "rw"]`, pages of one kind in one.

    Raises:
        NotMounted: debugfs could not be mounted.
        OSError: The file cannot be read.
    """
    folder = f"{root}/iommu/intel"
    if not os.path.isdir(root):  # noqa: PTH112 - pathlib costs the guest time
        return None
    if not os.listdir(root):  # noqa: PTH208
        _mount(root)
    if not os.path.isdir(folder):  # noqa: PTH112
        return None
    try:
        with open(f"{folder}/{full_bdf(address)}/domain_translation_struct", encoding="ascii") as file:
            return parse(file, first, size)
    except FileNotFoundError:
        # A device that no IOMMU serves has no folder; nothing translates what it does.
        return []


def _mount(root: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"debugfs", root.encode(), b"debugfs", 0, None):
        raise NotMounted(f"debugfs at {root}: {os.strerror(ctypes.get_errno())}")


def parse(lines: Iterable[str], first: int, size: int) -> list[list[int | str]]:
    """Return the pieces that a `domain_translation_struct` tells of.

    A line is an IOVA's page number, `|`, and the entries on the way, one for each level from 5 down: 0 for levels that
    the tables do not have. The last one is the page's: a line of a large page ends there, or has 0 behind it on older
    kernels. What may be done is what all entries of the way allow.

    Args:
        lines: The file's.
        first: The first IOVA of interest.
        size: Bytes.
    """
    found: list[list[int | str]] = []
    after: tuple[object, ...] = ()
    above, allowed_above, depth = "", 0, 0
    for line in lines:
        number, bar, rest = line.partition("|")
        if not bar:
            continue
        iova = int(number, 16) * _PAGE
        if iova >= first + size:
            continue
        rest = rest.rstrip()
        while rest.endswith(_NOTHING):
            rest = rest[: -len(_NOTHING)].rstrip()
        way, _, last = rest.rpartition("\t")
        # The tables on the way are the same for as many as 512 pages.
        if way != above:
            entries = [int(word, 16) for word in way.split()]
            above, depth, allowed_above = way, len(entries), _READ | _WRITE
            for entry in entries:
                allowed_above &= entry or allowed_above
        entry = int(last, 16)
        page = _PAGE << 9 * (_LEVELS - 1 - depth)
        allowed = allowed_above & entry
        if iova + page <= first or not allowed:
            continue
        access = _ACCESS[allowed]
        physical = entry & _ADDRESS & ~(page - 1)
        if (iova, physical, page, access) == after:
            found[-1][2] += page  # type: ignore[operator]
        else:
            found.append([iova, physical, page, page, access])
        after = (iova + page, physical + page, page, access)
    return found
