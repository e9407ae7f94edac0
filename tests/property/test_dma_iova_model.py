"""Random sequences of the two-step DMA mapping API beside USDM's own mappings, against a model.

The model is a few dictionaries of what was linked. From them follows which calls are refused and why, and what the
simulated container has mapped, with which access.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.append(str(Path(__file__).parents[1] / "unit" / "usdm"))
from usdm_fake_vfio import MAP, UNMAP, FakeContainer, FakeVfio
from usdm_faulty_kernel import FaultyKernel

from usdm import dma_iova as api
from usdm.driver import Usdm
from usdm.errors import LockedMemoryLimit, TooManyMappings, UsdmError

PAGE, UNIT = 4096, 2 << 20
PAGES = 24  # of the program's memory
# 20 whole units, and a piece of one that nobody can use
RANGES = ((0, 12 * UNIT - 1), (13 * UNIT, 22 * UNIT + 3 * PAGE - 1))
MASK = 6 * UNIT + 2 * PAGE - 1  # of the second device: within a unit that the first one may have
WHOLE = 20 * UNIT
ACCESS = {0: 3, 1: 1, 2: 2}

_byte = st.sampled_from((0, 0, 0, 1, 100, 4095))
_count = st.sampled_from((0, 1, 1, 1, 2, 3))
_page = st.integers(0, PAGES - 4)
_which = st.integers(0, 3)
_place = st.sampled_from((0, 0, 1, 2, 3, 5))
_direction = st.sampled_from((0, 0, 0, 1, 1, 2, 2, 3, 4))
_attrs = st.sampled_from((0, 0, 0, 0, 1 << 5, 1 << 10, 1 << 12, 1, 1 << 13))


def _granules(addr: int, size: int) -> tuple[int, int]:
    """The granules that a piece lies in: the first IOVA, and bytes."""
    return addr // PAGE * PAGE, -(-(addr % PAGE + size) // PAGE) * PAGE


class Container(FakeContainer):
    """Knows with which access something is mapped."""

    def __init__(self, v2: bool) -> None:
        super().__init__(ranges=RANGES, v2=v2)
        self.access: dict[int, int] = {}

    def map(self, vaddr: int, iova: int, size: int, flags: int, check_memory: bool) -> None:
        super().map(vaddr, iova, size, flags, check_memory)
        self.access[iova] = flags


@dataclass
class Link:
    virt: int
    end: int
    direction: int
    synced: bool = False


@dataclass
class Span:
    """A range as the model has it."""

    device: int
    pad: int
    size: int
    addr: int
    links: dict[int, Link] = field(default_factory=dict)

    @property
    def reserved(self) -> tuple[int, int]:
        return _granules(self.addr, self.size)

    def mapping(self, offset: int) -> tuple[int, tuple[int, int]]:
        link = self.links[offset]
        low, length = _granules(self.addr + offset, link.end - offset)
        return low, (link.virt // PAGE * PAGE, length)

    def tiling(self, offset: int, end: int) -> set[str]:
        """Why a part does not consist of whole links."""
        if offset == end:
            return {"BadSize"}
        if end > self.size:
            return {"OutsideRange"}
        wrong, linked = set(), 0
        for start, link in self.links.items():
            common = min(end, link.end) - max(offset, start)
            if common > 0:
                linked += common
                if common < link.end - start:
                    wrong.add("PartOfLink")
        return wrong | ({"NotLinked"} if linked < end - offset else set())


class Model(RuleBasedStateMachine):
    """Two devices in one container: one reaches everything, one is untrusted and reaches 12 MiB and two pages."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = FaultyKernel(FakeVfio())
        self.usdm = Usdm(kernel=self.kernel)
        self.area = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.virt = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.devices = [api.VfioDma(self.usdm), api.VfioDma(self.usdm, dma_mask=MASK, untrusted=True)]
        self.states = [api.DmaIovaState() for _ in range(4)]
        self.spans: dict[int, Span] = {}
        self.singles: dict[int, tuple[int, int, int]] = {}  # IOVA -> memory, size, direction
        self.allocated: list[int] = []
        self.mapped: set[int] = set()
        self.ended = False

    @initialize(v2=st.booleans(), byte=_byte)
    def register(self, v2: bool, byte: int) -> None:
        self.container = Container(v2)
        self.fd = self.kernel.vfio.open(self.container)
        self.usdm.register_device(self.fd)
        for device in (0, 1):
            self.try_alloc(device, device, byte, 40000)

    def teardown(self) -> None:
        self.usdm.close()
        assert self.container.entries == {}
        assert self.usdm.statistics()["iova_free"] == WHOLE
        assert not any(api.dma_use_iova(state) for state in self.states)
        self.kernel.vfio.close()
        self.area.close()

    # ---- calls

    def _held(self) -> tuple[object, ...]:
        stats = self.usdm.statistics()
        infos = [(state.addr, state.size, state.info()) for state in self.states]
        return dict(self.container.entries), infos, stats["iova_free"], stats["container_mappings"]

    def _call(self, wrong: set[str], method: str, device: int, *arguments: object) -> object:
        """Make a call; None when it was refused, as the model says it must be."""
        before = self._held()
        try:
            value = getattr(self.devices[device], method)(*arguments)
        except UsdmError as error:
            if type(error).__name__ not in wrong:
                raise
            assert self._held() == before, "a refused call changed something"
            return None
        assert not wrong, f"{method}{arguments} should have failed: {wrong}"
        return True if value is None else value

    def _state(self, which: int, device: int) -> set[str]:
        if which not in self.spans:
            return {"NoRange"}
        return set() if self.spans[which].device == device else {"WrongDevice"}

    @rule(which=_which, device=st.integers(0, 1), byte=_byte, size=st.sampled_from((0, 1, 5000, 9000, 40000, 1 << 63)))
    def try_alloc(self, which: int, device: int, byte: int, size: int) -> None:
        wrong = {"BadSize"} if size == 0 else {"TooLarge"} if size >> 63 else set()
        if self.ended:
            wrong.add("NotRegistered")
        if which in self.spans:
            wrong.add("RangeInUse")
        if not wrong and not self._room(-(-(byte + size) // PAGE), device):
            wrong.add("NoIovaSpace")
        if self._call(wrong, "try_alloc", device, self.states[which], self.virt + byte, size):
            self.spans[which] = Span(device, byte, size, self.states[which].addr)

    @rule(which=_which, device=st.integers(0, 1), units=st.integers(1, 12))
    def try_alloc_large(self, which: int, device: int, units: int) -> None:
        """Whole units, which are soon used up."""
        if which in self.spans or self.ended:
            return
        largest = self._largest_gap(6 if device else 22)
        wrong = {"NoIovaSpace"} if units > largest else set()
        if self._call(wrong, "try_alloc", device, self.states[which], self.virt, units * UNIT) is None:
            return
        self.spans[which] = Span(device, 0, units * UNIT, self.states[which].addr)

    def _largest_gap(self, last: int) -> int:
        """How many whole units below one are free in one piece."""
        taken = self._units() | {0, 12} | set(range(last, 23))
        edges = sorted(taken)
        return max(after - before - 1 for before, after in itertools.pairwise(edges))

    def _room(self, count: int, device: int) -> bool:
        """Whether some unit has so many free granules in one piece; large ranges have units of their own.

        Of the unit that the mask cuts, only when it is held already: it is not taken for the second device.
        """
        end = MASK + 1 if device else 22 * UNIT
        whole = {span.reserved[0] // UNIT + unit for span in self.spans.values() for unit in range(span.size // UNIT)}
        whole |= {int(one["iova"]) // UNIT for one in self.usdm.maps()} | {12}
        pieces = [span.reserved for span in self.spans.values() if span.size < UNIT]
        pieces += [_granules(addr, size) for addr, (_, size, _) in self.singles.items()]
        for unit in set(range(1, -(-end // UNIT))) - whole:
            inside = [(low, low + size) for low, size in pieces if low // UNIT == unit]
            if not inside and end < (unit + 1) * UNIT:
                continue
            edges = sorted([(unit * UNIT, unit * UNIT), *inside, (unit * UNIT + UNIT, 0)])
            edges = [(min(low, end), high) for low, high in edges]
            if any(after[0] - before[1] >= count * PAGE for before, after in itertools.pairwise(edges)):
                return True
        return False

    @rule(which=_which, device=st.integers(0, 1), data=st.data(), direction=_direction, attrs=_attrs)
    def link(self, which: int, device: int, data: st.DataObject, direction: int, attrs: int) -> None:
        """Anything."""
        place, page, count = data.draw(_place), data.draw(_page), data.draw(_count)
        offset, virt = place * PAGE + data.draw(_byte), self.virt + page * PAGE + data.draw(_byte)
        self._link(which, device, virt, offset, count * PAGE + data.draw(_byte), direction, attrs)

    @precondition(lambda self: self.spans)
    @rule(which=_which, page=_page, count=_count, tail=_byte, direction=st.sampled_from((0, 0, 1, 2)), place=_place)
    def link_as_a_driver(self, which: int, page: int, count: int, tail: int, direction: int, place: int) -> None:
        """At a granule, up to the end of one, or to the end of the range."""
        which = sorted(self.spans)[which % len(self.spans)]
        span = self.spans[which]
        into = span.pad if place == 0 else 0
        offset = 0 if place == 0 else place * PAGE - span.pad
        size = max(1, min(max(count, 1) * PAGE - into - (tail and PAGE - tail), span.size - offset))
        self._link(which, span.device, self.virt + page * PAGE + into, offset, size, direction, 0)

    def _link(self, which: int, device: int, virt: int, offset: int, size: int, direction: int, attrs: int) -> None:
        span, wrong = self.spans.get(which), self._state(which, device)
        if span and not wrong:
            wrong = self._link_refusal(span, virt, offset, size, direction, attrs)
        if self._call(wrong, "link", device, self.states[which], virt, offset, size, direction, attrs):
            self.spans[which].links[offset] = Link(virt, offset + size, direction)

    @staticmethod
    def _link_refusal(span: Span, virt: int, offset: int, size: int, direction: int, attrs: int) -> set[str]:
        end = offset + size
        at = span.pad + offset
        rules = {
            "BadSize": size == 0,
            "OutsideRange": end > span.size,
            "BadDirection": direction > 2,
            "BadAttributes": attrs & ~(1 << 5 | 1 << 10 | 1 << 12),
            "MemoryNotAtGranule": offset and virt % PAGE,
            "OffsetNotAtGranule": offset and at % PAGE,
            "FirstOffset": virt % PAGE != at % PAGE,
            "LinkOverlap": any(offset < link.end and start < end for start, link in span.links.items()),
            "EndNotAtGranule": any(
                (start < offset and (span.pad + link.end) % PAGE) or (start > offset and (span.pad + end) % PAGE)
                for start, link in span.links.items()
            ),
        }
        if span.device == 1 and (virt % PAGE or size % PAGE):
            rules["BounceRefused" if attrs & (1 << 10 | 1 << 12) else "BounceBuffer"] = True
        return {name for name, broken in rules.items() if broken}

    def _part(self, which: int, data: st.DataObject) -> tuple[int, int]:
        """Offset and end of some part, often one that consists of links."""
        span = self.spans.get(which)
        if span is None or not span.links or data.draw(st.sampled_from((False, False, True))):
            offset = data.draw(st.sampled_from((0, PAGE, 3 * PAGE + 1)))
            return offset, offset + data.draw(st.sampled_from((0, 1, PAGE, 2 * PAGE)))
        starts = sorted(span.links)
        first = data.draw(st.integers(0, len(starts) - 1))
        return starts[first], span.links[starts[data.draw(st.integers(first, len(starts) - 1))]].end

    @rule(which=_which, data=st.data(), device=st.sampled_from((None, None, None, 0, 1)))
    def sync(self, which: int, data: st.DataObject, device: int | None) -> None:
        offset, end = self._part(which, data)
        span = self.spans.get(which)
        device = device if device is not None else span.device if span else 0
        wrong = self._state(which, device) or self.spans[which].tiling(offset, end)
        if self._call(wrong, "sync", device, self.states[which], offset, end - offset):
            for start, link in self.spans[which].links.items():
                link.synced = link.synced or offset <= start < end

    @rule(which=_which, data=st.data(), at=st.integers(0, 4), number=st.sampled_from((errno.ENOMEM, errno.ENOSPC)))
    def sync_fails(self, which: int, data: st.DataObject, at: int, number: int) -> None:
        """One of the mappings is refused: none of them is there."""
        span = self.spans.get(which)
        if span is None:
            return
        offset, end = self._part(which, data)
        new = [start for start, link in span.links.items() if offset <= start < end and not link.synced]
        if span.tiling(offset, end) or at >= len(new):
            return
        before = self._held()
        self.kernel.vfio.fail(MAP, number, at)
        with pytest.raises({errno.ENOMEM: LockedMemoryLimit, errno.ENOSPC: TooManyMappings}[number]):
            self.devices[span.device].sync(self.states[which], offset, end - offset)
        assert self._held() == before

    @rule(which=_which, data=st.data(), direction=_direction, linked=st.booleans(), fails=st.sampled_from((0, 0, 0, 1)))
    def unlink(self, which: int, data: st.DataObject, direction: int, linked: bool, fails: int) -> None:
        offset, end = self._part(which, data)
        span = self.spans.get(which)
        if linked and span and offset in span.links:
            direction = span.links[offset].direction
        wrong = self._unlink_refusal(which, offset, end, direction)
        unmaps = span is not None and any(link.synced for at, link in span.links.items() if offset <= at < end)
        calls = len(self.kernel.vfio.calls)
        if fails and unmaps and not wrong:
            self.kernel.vfio.fail(UNMAP, errno.EINVAL)
            wrong = {"UnmapFailed"}
        device = span.device if span else 0
        if self._call(wrong, "unlink", device, self.states[which], offset, end - offset, direction):
            assert len(self.kernel.vfio.calls) - calls == int(unmaps), "one call for all of them"
            self._forget(self.spans[which], offset, end)

    def _unlink_refusal(self, which: int, offset: int, end: int, direction: int) -> set[str]:
        span = self.spans.get(which)
        if span is None:
            return {"NoRange"}
        wrong = span.tiling(offset, end)
        if direction > 2:
            wrong.add("BadDirection")
        elif not wrong and any(link.direction != direction for at, link in span.links.items() if offset <= at < end):
            wrong.add("WrongDirection")
        return wrong

    @staticmethod
    def _forget(span: Span, offset: int, end: int) -> None:
        span.links = {at: link for at, link in span.links.items() if not offset <= at < end}

    @rule(which=_which)
    def free(self, which: int) -> None:
        span = self.spans.get(which)
        wrong = {"NoRange"} if span is None else {"StillLinked"} if span.links else set()
        if self._call(wrong, "free", span.device if span else 0, self.states[which]):
            del self.spans[which]

    @rule(which=_which, data=st.data(), direction=_direction, right=st.booleans())
    def destroy(self, which: int, data: st.DataObject, direction: int, right: bool) -> None:
        span = self.spans.get(which)
        tail = max((link.end for link in span.links.values()), default=0) if span else 0
        mapped_len = tail if right else data.draw(st.sampled_from((0, 1, PAGE, 2 * PAGE, tail)))
        if right and span and span.links:
            direction = span.links[min(span.links)].direction
        wrong = self._unlink_refusal(which, 0, mapped_len, direction) - ({"BadSize"} if mapped_len == 0 else set())
        if span and tail > mapped_len:
            wrong.add("StillLinked")
        calls = len(self.kernel.vfio.calls)
        unmaps = span is not None and any(link.synced for link in span.links.values())
        if self._call(wrong, "destroy", span.device if span else 0, self.states[which], mapped_len, direction):
            assert len(self.kernel.vfio.calls) - calls == int(unmaps), "one call for all of them"
            del self.spans[which]

    # ---- streaming mappings, and USDM's own

    @rule(
        device=st.integers(0, 1), page=_page, byte=_byte, size=st.sampled_from((0, 1, PAGE, 5000)), direction=_direction
    )
    def map_single(self, device: int, page: int, byte: int, size: int, direction: int) -> None:
        virt = self.virt + page * PAGE + byte
        wrong = {"BadSize"} if size == 0 else set()
        if direction > 2:
            wrong.add("BadDirection")
        if device == 1 and (virt % PAGE or size % PAGE):
            wrong.add("BounceBuffer")
        if self.ended:
            wrong.add("NotRegistered")
        if not wrong and not self._room(-(-(byte + size) // PAGE), device):
            wrong.add("NoIovaSpace")
        addr = self._call(wrong, "map_single", device, virt, size, direction)
        if addr is not None:
            assert isinstance(addr, int)
            assert addr % PAGE == virt % PAGE
            assert device == 0 or addr + size - 1 <= MASK
            self.singles[addr] = virt, size, direction

    @precondition(lambda self: self.singles)
    @rule(
        which=_which,
        more=st.sampled_from((0, 0, 0, 1)),
        turn=st.sampled_from((0, 0, 0, 1)),
        off=st.sampled_from((0, 0, 0, 8)),
    )
    def unmap_single(self, which: int, more: int, turn: int, off: int) -> None:
        addr = sorted(self.singles)[which % len(self.singles)]
        _, size, direction = self.singles[addr]
        wrong = {"NotStreamed"} if off else {"StreamedSize"} if more else {"WrongDirection"} if turn else set()
        if self._call(wrong, "unmap_single", which % 2, addr + off, size + more, (direction + turn) % 3):
            del self.singles[addr]

    @precondition(lambda self: not self.ended)
    @rule(page=_page)
    def map_or_unmap(self, page: int) -> None:
        """USDM's own mapping of a page."""
        virt = self.virt + page * PAGE
        with contextlib.suppress(UsdmError):  # NoIovaSpace
            if page in self.mapped:
                self.usdm.unmap(virt, PAGE)
                self.mapped.remove(page)
            else:
                self.usdm.map(virt, PAGE)
                self.mapped.add(page)

    @rule(end=st.sampled_from((0, 0, 0, 0, 1)))
    def unregister(self, end: int) -> None:
        """The domain ends, and all ranges with it; a new one begins."""
        if end and not self.ended:
            self.usdm.unregister_device(self.fd)
            assert self.container.entries == {}
            self.spans.clear()
            self.singles.clear()
            self.mapped.clear()
            self.ended = True
        elif end or self.ended:
            self.usdm.register_device(self.fd)
            self.ended = False

    # ---- what must hold

    def _units(self) -> set[int]:
        """Units of 2 MiB in which something has been given out."""
        spans = [span.reserved for span in self.spans.values()]
        spans += [_granules(addr, size) for addr, (_, size, _) in self.singles.items()]
        spans += [(int(one["iova"]), int(one["size"])) for one in self.usdm.maps()]
        return {unit for low, size in spans for unit in range(low // UNIT, (low + size - 1) // UNIT + 1)}

    @invariant()
    def what_is_mapped(self) -> None:
        if not hasattr(self, "container"):
            return
        expected: dict[int, tuple[int, int]] = {}
        access: dict[int, int] = {}
        for span in self.spans.values():
            for start, link in span.links.items():
                if link.synced:
                    iova, where = span.mapping(start)
                    expected[iova], access[iova] = where, ACCESS[link.direction]
        for addr, (virt, size, direction) in self.singles.items():
            low, length = _granules(addr, size)
            expected[low] = virt // PAGE * PAGE, length
            access[low] = ACCESS[direction]
        if not self.ended:
            own = {int(one["iova"]): (int(one["virt"]), int(one["size"])) for one in self.usdm.maps()}
            assert not own.keys() & expected.keys()
            expected |= own
            access |= dict.fromkeys(own, 3)
        assert self.container.entries == expected
        assert {iova: self.container.access[iova] for iova in expected} == access
        assert self.usdm.statistics()["container_mappings"] == len(expected)

    @invariant()
    def what_is_reserved(self) -> None:
        if not hasattr(self, "container"):
            return
        spans = [span.reserved for span in self.spans.values()]
        spans += [_granules(addr, size) for addr, (_, size, _) in self.singles.items()]
        spans += [(int(one["iova"]), UNIT) for one in self.usdm.maps()]
        end = 0
        for low, size in sorted(spans):
            assert low >= end, "two have the same IOVAs"
            end = low + size
            assert any(first <= low and end - 1 <= last for first, last in RANGES)
        for span in self.spans.values():
            assert span.device == 0 or sum(span.reserved) - 1 <= MASK
        if not self.ended and not spans:
            assert self.usdm.statistics()["iova_free"] == WHOLE
        for which, state in enumerate(self.states):
            span = self.spans.get(which)
            assert (state.addr, state.size) == ((span.addr, span.size) if span else (0, 0))
            if span:
                synced = sum(link.synced for link in span.links.values())
                counts = {"in_use": 1, "links": len(span.links), "synced": synced, "mappings": synced}
                assert state.info() == {**counts, "reserved": span.reserved[1]}


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
