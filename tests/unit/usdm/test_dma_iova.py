"""The two-step DMA mapping API by its C names: the usual life, ranges, streaming mappings, the end."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from usdm_dma_case import BOTH, FIRST, FROM, NONE, PAD, PAGE, SIZE, TO, UNIT, Calls, Case
from usdm_fake_vfio import RANGES_39, Factory, FakeContainer, FakeVfio

from usdm import dma_iova as api
from usdm import qae_mem
from usdm.driver import Usdm
from usdm.errors import UsdmError


@pytest.fixture
def case(vfio: FakeVfio, usdm: Usdm, fd: int, buffer: Factory) -> Case:
    return Case(vfio, usdm, fd, buffer(16 * PAGE))


# ---- the usual life


def test_one_shot(case: Case):
    free = case.usdm.statistics()["iova_free"]
    case.linked()
    addr = case.state.addr
    assert addr % PAGE == PAD
    assert case.vfio.of(case.fd).entries == {}
    assert case.state.info() == {"in_use": 1, "links": 3, "synced": 0, "mappings": 0, "reserved": 4 * PAGE}
    assert api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE) == 0
    base = addr - PAD
    pages = (case.virt, case.page(7), case.page(3))
    assert case.vfio.of(case.fd).entries == {base + n * PAGE: (page, PAGE) for n, page in enumerate(pages)}
    assert case.usdm.statistics()["container_mappings"] == 3
    case.vfio.calls.clear()
    api.dma_iova_destroy(case.dev, case.state, SIZE - PAGE, BOTH)
    assert case.vfio.calls == [("unmap", base, 3 * PAGE)]
    assert api.last_error() is None
    assert (case.state.addr, case.state.size, api.dma_use_iova(case.state)) == (0, 0, False)
    assert case.usdm.statistics()["iova_free"] == free


def test_what_is_synced_stays_and_links_can_change(case: Case):
    case.linked()
    assert api.dma_iova_sync(case.dev, case.state, FIRST, PAGE) == 0
    assert len(case.vfio.calls) == 1
    assert api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE) == 0
    assert len(case.vfio.calls) == 3
    assert api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE) == 0
    assert len(case.vfio.calls) == 3
    api.dma_iova_unlink(case.dev, case.state, FIRST, PAGE, BOTH)
    assert case.state.info()["links"] == 2
    case.refused(lambda: api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE), "NotLinked")
    assert api.dma_iova_link(case.dev, case.state, case.page(9), FIRST, PAGE, BOTH) == 0
    assert api.dma_iova_sync(case.dev, case.state, 0, SIZE - PAGE) == 0
    assert case.vfio.of(case.fd).device_view(case.state.addr + FIRST) == case.page(9)


def test_an_unlink_of_what_is_not_synced_makes_no_call(case: Case):
    case.linked()
    api.dma_iova_unlink(case.dev, case.state, 0, FIRST + PAGE, BOTH)
    assert case.vfio.calls == []
    assert api.dma_iova_sync(case.dev, case.state, FIRST + PAGE, PAGE) == 0
    # one of two is synced
    assert api.dma_iova_link(case.dev, case.state, case.page(7), FIRST, PAGE, BOTH) == 0
    api.dma_iova_unlink(case.dev, case.state, FIRST, 2 * PAGE, BOTH)
    assert case.vfio.calls[1:] == [("unmap", case.state.addr - PAD + 2 * PAGE, PAGE)]
    api.dma_iova_free(case.dev, case.state)
    assert not api.dma_use_iova(case.state)


def test_a_link_after_the_last_one_was_unlinked(case: Case):
    """The last link ends inside a granule; when it is gone, another one can follow."""
    case.alloc()
    assert api.dma_iova_link(case.dev, case.state, case.virt + PAD, 0, FIRST, BOTH) == 0
    assert api.dma_iova_link(case.dev, case.state, case.page(1), FIRST, 100, BOTH) == 0
    args = (case.dev, case.state, case.page(2), FIRST + PAGE, PAGE, BOTH)
    assert case.refused(lambda: api.dma_iova_link(*args), "EndNotAtGranule") == -errno.EINVAL
    api.dma_iova_unlink(case.dev, case.state, FIRST, 100, BOTH)
    assert api.dma_iova_link(*args) == 0
    # before a link, one has to end at a granule
    short = (case.dev, case.state, case.page(1), FIRST, 100, BOTH)
    assert case.refused(lambda: api.dma_iova_link(*short), "EndNotAtGranule") == -errno.EINVAL


@pytest.mark.parametrize(("direction", "access"), [(BOTH, 3), (TO, 1), (FROM, 2)])
def test_what_the_device_may_do(case: Case, direction: int, access: int, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = FakeContainer.map

    def spy(self: FakeContainer, vaddr: int, iova: int, size: int, flags: int, check: bool) -> None:
        seen.append(flags)
        real(self, vaddr, iova, size, flags, check)

    monkeypatch.setattr(FakeContainer, "map", spy)
    case.alloc(PAGE, 0)
    assert api.dma_iova_link(case.dev, case.state, case.virt, 0, PAGE, direction) == 0
    assert api.dma_iova_sync(case.dev, case.state, 0, PAGE) == 0
    addr = api.dma_map_single(case.dev, case.page(2), 8, direction)
    assert not api.dma_mapping_error(case.dev, addr)
    assert seen == [access, access]


# ---- try_alloc


@pytest.mark.parametrize(
    ("virt", "size", "error"),
    [
        (0, 0, "BadSize"),
        (0, 1 << 63, "TooLarge"),
        (0, (1 << 63) | 4096, "TooLarge"),
        (0, 1 << 62, "NoIovaSpace"),
        (0, 1.0, "BadArgument"),
        (-1, 1, "BadArgument"),
        ("0", 1, "BadArgument"),
    ],
)
def test_a_range_that_cannot_be(case: Case, virt: int, size: int, error: str):
    assert case.refused(lambda: api.dma_iova_try_alloc(case.dev, case.state, virt, size), error) is False


def test_a_state_has_one_range(case: Case):
    case.alloc()
    assert case.refused(lambda: api.dma_iova_try_alloc(case.dev, case.state, case.virt, 1), "RangeInUse") is False


def test_whole_granules_are_reserved(case: Case):
    case.alloc(2, PAGE - 1)
    assert case.state.info()["reserved"] == 2 * PAGE
    assert case.state.size == 2


def test_the_mask(case: Case):
    case.dev = api.VfioDma(case.usdm, dma_mask=2 * UNIT - 1)
    states = [api.DmaIovaState() for _ in range(513)]
    taken = [api.dma_iova_try_alloc(case.dev, state, 0, PAGE) for state in states]
    assert taken == [True] * 512 + [False]
    assert type(api.last_error()).__name__ == "NoIovaSpace"
    assert all(UNIT <= state.addr < 2 * UNIT for state in states[:512])
    api.dma_iova_free(case.dev, states[100])
    assert api.dma_iova_try_alloc(case.dev, states[512], 0, PAGE)
    with pytest.raises(UsdmError, match="dma_mask"):
        api.VfioDma(case.usdm, dma_mask=-1)
    with pytest.raises(UsdmError, match="no Usdm"):
        api.VfioDma(5)  # type: ignore[arg-type]


def test_small_ranges_share_units(case: Case):
    free = case.usdm.statistics()["iova_free"]
    states = [api.DmaIovaState() for _ in range(1024)]
    assert all(api.dma_iova_try_alloc(case.dev, state, 0, PAGE) for state in states)
    assert free - case.usdm.statistics()["iova_free"] == 2 * UNIT


def test_without_a_container(usdm: Usdm, vfio: FakeVfio, capsys: pytest.CaptureFixture[str]):
    dev, state = api.VfioDma(usdm), api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE) is False
    assert type(api.last_error()).__name__ == "NotRegistered"
    assert "dma_iova_try_alloc: NotRegistered: dev" in capsys.readouterr().err
    assert api.dma_map_single(dev, PAGE, PAGE, BOTH) == api.DMA_MAPPING_ERROR
    usdm.register_device(vfio.open(FakeContainer("noiommu")))
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE) is False
    assert type(api.last_error()).__name__ == "NoIommuMode"


def test_the_processs_own_instance():
    assert api.VfioDma()._usdm is qae_mem.default_instance()


# ---- streaming


def test_streaming(case: Case):
    free = case.usdm.statistics()["iova_free"]
    addr = api.dma_map_single(case.dev, case.virt + 4000, 200, TO)
    assert addr % PAGE == 4000
    assert case.vfio.of(case.fd).entries == {addr - 4000: (case.virt, 2 * PAGE)}
    unmap = lambda *arguments: api.dma_unmap_single(case.dev, *arguments)  # noqa: E731
    case.refused(lambda: unmap(addr + 1, 200, TO), "NotStreamed")
    case.refused(lambda: unmap(addr, 201, TO), "StreamedSize")
    case.refused(lambda: unmap(addr, 200, BOTH), "WrongDirection")
    case.refused(lambda: unmap(addr, 200, NONE), "BadDirection")
    case.refused(lambda: unmap(addr, -1, TO), "BadArgument")
    unmap(addr, 200, TO)
    assert api.last_error() is None
    case.refused(lambda: unmap(addr, 200, TO), "NotStreamed")
    assert case.vfio.of(case.fd).entries == {}
    assert case.usdm.statistics()["iova_free"] == free


@pytest.mark.parametrize(
    ("virt", "size", "direction", "attrs", "error"),
    [
        (0, PAGE, BOTH, 0, "NullAddress"),
        (PAGE, 0, BOTH, 0, "BadSize"),
        (PAGE, 1 << 63, BOTH, 0, "TooLarge"),
        (PAGE, 1 << 62, BOTH, 0, "NoIovaSpace"),
        (PAGE, PAGE, NONE, 0, "BadDirection"),
        (PAGE, PAGE, BOTH, 2, "BadAttributes"),
        ((1 << 64) - 1, 2, BOTH, 0, "RangeOverflow"),
        (PAGE, PAGE, BOTH, 0, "AddressNotAccessible"),
        (1.0, PAGE, BOTH, 0, "BadArgument"),
    ],
)
def test_streaming_that_is_refused(case: Case, virt: int, size: int, direction: int, attrs: int, error: str):
    single = lambda: api.dma_map_single(case.dev, virt, size, direction, attrs)  # noqa: E731
    assert case.refused(single, error) == api.DMA_MAPPING_ERROR


# ---- whose range it is, and how it ends


@pytest.fixture
def calls(case: Case) -> Calls:
    virt = case.virt + PAD
    return [
        lambda dev, state: api.dma_iova_link(dev, state, virt, 0, FIRST, BOTH),
        lambda dev, state: api.dma_iova_sync(dev, state, 0, FIRST),
        lambda dev, state: api.dma_iova_unlink(dev, state, 0, FIRST, BOTH),
        lambda dev, state: api.dma_iova_free(dev, state),
        lambda dev, state: api.dma_iova_destroy(dev, state, FIRST, BOTH),
    ]


def test_a_state_without_a_range(case: Case, calls: Calls):
    for call in calls:
        assert case.refused(lambda call=call: call(case.dev, case.state), "NoRange") in (None, -errno.EINVAL)


def test_another_device(case: Case, calls: Calls):
    case.linked()
    for call in calls:
        case.refused(lambda call=call: call(api.VfioDma(case.usdm), case.state), "WrongDevice")


@pytest.mark.parametrize("wrong", [None, 1, "edu0"])
def test_no_device_and_no_state(case: Case, calls: Calls, wrong: object):
    case.linked()
    for call in calls:
        case.refused(lambda call=call: call(wrong, case.state), "BadArgument")  # type: ignore[arg-type]
        case.refused(lambda call=call: call(case.dev, wrong), "BadArgument")  # type: ignore[arg-type]
    for call in (
        lambda: api.dma_iova_try_alloc(wrong, api.DmaIovaState(), 0, 1),  # type: ignore[arg-type]
        lambda: api.dma_iova_try_alloc(case.dev, wrong, 0, 1),  # type: ignore[arg-type]
        lambda: api.dma_use_iova(wrong),  # type: ignore[arg-type]
        lambda: api.dma_get_merge_boundary(wrong),  # type: ignore[arg-type]
        lambda: api.dma_map_single(wrong, PAGE, 1, BOTH),  # type: ignore[arg-type]
        lambda: api.dma_unmap_single(wrong, PAGE, 1, BOTH),  # type: ignore[arg-type]
    ):
        case.refused(call, "BadArgument")
    assert api.dma_get_merge_boundary(case.dev) == PAGE - 1


@pytest.mark.parametrize("how", ["unregister", "close"])
def test_the_end_of_the_registration(case: Case, calls: Calls, how: str, vfio: FakeVfio):
    case.linked()
    assert api.dma_iova_sync(case.dev, case.state, 0, FIRST + PAGE) == 0
    addr = api.dma_map_single(case.dev, case.virt, 8, BOTH)
    if how == "close":
        case.usdm.close()
    else:
        case.usdm.unregister_device(case.fd)
    assert vfio.of(case.fd).entries == {}
    assert (case.state.addr, case.state.size, api.dma_use_iova(case.state)) == (0, 0, False)
    for call in calls:
        case.refused(lambda call=call: call(case.dev, case.state), "NoRange")
        assert "last registration has ended" in str(api.last_error())
    case.refused(lambda: api.dma_unmap_single(case.dev, addr, 8, BOTH), "NotRegistered")
    # All the IOVAs are there for the next container, and the state for the next range.
    case.usdm.register_device(vfio.open(FakeContainer(ranges=RANGES_39)))
    assert case.usdm.statistics()["iova_free"] == (1 << 39) - 2 * UNIT
    assert api.dma_iova_try_alloc(case.dev, case.state, case.virt, PAGE)
    case.refused(lambda: api.dma_unmap_single(case.dev, addr, 8, BOTH), "NotStreamed")


def test_a_forked_child(case: Case, calls: Calls):
    case.linked()
    assert api.dma_iova_sync(case.dev, case.state, 0, FIRST) == 0
    lock = case.usdm._lock
    # Another thread of the parent is in a call: the child must not wait for it.
    holder = threading.Thread(target=lock.acquire)
    holder.start()
    holder.join()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        wrong = 1
        try:
            for call in (*calls, lambda dev, state: api.dma_iova_try_alloc(dev, state, case.virt, PAGE)):
                call(case.dev, case.state)
                assert type(api.last_error()).__name__ == "ForkedChild"
            assert api.dma_map_single(case.dev, case.virt, 8, BOTH) == api.DMA_MAPPING_ERROR
            assert type(api.last_error()).__name__ == "ForkedChild"
            case.usdm.at_fork()
            api.dma_iova_sync(case.dev, case.state, 0, FIRST)
            assert type(api.last_error()).__name__ == "ForkedChild"
            assert not api.dma_iova_try_alloc(case.dev, case.state, case.virt, PAGE)
            assert type(api.last_error()).__name__ == "NotRegistered"
            wrong = 0
        finally:
            os._exit(wrong)
    lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert case.state.info()["mappings"] == 1
    api.dma_iova_destroy(case.dev, case.state, SIZE - PAGE, BOTH)
    assert api.last_error() is None


def test_entries_of_icp_sal_iommu_keep_out(case: Case):
    case.alloc()
    unit = case.state.addr // UNIT * UNIT
    with pytest.raises(UsdmError) as caught:
        case.usdm.remap(0x1000, unit + UNIT - PAGE, PAGE)
    assert type(caught.value).__name__ == "IovaTaken"
    assert "dma_iova" in str(caught.value)


# ---- what a program hears


def test_the_line_names_function_rule_and_argument(case: Case, capsys: pytest.CaptureFixture[str]):
    case.alloc()
    capsys.readouterr()
    api.dma_iova_link(case.dev, case.state, case.page(1) + 1, FIRST, 100, BOTH)
    said = capsys.readouterr().err
    assert said.startswith("dma_iova_link: MemoryNotAtGranule: virt = 0x")
    assert "must begin at the merge boundary" in said
    assert said.count("\n") == 1
    error = api.last_error()
    assert not api.dma_mapping_error(case.dev, 0)
    assert api.last_error() is error
    assert api.dma_iova_link(case.dev, case.state, case.page(1), FIRST, 100, BOTH) == 0
    assert api.last_error() is None


def test_nobody_listens(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", None)
    assert api.dma_iova_sync(case.dev, case.state, 0, 1) == -errno.EINVAL
