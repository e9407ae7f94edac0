"""A device whose registers are mapped into the program."""

from __future__ import annotations

from harness.agent.engine import Engine
from usdm import vfio_uapi as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Literal

    from usdm.vfio import Device


def words_of(bar: mmap.mmap, items: Literal["I", "Q"]) -> memoryview:
    """Return a BAR as items of 4 or 8 bytes, each of which is stored and loaded as one access."""
    return memoryview(bar).cast(items)


class MappedEngine(Engine):
    """An engine with BAR 0 in memory. The mapping holds the device open by itself, so it goes before the device."""

    def __init__(self, device: Device) -> None:
        """Take the device over; nothing is mapped yet."""
        super().__init__(device)
        self._bar: mmap.mmap | None = None
        self._mapped: memoryview | None = None

    def _map(self, items: Literal["I", "Q"]) -> memoryview:
        """Map the registers, as items of 4 or 8 bytes; raises `usdm.errors.DeviceError`."""
        self._bar = self.device.map_region(uapi.PCI_BAR0_REGION)
        self._mapped = words_of(self._bar, items)
        return self._mapped

    def _words(self) -> memoryview:
        """Return the registers; raises ValueError when they are not mapped any more."""
        if self._mapped is None:
            raise ValueError("the device has been closed")
        return self._mapped

    def _unmap(self) -> None:
        """Give the mapping up; may be called twice."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            mapped.release()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
