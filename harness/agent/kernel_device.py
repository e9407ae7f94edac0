"""A PCI function that the test module `dma_iova_test` drives: its registers through sysfs, its DMA through the module.

It has the interface of `usdm.vfio.Device` as far as the drivers of this package use it, without interrupts, so that the
same driver runs on it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from harness.agent import kernel_abi as abi
from harness.agent import pci
from harness.agent.edu import Edu
from harness.agent.outcome import StepError
from usdm import errors
from usdm import vfio_uapi as uapi
from usdm.vfio import full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

MODULE = "dma_iova_test"
_COMMAND = 4
_COMMAND_MEMORY, _COMMAND_BUS_MASTER = 2, 4
_ITEMS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_PATHS = {uapi.PCI_BAR0_REGION: "resource0", uapi.PCI_CONFIG_REGION: "config"}


class NoTestModule(StepError):
    """The test module is not loaded in this guest."""


class NotTakenOver(StepError):
    """The test module did not take the device."""


class TestModuleRefused(StepError):
    """The test module did not call the kernel."""


class MemoryScattered(TestModuleRefused):
    """The memory is not physically contiguous, so the kernel, which takes a physical address, has none to be given."""


class NotPinned(TestModuleRefused):
    """The memory cannot be pinned: the program does not have it, or may not write to it."""


class StateWithoutRange(TestModuleRefused):
    """The state has no range, or its range ended. The kernel goes by what stands in it, so it was not called."""


class WouldStop(TestModuleRefused):
    """With this direction the kernel stops at a BUG(), so it was not called."""


class NothingMapped(TestModuleRefused):
    """dma_map_single gave no such address."""


_REFUSALS: dict[int, type[TestModuleRefused]] = {
    errno.EXDEV: MemoryScattered,
    errno.EFAULT: NotPinned,
    errno.ESTALE: StateWithoutRange,
    errno.EDOM: WouldStop,
    errno.ENOENT: NothingMapped,
}


def _ioctl(fd: int, request: int, argument: bytearray) -> int:
    # An int: the buffer is written to.
    return int(fcntl.ioctl(fd, request, argument))


def bind(address: str, sysfs: str = pci.SYSFS_PCI) -> None:
    """Give a function to the test module; what drove it before loses it.

    Args:
        address: The function, e.g. `02:00.0`.
        sysfs: Where the bus is; another folder in tests.

    Raises:
        NoTestModule: The module is not loaded.
        NotTakenOver: The function is not there, or the module did not take it.
    """
    if not os.access(f"{sysfs}/drivers/{MODULE}", os.F_OK):
        raise NoTestModule(f"the module {MODULE} is not loaded; the harness loads it for --implementation kernel")
    name = full_bdf(address)
    folder = f"{sysfs}/devices/{name}"
    driver = pci.driver_of(address, sysfs)
    if driver == MODULE:
        return
    try:
        pci.write(f"{folder}/driver_override", MODULE)
        if driver is not None:
            pci.write(f"{folder}/driver/unbind", name)
        pci.write(f"{sysfs}/drivers_probe", name)
    except OSError as error:
        raise NotTakenOver(f"{name}: not bound to {MODULE}: {error.strerror}") from error
    if pci.driver_of(address, sysfs) != MODULE:
        raise NotTakenOver(f"{name}: {MODULE} did not take it; the kernel log may say why")


class KernelDevice:
    """An open function that the module drives. What its file left behind is undone when it is closed.

    Attributes:
        bdf: Its address.
        ioctl: Calls the module; a fake in tests.
    """

    def __init__(self, bdf: str, sysfs: str = pci.SYSFS_PCI, dev: str = "/dev") -> None:
        """Open a function that is bound to the module.

        Raises:
            usdm.errors.DeviceError: A file of it cannot be opened; EBUSY: somebody has it open.
        """
        self.bdf = bdf
        self.ioctl: Callable[[int, int, bytearray], int] = _ioctl
        self._files: dict[int, int] = {}
        self._bar: mmap.mmap | None = None
        self._fd = -1
        try:
            self._fd = self._open(f"{dev}/{MODULE}-{full_bdf(bdf)}")
            for region, name in _PATHS.items():
                self._files[region] = self._open(f"{pci.folder(bdf, sysfs)}/{name}")
            self._bar = self.map_region(uapi.PCI_BAR0_REGION)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise errors.DeviceError("device", self.bdf, error.errno or 0, path) from error

    # ---- registers, as usdm.vfio.Device has them

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read 1, 2, 4 or 8 bytes of a region as one access; raises `DeviceError`."""
        if index == uapi.PCI_CONFIG_REGION:
            data = self._config(lambda fd: os.pread(fd, size, offset))
            self._whole(len(data), size, offset)
            return data
        with self._words(index, size, offset) as words:
            return int(words[offset // size]).to_bytes(size, "little")

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write 1, 2, 4 or 8 bytes of a region as one access; raises `DeviceError`."""
        if index == uapi.PCI_CONFIG_REGION:
            self._whole(self._config(lambda fd: os.pwrite(fd, data, offset)), len(data), offset)
            return
        with self._words(index, len(data), offset) as words:
            words[offset // len(data)] = int.from_bytes(data, "little")

    def _config(self, access: Callable[[int], _T]) -> _T:
        fd = self._file(uapi.PCI_CONFIG_REGION)
        try:
            return access(fd)
        except OSError as error:
            raise errors.DeviceError("device", self.bdf, error.errno or 0, "its configuration space") from error

    def _whole(self, done: int, size: int, offset: int) -> None:
        if done != size:
            detail = f"{done} bytes of {size} at {offset:#x} of its configuration space"
            raise errors.DeviceError("device", self.bdf, errno.EIO, detail)

    def _words(self, index: int, size: int, offset: int) -> memoryview[Any]:
        """Return BAR 0 as words of `size` bytes, of which there is one at `offset`."""
        self._file(index)
        if self._bar is None:
            raise errors.DeviceError("device", self.bdf, errno.EBADF, "it has been closed")
        if size not in _ITEMS or offset % size or not 0 <= offset <= len(self._bar) - size:
            raise errors.DeviceError("offset", offset, errno.EINVAL, f"{size} bytes of {len(self._bar):#x} in BAR 0")
        return memoryview(self._bar).cast(_ITEMS[size])  # type: ignore[call-overload,no-any-return]

    def _file(self, index: int) -> int:
        try:
            return self._files[index]
        except KeyError:
            raise errors.DeviceError("index", index, errno.EINVAL, "sysfs is asked for no such region") from None

    def map_region(self, index: int) -> mmap.mmap:
        """Return a region as memory; raises `DeviceError`."""
        fd = self._file(index)
        try:
            return mmap.mmap(fd, os.fstat(fd).st_size)
        except OSError as error:
            raise errors.DeviceError("index", index, error.errno or 0, "mmap of the region") from error

    def set_bus_master(self, enabled: bool) -> None:
        """Let the device access memory, or not."""
        command = int.from_bytes(self.read(uapi.PCI_CONFIG_REGION, _COMMAND, 2), "little") | _COMMAND_MEMORY
        command = command | _COMMAND_BUS_MASTER if enabled else command & ~_COMMAND_BUS_MASTER
        self.write(uapi.PCI_CONFIG_REGION, _COMMAND, command.to_bytes(2, "little"))

    def irq_count(self, _index: int) -> int:
        """Return 0: the module leaves interrupts off."""
        return 0

    def reset(self) -> None:
        """Refuse: sysfs resets functions that have a reset, and an edu has none. Raises `DeviceError` (ENOTTY)."""
        raise errors.DeviceError("device", self.bdf, errno.ENOTTY, "reset")

    # ---- the module

    def call(self, request: int, argument: bytearray) -> abi.Answer:
        """Have the kernel called.

        Args:
            request: `kernel_abi.LINK` and the like.
            argument: `kernel_abi.call_request(...)`.

        Raises:
            TestModuleRefused: It was not called; the class says why.
            usdm.errors.DeviceError: The module does not answer, e.g. because the device was unbound (ENODEV).
        """
        self._ask(request, argument)
        return abi.Answer(argument)

    def info(self) -> abi.Info:
        """Return the device as the kernel's DMA mapping sees it."""
        argument = abi.info_request()
        self._ask(abi.INFO, argument)
        return abi.Info(argument)

    def set_dma_mask(self, mask: int) -> None:
        """Set the highest address that the device can give; raises `DeviceError` (EIO: refused)."""
        self._ask(abi.SET_MASK, abi.mask_request(mask))

    def set_untrusted(self, untrusted: bool) -> None:
        """Have the kernel protect what lies around the mapped memory, as behind a Thunderbolt port."""
        self._ask(abi.SET_UNTRUSTED, abi.flag_request(untrusted))

    def set_min_align_mask(self, mask: int) -> None:
        """Set which bits of an address a bounce buffer keeps, as drivers do whose device minds them."""
        self._ask(abi.SET_MIN_ALIGN_MASK, abi.flag_request(mask))

    def _ask(self, request: int, argument: bytearray) -> None:
        try:
            self.ioctl(self._fd, request, argument)
        except OSError as error:
            refusal = _REFUSALS.get(error.errno or 0)
            if refusal is None:
                raise errors.DeviceError("device", self.bdf, error.errno or 0, MODULE) from error
            raise refusal(refusal.__doc__) from error

    def close(self) -> None:
        """Close it; may be called twice. What its file left mapped is undone, and bus mastering ends."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
        fds, self._fd = [self._fd, *self._files.values()], -1
        self._files = {}
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class KernelEdu(Edu):
    """An edu that the module drives. It is asked until a DMA is done: its interrupt stays off."""

    device: KernelDevice  # type: ignore[assignment]

    def _arm(self) -> None:
        """Leave the interrupt off."""

    def _interrupts(self) -> bool:
        return False


def open_edu(address: str) -> KernelEdu:
    """Give an edu to the module and open it; `.device` is what `kernel_dma.KernelDma` takes for `dev`.

    Raises:
        NoTestModule, NotTakenOver: See `bind`.
        usdm.errors.DeviceError: It cannot be opened.
        harness.agent.edu.NotEdu: It does not answer as an edu.
    """
    bind(address)
    return KernelEdu(KernelDevice(address))  # type: ignore[arg-type]
