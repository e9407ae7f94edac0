"""Steps that call icp_sal_iommu, on simulated physical memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from agent_rig import Rig
from usdm_fake_vfio import FakeVfio
from usdm_faulty_kernel import FaultyKernel

from harness.agent import pagemap
from usdm import last, qae_mem
from usdm.driver import Usdm

PAGE = 4096
AT = 0x5A000


@pytest.fixture
def kernel() -> FaultyKernel:
    return FaultyKernel(FakeVfio())


@pytest.fixture
def rig(kernel: FaultyKernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A registered container, and a buffer `a` of four pages, of which the third lies elsewhere."""

    def runs(address: int, size: int) -> list[list[int]]:
        return pagemap._pieces(memoryview(kernel.frames.pagemap(address, size // PAGE)).cast("Q"))

    monkeypatch.setattr("harness.agent.steps_remap.pagemap.runs", runs)
    monkeypatch.setattr(qae_mem, "_driver", Usdm(kernel=kernel))
    made = Rig(kernel.vfio)
    address = made("buffer", **{"as": "a", "size": 4 * PAGE})["values"]["address"]
    kernel.frames.give(address, [AT, AT + 1, AT + 9, AT + 3])
    assert qae_mem.qaeRegisterDevice(made.fd) == 0
    yield made
    last.thread.error = None
    kernel.vfio.close()


def said(answer: dict[str, Any]) -> tuple[Any, ...]:
    error = answer["error"]
    return answer["returns"], None if error is None else error["type"], answer["values"]


def test_physical_addresses(rig: Rig) -> None:
    wanted = {0: 2 * PAGE, 100: 2 * PAGE - 100, PAGE: PAGE, 2 * PAGE + 8: PAGE - 8, 4 * PAGE - 1: 1}
    frames = (AT, AT + 1, AT + 9, AT + 3)
    for offset, contiguous in wanted.items():
        address = frames[offset // PAGE] * PAGE + offset % PAGE
        answer = rig("physical_address", buffer="a", offset=offset)
        assert said(answer) == (None, None, {"iova": address, "counts": {"contiguous": contiguous}})
        assert rig.context.buffers["a"].iova == address - offset
    assert rig("physical_address", buffer="a", offset=4 * PAGE)["error"]["type"] == "NotAccessible"


def test_a_page_that_is_not_there(rig: Rig, kernel: FaultyKernel) -> None:
    kernel.frames.take(rig.context.buffers["a"].address or 0, PAGE)
    for kind, more in (("physical_address", {}), ("remap", {"size": PAGE})):
        assert rig(kind, buffer="a", **more)["error"]["type"] == "NotAccessible"


def test_the_content_stays(rig: Rig) -> None:
    rig("fill", buffer="a", pattern="random", seed=3)
    rig("physical_address", buffer="a", offset=PAGE)
    assert rig("check", buffer="a", pattern="random", seed=3)["values"]["equal"] is True


def test_one_to_one_and_elsewhere(rig: Rig) -> None:
    assert said(rig("remap", buffer="a", size=2 * PAGE)) == (
        0,
        None,
        {"phaddr": AT * PAGE, "iova": AT * PAGE},
    )
    assert said(rig("remap", buffer="a", offset=2 * PAGE, size=PAGE, iova=0x900000)) == (
        0,
        None,
        {"phaddr": (AT + 9) * PAGE, "iova": 0x900000},
    )
    buffer = rig.context.buffers["a"]
    assert buffer.iova == 0x900000 - 2 * PAGE
    assert rig.entries == {
        AT * PAGE: (buffer.address, 2 * PAGE),
        0x900000: ((buffer.address or 0) + 2 * PAGE, PAGE),
    }
    # Each place is known by the remap that began there, a place behind it by the one before.
    assert said(rig("unremap", buffer="a", offset=PAGE, size=PAGE))[:2] == (-1, "PartOfEntry")
    assert said(rig("unremap", buffer="a", size=2 * PAGE)) == (0, None, {"iova": AT * PAGE})
    assert said(rig("unremap", buffer="a", offset=2 * PAGE, size=PAGE)) == (0, None, {"iova": 0x900000})
    assert rig.entries == {}
    assert said(rig("unremap", iova=0x900000, size=PAGE))[:2] == (-1, "NotRemapped")


def test_refused(rig: Rig) -> None:
    before = rig.context.buffers["a"].iova
    answer = rig("remap", buffer="a", offset=512, size=PAGE)
    assert said(answer) == (-1, "NotAligned", {"phaddr": AT * PAGE + 512})
    assert said(rig("remap", phaddr=0x1000000, size=PAGE))[:2] == (-1, "ForeignMemory")
    assert rig.context.buffers["a"].iova == before
    assert said(rig("unremap", buffer="a", size=PAGE))[:2] == (None, "NoIova")


def test_sizes(rig: Rig) -> None:
    for build, size in {"documented": 8192, "in_tree": 0, "vm": 4097, "user_sriov": 8192, "kernel": 8192}.items():
        assert rig("remap_size", size=4097, build=build)["returns"] == size
    assert rig("remap_size", size=4097)["returns"] == 8192
    assert said(rig("remap_size", size=(1 << 64) - 1))[:2] == (0, "RangeOverflow")
    assert said(rig("remap_size", size=(1 << 64) - 1, build="user_sriov"))[:2] == (None, "BadArgument")
