"""The replay of a recording: what it leaves, and what the kernel's tracing adds to its calls."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest
from agent_rig import Rig
from usdm_fake_vfio import UNMAP

from harness.agent import own_memory, steps_kernel, steps_replay
from harness.agent.execute import execute
from harness.agent.steps_replay import _Replay, _witnessed
from usdm.dma_iova import VfioDma
from usdm.errors import UnmapFailed

PAGE = 4096


def call(name: str, state: int = 1, **fields: int) -> dict[str, Any]:
    return {"call": f"dma_iova_{name}", "state": state, **fields}


BEGIN = [
    call("try_alloc", phys=0x5000, size=2 * PAGE),
    call("link", phys=0x5000, offset=0, size=PAGE, dir=0, attrs=0),
    call("link", phys=0x9000, offset=PAGE, size=PAGE, dir=1, attrs=0),
    call("sync", offset=0, size=PAGE),
]
END = call("destroy", size=PAGE, dir=0, attrs=0)


class Marks:
    """In place of a recording: what was marked, with what was mapped then."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.seen: list[tuple[str, int]] = []

    def mark(self, text: str) -> None:
        self.seen.append((text, len(self.rig.entries)))


@pytest.fixture
def replay(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> _Replay:
    """Looks, whenever memory is given back, that nothing leads there."""
    assert rig.context.api.call("qaeRegisterDevice", rig.fd) == (0, None)
    give_back = own_memory.give_back

    def checked(address: int, size: int) -> None:
        assert not any(address <= virt < address + size for virt, _ in rig.entries.values())
        give_back(address, size)

    monkeypatch.setattr(own_memory, "give_back", checked)
    return _Replay(VfioDma(), Marks(rig))  # type: ignore[arg-type]


def test_what_the_recording_does_not_end_is_ended(rig: Rig, replay: _Replay) -> None:
    assert [one["result"] for one in replay.run(BEGIN)] == [1, 0, 0, 0]
    assert (rig.entries, replay.left) == ({}, 1)


def test_a_state_that_is_allocated_anew(rig: Rig, replay: _Replay) -> None:
    done = replay.run([*BEGIN, *BEGIN[:2], BEGIN[3], END])
    assert [one["result"] for one in done] == [1, 0, 0, 0, 1, 0, 0, None]
    assert (rig.entries, replay.left) == ({}, 1)
    # what ends the old range is none of the calls
    marks: Any = replay._recording
    assert marks.seen[4:6] == [("rest", 1), ("call 4", 0)]


def test_nothing_is_left_of_a_whole_recording(rig: Rig, replay: _Replay) -> None:
    replay.run([*BEGIN[:2], BEGIN[3], END])
    assert (rig.entries, replay.left) == ({}, 0)


def test_memory_that_the_device_may_reach_is_kept(rig: Rig, replay: _Replay) -> None:
    rig.vfio.fail(UNMAP, errno.EINVAL)
    with pytest.raises(UnmapFailed):
        replay.run(BEGIN)
    ((virt, _),) = rig.entries.values()
    assert len(own_memory.read(virt, PAGE)) == PAGE


def test_not_while_a_recording_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps_kernel._recordings, "u", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(steps_kernel._told, "t", [])
    error = execute(rig.context, "replay", {"device": "edu0", "trace": "t"})["error"]
    assert error["type"] == "NotSet"
    assert "'u' is being recorded" in error["message"]


def test_what_the_kernel_saw_belongs_to_the_call_before() -> None:
    done = [{"map_calls": 0, "unmap_calls": 0, "maps": [], "unmaps": []} for _ in range(2)]
    me = f"python3-{os.getpid()} [000] ..... 1.000000: "
    lines = [
        f"{me}tracing_mark_write: call 0",
        f"{me}sys_ioctl(fd: 3, cmd: 3b71, arg: 1)",
        f"{me}map: IOMMU: iova=0x1000 - 0x2000 paddr=0x5000 size=4096",
        f"{me}tracing_mark_write: rest",
        f"{me}sys_ioctl(fd: 3, cmd: 3b72, arg: 1)",
        f"{me}unmap: IOMMU: iova=0x1000 - 0x2000 size=4096 unmapped_size=4096",
        f"{me}tracing_mark_write: call 1",
        f"{me}unmap: IOMMU: iova=0x3000 - 0x4000 size=4096 unmapped_size=0",
        "python3-1 [000] ..... 1.000000: map: IOMMU: iova=0x1000 - 0x2000 paddr=0x5000 size=4096",
    ]
    _witnessed("\n".join(lines), done)
    assert done == [
        {"map_calls": 1, "unmap_calls": 0, "maps": [[0x1000, 0x5000, 4096]], "unmaps": []},
        {"map_calls": 0, "unmap_calls": 0, "maps": [], "unmaps": [[0x3000, 4096, 0]]},
    ]
    assert steps_replay.STEPS.keys() == {"replay"}
