"""The program that runs in the guest: how long the kernel takes to map 1,024 scattered pages for its NVMe driver.

Both ways are timed by the same kind of events, at the begin and the end of each function, so both pay the same for it.
It reads its options as JSON from its argument and writes what it measured as one line of JSON. It needs the standard
library and the payload only: ``python3 -I - OPTIONS < iova_kernel_in_guest.py``.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAYLOAD = "/run/payload"
PAGE, COUNT = 4096, 1024
RANGE, STREAM = "two steps", "a call for each page"
# Whole pages can be a range. Pieces that end within their page cannot: dma_map_phys is called for each.
PIECES = {RANGE: PAGE, STREAM: PAGE - 512}
STREAMING = tuple(
    f"f:harness/{event} {function} state=$arg2:x64"
    for event, function in (
        ("stream_map_enter", "dma_map_phys"),
        ("stream_map_exit", "dma_map_phys%return"),
        ("stream_unmap_enter", "dma_unmap_phys"),
        ("stream_unmap_exit", "dma_unmap_phys%return"),
    )
)
MAPS = ("dma_iova_try_alloc", "dma_iova_link", "dma_iova_sync", "stream_map")
UNMAPS = ("dma_iova_destroy", "stream_unmap")


def once(path: str, way: str) -> dict[str, float]:
    """One read of all pages."""
    from harness.agent import disk, iova_trace, tracefs

    shape = disk.Shape(PIECES[way], COUNT, 2 * PAGE, scattered=True)
    disk.transfer(path, 0, shape, 1, read=False, write=True)
    recording = tracefs.Recording((*iova_trace.DEFINITIONS, *STREAMING), iova_trace.EVENTS[:2])
    try:
        different = disk.transfer(path, 0, shape, 1, read=True, write=False)
    finally:
        text, lost = recording.end()
    found = iova_trace.read(text)
    if different is not None or lost or found.unpaired or found.unread:
        raise RuntimeError(
            f"byte {different} differs, {lost} events lost, {found.unpaired} and {found.unread} not read"
        )
    calls = found.calls
    links = [call for call in calls if call["call"] in ("dma_iova_link", "stream_map")]
    ranges = [call for call in calls if call["call"] == "dma_iova_try_alloc"]
    return {
        "mapping": sum(call["seconds"] for call in calls if call["call"] in MAPS),
        "unmapping": sum(call["seconds"] for call in calls if call["call"] in UNMAPS),
        "mappings": sum(len(call["maps"]) for call in links),
        "unmappings": sum(len(call["unmaps"]) for call in calls),
        "ranges": len(ranges),
    }


def main() -> None:
    """Measure and tell."""
    sys.path.insert(0, PAYLOAD)
    from harness.agent import kernel_driver, tracefs

    options: dict[str, Any] = json.loads(sys.argv[1])
    path = f"/dev/{kernel_driver.give(options['device'], 'nvme')}"
    tracefs.mount()
    told: dict[str, list[dict[str, float]]] = {way: [] for way in PIECES}
    for number in range(options["rounds"] + 1):
        for way, values in told.items():
            value = once(path, way)
            if number:  # the first one is done for the first time
                values.append(value)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
