"""The arguments of steps about two-step DMA mapping: ranges of IOVAs, links in them; the streaming API beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.values import Name, Size, refuse

_BUFFER = "The buffer, by the name that alloc, alloc_plain or buffer gave it."
_OFFSET = "Offset in bytes from the start of the buffer."
_RANGE = "The range, by the name that iova_alloc gave it."
_AT = "Offset in bytes from the start of the range."

SCATTER = 7
"""What the number of a piece is multiplied by, modulo the number of pieces, to find the buffer's piece."""

Direction = Literal["both", "to_device", "from_device", "none"]
Attribute = Literal["mmio", "require_coherent", "skip_cpu_sync"]


class Attributes(Args):
    """Arguments of steps that name a direction and attributes."""

    direction: Direction = Field(
        default="both",
        description="both (DMA_BIDIRECTIONAL, the default), to_device (the device may read only), from_device (it may "
        "write only), or none, which is refused.",
    )
    attrs: tuple[Attribute, ...] = Field(
        default=(), strict=False, description="mmio, require_coherent, skip_cpu_sync: DMA_ATTR_... Default: none."
    )


class RangeArgs(Args):
    """Arguments of steps about a range."""

    range: Name = Field(description=_RANGE)


class DmaLimits(DeviceArgs):
    """What the device can address and whether it is trusted, for ranges and mappings that are made from now on."""

    bits: int = Field(default=64, ge=12, le=64, description="Bits of the device's DMA mask. Default: 64.")
    untrusted: bool = Field(default=False, description="true: the device must reach whole granules only.")


class IovaAlloc(DeviceArgs):
    """dma_iova_try_alloc. The name of a range that has ended, or that was refused, can be used again.

    Returns 1 or 0. The name stands for one `struct dma_iova_state`.
    """

    as_: Name = Field(alias="as", description="A name for the range; another iova_alloc can use it again.")
    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description="Offset in bytes of the memory that will be linked at 0.")
    size: Size = Field(description="Bytes of the range. Sizes that are refused are allowed here.")


class IovaLink(RangeArgs, Attributes):
    """dma_iova_link."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    at: Size = Field(default=0, description=_AT)
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")


class IovaLinkEach(IovaLink):
    """dma_iova_link for one piece of a buffer after the other, until one fails (counts: done)."""

    size: Size = Field(description="Bytes of a piece.")
    count: int = Field(ge=1, le=1 << 20, description="How many pieces.")
    order: Literal["ascending", "scattered"] = Field(
        default="ascending",
        description="Which piece of the buffer is linked as piece i of the range: ascending, piece i (default); "
        f"scattered, piece {SCATTER} * i modulo count.",
    )

    @model_validator(mode="after")
    def _every_piece_once(self) -> IovaLinkEach:
        if self.order == "scattered" and self.count % SCATTER == 0:
            raise refuse(
                f"a count that is no multiple of {SCATTER} with order: scattered",
                self.count,
                "else some pieces would be linked twice and others not at all",
            )
        return self


class IovaSync(RangeArgs):
    """dma_iova_sync."""

    at: Size = Field(default=0, description=_AT)
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")


class IovaUnlink(RangeArgs, Attributes):
    """dma_iova_unlink."""

    at: Size = Field(default=0, description=_AT)
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")


class IovaFree(RangeArgs):
    """dma_iova_free."""


class IovaDestroy(RangeArgs, Attributes):
    """dma_iova_destroy."""

    size: Size = Field(description="Bytes that are linked, from the start of the range; 0 when nothing is.")


class IovaInfo(RangeArgs):
    """Look at a range (counts: links, synced, mappings, in_use, reserved).

    Counts: links, synced, mappings, in_use (what dma_use_iova says), reserved (bytes of IOVAs).
    """


class MergeBoundary(DeviceArgs):
    """dma_get_merge_boundary."""


class StreamArgs(DeviceArgs, Attributes):
    """Arguments of the streaming API."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")


class StreamMap(StreamArgs):
    """dma_map_single."""


class StreamUnmap(StreamArgs):
    """dma_unmap_single of the IOVA that the buffer had at this offset when it was last mapped."""


IOVA_KINDS: dict[str, type[Args]] = {
    "dma_limits": DmaLimits,
    "merge_boundary": MergeBoundary,
    "iova_alloc": IovaAlloc,
    "iova_link": IovaLink,
    "iova_link_each": IovaLinkEach,
    "iova_sync": IovaSync,
    "iova_unlink": IovaUnlink,
    "iova_free": IovaFree,
    "iova_destroy": IovaDestroy,
    "iova_info": IovaInfo,
    "stream_map": StreamMap,
    "stream_unmap": StreamUnmap,
}
"""The kinds of steps about two-step DMA mapping."""

IOVA_RETURNS = ("iova_alloc", "iova_link", "iova_link_each", "iova_sync", "merge_boundary", "stream_map")
"""Those whose function returns something."""
