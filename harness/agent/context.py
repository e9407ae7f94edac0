"""State of the worker between steps: the container, open devices, buffers."""

from __future__ import annotations

from harness.agent import implementations
from harness.agent.dma_ranges import Dma
from harness.agent.ledger import NotedCalls
from harness.agent.outcome import DeviceNotOpen, NoIova, NotAccessible, UnknownBuffer, UnknownDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.engine import Engine
    from harness.agent.kernel_log import KernelLog
    from harness.agent.noted_container import NotedContainer
    from harness.agent.noted_ioas import NotedIoas
    from harness.agent.queue_memory import DmaSpace
    from usdm.vfio import Device

DEFAULT_CONTAINER = "default"
_ADDRESSES = 1 << 64
_CLASS_CODE = 9  # in configuration space


class Buffer:
    """Memory with a name.

    Attributes:
        name: Its name in the scenario.
        maker: Kind of the step that made it: `alloc`, `alloc_plain`, `buffer`.
        address: Virtual address, None when making it failed.
        size: In bytes.
        extent: Bytes that the kernel gave for it, for a buffer of the program's own.
        iova: IOVA of its start, as it was allocated or last mapped; None when it has had none. It may be negative: a
            mapping of a part gives the part's IOVA, and the start lies that far before it.
        remapped: IOVAs that icp_sal_iommu_map gave it, by offset.
        writable: The program may write to it.
        gone: It was freed or released. The address stays, so that a use after free can be written down.
    """

    __slots__ = ("address", "extent", "gone", "iova", "maker", "name", "remapped", "size", "writable")

    def __init__(self, name: str, maker: str, address: int | None, size: int, writable: bool = True) -> None:
        self.name = name
        self.maker = maker
        self.address = address
        self.size = size
        self.extent = size
        self.writable = writable
        self.iova: int | None = None
        self.remapped: dict[int, int] = {}
        self.gone = False

    def place(self, offset: int) -> int | None:
        """Return the virtual address of a byte; None when the buffer is NULL."""
        return None if self.address is None else self.address + offset

    def span(self, args: dict[str, Any]) -> tuple[int, int]:
        """Return the offset and the size that a step names; without a size it is all up to the end."""
        offset: int = args.get("offset", 0)
        size = args.get("size")
        return offset, self.size - offset if size is None else size

    def own(self, offset: int, size: int, *, write: bool = False) -> int:
        """Return the address of `size` bytes that the program itself is about to access.

        Raises:
            NotAccessible: It must not, because it would end, or spoil memory that is not the buffer's any more.
        """
        from usdm.limits import PAGE_SIZE
        from usdm.memory import is_accessible

        if self.address is None:
            raise NotAccessible(f"'{self.name}' is NULL")
        if self.gone:
            raise NotAccessible(f"'{self.name}' has been given back")
        if offset < 0 or size < 0 or offset + size > self.size:
            raise NotAccessible(f"'{self.name}' has {self.size} bytes, asked for {size} at {offset}")
        if write and not self.writable:
            raise NotAccessible(f"'{self.name}' is read-only")
        start = self.address + offset
        first = start - start % PAGE_SIZE
        if size and not is_accessible(first, start + size - first):
            # For example memory of USDM in a forked child, which does not inherit it.
            raise NotAccessible(f"'{self.name}' is not mapped in this process")
        return start


class Context:
    """The worker's state; a forked child goes on with a copy.

    Attributes:
        addresses: PCI addresses of the devices by name, told by the host.
        pf_of: Names of the VFs to the names of their PFs, told by the host.
        vf_tokens: What opens the VFs of a PF, by the PF's name; 16 bytes each.
        devices: Open devices by name.
        buffers: Buffers by name.
        dma: Ranges of IOVAs and mappings of the streaming API.
        kernel_log: The log's reader, None before it was asked for.
        log_start: The mark in the log where the steps begin.
        api: What the steps that name a function of USDM call.
    """

    def __init__(self) -> None:
        self.api = NotedCalls(implementations.find("usdm"))
        self.addresses: dict[str, str] = {}
        self.pf_of: dict[str, str] = {}
        self.vf_tokens: dict[str, bytes] = {}
        self.devices: dict[str, Engine] = {}
        self.buffers: dict[str, Buffer] = {}
        self.dma = Dma()
        self.kernel_log: KernelLog | None = None
        self.log_start: str | None = None
        self._containers: dict[str, NotedContainer] = {}
        self._container_of: dict[str, str] = {}
        self._ioas: NotedIoas | None = None
        self._through_ioas: set[str] = set()

    # ---- devices

    def address(self, name: str) -> str:
        """Return the PCI address of a device; raises `UnknownDevice`."""
        try:
            return self.addresses[name]
        except KeyError:
            raise UnknownDevice(f"the host told no address of '{name}'") from None

    @property
    def containers(self) -> list[NotedContainer]:
        """The containers of the process."""
        return list(self._containers.values())

    def container(self, name: str = DEFAULT_CONTAINER, iommu_type: str | None = None) -> NotedContainer:
        """Return a container of the process, opened when it is first asked for; raises `usdm.errors.DeviceError`.

        Args:
            name: Its name in the scenario.
            iommu_type: `type1` or `type1v2`, for a container that is not open yet; None is `type1`, as libqat does.
        """
        if name not in self._containers:
            from harness.agent.noted_container import NotedContainer
            from usdm import vfio_uapi

            kind = vfio_uapi.TYPE1V2_IOMMU if iommu_type == "type1v2" else vfio_uapi.TYPE1_IOMMU
            self._containers[name] = NotedContainer(kind)
        return self._containers[name]

    def container_of(self, device: str) -> NotedContainer:
        """Return the container that a device was opened in last."""
        return self.container(self._container_of.get(device, DEFAULT_CONTAINER))

    def device(self, name: str) -> Engine:
        """Return an open device; raises `DeviceNotOpen`."""
        try:
            return self.devices[name]
        except KeyError:
            raise DeviceNotOpen(f"'{name}' is not open") from None

    def ioas_of(self, device: str) -> NotedIoas | None:
        """Return the IOAS that an open device is attached to; None of one that is in a container."""
        return self._ioas if device in self._through_ioas else None

    def any_device(self) -> Engine:
        """Return the device that was opened first; raises `DeviceNotOpen`."""
        for device in self.devices.values():
            return device
        raise DeviceNotOpen("no device is open")

    def open_device(self, name: str, container: str | None = None, iommu_type: str | None = None) -> Engine:
        """Return a device, opened when it is not open yet.

        Binding to vfio-pci belongs to it, so that what the kernel says of it is in the log of the steps.

        Args:
            name: The device.
            container: Name of the container that it is opened in; None is the default one.
            iommu_type: See `container`.

        Raises:
            UnknownDevice: The host told no address.
            usdm.errors.UsdmError: Why it cannot be opened.
            StepError: It is neither an NVMe controller nor an edu, or cannot signal interrupts.
        """
        if name not in self.devices:
            from harness.agent import pci

            address = self.address(name)
            pci.bind(address)
            where = container or DEFAULT_CONTAINER
            inside = self.container(where, iommu_type)
            token = self.vf_tokens.get(self.pf_of.get(name, ""))
            self.devices[name] = _drive(inside.open_device(address, token), inside)
            self._container_of[name] = where
        return self.devices[name]

    def open_through_iommufd(self, name: str) -> Engine:
        """Return a device that is attached to the process's IOAS, opened when it is not open yet.

        Raises:
            UnknownDevice, usdm.errors.UsdmError, StepError: As `open_device`.
        """
        if name not in self.devices:
            from harness.agent import pci
            from harness.agent.noted_ioas import NotedIoas

            address = self.address(name)
            pci.bind(address)
            self._ioas = self._ioas or NotedIoas()
            self.devices[name] = _drive(self._ioas.open_device(address), self._ioas)
            self._through_ioas.add(name)
        return self.devices[name]

    def close_device(self, name: str) -> None:
        """Close a device; raises `DeviceNotOpen`."""
        self.device(name).close()
        del self.devices[name]
        self._through_ioas.discard(name)
        self.dma.forget(name)

    def give_back(self, name: str) -> None:
        """Close a device that goes away, and leave its group; raises `DeviceNotOpen`."""
        device = self.device(name)
        self.close_device(name)
        self.container_of(name).leave(device.device)

    # ---- buffers

    def buffer(self, name: str) -> Buffer:
        """Return a buffer; raises `UnknownBuffer`."""
        try:
            return self.buffers[name]
        except KeyError:
            raise UnknownBuffer(f"there is no buffer '{name}'") from None

    def virtual_address(self, args: dict[str, Any]) -> int | None:
        """Return the address that `buffer` or `address`, and `offset`, name in a step; None is NULL."""
        offset: int = args.get("offset", 0)
        if args.get("buffer") is not None:
            return self.buffer(args["buffer"]).place(offset)
        address: int = args["address"]
        return address + offset

    def iova(self, args: dict[str, Any]) -> int:
        """Return the IOVA that `iova`, or `buffer` or `range` and `offset`, name in a step.

        Raises:
            UnknownBuffer, UnknownRange: There is no such buffer or range.
            NoIova: The buffer or range has had no IOVA, or the sum is no 64-bit address.
        """
        if args.get("range") is not None:
            held = self.dma.range(args["range"])
            if held.iova is None:
                raise NoIova(f"'{held.name}' has never been reserved")
            iova: int = held.iova + args.get("offset", 0)
        elif args.get("buffer") is not None:
            buffer = self.buffer(args["buffer"])
            if buffer.iova is None:
                raise NoIova(f"'{buffer.name}' has been neither allocated for DMA nor mapped")
            iova = buffer.iova + args.get("offset", 0)
        else:
            iova = args["iova"]
        if not 0 <= iova < _ADDRESSES:
            raise NoIova(f"{iova:#x} is no 64-bit address")
        return iova


def _drive(device: Device, container: DmaSpace) -> Engine:
    """Return the driver of a device that has just been opened; the device is closed when that fails."""
    from harness.agent import edu, nvme, qat, qat_layout
    from usdm import vfio_uapi

    try:
        code = int.from_bytes(device.read(vfio_uapi.PCI_CONFIG_REGION, _CLASS_CODE, 3), "little")
        vendor = int.from_bytes(device.read(vfio_uapi.PCI_CONFIG_REGION, 0, 4), "little")
    except BaseException:
        device.close()
        raise
    if vendor in (qat_layout.VENDOR | qat_layout.PF << 16, qat_layout.VENDOR | qat_layout.VF << 16):
        return qat.Qat(device, container)
    return nvme.Nvme(device, container) if code == nvme.CLASS_CODE else edu.Edu(device)
