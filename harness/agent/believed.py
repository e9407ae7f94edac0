"""What the program believes that its devices can reach, for the harness to compare with what they can.

The answer has for each device `runs` (see `harness.agent.ranges`), all IOVA ranges that its container maps; `exact`,
whether that is everything; `gone`, runs that must not be mapped any more where it is not; `translated`, whether the
IOMMU translates its DMA; and `unknown`, why nothing can be said of it, else empty.
"""

from __future__ import annotations

import contextlib
import os

from harness.agent import dma_ranges, pci
from harness.agent.outcome import Outcome
from harness.agent.ranges import pack
from usdm.errors import DeviceNotFound, NoIommuGroup
from usdm.vfio import iommu_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.noted_container import NotedContainer
    from harness.agent.ranges import Range
    from harness.agent.registry import Step

SYSFS_GROUPS = "/sys/kernel/iommu_groups"
DEV_VFIO = "/dev/vfio"
SYSFS_IOMMUS = "/sys/class/iommu"
_VTD = "dmar"
_VFIO = "vfio-pci"


def believed(context: Context, args: dict[str, Any]) -> Outcome:
    """Tell of some devices; arguments: `devices`, their names; values: devices."""
    by_container: dict[int, dict[str, Any]] = {}  # devices of a container see the same
    found = {}
    for one in context.containers:
        one.catch_up()
    for name in args["devices"]:
        if context.api.name == "kernel":
            found[name] = _answer([]) | {"unknown": "the kernel maps for the device, and tells nobody what"}
            continue
        group = _group(context.addresses[name])
        ioas = context.ioas_of(name)
        if ioas is not None:
            found[name] = _answer(ioas.mapped() + context.dma.believed(dma_ranges.IOAS))
            continue
        container = next((one for one in context.containers if one.holds(group)), None)
        if container is None:
            found[name] = _kernel_has_it(group, pci.driver_of(context.addresses[name]))
            continue
        if container.fd not in by_container:
            by_container[container.fd] = _program_has_it(context, container)
        found[name] = by_container[container.fd]
    return Outcome(values={"devices": found})


def _group(address: str) -> int | None:
    try:
        return iommu_group(address)
    except (DeviceNotFound, NoIommuGroup):
        return None


def _answer(ranges: list[Range], gone: list[Range] | None = None) -> dict[str, Any]:
    """Tell what is mapped; with `gone` that is what must be at least."""
    return {
        "runs": pack(ranges),
        "gone": pack(gone or []),
        "exact": gone is None,
        "unknown": "",
        "translated": True,
    }


def _untranslated(why: str) -> dict[str, Any]:
    return {"runs": [], "gone": [], "exact": True, "unknown": why, "translated": False}


def _kernel_has_it(group: int | None, driver: str | None) -> dict[str, Any]:
    """Tell of a device in no container: the kernel maps nothing for it, or all memory where it does not translate.

    Nothing does DMA for such a device through the kernel: it has no driver, or vfio-pci. What a driver of the kernel's
    own has mapped, this program does not know.
    """
    if driver not in (None, _VFIO):
        return {**_answer([]), "exact": False, "unknown": f"the kernel's driver {driver} has it"}
    iommus = _listed(SYSFS_IOMMUS)
    if not iommus:
        return _untranslated("there is no IOMMU")
    if not any(name.startswith(_VTD) for name in iommus):
        # virtio-iommu lets a function that is in no domain reach all memory.
        return _untranslated(f"nobody knows what {', '.join(iommus)} lets it reach before a program has it")
    if group is not None and _group_type(group) == "identity":
        return _untranslated("the kernel lets it reach all memory (an identity domain)")
    if driver == _VFIO and group is not None and _is_open(group):
        return {**_answer([]), "exact": False, "unknown": "another program has it open"}
    return _answer([])


def _is_open(group: int) -> bool:
    """Whether another process has a group, or a device of it, open.

    Opening it would tell, too; but a program that tries to at that moment would be refused.
    """
    files = {f"{DEV_VFIO}/{group}", *(f"{DEV_VFIO}/devices/{name}" for name in _cdevs(group))}
    own = str(os.getpid())
    for process in _listed("/proc"):
        if process.isdecimal() and process != own and any(link in files for link in _links(f"/proc/{process}/fd")):
            return True
    return False


def _cdevs(group: int) -> Iterator[str]:
    """Name the files of a group's devices, which come with IOMMUFD."""
    folder = f"{SYSFS_GROUPS}/{group}/devices"
    for address in _listed(folder):
        yield from _listed(f"{folder}/{address}/vfio-dev")


def _links(folder: str) -> Iterator[str]:
    for fd in _listed(folder):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            yield os.readlink(f"{folder}/{fd}")  # noqa: PTH115


def _listed(folder: str) -> list[str]:
    """List a folder; one that is not there, or not ours to look into, has nothing in it."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - pathlib costs the guest time
    except (FileNotFoundError, PermissionError):
        return []


def group_type(address: str) -> str | None:
    """Return the kernel's word for the type of a function's IOMMU domain, e.g. `DMA-FQ`; None without an IOMMU."""
    group = _group(address)
    return None if group is None else _group_type(group)


def _group_type(group: int) -> str | None:
    try:
        with open(f"{SYSFS_GROUPS}/{group}/type") as file:
            return file.read().strip()
    except FileNotFoundError:  # kernels before 5.10, and groups without an IOMMU
        return None


def _program_has_it(context: Context, container: NotedContainer) -> dict[str, Any]:
    if container.no_iommu:
        return _untranslated("its container has no IOMMU")
    beside: list[Range] = [(iova, size, access) for iova, (size, access) in container.beside.items()]
    if context.api.fd == container.fd:
        beside += context.dma.believed(dma_ranges.registered(context))
    if context.api.name == "usdm":
        return _answer(beside + _usdm(context, container))
    live, gone = context.api.promises(container.fd)
    return _answer(beside + live, gone)


def _usdm(context: Context, container: NotedContainer) -> list[Range]:
    """Return what `usdm` says that it has mapped in a container."""
    from usdm import qae_mem

    usdm = qae_mem.default_instance()
    if not usdm.registered or context.api.fd != container.fd:
        return []
    regions = [(int(one["iova"]), int(one["size"])) for one in usdm.maps() if one["mapped"]]
    regions += [(one["iova"], one["size"]) for one in usdm.remappings()]
    return _without(container, regions)


def _without(container: NotedContainer, regions: list[tuple[int, int]]) -> list[Range]:
    """Return regions but those that the program has unmapped beside USDM, as long as USDM has them."""
    cut, container.cut = container.cut, []
    lost = {region for region in regions if any(first <= region[0] < end for first, end in cut)}
    container.lost = (container.lost & set(regions)) | lost if lost or container.lost else container.lost
    return [(iova, size, "rw") for iova, size in regions if (iova, size) not in container.lost]


STEPS: dict[str, Step] = {"_believed": believed}
