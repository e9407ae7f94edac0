"""The IOVA space of devices that are opened through IOMMUFD: it remembers what is mapped in it beside DMA ranges.

It has as much of the interface of a container as the drivers of the devices use.
"""

from __future__ import annotations

from usdm.iommufd import Iommufd
from usdm.vfio_uapi import IommuInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.agent.ranges import Range
    from usdm.vfio import Device


class NotedIoas:
    """An IOAS, and the IOMMUFD that it belongs to.

    Attributes:
        ioas: The IOAS, in which ranges can be reserved.
        no_iommu: Always false.
    """

    no_iommu = False

    def __init__(self) -> None:
        """Make it.

        Raises:
            Unsupported: The kernel has no IOMMUFD.
            DeviceError: The kernel refused.
        """
        self._iommufd = Iommufd()
        try:
            self.ioas = self._iommufd.alloc_ioas()
        except BaseException:
            self._iommufd.close()
            raise
        self._beside: dict[int, tuple[int, str]] = {}

    def open_device(self, bdf: str) -> Device:
        """Return a device that is bound and attached.

        Raises:
            UsdmError: As `usdm.iommufd.Iommufd.open_device`.
        """
        device = self._iommufd.open_device(bdf)
        try:
            device.attach(self.ioas)
        except BaseException:
            device.close()
            raise
        return device

    def info(self) -> IommuInfo:
        """Return the usable IOVAs, as a container does; raises `DeviceError`."""
        return IommuInfo(0, self.ioas.iova_ranges(), None)

    def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map beside ranges; raises `IoasMapFailed`."""
        self.ioas.map(vaddr, iova, size, read=read, write=write)
        self._beside[iova] = size, "r" * read + "w" * write

    def unmap_dma(self, iova: int, size: int) -> int:
        """Unmap what was mapped beside ranges; raises `IoasUnmapFailed`."""
        removed = self.ioas.unmap(iova, size)
        for first in [first for first in self._beside if iova <= first < iova + size]:
            del self._beside[first]
        return removed

    def mapped(self) -> list[Range]:
        """Return what is mapped beside ranges."""
        return [(iova, size, access) for iova, (size, access) in self._beside.items()]
