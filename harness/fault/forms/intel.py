"""VT-d's faults as Linux prints them: the pieces of a line.

The forms differ by kernel. Until 4.x a fault has two lines, since 4.x one; PASIDs stand behind the device in 5.x and
inside the brackets since 5.13; numbers have ``0x`` since 5.13.

A value with ``0x`` is hexadecimal; addresses, indexes, PASIDs and the status register always are. A bare reason code is
decimal, because those kernels print it with ``%02d``: ``[fault reason 38]`` is 0x26 (source-id verification).
"""

from __future__ import annotations

from typing import Final

from harness.fault.forms.common import suppressed_pattern

HEX: Final = r"(?:0x)?[0-9a-f]"
_BDF: Final = (
    rf"(?:(?P<domain>[0-9a-f]{{4,8}}):)?(?P<bus>{HEX}{{1,2}}):(?P<device>(?:0x)?[01]?[0-9a-f])\.(?P<function>[0-7])"
)

# "[DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000", "INTR-REMAP: Request device [[00:1f.0] fault
# index 1f" (the doubled bracket is in old kernels). What stands after the device may be cut off or replaced. Xen says
# "UNKNOWN:" where it does not know a reason.
HEAD: Final = (
    r"(?P<head>(?:DMA[ _](?P<access>Read|Write)|INTR-REMAP|(?P<unknown>UNKNOWN))"
    rf"(?:\s{{1,4}}NO_PASID|\s{{1,4}}PASID\s{{1,4}}(?P<pasid>{HEX}{{1,8}}))?\s{{0,4}}[\]:]{{1,2}}\s{{0,4}}"
    rf"Request\s{{1,4}}device\s{{1,4}}\[{{1,2}}\s{{0,4}}{_BDF}\s{{0,4}}\]"
    rf"(?:\s{{1,4}}PASID\s{{1,4}}(?P<old_pasid>{HEX}{{1,8}})(?![0-9a-fx]))?"
    rf"(?:\s{{1,4}}fault\s{{1,4}}(?:addr|index)\s{{1,4}}(?P<address>{HEX}{{1,16}})(?![0-9a-fx]))?)"
)
REASON: Final = r"(?P<reason>\[\s{0,4}fault\s{1,4}reason\s{1,4}(?P<code>(?:0x)?[0-9a-f]{1,4}h?)\s{0,4}\])"
STATUS: Final = (
    rf"(?P<status>handling\s{{1,4}}fault\s{{1,4}}status\s{{1,4}}reg\s{{1,4}}(?P<value>{HEX}{{1,8}})(?![0-9a-fx]))"
)
SUPPRESSED: Final = suppressed_pattern("dmar_fault")

NO_PASID: Final = 0xFFFFFFFF
"""``PASID ffffffff`` is the kernel's way (5.x) to say that the request had none."""


def code(text: str) -> int:
    """The reason out of the brackets: decimal as old kernels print it, hexadecimal with 0x, or with Xen's h."""
    if text[-1] in "hH":
        return int(text[:-1], 16)
    return int(text, 10 if text.isdecimal() else 16)
