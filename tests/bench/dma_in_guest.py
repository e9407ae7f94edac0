"""The program that runs in the guest: how many commands a second an NVMe PF and its VF complete.

It reads its options as JSON from its argument and writes what it measured as one line of JSON. It needs the standard
library and the payload only: ``python3 -I - OPTIONS < dma_in_guest.py``.
"""

from __future__ import annotations

import json
import sys
from itertools import repeat
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.agent.nvme import Nvme

PAYLOAD = "/run/payload"
IOVA = 0x4000_0000
PAGE, LARGE = 4096, 512 * 1024
SAMPLE_SECONDS = 0.5


def rate(call: Callable[[], Any]) -> float:
    """Return how often a second it can be called, from as many calls as take half a second."""
    count, seconds = 16, 0.0
    while seconds < SAMPLE_SECONDS:
        count *= 2
        started = perf_counter()
        for _ in repeat(None, count):
            call()
        seconds = perf_counter() - started
    return count / seconds


def rows(device: Nvme) -> dict[str, Callable[[], Any]]:
    """Return what is called of a device, by name."""
    return {
        "Identify": lambda: device.identify(1),
        "write 4 KiB of memory": lambda: device.dma(IOVA, PAGE, 0, write=True),
        "read 4 KiB of memory": lambda: device.dma(IOVA, PAGE, 0, write=False),
        "write 512 KiB of memory": lambda: device.dma(IOVA, LARGE, 0, write=True),
        "read 512 KiB of memory": lambda: device.dma(IOVA, LARGE, 0, write=False),
    }


def main() -> None:
    """Measure each row of each device in every round."""
    options = json.loads(sys.argv[1])
    sys.path.insert(0, PAYLOAD)
    from harness.agent.context import Context
    from harness.agent.execute import execute

    context = Context()
    context.addresses, context.pf_of = options["devices"], {"vf": "pf"}
    for kind, args in (
        ("open", {"device": "pf"}),
        ("bus_master", {"device": "pf", "enabled": True}),
        ("enable_vfs", {"device": "pf", "count": 16}),
        ("open", {"device": "vf"}),
        ("bus_master", {"device": "vf", "enabled": True}),
        ("buffer", {"as": "a", "size": LARGE, "backing": "anonymous"}),
        ("container_map", {"device": "pf", "buffer": "a", "size": LARGE, "iova": IOVA, "access": "read_write"}),
    ):
        error = execute(context, kind, args)["error"]
        if error:
            raise RuntimeError(f"{kind}: {error['message']}")
    measured: dict[str, list[float]] = {}
    for _ in range(options["rounds"]):
        for name in ("pf", "vf"):
            device: Any = context.device(name)
            device.start()
            for row, call in rows(device).items():
                measured.setdefault(f"{name.upper()}: {row}", []).append(rate(call))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
