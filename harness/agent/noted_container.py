"""A container that remembers what is mapped in it beside USDM: VFIO tells no list of mappings."""

from __future__ import annotations

from usdm import vfio_uapi
from usdm.container import kernel_ioctl
from usdm.vfio import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.vfio import Device


class NotedContainer(Container):
    """A container that knows what is mapped in it beside USDM.

    Attributes:
        beside: First IOVA of each such mapping to its size in bytes and its access, `r`, `w` or `rw`.
        cut: Ranges in which mappings of USDM have been unmapped beside USDM since it was last asked, `(first, end)`.
        lost: First IOVA and bytes of USDM's mappings that were unmapped so, and that USDM still believes in.
    """

    def __init__(self, iommu_type: int = vfio_uapi.TYPE1_IOMMU) -> None:
        super().__init__(iommu_type)
        self.beside: dict[int, tuple[int, str]] = {}
        self.cut: list[tuple[int, int]] = []
        self.lost: set[tuple[int, int]] = set()

    def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """See `Container`."""
        super().map_dma(vaddr, iova, size, read=read, write=write)
        self.beside[iova] = size, "r" * read + "w" * write

    def unmap_dma(self, iova: int, size: int) -> int:
        """See `Container`. The kernel takes whole mappings only: those that begin in the range."""
        removed = super().unmap_dma(iova, size)
        if removed:
            # The usual case by itself: a program may have tens of thousands of mappings.
            alone = self.beside.get(iova, (0, ""))[0] == size
            begun = [iova] if alone else [first for first in self.beside if iova <= first < iova + size]
            if removed > sum(self.beside.pop(first)[0] for first in begun):
                self.cut.append((iova, iova + size))
        return removed

    def leave(self, device: Device) -> None:
        """See `Container`. With its last group all its mappings go."""
        super().leave(device)
        if not self.groups:
            self.beside.clear()

    def close(self) -> None:
        """See `Container`."""
        super().close()
        self.beside.clear()

    def holds(self, number: int | None) -> bool:
        """Tell whether a group is in the container by the kernel's word; one whose devices went away is not."""
        return number in self._held()

    def catch_up(self) -> None:
        """Forget what was mapped where the kernel has taken the last group out, as it does when devices go away."""
        if not self._held():
            self.beside.clear()

    def _held(self) -> list[int]:
        return [group.number for group in self.groups.values() if _in_container(group.fd)]


def _in_container(fd: int) -> bool:
    """Tell whether a group is in any container."""
    status = vfio_uapi.group_status_request()
    try:
        kernel_ioctl(fd, vfio_uapi.GROUP_GET_STATUS, status)
    except OSError:
        return False  # ENODEV: it has no device any more
    return bool(vfio_uapi.group_flags(status) & vfio_uapi.GROUP_FLAGS_CONTAINER_SET)
