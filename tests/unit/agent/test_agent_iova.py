"""Steps of two-step DMA mapping, on a simulated container."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Any

import pytest
from agent_rig import Rig
from usdm_fake_vfio import MAP, UNMAP

from harness.agent import dma_ranges, steps_tables
from harness.agent.dma_ranges import Dma, Link, Range, registered
from harness.agent.ranges import coalesce
from harness.agent.steps_iova import SCATTER
from harness.scenario import args_iova

K = 1024
PAGE = 4 * K


@pytest.fixture
def rig(rig: Rig) -> Iterator[Rig]:
    """A registered container, and buffers `a` and `b` of 16 pages."""
    assert rig.context.api.call("qaeRegisterDevice", rig.fd) == (0, None)
    for name in ("a", "b"):
        rig("buffer", **{"as": name, "size": 16 * PAGE})
    yield rig
    rig.context.api.call("qaeMemDestroy")


def alloc(rig: Rig, size: int, offset: int = 0, name: str = "r") -> int:
    answer = rig("iova_alloc", **{"device": "edu0", "as": name, "buffer": "a", "offset": offset, "size": size})
    assert (answer["returns"], answer["error"]) == (1, None)
    values = answer["values"]
    assert values["inside"] == offset % PAGE
    return int(values["iova"])


def counts(rig: Rig, name: str = "r") -> dict[str, int]:
    found: dict[str, int] = rig("iova_info", range=name)["values"]["counts"]
    return found


def believed(rig: Rig) -> list[tuple[int, int]]:
    found = rig.context.dma.believed(registered(rig.context))
    return [(first, size) for first, size, _ in coalesce((first, size, "rw") for first, size, _ in found)]


def mapped(rig: Rig) -> list[tuple[int, int]]:
    return [(first, size) for first, size, _ in coalesce((iova, size, "rw") for iova, (_, size) in rig.entries.items())]


def test_one_shot(rig: Rig) -> None:
    iova = alloc(rig, 3 * PAGE)
    assert rig.error("iova_link_each", range="r", buffer="a", size=PAGE, count=3) == (0, None)
    assert rig.entries == {}
    assert counts(rig) == {"in_use": 1, "links": 3, "synced": 0, "mappings": 0, "reserved": 3 * PAGE}
    assert rig.error("iova_sync", range="r", size=3 * PAGE) == (0, None)
    virt = rig.context.buffers["a"].address or 0
    assert rig.entries == {iova + at: (virt + at, PAGE) for at in range(0, 3 * PAGE, PAGE)}
    rig("dma_read", device="edu0", range="r", offset=5, size=6)
    assert rig.dmas == [(iova + 5, 6, 0, False)]
    assert rig.error("iova_destroy", range="r", size=3 * PAGE) == (None, None)
    assert rig.entries == {}
    assert counts(rig)["in_use"] == 0
    rig("dma_write", device="edu0", range="r", size=6)  # after the end
    assert rig.dmas[-1] == (iova, 6, 0, True)


def test_scattered_pieces(rig: Rig) -> None:
    assert SCATTER == args_iova.SCATTER
    iova = alloc(rig, 16 * PAGE)
    answer = rig("iova_link_each", range="r", buffer="a", size=PAGE, count=16, order="scattered")
    assert (answer["returns"], answer["values"]) == (0, {"done": 16})
    rig("iova_sync", range="r", size=16 * PAGE)
    virt = rig.context.buffers["a"].address or 0
    assert {at: place for at, (place, _) in rig.entries.items()} == {
        iova + piece * PAGE: virt + piece * 7 % 16 * PAGE for piece in range(16)
    }


def test_pieces_until_one_is_refused(rig: Rig) -> None:
    alloc(rig, 2 * PAGE)
    answer = rig("iova_link_each", range="r", buffer="a", size=PAGE, count=4)
    assert (answer["returns"], answer["error"]["type"], answer["values"]) == (-22, "OutsideRange", {"done": 2})
    assert counts(rig)["links"] == 2


@pytest.mark.parametrize(
    ("step", "returns", "error"),
    [
        ({"kind": "iova_alloc", "device": "edu0", "as": "new", "buffer": "a", "size": 0}, 0, "BadSize"),
        ({"kind": "iova_alloc", "device": "edu0", "as": "r", "buffer": "a", "size": 1}, 0, "RangeInUse"),
        ({"kind": "iova_link", "buffer": "b", "at": PAGE, "size": PAGE, "direction": "none"}, -22, "BadDirection"),
        ({"kind": "iova_link", "buffer": "b", "offset": 1, "at": PAGE, "size": PAGE}, -5, "MemoryNotAtGranule"),
        ({"kind": "iova_link", "buffer": "b", "size": PAGE}, -98, "LinkOverlap"),
        ({"kind": "iova_sync", "size": 2 * PAGE}, -2, "NotLinked"),
        ({"kind": "iova_unlink", "size": PAGE, "direction": "to_device"}, None, "WrongDirection"),
        ({"kind": "iova_free"}, None, "StillLinked"),
        ({"kind": "iova_destroy", "size": 2 * PAGE}, None, "NotLinked"),
        ({"kind": "stream_map", "device": "edu0", "buffer": "b", "size": 0}, (1 << 64) - 1, "BadSize"),
        ({"kind": "iova_link", "range": "none", "buffer": "a", "size": 1}, None, "UnknownRange"),
        ({"kind": "iova_link", "buffer": "none", "size": 1}, None, "UnknownBuffer"),
        ({"kind": "iova_alloc", "device": "other", "as": "x", "buffer": "a", "size": 1}, None, "DeviceNotOpen"),
        ({"kind": "dma_limits", "device": "other"}, None, "DeviceNotOpen"),
    ],
)
def test_refused(rig: Rig, step: dict[str, Any], returns: int | None, error: str) -> None:
    alloc(rig, 4 * PAGE)
    rig("iova_link", range="r", buffer="a", size=PAGE)
    rig("iova_sync", range="r", size=PAGE)
    before = mapped(rig), counts(rig)
    args = {"range": "r", **step} if step["kind"].startswith("iova_") and "device" not in step else dict(step)
    assert rig.error(args.pop("kind"), **args) == (returns, error)
    assert (mapped(rig), counts(rig)) == before
    assert believed(rig) == mapped(rig)


def test_the_state_of_a_name_is_one(rig: Rig) -> None:
    alloc(rig, PAGE)
    state = rig.context.dma.range("r").state
    rig("iova_free", range="r")
    first = rig.context.dma.range("r").iova
    assert rig.error("iova_alloc", **{"device": "edu0", "as": "r", "buffer": "a", "size": 0}) == (0, "BadSize")
    assert rig.context.dma.range("r").iova == first
    alloc(rig, 2 * PAGE)
    assert rig.context.dma.range("r").state is state


def test_a_range_that_was_never_reserved_has_no_address(rig: Rig) -> None:
    rig("iova_alloc", **{"device": "edu0", "as": "r", "buffer": "a", "size": 0})
    assert rig.error("dma_read", device="edu0", range="r", size=4) == (None, "NoIova")
    assert rig.error("iova_link", range="r", buffer="a", size=PAGE) == (-22, "NoRange")
    assert rig.error("dma_read", device="edu0", range="other", size=4) == (None, "UnknownRange")


def test_null(rig: Rig) -> None:
    rig("alloc", **{"as": "null", "size": 0})
    assert rig.error("iova_alloc", **{"device": "edu0", "as": "x", "buffer": "null", "size": 1}) == (
        None,
        "NotAccessible",
    )


# ---- limits


def test_limits_are_for_what_is_made_later(rig: Rig) -> None:
    assert rig.error("merge_boundary", device="edu0") == (4095, None)
    alloc(rig, PAGE, offset=0x10)
    rig("dma_limits", device="edu0", bits=22, untrusted=True)
    assert rig.error("iova_link", range="r", buffer="a", offset=0x10, size=100) == (0, None), "its own device"
    made = {"device": "edu0", "buffer": "a"}
    assert rig.error("iova_alloc", **made, **{"as": "small", "size": PAGE, "offset": 0x10}) == (1, None)
    assert (rig.context.dma.range("small").iova or 0) < 1 << 22
    assert rig.error("iova_link", range="small", buffer="a", offset=0x10, size=100) == (-95, "BounceBuffer")
    attributes = {"range": "small", "buffer": "a", "offset": 0x10, "size": 100}
    assert rig.error("iova_link", **attributes, attrs=["mmio"])[1] == "BounceRefused"
    assert rig.error("iova_link", **attributes, attrs=["require_coherent"])[1] == "BounceRefused"
    assert rig.error("iova_link", **attributes, attrs=["skip_cpu_sync"])[1] == "BounceBuffer"
    assert rig.error("iova_alloc", **made, **{"as": "large", "size": 4 << 20}) == (0, "NoIovaSpace")
    rig("dma_limits", device="edu0")
    assert rig.error("iova_alloc", **made, **{"as": "large", "size": 4 << 20}) == (1, None)


# ---- streaming


def test_streaming(rig: Rig) -> None:
    answer = rig("stream_map", device="edu0", buffer="a", offset=0xF00, size=1000, direction="to_device")
    iova = answer["returns"]
    assert answer["values"] == {"iova": iova, "inside": 0xF00}
    assert rig.context.buffers["a"].iova == iova - 0xF00
    assert [size for _, size in rig.entries.values()] == [2 * PAGE]
    second = rig("stream_map", device="edu0", buffer="a", offset=4 * PAGE, size=10)["returns"]
    assert believed(rig) == mapped(rig)
    # Each place has its own address, whichever was mapped last.
    place = {"device": "edu0", "buffer": "a", "offset": 0xF00}
    assert rig.error("stream_unmap", **place, size=999, direction="to_device") == (None, "StreamedSize")
    done = rig("stream_unmap", **place, size=1000, direction="to_device")
    assert (done["error"], done["values"]) == (None, {"iova": iova})
    assert list(rig.entries) == [second]
    assert believed(rig) == mapped(rig)
    # Twice the same: the last one ends first.
    one, two = (rig("stream_map", **place, size=1000)["returns"] for _ in range(2))
    assert one != two
    for wanted in (two, one):
        assert rig("stream_unmap", **place, size=1000)["values"] == {"iova": wanted}
        assert believed(rig) == mapped(rig)
    # What it had last is what the buffer says.
    again = rig("stream_unmap", **place, size=1000, direction="to_device")
    assert again["error"]["type"] == "NotStreamed"


# ---- belief


def test_access_is_the_direction(rig: Rig) -> None:
    iova = alloc(rig, 3 * PAGE)
    for at, direction in enumerate(("to_device", "from_device", "both")):
        rig("iova_link", range="r", buffer="a", offset=at * PAGE, at=at * PAGE, size=PAGE, direction=direction)
    rig("iova_sync", range="r", size=3 * PAGE)
    found = rig.context.dma.believed(registered(rig.context))
    assert found == [(iova, PAGE, "r"), (iova + PAGE, PAGE, "w"), (iova + 2 * PAGE, PAGE, "rw")]


def test_whole_granules(rig: Rig) -> None:
    iova = alloc(rig, 10000, offset=0x234)
    rig("iova_link", range="r", buffer="a", offset=0x234, size=3532)
    rig("iova_link", range="r", buffer="a", offset=PAGE, at=3532, size=100)
    rig("iova_sync", range="r", size=3632)
    assert believed(rig) == mapped(rig) == [(iova - 0x234, 2 * PAGE)]


def test_everything_ends_with_the_registration(rig: Rig) -> None:
    alloc(rig, PAGE)
    rig("iova_link", range="r", buffer="a", size=PAGE)
    rig("iova_sync", range="r", size=PAGE)
    rig("stream_map", device="edu0", buffer="b", size=PAGE)
    rig.context.api.call("qaeRegisterDevice", rig.fd)
    rig.context.api.call("qaeUnregisterDevice", rig.fd)
    assert believed(rig) == mapped(rig) != []
    rig.context.api.call("qaeUnregisterDevice", rig.fd)
    assert believed(rig) == mapped(rig) == []
    rig.context.api.call("qaeRegisterDevice", rig.fd)
    assert believed(rig) == mapped(rig) == []
    assert rig.error("iova_sync", range="r", size=PAGE) == (-22, "NoRange")
    assert believed(rig) == []


@pytest.mark.parametrize("seed", range(8))
def test_the_belief_is_what_is_mapped_whatever_is_done(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    place = lambda: chance.choice([0, 0, PAGE, 2 * PAGE, 5 * PAGE, 100])  # noqa: E731
    seen = 0
    for _ in range(150):
        name, size = chance.choice("rs"), chance.choice([0, 100, PAGE, PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE])
        direction = chance.choice(["both", "both", "both", "to_device", "none"])
        how = {"range": name, "size": size}
        step, args = chance.choice(
            [
                ("iova_alloc", {"device": "edu0", "as": name, "buffer": "a", "offset": place(), "size": 8 * PAGE}),
                ("iova_link", {**how, "buffer": "b", "offset": place(), "at": place(), "direction": direction}),
                ("iova_link_each", {**how, "buffer": "a", "at": place(), "count": 3, "order": "scattered"}),
                ("iova_sync", {**how, "at": place()}),
                ("iova_unlink", {**how, "at": place(), "direction": direction}),
                ("iova_free", {"range": name}),
                ("iova_destroy", {**how, "direction": direction}),
                ("stream_map", {"device": "edu0", "buffer": "b", "offset": place(), "size": size}),
                ("stream_unmap", {"device": "edu0", "buffer": "b", "offset": place(), "size": size}),
            ]
        )
        answer = rig(step, **args)
        assert answer["error"] is None or answer["error"]["type"] != "InternalError", answer
        assert believed(rig) == mapped(rig), (step, args, answer)
        seen = max(seen, len(rig.entries))
    assert seen > 1


def unmapped_by_others(rig: Rig) -> None:
    alloc(rig, 2 * PAGE)
    rig("iova_link_each", range="r", buffer="a", size=PAGE, count=2)
    rig("iova_sync", range="r", size=2 * PAGE)
    rig.entries.clear()


@pytest.mark.parametrize(
    ("step", "links"),
    [(("iova_unlink", PAGE), 1), (("iova_unlink", 2 * PAGE), 0), (("iova_destroy", 2 * PAGE), 0)],
)
def test_what_somebody_else_had_unmapped_is_not_believed_mapped(rig: Rig, step: tuple[str, int], links: int) -> None:
    unmapped_by_others(rig)
    answer = rig(step[0], range="r", size=step[1])
    assert answer["error"]["type"] == "UnmapFailed"
    assert len(believed(rig)) == len(rig.context.dma.range("r").links) == counts(rig)["links"] == links


def test_an_unmap_that_the_kernel_refuses_changes_no_belief(rig: Rig) -> None:
    alloc(rig, PAGE)
    rig("iova_link", range="r", buffer="a", size=PAGE)
    rig("iova_sync", range="r", size=PAGE)
    for step in ("iova_unlink", "iova_destroy"):
        rig.vfio.fail(UNMAP, errno.EINVAL)
        assert rig.error(step, range="r", size=PAGE) == (None, "UnmapFailed")
        assert believed(rig) == mapped(rig) != []


def test_a_streaming_mapping_that_somebody_else_had_unmapped(rig: Rig) -> None:
    rig("stream_map", device="edu0", buffer="a", size=PAGE)
    rig.entries.clear()
    assert rig.error("stream_unmap", device="edu0", buffer="a", size=PAGE) == (None, "UnmapFailed")
    assert believed(rig) == []


def test_what_a_sync_that_failed_left_mapped(rig: Rig) -> None:
    iova = alloc(rig, 4 * PAGE)
    rig("iova_link_each", range="r", buffer="a", size=PAGE, count=4)
    rig("iova_sync", range="r", at=PAGE, size=PAGE)
    rig.vfio.fail(MAP, errno.ENOMEM, 2)  # the third of three
    rig.vfio.fail(UNMAP, errno.EINVAL)
    assert rig("iova_sync", range="r", size=4 * PAGE)["error"]["type"] == "LockedMemoryLimit"
    assert believed(rig) == mapped(rig) == [(iova, 3 * PAGE)]


# ---- the pages of a range


def test_pages_of_what_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Physical addresses far away, in the order of the virtual ones
    monkeypatch.setattr(steps_tables.pagemap, "runs", lambda address, size: [[0, address + (1 << 40), size]])
    held = Range("r", None, None)
    held.iova = 0x200234
    held.links = {0: Link(0x10234, 3532, "r"), 3532: Link(0x50000, 2 * PAGE, "r"), 15820: Link(0x90000, 100, "r")}
    far = 1 << 40
    whole = [[0, far + 0x10000, PAGE], [PAGE, far + 0x50000, 2 * PAGE], [4 * PAGE, far + 0x90000, PAGE]]
    assert steps_tables._linked(held, 0x200000, 8 * PAGE) == whole
    # A window that begins and ends within links
    assert steps_tables._linked(held, 0x202000, PAGE) == [[0, far + 0x51000, PAGE]]
    assert steps_tables._linked(held, 0x203000, PAGE) == []
    assert steps_tables._linked(held, 0x204000, PAGE) == [[0, far + 0x90000, PAGE]]


# ---- another implementation


class Other:
    """An implementation with devices and states of its own."""

    name = "other"

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []

    def dma_device(self, name: str, mask: int, untrusted: bool) -> tuple[str, int, bool]:
        return name, mask, untrusted

    def dma_state(self) -> Any:
        class State:
            addr = 0x1000

            def info(self) -> dict[str, int]:
                return {"links": 5}

        return State()

    def call(self, function: str, *arguments: Any) -> tuple[Any, None]:
        self.called.append((function, *arguments))
        return 1, None

    def is_absent(self, error: Exception) -> bool:
        return False


def test_an_implementation_brings_its_own_devices_and_states(rig: Rig) -> None:
    rig.context.dma = Dma()
    rig.context.api.api = other = Other()
    rig("dma_limits", device="edu0", bits=32, untrusted=True)
    assert alloc(rig, PAGE) == 0x1000
    state, dev = rig.context.dma.range("r").state, ("edu0", (1 << 32) - 1, True)
    virt = rig.context.buffers["a"].address
    assert other.called == [("dma_iova_try_alloc", dev, state, virt, PAGE)]
    rig("iova_link", range="r", buffer="a", at=8, size=9, direction="from_device", attrs=["mmio", "skip_cpu_sync"])
    assert other.called[-1] == ("dma_iova_link", dev, state, virt, 8, 9, 2, 1 << 10 | 1 << 5)
    assert counts(rig) == {"links": 5, "in_use": 1}


def test_a_device_that_is_closed_is_made_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rig.context.dma.device(rig.context, "edu0")
    assert rig.context.dma.device(rig.context, "edu0") is made
    monkeypatch.setattr(rig, "close", lambda: None, raising=False)
    rig("close", device="edu0")
    rig.context.devices["edu0"] = rig  # type: ignore[assignment]
    assert rig.context.dma.device(rig.context, "edu0") is not made
    assert dma_ranges.GRANULE == PAGE
