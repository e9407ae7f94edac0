"""Random sequences of icp_sal_iommu beside USDM's own allocations and mappings, against a model.

The model is a dictionary from IOVA page to frame. What the simulated kernel has mapped is compared with it: which frame
a device would reach at each page.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.append(str(Path(__file__).parents[1] / "unit" / "usdm"))
from usdm_fake_vfio import FakeContainer, FakeVfio
from usdm_faulty_kernel import FaultyKernel

from usdm.driver import Usdm
from usdm.errors import UsdmError

PAGE, SLAB = 4096, 2 << 20
PAGES = 16  # of the program's memory
FRAME = 13 * 512 + 500  # frames of the program begin here, and cross a unit of 2 MiB; some numbers are nobody's
# Two ranges that do not end at whole units: 24 MiB, and up to 40 MiB
RANGES = ((0, 24 * (1 << 20) - 1), (25 * (1 << 20), 40 * (1 << 20) + 3 * PAGE - 1))
WHOLE = {unit for unit in range(1, 20) if unit != 12}

_place = st.sampled_from([unit * 512 + page for unit in (0, 1, 3, 4, 11, 12, 13, 19, 20) for page in (0, 1, 510, 511)])
_count = st.sampled_from((1, 1, 2, 3, 5))
_which = st.integers(0, 7)


class Remapping(RuleBasedStateMachine):
    """A process on simulated system calls, and what it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = FaultyKernel(FakeVfio())
        self.usdm = Usdm(kernel=self.kernel)
        self.container = FakeContainer(ranges=RANGES)
        self.fd = self.kernel.vfio.open(self.container)
        self.area = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.virt = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.frames: list[int] = []
        self.reached: dict[int, int] = {}  # IOVA page -> frame, of entries
        self.entries: dict[int, int] = {}  # first IOVA page -> pages
        self.mapped: list[tuple[int, int]] = []  # of the program's memory: page, pages
        self.allocated: list[int] = []
        self.registered = 0

    @initialize(order=st.permutations(range(PAGES)), gap=st.integers(1, PAGES))
    def layout(self, order: list[int], gap: int) -> None:
        """Frames in any order, with a hole that is somebody else's."""
        self.frames = [FRAME + number + (number >= gap) for number in order]
        self.kernel.frames.give(self.virt, self.frames)
        self.register()

    def teardown(self) -> None:
        self.usdm.close()
        assert self.container.entries == {}
        self.kernel.vfio.close()
        self.area.close()

    # ---- what the model says

    def _own_units(self) -> set[int]:
        """Units that the kernel has mapped for something else than entries."""
        spans = [(iova, size) for iova, (_, size) in self.container.entries.items() if iova // PAGE not in self.reached]
        return {unit for iova, size in spans for unit in range(iova // SLAB, (iova + size - 1) // SLAB + 1)}

    def _refusal(self, first: int, iova: int, count: int) -> set[str]:
        if not self.registered:
            return {"NotRegistered"}
        wrong = set()
        if not any(low <= iova * PAGE and (iova + count) * PAGE - 1 <= high for low, high in RANGES):
            wrong.add("IovaReserved")
        units = set(range(iova // 512, (iova + count - 1) // 512 + 1))
        if units & self._own_units() or any(page in self.reached for page in range(iova, iova + count)):
            wrong.add("IovaTaken")
        if not set(range(first, first + count)) <= set(self.frames):
            wrong.add("ForeignMemory")
        return wrong

    def _call(self, wrong: set[str], call: str, *arguments: int) -> int | None:
        before = dict(self.container.entries), self.usdm.remappings(), self.usdm.statistics()["iova_free"]
        try:
            value: int | None = getattr(self.usdm, call)(*arguments)
        except UsdmError as error:
            if type(error).__name__ not in wrong:
                raise
            after = dict(self.container.entries), self.usdm.remappings(), self.usdm.statistics()["iova_free"]
            assert after == before, "a refused call changed something"
            return None
        assert not wrong, f"{call}{arguments} should have failed: {wrong}"
        return value if value is not None else 1

    # ---- what happens

    @rule(number=st.integers(-1, PAGES), iova=_place, count=_count, one_to_one=st.booleans())
    def remap(self, number: int, iova: int, count: int, one_to_one: bool) -> None:
        first = FRAME + number
        iova = first if one_to_one else iova
        if self._call(self._refusal(first, iova, count), "remap", first * PAGE, iova * PAGE, count * PAGE):
            self.entries[iova] = count
            self.reached.update((iova + page, first + page) for page in range(count))

    @precondition(lambda self: self.entries)
    @rule(which=_which, following=st.integers(0, 2))
    def unremap(self, which: int, following: int) -> None:
        first = sorted(self.entries)[which % len(self.entries)]
        end = first + self.entries[first]
        for _ in range(following):
            end += self.entries.get(end, 0)
        assert self._call(set(), "unremap", first * PAGE, (end - first) * PAGE)
        for page in range(first, end):
            del self.reached[page]
            self.entries.pop(page, None)

    @precondition(lambda self: self.entries)
    @rule(which=_which, start=st.integers(-1, 1), end=st.integers(-1, 1))
    def unremap_near(self, which: int, start: int, end: int) -> None:
        """A range that meets or cuts an entry."""
        first = sorted(self.entries)[which % len(self.entries)]
        stop = first + self.entries[first] + end
        if 0 <= first + start < stop:
            self.unremap_any(first + start, stop - first - start)

    @rule(iova=_place, count=_count)
    def unremap_any(self, iova: int, count: int) -> None:
        """Anything: it works when the ends are ends of entries and no page in between is missing."""
        wrong = set() if self.registered else {"NotRegistered"}
        ends = {first + pages for first, pages in self.entries.items()}
        if self.registered and not (iova in self.entries and iova + count in ends):
            wrong |= {"NotRemapped", "PartOfEntry"}
        if self.registered and any(page not in self.reached for page in range(iova, iova + count)):
            wrong |= {"NotRemapped", "PartOfEntry"}
        if self._call(wrong, "unremap", iova * PAGE, count * PAGE):
            for page in range(iova, iova + count):
                del self.reached[page]
                self.entries.pop(page, None)

    @rule(page=st.integers(0, PAGES - 1), count=_count)
    def map(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        wrong = set() if self.registered else {"NotRegistered"}
        if any(page < other + pages and other < page + count for other, pages in self.mapped):
            wrong.add("AlreadyMapped")
        free = WHOLE - self._own_units() - {iova // 512 for iova in self.reached}
        if self.registered and not free:
            wrong.add("NoIovaSpace")
        iova = self._call(wrong, "map", self.virt + page * PAGE, count * PAGE)
        if iova:
            assert iova // SLAB in free, "an IOVA of an entry was given out"
            self.mapped.append((page, count))

    @precondition(lambda self: self.mapped)
    @rule(which=_which)
    def unmap(self, which: int) -> None:
        page, count = self.mapped.pop(which % len(self.mapped))
        self.usdm.unmap(self.virt + page * PAGE, count * PAGE)

    @precondition(lambda self: len(self.allocated) < 4 and len(self.mapped) < 8)
    @rule(size=st.sampled_from((PAGE, SLAB - 1, SLAB)))
    def allocate(self, size: int) -> None:
        self.allocated.append(self.usdm.allocate(size))

    @precondition(lambda self: self.allocated)
    @rule(which=_which)
    def free(self, which: int) -> None:
        self.usdm.free(self.allocated.pop(which % len(self.allocated)))

    @rule()
    def register(self) -> None:
        # Memory from before has IOVAs that this small IOMMU may not have.
        if self.registered or not self.allocated:
            self.usdm.register_device(self.fd)
            self.registered += 1

    @precondition(lambda self: self.registered and not self.allocated)
    @rule()
    def unregister(self) -> None:
        self.usdm.unregister_device(self.fd)
        self.registered -= 1
        if not self.registered:
            self.reached.clear()
            self.entries.clear()
            self.mapped.clear()

    # ---- what must hold

    @invariant()
    def devices_reach_what_they_should(self) -> None:
        for iova, frame in self.reached.items():
            virt = self.container.device_view(iova * PAGE)
            assert virt is not None, f"no mapping at {iova * PAGE:#x}"
            assert self.kernel.frames.frames[virt // PAGE] == frame
        users = {(self.virt + page * PAGE, pages * PAGE) for page, pages in self.mapped}
        others = [one for iova, one in self.container.entries.items() if iova // PAGE not in self.reached]
        assert users == {one for one in others if self.virt <= one[0] < self.virt + PAGES * PAGE}

    @invariant()
    def nothing_of_the_iova_space_is_lost(self) -> None:
        told = self.usdm.statistics()
        assert (told["remapped"], told["bytes_remapped"]) == (len(self.entries), len(self.reached) * PAGE)
        if self.registered:
            taken = WHOLE & (self._own_units() | {iova // 512 for iova in self.reached})
            assert told["iova_free"] == (len(WHOLE) - len(taken)) * SLAB
            assert told["container_mappings"] == len(self.container.entries)


TestRemapping = Remapping.TestCase
TestRemapping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
