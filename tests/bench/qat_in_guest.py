"""The program that runs in the guest: how fast the QAT-like device copies, and many mappings for it to mirror.

It reads its options as JSON from its argument and writes what it measured as lines of JSON. After each line it waits
for one on its standard input, so that the host can compare what is mapped. It needs the standard library and the
payload only: ``python3 -I qat_in_guest.py OPTIONS``.
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

    from harness.agent.context import Context
    from harness.agent.qat import Qat

PAYLOAD = "/run/payload"
SOURCE, DESTINATION, PAGES = 0x4000_0000, 0x5000_0000, 0x1_0000_0000
PAGE, LARGE, BATCH = 4096, 4 << 20, 32
SAMPLE_SECONDS = 0.5


def rate(call: Callable[[], Any], weight: float) -> float:
    """Return how much a second it does, of so much a call, from as many calls as take half a second."""
    count, seconds = 2, 0.0
    while seconds < SAMPLE_SECONDS:
        count *= 2
        started = perf_counter()
        for _ in repeat(None, count):
            call()
        seconds = perf_counter() - started
    return weight * count / seconds


def rows(device: Qat) -> dict[str, tuple[Callable[[], Any], float]]:
    """Return what is called of the device and how much a call does, by name."""
    from harness.agent import qat_layout as q

    def copy(size: int, *, interrupt: bool = False) -> None:
        number = device.submit(q.COPY, [(SOURCE, size)], [(DESTINATION, size)], interrupt=interrupt)
        response = device.finish(number, interrupt=interrupt)
        if response.code != q.DONE:
            raise RuntimeError(f"a copy of {size} bytes ended with {response.code} at {response.address:#x}")

    def batch() -> None:
        for number in range(BATCH):
            last = number == BATCH - 1
            device.leave(device.submit(q.COPY, [(SOURCE, PAGE)], [(DESTINATION, PAGE)], ring=last))
        if any(response.code != q.DONE for response in device.collect(BATCH)):
            raise RuntimeError("a copy of a batch was refused")

    return {
        "requests without data, /s": (lambda: device.finish(device.submit(q.NOP)), 1),
        "copies of 4 KiB, one at a time, /s": (lambda: copy(PAGE), 1),
        "copies of 4 KiB, one at a time by MSI-X, /s": (lambda: copy(PAGE, interrupt=True), 1),
        f"copies of 4 KiB, {BATCH} at a time, /s": (batch, BATCH),
        "copies of 4 MiB, MiB/s": (lambda: copy(LARGE), LARGE >> 20),
    }


def prepare(address: str) -> Context:
    """Return a context with the device open and memory mapped."""
    from harness.agent.context import Context
    from harness.agent.execute import execute

    context = Context()
    context.addresses = {"qat": address}
    for kind, args in (
        ("open", {"device": "qat"}),
        ("bus_master", {"device": "qat", "enabled": True}),
        *(("buffer", {"as": name, "size": LARGE, "backing": "anonymous"}) for name in ("a", "b")),
        *(
            ("container_map", {"device": "qat", "buffer": name, "size": LARGE, "iova": iova, "access": "read_write"})
            for name, iova in (("a", SOURCE), ("b", DESTINATION))
        ),
    ):
        error = execute(context, kind, args)["error"]
        if error:
            raise RuntimeError(f"{kind}: {error['message']}")
    return context


def main() -> None:
    """Measure each row in every round; then make mappings of a page each, and take them away."""
    options = json.loads(sys.argv[1])
    sys.path.insert(0, PAYLOAD)
    context = prepare(options["address"])
    device: Any = context.device("qat")
    measured: dict[str, list[float]] = {}
    for _ in range(options["rounds"]):
        for row, (call, weight) in rows(device).items():
            measured.setdefault(row, []).append(rate(call, weight))
    say(measured)
    container = context.container_of("qat")
    address = context.buffer("a").place(0)
    wanted = [PAGES + 2 * PAGE * number for number in range(options["mappings"])]
    started = perf_counter()
    for iova in wanted:
        container.map_dma(address, iova, PAGE)
    say(perf_counter() - started)
    started = perf_counter()
    for iova in wanted:
        container.unmap_dma(iova, PAGE)
    say(perf_counter() - started)


def say(anything: Any) -> None:
    """Write a line, and wait until the host goes on."""
    print(json.dumps(anything), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
