"""Steps that open devices and register their container."""

from __future__ import annotations

import os

from harness.agent.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.noted_ioas import NotedIoas
    from harness.agent.registry import Step
    from usdm.vfio import Container


def _ranges(container: Container | NotedIoas) -> list[list[int]] | None:
    """Return the usable IOVAs for JSON; None when the kernel does not tell, or there is no IOMMU to ask about."""
    ranges = None if container.no_iommu else container.info().iova_ranges
    return None if ranges is None else [list(span) for span in ranges]


def open_(context: Context, args: dict[str, Any]) -> Outcome:
    """Open a device; values: address, group, iova_ranges."""
    from usdm.vfio import iommu_group

    name = args["device"]
    if args.get("through") == "iommufd":
        context.open_through_iommufd(name)
    else:
        context.open_device(name, args.get("container"), args.get("type"))
    address = context.address(name)
    ranges = _ranges(context.ioas_of(name) or context.container_of(name))
    values = {"address": address, "group": iommu_group(address), "iova_ranges": ranges}
    return Outcome(values=values)


def close(context: Context, args: dict[str, Any]) -> Outcome:
    """Close a device."""
    context.close_device(args["device"])
    return Outcome()


def bus_master(context: Context, args: dict[str, Any]) -> Outcome:
    """Let a device access memory, or not."""
    context.device(args["device"]).set_bus_master(args["enabled"])
    return Outcome()


def container_info(context: Context, args: dict[str, Any]) -> Outcome:
    """Ask the kernel about a device's container; values: counts (mappings_left), iova_ranges."""
    container = context.container_of(args["device"])
    left = container.info().dma_avail
    return Outcome(values={"counts": {"mappings_left": left}, "iova_ranges": _ranges(container)})


def _register(context: Context, fd: int) -> Outcome:
    returns, error = context.api.call("qaeRegisterDevice", fd)
    return Outcome(returns, error=error)


def register(context: Context, args: dict[str, Any]) -> Outcome:
    """Register a device's container, after opening the device when it is not open; values: iova_ranges."""
    context.open_device(args["device"])
    container = context.container_of(args["device"])
    outcome = _register(context, container.fd)
    outcome.values["iova_ranges"] = _ranges(container)
    return outcome


def unregister(context: Context, args: dict[str, Any]) -> Outcome:
    """Undo a registration; the device may be closed by now."""
    context.address(args["device"])
    returns, error = context.api.call("qaeUnregisterDevice", context.container_of(args["device"]).fd)
    return Outcome(returns, error=error)


def register_fd(context: Context, args: dict[str, Any]) -> Outcome:
    """Register something that is no container."""
    kind = args["fd"]
    if kind == "device":
        return _register(context, context.any_device().device.fd)
    if kind == "group":
        name, device = next(iter(context.devices.items()), ("", context.any_device()))
        return _register(context, context.container_of(name).join(device.device.bdf).fd)
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if kind == "closed":
        os.close(fd)
        return _register(context, fd)
    try:
        return _register(context, fd)
    finally:
        os.close(fd)


STEPS: dict[str, Step] = {
    "open": open_,
    "close": close,
    "bus_master": bus_master,
    "container_info": container_info,
    "register": register,
    "unregister": unregister,
    "register_fd": register_fd,
}
