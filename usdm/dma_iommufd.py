"""The two-step DMA mapping API over IOMMUFD."""

from __future__ import annotations

from usdm import errors
from usdm.dma_device import DmaDevice
from usdm.iommufd import Ioas
from usdm.limits import MAX_U64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.dma_domain import Domain


class IommufdDma(DmaDevice):
    """A device that is attached to an IOAS.

    IOVAs are those that all devices attached to it can translate. Ranges and mappings end when the IOAS is destroyed,
    when its IOMMUFD is closed, and in a forked child. They stay when a device is detached or closed.
    """

    def __init__(self, ioas: Ioas, *, dma_mask: int = MAX_U64, untrusted: bool = False) -> None:
        """Take an IOAS, best after the device was attached: before that, every IOVA counts as usable.

        Raises:
            BadArgument: It is no `Ioas`, or `dma_mask` no 64-bit integer.
        """
        super().__init__(dma_mask=dma_mask, untrusted=untrusted)
        if not isinstance(ioas, Ioas):
            raise errors.BadArgument("ioas", ioas, "it is no Ioas")
        self._ioas = ioas

    def _domain(self) -> Domain:
        return self._ioas.dma_domain()
