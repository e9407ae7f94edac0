"""The worker on the kernel's own functions: who drives the device, its limits, memory, and what nobody can believe."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent import implementations, on_kernel, own_memory
from harness.agent.believed import believed
from harness.agent.context import Context
from harness.agent.ledger import NotedCalls
from harness.agent.on_kernel import OnKernel, State
from harness.agent.outcome import NoMemory
from harness.agent.steps_device import open_, register
from harness.agent.steps_memory import buffer, release

PAGE = 4096


class FakeDevice:
    """A device of the test module that notes its limits."""

    def __init__(self) -> None:
        self.mask, self.untrusted = (1 << 64) - 1, 0
        self.set: list[tuple[str, Any]] = []

    def info(self) -> Any:
        return SimpleNamespace(dma_mask=self.mask, untrusted=self.untrusted)

    def set_dma_mask(self, mask: int) -> None:
        self.mask = mask
        self.set.append(("mask", mask))

    def set_untrusted(self, untrusted: bool) -> None:
        self.untrusted = int(untrusted)
        self.set.append(("untrusted", untrusted))


class FakeEdu:
    """An open edu."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, FakeEdu]:
    """The devices that were given to the test module, by address."""
    found: dict[str, FakeEdu] = {}

    def open_edu(address: str) -> FakeEdu:
        found[address] = FakeEdu()
        return found[address]

    log = tmp_path / "kmsg"
    log.write_text("")
    monkeypatch.setattr(on_kernel, "open_edu", open_edu)
    monkeypatch.setattr(on_kernel, "LOG", str(log))
    monkeypatch.setattr("harness.agent.steps_device.iommu_group", lambda address: 7, raising=False)
    monkeypatch.setattr("usdm.vfio.iommu_group", lambda address: 7)
    return found


@pytest.fixture
def context(opened: dict[str, FakeEdu]) -> Context:
    context = Context()
    context.api = NotedCalls(implementations.find("kernel"))
    context.addresses = {"edu0": "02:00.0"}
    return context


def test_it_is_found_by_its_name(opened: dict[str, FakeEdu]) -> None:
    assert isinstance(implementations.find("kernel"), OnKernel)
    assert implementations.find("kernel").name == "kernel"


def test_a_registered_device_is_the_test_modules_and_has_no_container(
    context: Context, opened: dict[str, FakeEdu]
) -> None:
    outcome = register(context, {"device": "edu0"})
    assert (outcome.returns, outcome.error, outcome.values) == (0, None, {"iova_ranges": None})
    assert context.device("edu0") is opened["02:00.0"]
    assert context.containers == []
    assert register(context, {"device": "edu0"}).returns == 0
    assert len(opened) == 1


def test_an_opened_one_too(context: Context, opened: dict[str, FakeEdu]) -> None:
    assert open_(context, {"device": "edu0"}).values == {"address": "02:00.0", "group": 7, "iova_ranges": None}
    context.close_device("edu0")
    assert opened["02:00.0"].closed
    open_(context, {"device": "edu0"})
    assert not opened["02:00.0"].closed, "another one"


def test_limits_are_set_where_they_are_others(context: Context, opened: dict[str, FakeEdu]) -> None:
    context.open_device("edu0")
    device = opened["02:00.0"].device
    assert context.dma.device(context, "edu0") is device
    assert device.set == []
    context.dma.limit("edu0", 24, True)
    assert context.dma.device(context, "edu0") is device
    assert device.set == [("mask", (1 << 24) - 1), ("untrusted", True)]
    context.dma.limit("edu0", 64, False)
    context.dma.device(context, "edu0")
    assert device.set[2:] == [("mask", (1 << 64) - 1), ("untrusted", False)]


@pytest.mark.parametrize(
    ("addr", "size", "reserved"),
    [(0, 0, 0), (0x10000, PAGE, PAGE), (0x10000, 100, PAGE), (0x10234, 10000, 3 * PAGE), (0x10FFF, 2, 2 * PAGE)],
)
def test_a_range_takes_whole_granules(addr: int, size: int, reserved: int) -> None:
    state = State()
    state.addr, state.size = addr, size
    assert state.info() == {"reserved": reserved}


def test_memory_follows_each_other_and_is_given_back_whole(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, str]] = []
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(own_memory, "take", lambda size, backing, align: taken.append((size, backing)) or 0x400000)
    monkeypatch.setattr(own_memory, "give_back", lambda address, size: given.append((address, size)))
    buffer(context, {"as": "a", "size": 3 * PAGE})
    buffer(context, {"as": "h", "size": PAGE, "backing": "huge"})
    assert taken == [(3 * PAGE, "contiguous"), (PAGE, "huge")]
    assert context.buffer("a").size == 3 * PAGE
    release(context, {"buffer": "a"})
    assert given == [(0x400000, own_memory.PIECE)]


def test_contiguous_memory_is_whole_pieces_of_2_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int, int]] = []
    monkeypatch.setattr(own_memory, "_madvise", lambda *advice: advised.append(advice))
    address = own_memory.take(3 * PAGE, "contiguous")
    try:
        assert address % own_memory.PIECE == 0
        assert advised == [(address, own_memory.PIECE, 23), (address, own_memory.PIECE, 25)]
        assert own_memory.read(address, 3 * PAGE) == bytes(3 * PAGE)
    finally:
        own_memory.give_back(address, own_memory.extent(3 * PAGE, "contiguous"))


def test_what_the_kernel_maps_nobody_can_say(context: Context) -> None:
    (answer,) = believed(context, {"devices": ["edu0"]}).values["devices"].values()
    assert answer["unknown"] == "the kernel maps for the device, and tells nobody what"
    assert answer["runs"] == []


def test_nothing_is_promised_of_it(context: Context) -> None:
    assert context.api.promises(3) == ([], [])


@pytest.mark.parametrize(("answers", "raised"), [([11, 11, 0], False), ([12], True), ([11] * 200, True)])
def test_the_kernel_is_asked_again_where_it_says_so(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], raised: bool
) -> None:
    left = iter(answers)

    def madvise(*_: int) -> int:
        ctypes.set_errno(number := next(left))
        return -1 if number else 0

    monkeypatch.setattr(own_memory, "_libc_madvise", madvise)
    if raised:
        with pytest.raises(NoMemory, match="madvise 25 of 4096 bytes: "):
            own_memory._madvise(0, 4096, 25)
    else:
        own_memory._madvise(0, 4096, 25)
        assert list(left) == []
