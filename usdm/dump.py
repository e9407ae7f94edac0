"""What USDM holds, as lines of text in the manner of `/proc/PID/maps`.

7f2a00000000-7f2a00200000 iova 000000200000 mapped   slab  node -1   12 blocks, 49152 bytes
physical 000012345000-000012347000 iova 000012345000 remapped in 1 pieces
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from usdm.driver import Usdm


def lines(usdm: Usdm) -> list[str]:
    """Return one line a region, by ascending virtual address, one an entry, and one a number of the statistics.

    Raises:
        ForkedChild: The state belongs to the parent process.
    """
    text = []
    for region in usdm.maps():
        end = int(region["virt"]) + int(region["size"])
        span = f"{region['virt']:012x}-{end:012x} iova {region['iova']:012x}"
        state = "mapped" if region["mapped"] else "unmapped"
        use = f"{region['blocks']} blocks, {region['used']} bytes"
        text.append(f"{span} {state:8} {region['kind']:5} node {region['node']:2} {use}")
    for entry in usdm.remappings():
        span = f"{entry['phaddr']:012x}-{entry['phaddr'] + entry['size']:012x} iova {entry['iova']:012x}"
        text.append(f"physical {span} remapped in {entry['pieces']} pieces")
    text += [f"{name} {value}".rstrip() for name, value in usdm.statistics().items()]
    return text


def write(usdm: Usdm, file: TextIO | None = None) -> None:
    """Write the lines to a file, standard error when none is given."""
    (file or sys.stderr).write("".join(f"{line}\n" for line in lines(usdm)))
