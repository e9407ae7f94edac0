"""Steps on the kernel's own dma_iova_*: devices that the test module drives, and memory that it can be given.

`kernel_dma` has the functions; here is what a program has beside them where it otherwise has VFIO.
"""

from __future__ import annotations

from harness.agent.dma_ranges import GRANULE
from harness.agent.kernel_device import KernelEdu, open_edu
from harness.agent.kernel_dma import KernelDma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.agent.kernel_device import KernelDevice
LOG = "/dev/kmsg"
"""Where the kernel warns."""


class State:
    """A struct dma_iova_state of the caller's: the IOVA of the first byte, and the bytes; both 0 without a range."""

    __slots__ = ("addr", "size")

    def __init__(self) -> None:
        self.addr = 0
        self.size = 0

    def info(self) -> dict[str, int]:
        """Return what the kernel keeps of a range: how many bytes of IOVAs it takes. Of its links it keeps no list."""
        whole = -(-(self.addr % GRANULE + self.size) // GRANULE) * GRANULE
        return {"reserved": whole if self.size else 0}


class OnKernel(KernelDma):
    """The implementation `kernel`."""

    def __init__(self) -> None:
        super().__init__(LOG)
        self._edus: dict[str, KernelEdu] = {}

    def open_device(self, name: str, address: str) -> KernelEdu:
        """Give a device to the test module, and open it.

        Raises:
            NoTestModule, NotTakenOver, usdm.errors.DeviceError, NotEdu: See `kernel_device.open_edu`.
        """
        self._edus[name] = open_edu(address)
        return self._edus[name]

    def dma_device(self, name: str, mask: int, untrusted: bool) -> KernelDevice:
        """Return what the functions take for a device that is open, with these limits.

        Raises:
            usdm.errors.DeviceError: The kernel does not take the mask.
        """
        device = self._edus[name].device
        now = device.info()
        if now.dma_mask != mask:
            device.set_dma_mask(mask)
        if bool(now.untrusted) != untrusted:
            device.set_untrusted(untrusted)
        return device

    @staticmethod
    def dma_state() -> State:
        """Return an empty state."""
        return State()

    @staticmethod
    def backing(asked: str) -> str:
        """Return the memory that a program takes in place of what it would take otherwise.

        The kernel's functions take a physical address, so what one call links must be physically contiguous. Of callers
        of usdm nobody asks that.
        """
        return "contiguous" if asked == "anonymous" else asked
