"""The arguments of steps in which the kernel's own driver has a device, and of those about what it then does."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.engines import NVME_BYTES, SECTOR
from harness.scenario.values import Name, Size, refuse

MOST_PIECES: Final = 1024
"""Pieces of memory that one request of a program can have (UIO_MAXIOV)."""

_DWORD = 4
_PAGE = 4096


class KernelDriver(DeviceArgs):
    """Give a device to a driver of the guest's kernel, whose module is loaded, and wait for its disk.

    The device is not open; `register` and `open` take it back. Counts, of one request: max_bytes, max_segments,
    alignment.
    """

    driver: Literal["nvme"] = Field(default="nvme", description="The kernel's name of the driver.")


class DiskIo(DeviceArgs):
    """Write to the disk that the kernel's driver made of a device, read it back and compare, without the page cache.

    One request has `pieces` of memory, `stride` apart. Counts: bytes.
    """

    at: Size = Field(default=0, description="Where on the disk, a multiple of 512. Default: 0.")
    piece: Size = Field(default=4096, description="Bytes of each piece of memory. Default: 4K.")
    pieces: int = Field(default=1, ge=1, le=MOST_PIECES, description="How many pieces one request has. Default: 1.")
    stride: Size | None = Field(
        default=None, description="Bytes from the start of a piece to that of its neighbour. Default: the piece."
    )
    offset: Size = Field(
        default=0, description="Bytes before the first piece in its page, a multiple of 4. Default: 0."
    )
    order: Literal["ascending", "scattered"] = Field(
        default="ascending", description="scattered: the pieces have another order on the disk than in memory."
    )
    op: Literal["both", "read", "write"] = Field(
        default="both", description="read: what an earlier step wrote there with the same seed, and as many bytes."
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="Of the pattern. Default: 0.")

    @model_validator(mode="after")
    def _fits(self) -> DiskIo:
        total = self.piece * self.pieces
        if not total or total % SECTOR or self.at % SECTOR:
            found = f"{total} bytes at {self.at}"
            raise refuse("whole sectors", found, f"a sector has {SECTOR} bytes: piece * pieces, and at", quote=False)
        if self.at + total > NVME_BYTES:
            raise refuse("bytes of the disk", f"{total} bytes at {self.at}", "it has 16M", quote=False)
        if self.stride is not None and self.stride < self.piece:
            raise refuse("a stride of the piece or more", self.stride, "pieces must not overlap")
        for name, number in (("piece", self.piece), ("offset", self.offset), ("stride", self.stride or 0)):
            if number % _DWORD:
                raise refuse(f"a multiple of {_DWORD} for {name}", number, "NVMe addresses whole dwords")
        if self.offset >= _PAGE:
            raise refuse("an offset within a page", self.offset, "it is less than 4K")
        return self


class Trace(Args):
    """Record what the kernel calls of its two-step DMA mapping API (dma_iova_*), and what the IOMMU maps by that.

    Needs a kernel from 6.16 on with the option FPROBE_EVENTS.
    """

    name: Name = Field(description="A name for the recording.")


class TraceEnd(Args):
    """End a recording: its calls must keep the rules of the API's document, and be there.

    Counts: calls, maps, unmaps; and cut, lost, unpaired, unread, which must be 0.
    """

    name: Name = Field(description="The recording, by the name that trace gave it.")


class Replay(DeviceArgs):
    """Do a recording's calls again on usdm.dma_iova, over an open device: the results must be the kernel's.

    Counts: calls, ranges, links, left (ranges that the recording does not end; they are ended behind it).
    """

    trace: Name = Field(description="A recording that has ended.")


KERNEL_KINDS: dict[str, type[Args]] = {
    "kernel_driver": KernelDriver,
    "disk_io": DiskIo,
    "trace": Trace,
    "trace_end": TraceEnd,
    "replay": Replay,
}
"""The kinds of steps about the kernel's own driver."""
