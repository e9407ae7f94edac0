"""PCI functions in sysfs: give one to vfio-pci."""

from __future__ import annotations

import os
import sys

from harness.agent.outcome import StepError
from usdm.vfio import full_bdf

SYSFS_PCI = "/sys/bus/pci"
_DRIVER = "vfio-pci"


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
