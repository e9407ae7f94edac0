"""Random sequences of USDM calls against a model that knows the rules only."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

sys.path.append(str(Path(__file__).parents[1] / "unit" / "usdm"))

import itertools

from usdm_fake_vfio import MAP, UNMAP, Buffer, FakeContainer, FakeVfio

from usdm import errors
from usdm.driver import Usdm

PAGE, SLAB, KIB, MIB = 4096, 2 << 20, 1024, 1 << 20
AREA = 16  # pages of the program's own memory
RANGES = ((0, 10 * SLAB - 1), (10 * SLAB + SLAB // 2, 64 * SLAB + PAGE - 1))


class Model(RuleBasedStateMachine):
    """The program's view: which mappings and allocations it holds, and where each of them is."""

    def __init__(self) -> None:
        super().__init__()
        self.vfio = FakeVfio()
        self.usdm = Usdm(self.vfio.ioctl)
        self.buffer = Buffer(AREA * PAGE)
        # The ranges are known from here on; memory from before could lie outside them (IovaOutOfRange).
        self.fds = [self.vfio.open(FakeContainer(ranges=RANGES))]
        self.usdm.register_device(self.fds[0])
        self.usdm.unregister_device(self.fds[0])
        self.count = 0
        self.mapped: dict[int, tuple[int, int]] = {}  # page -> (pages, iova)
        self.held: dict[int, tuple[int, int]] = {}  # address -> (size, iova)
        self.freed: list[int] = []

    def expect(self, expected: type[errors.UsdmError] | None, call: object, *args: int) -> int | None:
        try:
            result: int | None = call(*args)  # type: ignore[operator]
        except errors.UsdmError as error:
            if expected is not type(error):
                raise
            return None
        assert expected is None, f"{expected} expected"
        return result

    @precondition(lambda self: self.count == 0)
    @rule(v2=st.booleans())
    def register_first(self, v2: bool) -> None:
        self.fds.append(self.vfio.open(FakeContainer(ranges=RANGES, v2=v2)))
        self.usdm.register_device(self.fds[-1])
        self.count = 1

    @precondition(lambda self: self.count == 0 and self.held)
    @rule()
    def register_fails(self) -> None:
        fd = self.vfio.open(FakeContainer(ranges=RANGES))
        self.vfio.fail(MAP, errno.ENOMEM)
        self.expect(errors.LockedMemoryLimit, self.usdm.register_device, fd)
        assert self.vfio.of(fd).entries == {}

    @precondition(lambda self: self.count > 0)
    @rule()
    def register_again(self) -> None:
        self.usdm.register_device(self.fds[-1])
        self.count += 1

    @rule()
    def unregister(self) -> None:
        self.expect(None if self.count else errors.NotRegistered, self.usdm.unregister_device, self.fds[-1])
        self.count = max(0, self.count - 1)
        if not self.count:
            self.mapped.clear()

    @rule(page=st.integers(0, AREA - 1), pages=st.integers(1, 6), fails=st.booleans())
    def map(self, page: int, pages: int, fails: bool) -> None:
        pages = min(pages, AREA - page)
        expected: type[errors.UsdmError] | None = None
        if not self.count:
            expected = errors.NotRegistered
        elif any(page < p + n and p < page + pages for p, (n, _) in self.mapped.items()):
            expected = errors.AlreadyMapped
        elif fails:
            self.vfio.fail(MAP, errno.ENOSPC)
            expected = errors.TooManyMappings
        iova = self.expect(expected, self.usdm.map, self.buffer.address + page * PAGE, pages * PAGE)
        if iova is not None:
            assert iova % SLAB == 0
            self.mapped[page] = pages, iova

    @rule(page=st.integers(0, AREA - 1), pages=st.integers(1, 6), exact=st.booleans(), fails=st.booleans())
    def unmap(self, page: int, pages: int, exact: bool, fails: bool) -> None:
        if exact and self.mapped:
            page = sorted(self.mapped)[page % len(self.mapped)]
            pages = self.mapped[page][0]
        expected: type[errors.UsdmError] | None = None
        if page in self.mapped:
            if self.mapped[page][0] != pages:
                expected = errors.SizeMismatch
            elif fails:
                self.vfio.fail(UNMAP, errno.EINVAL)
                expected = errors.UnmapFailed
        else:
            inside = any(p < page < p + n for p, (n, _) in self.mapped.items())
            expected = errors.InteriorPointer if inside else errors.NotMapped
        self.expect(expected, self.usdm.unmap, self.buffer.address + page * PAGE, pages * PAGE)
        if expected is None:
            del self.mapped[page]

    @precondition(lambda self: len(self.held) < 20)
    @rule(
        size=st.one_of(st.integers(1, 5000), st.integers(1, 3 * MIB), st.sampled_from([MIB, SLAB - 1, SLAB])),
        shift=st.integers(0, 22),
    )
    def allocate(self, size: int, shift: int) -> None:
        try:
            address = self.usdm.allocate(size, -1, 1 << shift)
        except errors.NoIovaSpace:
            assert len(self.held) + len(self.mapped) > 8
            return
        iova = self.usdm.virt_to_phys(address)
        assert iova % (1 << shift) == 0
        self.held[address] = size, iova
        if address in self.freed:
            self.freed.remove(address)

    @rule(which=st.integers(0, 99), zero=st.booleans())
    def free(self, which: int, zero: bool) -> None:
        if self.held:
            address = list(self.held)[which % len(self.held)]
            self.usdm.free(address, zero)
            del self.held[address]
            self.freed.append(address)

    @rule(which=st.integers(0, 99), offset=st.integers(1, 4 * MIB))
    def free_wrongly(self, which: int, offset: int) -> None:
        if self.held:
            address = list(self.held)[which % len(self.held)]
            inside = address + 1 + offset % self.held[address][0]
            if inside < address + self.held[address][0]:
                self.expect(errors.InteriorPointer, self.usdm.free, inside)
            self.expect(errors.AllocatedMemory, self.usdm.unmap, address & ~(PAGE - 1), PAGE)
        if self.freed:
            again = self.freed[which % len(self.freed)]
            if not any(a <= again < a + size for a, (size, _) in self.held.items()):
                self.expect(errors.DoubleFree, self.usdm.free, again)
        self.expect(errors.NotAllocated, self.usdm.free, self.buffer.address)

    @invariant()
    def translations_are_those_of_the_model(self) -> None:
        start = self.buffer.address
        pages: dict[int, int] = {}
        for page, (count, iova) in self.mapped.items():
            pages.update({page + n: iova + n * PAGE for n in range(count)})
        for page in range(AREA):
            if page in pages:
                assert self.usdm.virt_to_phys(start + page * PAGE + 5) == pages[page] + 5
                assert self.usdm.phys_to_virt(pages[page]) == start + page * PAGE
            else:
                self.expect(errors.NotMapped, self.usdm.virt_to_phys, start + page * PAGE)
        for address, (size, iova) in self.held.items():
            for offset in (0, size // 2, size - 1):
                assert self.usdm.virt_to_phys(address + offset) == iova + offset
                assert self.usdm.phys_to_virt(iova + offset) == address + offset

    @invariant()
    def the_device_sees_what_the_program_holds(self) -> None:
        container = self.vfio.of(self.fds[-1])
        if not self.count:
            assert container.entries == {}
            return
        for page, (count, iova) in self.mapped.items():
            assert container.entries[iova] == (self.buffer.address + page * PAGE, count * PAGE)
        for address, (size, iova) in self.held.items():
            assert container.device_view(iova) == address
            assert container.device_view(iova + size - 1) == address + size - 1
        own = {iova for _, iova in self.mapped.values()}
        for iova, (vaddr, size) in container.entries.items():
            if iova not in own:  # the rest is memory that USDM owns
                assert not (vaddr < self.buffer.address + AREA * PAGE and self.buffer.address < vaddr + size)

    @invariant()
    def nothing_overlaps(self) -> None:
        regions = list(self.usdm._space.regions)
        for key in ("virt", "iova"):
            spans = sorted((getattr(region, key), region.size) for region in regions)
            for (low, size), (high, _) in itertools.pairwise(spans):
                assert low + size <= high

    def teardown(self) -> None:
        self.vfio.failures.clear()
        self.usdm.close()
        assert all(container.entries == {} for container in self.vfio.containers.values())
        self.vfio.close()
        self.buffer.close()


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
