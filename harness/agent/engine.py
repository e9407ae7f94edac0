"""What the user-space drivers of the DMA engines have in common."""

from __future__ import annotations

from usdm import vfio_uapi as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.vfio import Device

_PCI_COMMAND, _PCI_BUS_MASTER = 4, 4


class Completion:
    """What a device itself says of a DMA.

    Attributes:
        status: `done`, `read_refused`, `write_refused` or `invalid`.
        refused: The first address that was refused, or None.
        reason: Why the request was invalid, else empty.
    """

    __slots__ = ("reason", "refused", "status")

    def __init__(self, status: str, refused: int | None = None, reason: str = "") -> None:
        self.status, self.refused, self.reason = status, refused, reason


class Engine:
    """An open device that copies between memory and bytes of its own.

    Attributes:
        device: The VFIO device. It is closed with this object.
    """

    def __init__(self, device: Device) -> None:
        """Take the device over."""
        self.device = device

    @property
    def bus_master(self) -> bool:
        """The device may access memory, as its configuration space says."""
        command = self.device.read(uapi.PCI_CONFIG_REGION, _PCI_COMMAND, 2)
        return bool(int.from_bytes(command, "little") & _PCI_BUS_MASTER)

    def set_bus_master(self, enabled: bool) -> None:
        """Let the device access memory, or not."""
        self.device.set_bus_master(enabled)

    def reset(self) -> None:
        """Reset the function; raises `usdm.errors.DeviceError` (ENOTTY: it has no reset)."""
        self.device.reset()

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool, seconds: float = 10.0) -> Completion | None:
        """Have the device copy, and wait until it says that it is done; it says so of a refused DMA too.

        Args:
            iova: Where in memory.
            size: Bytes.
            device_offset: Where in the device's own bytes.
            write: The device writes memory; else it reads memory.
            seconds: How long to wait.

        Returns:
            How it went, of a device that tells; else None.

        Raises:
            DmaLength, DmaAddress: The device cannot do it. Nothing was written to the device.
            DmaTimeout: It is not done in time.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the device; may be called twice."""
        self.device.close()
