"""The program that runs in the guest: 1,024 scattered pages mapped as one range, and by a call each.

It reads its options as JSON from its argument and writes what it measured as one line of JSON. It needs the standard
library and the payload only: ``python3 -I - OPTIONS < iova_in_guest.py``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import random
import sys
from collections import Counter
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PAYLOAD = "/run/payload"
PAGE, COUNT = 4096, 1024
NAMES = {0x3B71: "map", 0x3B72: "unmap", 0x3B85: "map", 0x3B86: "unmap"}


class Way:
    """One way to map all pages: `map` and `unmap` do it for all, `used` gives the bytes of IOVAs that are taken."""

    def __init__(self, name: str, map_all: Callable[[], None], unmap_all: Callable[[], None], used: Callable[[], int]):
        self.name, self.map, self.unmap, self.used = name, map_all, unmap_all, used


def right(value: int, wanted: int = 0) -> None:
    """Look at the result of a call."""
    if value != wanted:
        raise RuntimeError(f"the call gave {value}")


def one_range(api: Any, dev: Any, pages: list[int], used: Callable[[], int]) -> Way:
    """One range: alloc, a link a page, one sync; one destroy."""
    state = api.DmaIovaState()
    link, both = api.dma_iova_link, api.DMA_BIDIRECTIONAL

    def map_all() -> None:
        right(api.dma_iova_try_alloc(dev, state, pages[0], COUNT * PAGE), True)
        offset = 0
        for page in pages:
            if link(dev, state, page, offset, PAGE, both):
                raise RuntimeError(str(api.last_error()))
            offset += PAGE
        right(api.dma_iova_sync(dev, state, 0, COUNT * PAGE))

    def unmap_all() -> None:
        api.dma_iova_destroy(dev, state, COUNT * PAGE, both)

    return Way("one range", map_all, unmap_all, used)


def singles(api: Any, dev: Any, pages: list[int], used: Callable[[], int]) -> Way:
    """A streaming mapping a page."""
    addresses: list[int] = []
    both = api.DMA_BIDIRECTIONAL

    def map_all() -> None:
        for page in pages:
            address = api.dma_map_single(dev, page, PAGE, both)
            if address == api.DMA_MAPPING_ERROR:
                raise RuntimeError(str(api.last_error()))
            addresses.append(address)

    def unmap_all() -> None:
        for address in addresses:
            api.dma_unmap_single(dev, address, PAGE, both)
        addresses.clear()

    return Way("dma_map_single", map_all, unmap_all, used)


def contiguous(driver: Any, pages: list[int], used: Callable[[], int]) -> Way:
    """USDM's own mapping a page, which takes 2 MiB of IOVAs each."""

    def map_all() -> None:
        for page in pages:
            driver.map(page, PAGE)

    def unmap_all() -> None:
        for page in pages:
            driver.unmap(page, PAGE)

    return Way("qaeMemMapContiguousIova", map_all, unmap_all, used)


class Calls:
    """Counts maps and unmaps of a kernel while it is asked to."""

    def __init__(self, kernel: Any) -> None:
        self.seen: Counter[str] = Counter()
        self._real = kernel.ioctl

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """As the kernel's, counted."""
        self.seen[NAMES.get(request, "other")] += 1
        return int(self._real(fd, request, argument))


def measure(ways: list[Way], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each way in each round; in a round they take turns, so that a busy host hits all alike."""
    seconds: dict[str, dict[str, list[float]]] = {way.name: {"map": [], "unmap": []} for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            started = perf_counter()
            way.map()
            between = perf_counter()
            way.unmap()
            ended = perf_counter()
            if number:  # the first round pays for what is done once
                seconds[way.name]["map"].append(between - started)
                seconds[way.name]["unmap"].append(ended - between)
    return seconds


def count(way: Way, calls: Calls) -> dict[str, int]:
    """Return how often the kernel was called, and what was taken."""
    before = way.used()
    calls.seen.clear()
    way.map()
    taken, mapped = way.used() - before, dict(calls.seen)
    calls.seen.clear()
    way.unmap()
    if way.used() != before:
        raise RuntimeError(f"{way.name}: {way.used() - before} bytes of IOVAs were left")
    return {"map calls": mapped.get("map", 0), "unmap calls": calls.seen["unmap"], "IOVA bytes": taken}


def over_vfio(pages: list[int], bdf: str) -> Callable[[Any], tuple[list[Way], Callable[[], None]]]:
    """Return what opens a container with a kernel and gives its ways, and what ends them."""
    from usdm import dma_iova as api
    from usdm.driver import Usdm
    from usdm.vfio import Container

    def begin(kernel: Any) -> tuple[list[Way], Callable[[], None]]:
        driver, container = Usdm(kernel=kernel), Container()
        container.open_device(bdf)
        driver.register_device(container.fd)
        dev = api.VfioDma(driver)

        def used() -> int:
            return -int(driver.statistics()["iova_free"])

        def end() -> None:
            driver.close()
            container.close()

        ways = [one_range(api, dev, pages, used), singles(api, dev, pages, used), contiguous(driver, pages, used)]
        return ways, end

    return begin


def over_iommufd(pages: list[int], bdf: str) -> Callable[[Any], tuple[list[Way], Callable[[], None]]]:
    """As `over_vfio`, for an IOAS."""
    from usdm import dma_iova as api
    from usdm.dma_iommufd import IommufdDma
    from usdm.iommufd import Iommufd

    def begin(kernel: Any) -> tuple[list[Way], Callable[[], None]]:
        iommufd = Iommufd(kernel)
        ioas = iommufd.alloc_ioas()
        iommufd.open_device(bdf).attach(ioas)
        dev, domain = IommufdDma(ioas), ioas.dma_domain()

        def used() -> int:
            return int(domain.granules.held)

        return [one_range(api, dev, pages, used), singles(api, dev, pages, used)], iommufd.close

    return begin


def main() -> None:
    """Measure each way of each backend."""
    options = json.loads(sys.argv[1])
    sys.path.insert(0, PAYLOAD)
    from harness.agent import pci
    from usdm.kernel import Kernel

    pci.bind(options["device"])
    area = mmap.mmap(-1, 2 * COUNT * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = ctypes.addressof(ctypes.c_char.from_buffer(area))
    area.madvise(15)  # MADV_NOHUGEPAGE: pages of their own
    for page in range(2 * COUNT):
        area[page * PAGE] = 1
    # every second page, in no order: none follows another one
    pages = [first + 2 * page * PAGE for page in range(COUNT)]
    random.Random(8).shuffle(pages)
    results: dict[str, Any] = {}
    for backend, begin in (("VFIO", over_vfio), ("IOMMUFD", over_iommufd)):
        if backend not in options["backends"]:
            continue
        opened = begin(pages, options["device"])
        counting = Kernel()
        calls = Calls(counting)
        counting.ioctl = calls.ioctl
        ways, end = opened(counting)
        counts = {way.name: count(way, calls) for way in ways}
        end()
        ways, end = opened(Kernel())
        for name, seconds in measure(ways, options["rounds"]).items():
            results[f"{backend}: {name}"] = {"counts": counts[name], "seconds": seconds}
        end()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
