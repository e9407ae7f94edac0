"""Steps in which a device accesses memory, and mappings of its container beside USDM."""

from __future__ import annotations

from harness.agent.outcome import NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def _dma(context: Context, args: dict[str, Any], *, write: bool) -> Outcome:
    device = context.device(args["device"])
    iova = context.iova(args)
    said = device.dma(iova, args["size"], args.get("device_offset", 0), write=write)
    # The device's word only: it completes a DMA that the IOMMU has refused as well.
    values: dict[str, Any] = {"iova": iova, "completed": True}
    if said is not None:
        values["status"] = said.status
        if said.refused is not None:
            values["refused"] = said.refused
    return Outcome(values=values)


def dma_read(context: Context, args: dict[str, Any]) -> Outcome:
    """The device reads memory; values: iova, completed, of a qat status and refused."""
    return _dma(context, args, write=False)


def dma_write(context: Context, args: dict[str, Any]) -> Outcome:
    """The device writes memory; values: iova, completed, of a qat status and refused."""
    return _dma(context, args, write=True)


def container_map(context: Context, args: dict[str, Any]) -> Outcome:
    """VFIO_IOMMU_MAP_DMA beside USDM; values: iova."""
    context.device(args["device"])
    buffer = context.buffer(args["buffer"])
    address = buffer.place(args.get("offset", 0))
    if address is None:
        raise NotAccessible(f"'{buffer.name}' is NULL")
    iova: int = args["iova"]
    access = args["access"]
    context.container_of(args["device"]).map_dma(
        address, iova, args["size"], read=access != "write", write=access != "read"
    )
    buffer.iova = iova - args.get("offset", 0)
    return Outcome(values={"iova": iova})


def container_unmap(context: Context, args: dict[str, Any]) -> Outcome:
    """VFIO_IOMMU_UNMAP_DMA beside USDM; values: size, as the kernel says."""
    context.device(args["device"])
    container = context.container_of(args["device"])
    return Outcome(values={"size": container.unmap_dma(args["iova"], args["size"])})


STEPS: dict[str, Step] = {
    "dma_read": dma_read,
    "dma_write": dma_write,
    "container_map": container_map,
    "container_unmap": container_unmap,
}
