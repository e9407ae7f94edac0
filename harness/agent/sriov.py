"""SR-IOV of a PF that a user-space driver holds, through vfio-pci; and functions that are taken away from it.

Whoever opens a VF must know its PF's token, so that a VF's user trusts the PF's. When a function is to go away, the
kernel asks its user to let go of it (VFIO_PCI_REQ_IRQ_INDEX) and waits until it has been closed. So the write to sysfs
that takes it away is made by a thread, and the device is closed by the one that waits here.
"""

from __future__ import annotations

import os
import select
import threading

from harness.agent import pci
from harness.agent.outcome import NoSriov, NotSet, NotTaken, TooManyVfs, VfsEnabled
from usdm import vfio_uapi as uapi
from usdm.errors import DeviceNotFound, NoIommuGroup
from usdm.vfio import iommu_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from usdm.vfio import Device

ENABLE_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"
_SECONDS = 60.0
_VF_LINK = "virtfn"


def _number(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def count(address: str, sysfs: str = pci.SYSFS_PCI) -> tuple[int, int]:
    """Return how many VFs of a PF are enabled, and how many it offers; raises `NoSriov`."""
    folder = pci.folder(address, sysfs)
    try:
        return _number(f"{folder}/sriov_numvfs"), _number(f"{folder}/sriov_totalvfs")
    except FileNotFoundError:
        raise NoSriov(f"{address} has no SR-IOV") from None


def functions(address: str, sysfs: str = pci.SYSFS_PCI) -> list[str]:
    """Return the addresses of a PF's enabled VFs, with their domain, VF 1 first."""
    folder = pci.folder(address, sysfs)
    names = os.listdir(folder)  # noqa: PTH208 - pathlib costs the guest time
    numbers = sorted(int(name.removeprefix(_VF_LINK)) for name in names if name.startswith(_VF_LINK))
    return [os.readlink(f"{folder}/{_VF_LINK}{number}").rpartition("/")[2] for number in numbers]  # noqa: PTH115


def groups(addresses: list[str], sysfs: str = pci.SYSFS_PCI) -> set[int]:
    """Return the IOMMU groups of functions; one without a group adds none."""
    found = set()
    for address in addresses:
        try:
            found.add(iommu_group(address, f"{sysfs}/devices"))
        except (NoIommuGroup, DeviceNotFound):
            continue
    return found


def enable(address: str, wanted: int, sysfs: str = pci.SYSFS_PCI, parameter: str = ENABLE_SRIOV) -> None:
    """Switch SR-IOV of a PF on that is bound to vfio-pci, which then binds the VFs too.

    The VFs are there and bound when the write returns.

    Args:
        address: The PF.
        wanted: How many VFs.
        sysfs: Where the bus is; another folder in tests.
        parameter: The parameter that allows it; another file in tests.

    Raises:
        NoSriov: The device has none.
        VfsEnabled: It is on.
        TooManyVfs: The kernel refused the number.
        NotSet: vfio-pci of this kernel cannot do it, or the kernel refused for another reason.
    """
    enabled, offered = count(address, sysfs)
    if enabled:
        raise VfsEnabled(f"{address} has {enabled} VFs already")
    folder = pci.folder(address, sysfs)
    try:
        pci.write(parameter, "Y")
        pci.write(f"{folder}/sriov_drivers_autoprobe", "1")
    except FileNotFoundError as error:
        raise NotSet(f"this kernel's vfio-pci has no SR-IOV: there is no {error.filename}") from None
    try:
        pci.write(f"{folder}/sriov_numvfs", str(wanted))
    except OSError as error:
        why = f"{address} offers {offered} VFs, asked for {wanted}: {os.strerror(error.errno or 0)}"
        raise (TooManyVfs if wanted > offered else NotSet)(why) from error


def take_away(path: str, text: str, devices: dict[str, Device], let_go: Callable[[str], None]) -> list[str]:
    """Write to a file of sysfs that takes functions away, and give them back when the kernel asks.

    Args:
        path: The file.
        text: What is written.
        devices: The open devices that the write concerns, by name.
        let_go: Closes one of them.

    Returns:
        The names of those that the kernel asked for, in that order.

    Raises:
        NotTaken: The kernel refused, or has not done it after a minute.
        usdm.errors.DeviceError: vfio-pci cannot ask for a device.
    """
    writer = _Writer(path, text)
    events: dict[int, str] = {}
    asked: list[str] = []
    poll = select.poll()
    poll.register(writer.done, select.POLLIN)
    try:
        for name, device in devices.items():
            event = os.eventfd(0, os.EFD_CLOEXEC)
            events[event] = name
            poll.register(event, select.POLLIN)
            device.set_irqs(uapi.PCI_REQ_IRQ, [event])
        writer.start()
        while not writer.ended:
            for event, _ in poll.poll(_SECONDS * 1000) or _too_long(path):
                poll.unregister(event)
                if event == writer.done:
                    writer.end()
                else:
                    asked.append(events[event])
                    let_go(events[event])
    finally:
        for event, name in events.items():
            if name not in asked:
                devices[name].set_irqs(uapi.PCI_REQ_IRQ)
            os.close(event)
    return asked


def _too_long(path: str) -> NoReturn:
    raise NotTaken(f"{path}: not done after {_SECONDS:g} s")


class _Writer:
    """A thread that writes to a file of sysfs.

    Attributes:
        done: An eventfd that can be read when the write has returned.
        ended: `end` was called.
    """

    def __init__(self, path: str, text: str) -> None:
        self.done = os.eventfd(0, os.EFD_CLOEXEC)
        self.ended = False
        self._path = path
        self._text = text
        self._failure: OSError | None = None
        # A write that the kernel never ends must not keep the process.
        self._thread = threading.Thread(target=self._write, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _write(self) -> None:
        try:
            pci.write(self._path, self._text)
        except OSError as error:
            self._failure = error
        os.eventfd_write(self.done, 1)

    def end(self) -> None:
        """Take in the thread, which has written; raises `NotTaken` when the kernel refused."""
        self._thread.join()
        self.ended = True
        os.close(self.done)
        if self._failure is not None:
            raise NotTaken(f"{self._path}: {os.strerror(self._failure.errno or 0)}") from self._failure
