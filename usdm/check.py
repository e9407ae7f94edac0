"""Checks of arguments, before any state is looked at: a refused call changes nothing."""

from __future__ import annotations

from usdm import errors
from usdm.limits import MAX_ALIGNMENT, MAX_ALLOCATION, MAX_MAPPING, MAX_U64, PAGE_SIZE


def integer(argument: str, value: object, low: int = 0, high: int = MAX_U64) -> int:
    """Return `value` when it is an integer of `low..high`; a bool is none.

    Raises:
        BadArgument: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise errors.BadArgument(argument, value, f"it is a {type(value).__name__}")
    if not low <= value <= high:
        raise errors.BadArgument(argument, value, f"the range is {low} to {high:#x}")
    return value


def c_int(argument: str, value: object) -> int:
    """Return `value` when it is an integer of the C type `int` (a file descriptor, a NUMA node).

    Raises:
        BadArgument: It is not.
    """
    return integer(argument, value, -(1 << 31), (1 << 31) - 1)


def address(argument: str, value: object) -> int:
    """Return `value` when it is an address other than NULL.

    Raises:
        BadArgument: It is no 64-bit integer.
        NullAddress: It is NULL (`None` or 0).
    """
    if value is None or (integer(argument, value)) == 0:
        raise errors.NullAddress(argument, value)
    return integer(argument, value)


def mapping(virt: object, size: object, unit: int = PAGE_SIZE) -> tuple[int, int]:
    """Check the two arguments of map and unmap, in the order of the C library.

    Args:
        virt: Virtual address.
        size: Bytes.
        unit: What both must be a multiple of: 4 KiB, or 2 MiB in hugepage mode.

    Returns:
        `(virt, size)`.

    Raises:
        BadArgument: One is no 64-bit integer.
        NullAddress: `virt` is NULL.
        BadSize: `size` is 0.
        TooLarge: `size` exceeds 2 GiB.
        NotAligned: `virt` or `size` is not a multiple of `unit`.
        AddressNotAccessible: The range goes beyond the address space.
    """
    start, length = address("virt", virt), integer("size", size)
    if length == 0:
        raise errors.BadSize("size", length)
    if length > MAX_MAPPING:
        raise errors.TooLarge("size", length, "2 GiB for a mapping")
    if start % unit:
        raise errors.NotAligned("virt", start, f"the page size is {unit:#x}")
    if length % unit:
        raise errors.NotAligned("size", length, f"the page size is {unit:#x}")
    if start + length > MAX_U64:
        raise errors.AddressNotAccessible("virt", start, f"size {length:#x} goes beyond the address space")
    return start, length


def allocation(size: object, node: object, alignment: object) -> tuple[int, int, int]:
    """Check the arguments of allocate, in the order of the C library.

    Returns:
        `(size, node, alignment)`.

    Raises:
        BadArgument: One is no integer of its C type.
        BadSize: `size` is 0.
        TooLarge: `size` exceeds 64 MiB.
        BadAlignment: `alignment` is 0, no power of two, or exceeds 4 MiB.
    """
    length, boundary = integer("size", size), integer("phys_alignment_byte", alignment)
    place = c_int("node", node)
    if length == 0:
        raise errors.BadSize("size", length)
    if boundary == 0 or boundary & (boundary - 1):
        raise errors.BadAlignment("phys_alignment_byte", boundary)
    if length > MAX_ALLOCATION:
        raise errors.TooLarge("size", length, "64 MiB for an allocation")
    if boundary > MAX_ALIGNMENT:
        raise errors.BadAlignment("phys_alignment_byte", boundary)
    return length, place, boundary
