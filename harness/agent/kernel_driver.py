"""A function given to a driver of the kernel's own, and the disk that comes of it."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import time

from harness.agent import pci
from harness.agent.outcome import NotSet, NotTaken
from usdm.vfio import full_bdf

_SYS = "/sys"
_KOBJECT_EVENTS = 15  # the netlink family by which the kernel tells of devices that come and go
_KERNEL_GROUP = 1
_LONGEST = 8192
_SECONDS = 60.0


def give(address: str, driver: str, sys: str = _SYS) -> str:
    """Bind a function to a driver of the kernel, loaded when it is not there, and wait for its disk.

    Args:
        address: The function, which nobody has open.
        driver: `nvme`.
        sys: Where sysfs is; another folder in tests.

    Returns:
        The name of the disk's block device, e.g. `nvme0n1`.

    Raises:
        NotSet: The kernel has no such driver.
        NotTaken: The driver did not take the function, or there is no disk after a minute.
    """
    bus = f"{sys}/bus/pci"
    if not os.access(f"{bus}/drivers/{driver}", os.F_OK):
        _load(driver)
    end = time.monotonic() + _SECONDS
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _KOBJECT_EVENTS) as events:
        # Before the driver begins: a disk that comes at once is told of too.
        events.bind((0, _KERNEL_GROUP))
        _bind(address, driver, bus)
        while True:
            name = disk(address, sys)
            if name is not None:
                return name
            _wait(events, end, address)


def _load(driver: str) -> None:
    done = subprocess.run(["modprobe", driver], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise NotSet(f"this kernel has no driver '{driver}', and its image no such module: {said}")


def _bind(address: str, driver: str, bus: str) -> None:
    name = full_bdf(address)
    try:
        pci.write(f"{bus}/devices/{name}/driver_override", driver)
        holder = pci.driver_of(address, bus)
        if holder not in (None, driver):
            pci.write(f"{bus}/devices/{name}/driver/unbind", name)
        if holder != driver:
            pci.write(f"{bus}/drivers_probe", name)
    except OSError as error:
        raise NotTaken(f"{name}: not bound to {driver}: {os.strerror(error.errno or 0)}") from error
    if pci.driver_of(address, bus) != driver:
        raise NotTaken(f"{name}: the driver {driver} did not take it; the kernel's log says why")


def disk(address: str, sys: str = _SYS) -> str | None:
    """Return the name of an NVMe controller's first namespace as a block device, None when there is none (yet).

    With more than one way to a namespace the kernel has a disk for all of them, below the subsystem.
    """
    folder = f"{pci.folder(address, f'{sys}/bus/pci')}/nvme"
    subsystems = f"{sys}/class/nvme-subsystem"
    for controller in _entries(folder):
        places = [f"{folder}/{controller}"]
        places += [
            f"{subsystems}/{one}" for one in _entries(subsystems) if controller in _entries(f"{subsystems}/{one}")
        ]
        for where in places:
            for name in _entries(where):
                if name.startswith("nvme") and "n" in name[4:] and "c" not in name and _is_there(name, sys):
                    return name
    return None


def _is_there(name: str, sys: str) -> bool:
    """Tell whether a block device can be opened: it is among the others, with its node."""
    return os.access(f"{sys}/block/{name}", os.F_OK) and (sys != _SYS or os.access(f"/dev/{name}", os.F_OK))


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - pathlib costs the guest time
    except FileNotFoundError:
        return []


def _wait(events: socket.socket, end: float, address: str) -> None:
    """Wait until the kernel tells of any device; raises `NotTaken`."""
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise NotTaken(f"{full_bdf(address)}: there is no disk after {_SECONDS:g} s; the kernel's log says why")
    try:
        events.recv(_LONGEST)
    except OSError as error:
        if error.errno != errno.ENOBUFS:  # more was told than the socket holds: there is something to look at
            raise


def limits(name: str, sys: str = _SYS) -> dict[str, int]:
    """Return what one request to a disk can be: `max_bytes`, `max_segments`, `alignment` of memory in bytes."""
    values = {}
    for key, file in (("max_kib", "max_sectors_kb"), ("max_segments", "max_segments"), ("mask", "dma_alignment")):
        with open(f"{sys}/block/{name}/queue/{file}") as opened:
            values[key] = int(opened.read())
    return {
        "max_bytes": values["max_kib"] << 10,
        "max_segments": values["max_segments"],
        "alignment": values["mask"] + 1,
    }
