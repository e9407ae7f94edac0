"""PCI functions in sysfs: give one to vfio-pci."""

from __future__ import annotations

import os
import sys

from harness.agent.outcome import StepError
from usdm.vfio import full_bdf

SYSFS_PCI = "/sys/bus/pci"
_DRIVER = "vfio-pci"
_SECONDARY_BUS = 0x19  # in a bridge's configuration space; the subordinate bus follows


def write(path: str, text: str) -> None:
    """Write to a file of sysfs; raises `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def folder(address: str, sysfs: str = SYSFS_PCI) -> str:
    """Return the folder of a function."""
    return f"{sysfs}/devices/{full_bdf(address)}"


def driver_of(address: str, sysfs: str = SYSFS_PCI) -> str | None:
    """Return the name of the driver that a function is bound to, or None."""
    try:
        return os.readlink(f"{sysfs}/devices/{full_bdf(address)}/driver").rpartition("/")[2]  # noqa: PTH115
    except OSError:
        return None


def renumber(ports: dict[str, int], sysfs: str = SYSFS_PCI) -> None:
    """Give the buses behind root ports other numbers, as a firmware would.

    The kernel takes a port's numbers when it finds the port. So the ports are taken away, with what is behind them, and
    found again.

    Args:
        ports: Address of each root port on bus 0, e.g. `00:10.0`, to the number of the only bus behind it.
        sysfs: Where the bus is; another folder in tests.

    Raises:
        StepError: There is no such port, or it did not take the number.
    """
    for port, bus in ports.items():
        path = folder(port, sysfs)
        try:
            fd = os.open(f"{path}/config", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StepError(f"the guest has no root port {full_bdf(port)}") from None
        try:
            os.pwrite(fd, bytes((bus, bus)), _SECONDARY_BUS)
        finally:
            os.close(fd)
        write(f"{path}/remove", "1")
    if ports:
        write(f"{sysfs}/../../class/pci_bus/0000:00/rescan", "1")
    for port, bus in ports.items():
        if not os.access(f"{folder(port, sysfs)}/pci_bus/0000:{bus:02x}", os.F_OK):
            raise StepError(f"the root port {full_bdf(port)} did not get the bus {bus:02x}")


def scan(address: str, replaced: bool, sysfs: str = SYSFS_PCI) -> None:
    """See that a function is there, also one that the kernel has not looked for since it began to run here.

    A scan of the bus is done, memory assigned and drivers asked, when the write returns.

    Args:
        address: The function, e.g. `02:00.0`.
        replaced: The kernel knows another device at this address, which is gone.
        sysfs: Where the bus is; another folder in tests.

    Raises:
        StepError: There is no such function.
    """
    name = full_bdf(address)
    bus = name.rpartition(":")[0]
    if replaced:
        write(f"{sysfs}/devices/{name}/remove", "1")
    try:
        write(f"{sysfs}/../../class/pci_bus/{bus}/rescan", "1")
    except FileNotFoundError:
        raise StepError(f"the guest has no PCI bus {bus}") from None
    if not os.access(f"{sysfs}/devices/{name}", os.F_OK):
        raise StepError(f"the guest has no PCI function {name}")


def bind(address: str, sysfs: str = SYSFS_PCI) -> None:
    """Bind a function to vfio-pci.

    The write to `drivers_probe` returns when the driver's probe has, so there is nothing to wait for. A refusal is not
    an error here: opening the device comes next, and its error names the cause (no IOMMU group, not bound, no device).

    Args:
        address: The function, e.g. `02:00.0`.
        sysfs: Where the bus is; another folder in tests.
    """
    name = full_bdf(address)
    driver = driver_of(address, sysfs)
    if driver == _DRIVER:
        return
    try:
        write(f"{sysfs}/devices/{name}/driver_override", _DRIVER)
        if driver is not None:
            write(f"{sysfs}/devices/{name}/driver/unbind", name)
        write(f"{sysfs}/drivers_probe", name)
    except OSError as error:
        print(f"{name}: not bound to {_DRIVER}: {error}", file=sys.stderr)
