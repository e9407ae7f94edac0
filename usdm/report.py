"""What USDM holds, as plain data for people who debug."""

from __future__ import annotations

from usdm.limits import UNIT
from usdm.regions import LargeAllocation
from usdm.slab import Slab

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.heap import Heap
    from usdm.regions import Region
    from usdm.settings import Settings
    from usdm.space import AddressSpace


def statistics(space: AddressSpace, heap: Heap, chosen: Settings) -> dict[str, int | str]:
    """Return counts, and sizes in bytes.

    Keys: `mode` (`4K`, `2M`, with `thread` behind it in thread-specific mode), `hugepages_ignored` (a value of the
    environment that is no number of hugepages), `hugepages_used` and `hugepages_quota`, `allocations` with their
    `bytes_asked` and `bytes_held`, `slabs`, `slabs_cached` (empty ones), `blocks_waiting` (freed, for an equal
    request), `large`, `mappings` and `bytes_mapped` (of the program's memory), `container_mappings` (all of USDM's in
    the container), `container_mappings_left` (as the kernel tells; -1: not told), `iova_free`, `iova_largest_gap`,
    `pages_left` (bytes that the kernel did not take back yet), `iommu` (of the registered container: `yes`, `no`, or
    empty without one), `remapped` and `bytes_remapped` (entries of `icp_sal_iommu`), `maps` and `unmaps` (done so far,
    one way or another).
    `Usdm.statistics` adds `registrations`, and `failed` (calls of map and unmap that were refused).
    """
    counts = {"allocations": 0, "bytes_asked": 0, "bytes_held": 0, "large": 0, "mappings": 0, "bytes_mapped": 0}
    for region in space.regions:
        if not region.owned:
            counts["mappings"] += 1
            counts["bytes_mapped"] += region.size
            continue
        blocks, asked, held = _use(region)
        counts["large"] += isinstance(region, LargeAllocation)
        counts["allocations"] += blocks
        counts["bytes_asked"] += asked
        counts["bytes_held"] += held
    pages, container = heap.pages, space.container
    mapped = container is not None and not container.no_iommu
    ranged = 0 if space.dma is None else space.dma.mappings
    return {
        "mode": ("2M" if pages.quota else "4K") + (" thread" if chosen.thread_specific else ""),
        "hugepages_ignored": chosen.ignored,
        "hugepages_used": pages.held if pages.quota else 0,
        "hugepages_quota": pages.quota,
        **counts,
        "slabs": heap.slabs,
        "slabs_cached": heap.cached,
        "blocks_waiting": heap.waiting(),
        "iommu": "" if container is None else "yes" if mapped else "no",
        "remapped": len(space.entries),
        "bytes_remapped": sum(entry.size for entry in space.entries.all()),
        "container_mappings": len(space.regions) + space.entries.mappings + ranged if mapped else 0,
        "container_mappings_left": container.mappings_left() if container is not None and mapped else -1,
        "iova_free": space.iovas.free,
        "iova_largest_gap": space.iovas.largest,
        "pages_left": pages.left,
        "maps": space.maps,
        "unmaps": space.maps - counts["mappings"],
    }


def maps(space: AddressSpace) -> list[dict[str, int | str]]:
    """Return one dict a region, by ascending virtual address.

    Keys: `kind` (`slab`, `large`, `user`), `virt`, `size`, `iova`, `node` (asked for; -1: any), `blocks` (how many
    allocations are in it; 0 for `user`), `used` (bytes of them), `mapped` (1 when the container maps it).
    """
    mapped = int(space.container is not None and not space.container.no_iommu)
    found: list[dict[str, int | str]] = []
    for region in space.regions:
        blocks, _, used = _use(region)
        where: dict[str, int | str] = {"kind": region.kind, "virt": region.virt, "size": region.size}
        found.append(
            {**where, "iova": region.iova, "node": region.node, "blocks": blocks, "used": used, "mapped": mapped}
        )
    return found


def _use(region: Region) -> tuple[int, int, int]:
    """Return how many allocations a region holds, the bytes asked for, and those taken."""
    if isinstance(region, Slab):
        blocks = list(region.blocks.values())
        return len(blocks), sum(block.size for block in blocks), UNIT * sum(block.length for block in blocks)
    if isinstance(region, LargeAllocation):
        return 1, region.asked, region.size
    return 0, 0, region.size
