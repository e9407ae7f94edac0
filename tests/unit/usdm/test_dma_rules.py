"""The rules of links in a range: what each refusal says, and that it changes nothing."""

from __future__ import annotations

import enum
import errno

import pytest
from usdm_dma_case import BOTH, FIRST, NONE, PAD, PAGE, SIZE, TO, Case
from usdm_fake_vfio import Factory, FakeVfio

from usdm import dma_iova as api
from usdm.driver import Usdm


@pytest.fixture
def case(vfio: FakeVfio, usdm: Usdm, fd: int, buffer: Factory) -> Case:
    return Case(vfio, usdm, fd, buffer(16 * PAGE))


# ---- link

LINKS = [
    # virt (relative to the buffer), offset, size, direction, attributes; error, number
    ((PAD, 0, 0, BOTH, 0), "BadSize", errno.EINVAL),
    ((PAD, 0, SIZE + 1, BOTH, 0), "OutsideRange", errno.EINVAL),
    ((0, 4 * PAGE - PAD, 1, BOTH, 0), "OutsideRange", errno.EINVAL),
    ((0, 1 << 64, PAGE, BOTH, 0), "BadArgument", errno.EINVAL),
    ((PAD, 0, FIRST, NONE, 0), "BadDirection", errno.EINVAL),
    ((PAD, 0, FIRST, 4, 0), "BadDirection", errno.EINVAL),
    ((PAD, 0, FIRST, True, 1), "BadDirection", errno.EINVAL),
    ((PAD, 0, FIRST, [], 0), "BadDirection", errno.EINVAL),
    ((PAD, 0, FIRST, BOTH, 1), "BadAttributes", errno.EINVAL),
    ((PAD, 0, FIRST, BOTH, 1 << 13), "BadAttributes", errno.EINVAL),
    ((PAD, 0, FIRST, BOTH, None), "BadArgument", errno.EINVAL),
    ((PAGE + 1, FIRST, 100, BOTH, 0), "MemoryNotAtGranule", errno.EIO),
    ((PAD, 1, 100, BOTH, 0), "MemoryNotAtGranule", errno.EIO),
    ((PAGE, FIRST + 1, 100, BOTH, 0), "OffsetNotAtGranule", errno.EINVAL),
    ((PAGE, PAGE, 100, BOTH, 0), "OffsetNotAtGranule", errno.EINVAL),
    ((0, 0, FIRST, BOTH, 0), "FirstOffset", errno.EINVAL),
    ((PAD + 1, 0, FIRST, BOTH, 0), "FirstOffset", errno.EINVAL),
    ((PAD, -1, FIRST, BOTH, 0), "BadArgument", errno.EINVAL),
    ((PAD, 0, -1, BOTH, 0), "BadArgument", errno.EINVAL),
    ((0.5, 0, FIRST, BOTH, 0), "BadArgument", errno.EINVAL),
]


@pytest.mark.parametrize(("arguments", "error", "number"), LINKS)
def test_a_link_that_breaks_a_rule(case: Case, arguments: tuple[int, ...], error: str, number: int):
    case.alloc()
    virt, *rest = arguments
    link = lambda: api.dma_iova_link(case.dev, case.state, case.virt + virt, *rest)  # noqa: E731
    assert case.refused(link, error) == -number


@pytest.mark.parametrize(
    ("virt", "offset", "size", "direction", "error"),
    [
        (PAGE, PAGE, PAGE, NONE, "BadDirection"),
        (PAGE, PAGE, PAGE, 4, "BadDirection"),
        (PAGE, PAGE, PAGE, [], "BadDirection"),
        (PAGE + 1, PAGE, PAGE, BOTH, "MemoryNotAtGranule"),
        (PAGE, PAGE, 2 * PAGE + 1, BOTH, "OutsideRange"),
        (PAGE, 2 * PAGE, 0, BOTH, "BadSize"),
    ],
)
def test_a_link_behind_whole_granules(case: Case, virt: int, offset: int, size: int, direction: int, error: str):
    """The place where a link usually goes, and where few checks are made."""
    case.alloc(3 * PAGE, 0)
    assert api.dma_iova_link(case.dev, case.state, case.virt, 0, PAGE, BOTH) == 0
    link = lambda: api.dma_iova_link(case.dev, case.state, case.virt + virt, offset, size, direction)  # noqa: E731
    assert case.refused(link, error) in (-errno.EINVAL, -errno.EIO)


class Way(enum.IntEnum):
    TO = 1


@pytest.mark.parametrize("pad", [0, PAD], ids=["few checks", "all checks"])
@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (1, False, "BadArgument"),
        (1, 0.0, "BadArgument"),
        (2, True, "BadArgument"),
        (3, True, "BadDirection"),
        (3, 1.0, "BadDirection"),
        (4, None, "BadArgument"),
        (4, False, "BadArgument"),
        (4, 0.0, "BadArgument"),
    ],
)
def test_what_only_equals_an_integer(case: Case, pad: int, at: int, value: int, error: str):
    case.alloc(PAGE, pad)
    arguments = [case.virt + pad, 0, PAGE - pad, TO, 0]
    arguments[at] = value
    assert case.refused(lambda: api.dma_iova_link(case.dev, case.state, *arguments), error) == -errno.EINVAL


@pytest.mark.parametrize("pad", [0, PAD], ids=["few checks", "all checks"])
def test_an_integer_of_a_class_of_its_own(case: Case, pad: int):
    case.alloc(PAGE, pad)
    assert api.dma_iova_link(case.dev, case.state, case.virt + pad, 0, PAGE - pad, Way.TO) == 0
    assert type(case.state.range.links[0][1]) is int
    api.dma_iova_unlink(case.dev, case.state, 0, PAGE - pad, Way.TO)
    assert api.last_error() is None
    addr = api.dma_map_single(case.dev, case.virt, PAGE, Way.TO)
    api.dma_unmap_single(case.dev, addr, PAGE, Way.TO)
    assert api.last_error() is None


def test_a_state_of_a_class_of_its_own(case: Case):
    class State(api.DmaIovaState):
        pass

    case.state = State()
    case.linked()


@pytest.mark.parametrize(("virt", "error"), [(0, "NullAddress"), (None, "NullAddress"), ("x", "BadArgument")])
def test_memory_that_is_none(case: Case, virt: int, error: str):
    case.alloc(PAGE, 0)
    assert case.refused(lambda: api.dma_iova_link(case.dev, case.state, virt, 0, PAGE, BOTH), error) == -errno.EINVAL


def test_memory_at_the_end_of_the_address_space(case: Case):
    case.alloc(2 * PAGE, 0)
    top = (1 << 64) - PAGE
    link = lambda: api.dma_iova_link(case.dev, case.state, top, 0, 2 * PAGE, BOTH)  # noqa: E731
    assert case.refused(link, "RangeOverflow") == -errno.EINVAL
    assert api.dma_iova_link(case.dev, case.state, top, 0, PAGE, BOTH) == 0
    assert api.dma_iova_sync(case.dev, case.state, 0, PAGE) == -errno.EFAULT


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, FIRST), (0, FIRST + PAGE), (FIRST, PAGE), (FIRST, 2 * PAGE), (FIRST + PAGE, PAGE), (0, SIZE)],
)
def test_an_overlap(case: Case, offset: int, size: int):
    case.linked()
    virt = case.page(4) + (PAD if offset == 0 else 0)
    link = lambda: api.dma_iova_link(case.dev, case.state, virt, offset, size, BOTH)  # noqa: E731
    assert case.refused(link, "LinkOverlap") == -errno.EADDRINUSE


def test_links_in_any_order(case: Case):
    case.alloc(8 * PAGE, 0)
    for at in (5, 1, 7, 0, 3, 6, 2, 4):
        assert api.dma_iova_link(case.dev, case.state, case.page(at + 8), at * PAGE, PAGE, BOTH) == 0
    assert api.dma_iova_sync(case.dev, case.state, 0, 8 * PAGE) == 0
    assert [call[1] - case.state.addr for call in case.vfio.calls] == [at * PAGE for at in range(8)]
    assert case.vfio.of(case.fd).device_view(case.state.addr + 5 * PAGE) == case.page(13)


COHERENT, MMIO, SKIP = api.DMA_ATTR_REQUIRE_COHERENT, api.DMA_ATTR_MMIO, api.DMA_ATTR_SKIP_CPU_SYNC


@pytest.mark.parametrize(
    ("pad", "size", "attrs", "error", "number"),
    [
        (PAD, FIRST, 0, "BounceBuffer", errno.EOPNOTSUPP),
        (0, 100, 0, "BounceBuffer", errno.EOPNOTSUPP),
        (PAD, PAGE, SKIP, "BounceBuffer", errno.EOPNOTSUPP),
        (0, 100, MMIO, "BounceRefused", errno.EPERM),
        (0, 100, COHERENT, "BounceRefused", errno.EPERM),
    ],
)
def test_an_untrusted_device(case: Case, pad: int, size: int, attrs: int, error: str, number: int):
    """Linux 7.2 refuses both attributes with EPERM; the rest it would bounce."""
    case.dev = api.VfioDma(case.usdm, untrusted=True)
    case.alloc(2 * PAGE, pad)
    link = lambda: api.dma_iova_link(case.dev, case.state, case.virt + pad, 0, size, BOTH, attrs)  # noqa: E731
    assert case.refused(link, error) == -number
    single = lambda: api.dma_map_single(case.dev, case.virt + pad, size, BOTH, attrs)  # noqa: E731
    assert case.refused(single, error) == api.DMA_MAPPING_ERROR
    assert api.dma_map_single(case.dev, case.page(3), PAGE, BOTH, attrs) != api.DMA_MAPPING_ERROR


def test_an_untrusted_device_and_the_second_granule_of_an_unaligned_range(case: Case):
    """A link may end at a granule of the IOVA space only when it is whole granules of memory."""
    case.dev = api.VfioDma(case.usdm, untrusted=True)
    case.alloc(SIZE, PAD)
    link = lambda: api.dma_iova_link(case.dev, case.state, case.page(1), FIRST, PAGE - FIRST, BOTH)  # noqa: E731
    assert case.refused(link, "BounceBuffer") == -errno.EOPNOTSUPP
    assert api.dma_iova_link(case.dev, case.state, case.page(1), FIRST, PAGE, BOTH) == 0


@pytest.mark.parametrize("attrs", [MMIO, COHERENT, SKIP, MMIO | SKIP | COHERENT])
def test_attributes_that_are_known(case: Case, attrs: int):
    case.alloc(PAGE, 0)
    assert api.dma_iova_link(case.dev, case.state, case.virt, 0, PAGE, BOTH, attrs) == 0
    assert api.dma_iova_sync(case.dev, case.state, 0, PAGE) == 0
    api.dma_iova_destroy(case.dev, case.state, PAGE, BOTH, attrs)
    assert api.last_error() is None


# ---- sync, unlink, destroy, free

PARTS = [
    ((0, 0), "BadSize", errno.EINVAL),
    ((0, SIZE + 1), "OutsideRange", errno.EINVAL),
    ((0, SIZE), "NotLinked", errno.ENOENT),
    ((FIRST + 2 * PAGE, PAGE), "NotLinked", errno.ENOENT),
    ((0, 100), "PartOfLink", errno.EINVAL),
    ((100, FIRST - 100), "PartOfLink", errno.EINVAL),
    ((FIRST, PAGE + 100), "PartOfLink", errno.EINVAL),
    ((-1, PAGE), "BadArgument", errno.EINVAL),
    ((0.0, PAGE), "BadArgument", errno.EINVAL),
    ((0, None), "BadArgument", errno.EINVAL),
]


@pytest.mark.parametrize(("part", "error", "number"), PARTS)
def test_a_part_that_is_no_whole_links(case: Case, part: tuple[int, int], error: str, number: int):
    case.linked()
    assert case.refused(lambda: api.dma_iova_sync(case.dev, case.state, *part), error) == -number
    assert case.refused(lambda: api.dma_iova_unlink(case.dev, case.state, *part, BOTH), error) is None


@pytest.mark.parametrize(
    ("mapped_len", "direction", "error"),
    [
        (0, BOTH, "StillLinked"),
        (FIRST + PAGE, BOTH, "StillLinked"),
        (SIZE - PAGE - 1, BOTH, "StillLinked"),
        (SIZE, BOTH, "NotLinked"),
        (SIZE + 1, BOTH, "OutsideRange"),
        (SIZE - PAGE, TO, "WrongDirection"),
        (SIZE - PAGE, NONE, "BadDirection"),
        ("1", BOTH, "BadArgument"),
    ],
)
@pytest.mark.parametrize("synced", [False, True])
def test_a_destroy_that_is_refused(case: Case, mapped_len: int, direction: int, error: str, synced: bool):
    case.linked()
    if synced:
        assert api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE) == 0
    case.refused(lambda: api.dma_iova_destroy(case.dev, case.state, mapped_len, direction), error)
    case.refused(lambda: api.dma_iova_free(case.dev, case.state), "StillLinked")
    case.refused(lambda: api.dma_iova_unlink(case.dev, case.state, 0, FIRST, TO), "WrongDirection")
    api.dma_iova_destroy(case.dev, case.state, SIZE - PAGE, BOTH)
    assert not api.dma_use_iova(case.state)


def test_a_destroy_of_nothing(case: Case):
    case.alloc()
    case.refused(lambda: api.dma_iova_destroy(case.dev, case.state, PAGE, BOTH), "NotLinked")
    api.dma_iova_destroy(case.dev, case.state, 0, BOTH)
    assert api.last_error() is None
    assert not api.dma_use_iova(case.state)
