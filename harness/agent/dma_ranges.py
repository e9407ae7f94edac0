"""Two-step DMA mapping over the steps: devices as its functions see them, ranges, and what the program believes mapped.

The belief follows from what the functions have said, not from what an implementation has stored: a link whose sync has
succeeded is mapped until it is unlinked, its range is destroyed, or its domain ends.
"""

from __future__ import annotations

from harness.agent.outcome import UnknownRange
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.ranges import Range as Mapped

    Space = tuple[object, ...]

IOAS = ("ioas",)
"""The space of devices that were opened through IOMMUFD."""

GRANULE = PAGE_SIZE
"""Bytes that an IOMMU maps at least."""

_ALL = (1 << 64) - 1


class Link:
    """A piece of memory in a range.

    Attributes:
        virt: Its virtual address.
        size: In bytes.
        access: What the device may do: `r`, `w` or `rw`.
        synced: It has been made visible to the device.
    """

    __slots__ = ("access", "size", "synced", "virt")

    def __init__(self, virt: int, size: int, access: str) -> None:
        self.virt = virt
        self.size = size
        self.access = access
        self.synced = False


class Range:
    """A range with a name.

    Attributes:
        name: Its name in the scenario.
        dev: What the functions take as its device.
        state: The `DmaIovaState`, or what the implementation has instead.
        iova: IOVA of its first byte, as it was reserved last; None when it never was. It stays when the range ends, so
            that a use after the end can be written down.
        links: What is linked, by offset.
        space: Where it is reserved, see `Dma.space`; None when it is not.
    """

    __slots__ = ("dev", "iova", "links", "name", "space", "state")

    def __init__(self, name: str, dev: Any, state: Any) -> None:
        self.name = name
        self.dev = dev
        self.state = state
        self.iova: int | None = None
        self.links: dict[int, Link] = {}
        self.space: Space | None = None

    def inside(self, at: int, size: int) -> list[int]:
        """Return the offsets of the links that lie between two places of the range."""
        return sorted(offset for offset, link in self.links.items() if at <= offset and offset + link.size <= at + size)

    def unlink(self, at: int, size: int) -> None:
        """Take note that a part has no links any more."""
        for offset in self.inside(at, size):
            del self.links[offset]

    def end(self) -> None:
        """Take note that it is reserved no more."""
        self.links.clear()
        self.space = None


class Stream:
    """A mapping of the streaming API: its IOVA, its bytes, what the device may do, and where it is."""

    __slots__ = ("access", "iova", "size", "space")

    def __init__(self, iova: int, size: int, access: str, space: Space) -> None:
        self.iova = iova
        self.size = size
        self.access = access
        self.space = space


class Dma:
    """What steps have made.

    Attributes:
        ranges: Ranges by name.
        streams: Mappings of the streaming API by buffer and offset, the last one last.
    """

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}
        self.streams: dict[tuple[str, int], list[Stream]] = {}
        self._limits: dict[str, tuple[int, bool]] = {}
        self._devices: dict[str, Any] = {}

    def limit(self, device: str, bits: int, untrusted: bool) -> None:
        """Set what a device can address, and whether it is trusted, for what is made from now on."""
        self._limits[device] = (1 << bits) - 1, untrusted
        self._devices.pop(device, None)

    def device(self, context: Context, name: str) -> Any:
        """Return what the functions take as a device.

        An implementation that has devices of its own gives them by `dma_device(name, mask, untrusted)`.

        Raises:
            DeviceNotOpen: It is not open.
        """
        context.device(name)
        if name not in self._devices:
            mask, untrusted = self._limits.get(name, (_ALL, False))
            own = getattr(context.api.api, "dma_device", None)
            self._devices[name] = own(name, mask, untrusted) if own else _device(context, name, mask, untrusted)
        return self._devices[name]

    def forget(self, device: str) -> None:
        """Make a device anew when it is next used: it has been closed, and may be opened in another way."""
        self._devices.pop(device, None)

    def space(self, context: Context, device: str) -> Space:
        """Return where a device's mappings are made now."""
        return registered(context) if context.ioas_of(device) is None else IOAS

    def range(self, name: str) -> Range:
        """Return a range; raises `UnknownRange`."""
        try:
            return self.ranges[name]
        except KeyError:
            raise UnknownRange(f"there is no range '{name}'") from None

    def new_range(self, context: Context, name: str, dev: Any) -> Range:
        """Return the range of a name, made when there is none.

        An implementation that has states of its own gives them by `dma_state()`; they have `addr`, and `info()` with
        the counts of the step `iova_info`.
        """
        if name not in self.ranges:
            own = getattr(context.api.api, "dma_state", None)
            self.ranges[name] = Range(name, dev, own() if own else _state())
        return self.ranges[name]

    def end_stream(self, iova: int, space: Space) -> None:
        """Take note that a mapping of the streaming API has ended, under whatever place it is known."""
        for streams in self.streams.values():
            streams[:] = [stream for stream in streams if (stream.iova, stream.space) != (iova, space)]

    def believed(self, space: Space) -> list[Mapped]:
        """Return what is mapped in a space: whole granules."""
        return [_granules(*one) for one in self._mapped(space)]

    def _mapped(self, space: Space) -> Iterator[Mapped]:
        for one in self.ranges.values():
            if one.space == space and one.iova is not None:
                for offset, link in one.links.items():
                    if link.synced:
                        yield one.iova + offset, link.size, link.access
        for streams in self.streams.values():
            for stream in streams:
                if stream.space == space:
                    yield stream.iova, stream.size, stream.access


def registered(context: Context) -> Space:
    """Return the container that is registered, and which registration it is: with each one everything ends."""
    return "container", context.api.fd, context.api.registrations_ended


def _granules(iova: int, size: int, access: str) -> Mapped:
    first = iova // GRANULE * GRANULE
    return first, -(-(iova + size) // GRANULE) * GRANULE - first, access


def _state() -> Any:
    from usdm.dma_iova import DmaIovaState

    return DmaIovaState()


def _device(context: Context, name: str, mask: int, untrusted: bool) -> Any:
    ioas = context.ioas_of(name)
    if ioas is not None:
        from usdm.dma_iommufd import IommufdDma

        return IommufdDma(ioas.ioas, dma_mask=mask, untrusted=untrusted)
    from usdm.dma_device import VfioDma

    return VfioDma(dma_mask=mask, untrusted=untrusted)
