"""How long ``harness explain`` takes: one line as a user calls it, a large log, and logs that are hard to read."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from figures import Figure, Figures

from harness.fault.explain import explain_stream

LINE = "DMAR: [DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000 [fault reason 0x06] PTE Read access is"
FAULTS = 1000
SECONDS = Figure("explain of one line, process start to end", "s", target=0.3)
WORST = {
    "every line a fault": LINE + "\n",
    "every line half a fault": "DMAR:[DMA Read] Request device [02:01.2] fault addr 900000\n",
    "every line talks about DMAR": "DMAR: no fault, handling of a request by the IOMMU, which is enabled\n",
    "one line of faults": LINE + " ",
    "one line without end": "no fault in here ",
    "every line in colour": "\x1b[1m[    1.5] \x1b[0musb 1-1: new device\n",
}
SMALL = 4_000_000


class Generated(io.RawIOBase):
    """A log of ``size`` bytes that is never in memory as a whole: lines of every day, with ``FAULTS`` faults in it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        rng = random.Random(1)
        lines = [
            f"[{rng.random() * 1e5:12.6f}] usb 1-{rng.randrange(9)}: new high-speed USB device number"
            f" {rng.randrange(99)} using xhci_hcd, default address {rng.randrange(1 << 40):#x}\n"
            for _ in range(10_000)
        ]
        self._block = "".join(lines).encode()
        self.size = max(1, size // len(self._block)) * len(self._block)
        self._chunks = self._all()

    def _all(self) -> Iterator[bytes]:
        blocks = self.size // len(self._block)
        done = 0
        for number in range(1, blocks + 1):
            due = FAULTS * number // blocks
            faults = (LINE.replace("0x900000", f"{page << 12:#x}") for page in range(done, due))
            done = due
            yield self._block + "".join(f"{fault}\n" for fault in faults).encode()

    def read(self, size: int = -1) -> bytes:
        """The next block; of any size."""
        return next(self._chunks, b"")


def measure(figures: Figures, runs: int, megabytes: int, say: Callable[[str], None]) -> None:
    """Take all figures."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", "explain", "--json", LINE]
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        figures.add(SECONDS, time.perf_counter() - start)
    say(f"a log of {megabytes} MB with {FAULTS} faults")
    log = Generated(megabytes * 1_000_000)
    start = time.perf_counter()
    found = explain_stream(log)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    if len(found.explanations) != FAULTS:
        raise RuntimeError(f"{len(found.explanations)} faults found of {FAULTS}")
    figures.add(Figure(f"explain of a log of {megabytes} MB", "MB/s", 50, at_least=True), log.size / 1e6 / seconds)
    for name, unit in WORST.items():
        half, whole = (_processor(unit, size) for size in (SMALL, 2 * SMALL))
        figures.add(Figure(f"{name}: MB/s of processor time", "MB/s"), 2 * SMALL / 1e6 / whole)
        figures.add(Figure(f"{name}: 8 MB over 4 MB (2 is linear)", "x"), whole / half)


def _processor(unit: str, size: int) -> float:
    log = io.BytesIO((unit * (size // len(unit))).encode())
    start = time.process_time()
    explain_stream(log)
    return time.process_time() - start
