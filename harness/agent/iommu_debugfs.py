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

    A line is an IOVA's page number, `|`, and the five entries on the way, that of 5-level tables first; levels that the
    tables do not have and those below a large page are 0. What may be done is what all entries of the way allow.

    Args:
        lines: The file's.
        first: The first IOVA of interest.
        size: Bytes.
    """
    found: list[list[int | str]] = []
    after: tuple[object, ...] = ()
    for line in lines:
        number, bar, rest = line.partition("|")
        if not bar:
            continue
        iova = int(number, 16) * _PAGE
        entries = [int(word, 16) for word in rest.split()]
        level = next(level for level, entry in enumerate(reversed(entries), 1) if entry)
        page = _PAGE << 9 * (level - 1)
        if iova + page <= first or iova >= first + size:
            continue
        allowed = _READ | _WRITE
        for entry in entries:
            if entry:
                allowed &= entry
        if not allowed:
            continue
        access = "r" * bool(allowed & _READ) + "w" * bool(allowed & _WRITE)
        physical = entries[-level] & _ADDRESS & ~(page - 1)
        if (iova, physical, page, access) == after:
            found[-1][2] += page  # type: ignore[operator]
        else:
            found.append([iova, physical, page, page, access])
        after = (iova + page, physical + page, page, access)
    return found
