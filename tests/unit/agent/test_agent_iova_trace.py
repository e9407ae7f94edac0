"""The kernel's dma_iova_* calls out of recordings as tracefs prints them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.agent import iova_trace
from harness.agent.iova_trace import DEFINITIONS, FUNCTIONS, read

GOLDEN = Path(__file__).parents[2] / "golden" / "iova_trace"

ALLOC = 'device="0000:02:00.0" state=0xffff888008cb8b78 phys=0x1f12a200 size=0x1000'
STATE = "state=0xffff888008cb8b78"


def line(task: str, time: float, rest: str, cpu: int = 0) -> str:
    return f"    {task}     [{cpu:03}] {time:12.6f}: {rest}\n"


def enter(task: str, time: float, function: str, rest: str, cpu: int = 0) -> str:
    return line(task, time, f"{function}_enter: ({function}+0x4/0x120) {rest}", cpu)


def leave(task: str, time: float, function: str, rest: str, cpu: int = 0) -> str:
    return line(task, time, f"{function}_exit: (caller+0x1/0x2 <- {function}) {rest}", cpu)


def mapped(task: str, time: float, iova: int, cpu: int = 0) -> str:
    rest = f"map: IOMMU: iova={iova:#018x} - {iova + 4096:#018x} paddr=0x000000001f12a000 size=4096"
    return line(task, time, rest, cpu)


def test_both_ends_of_each_function_are_recorded() -> None:
    assert len(DEFINITIONS) == 2 * len(FUNCTIONS) == 12
    for name in FUNCTIONS:
        (begins,) = [text for text in DEFINITIONS if text.startswith(f"f:harness/{name}_enter {name} ")]
        (ends,) = [text for text in DEFINITIONS if text.startswith(f"f:harness/{name}_exit {name}%return ")]
        assert "state=$arg2:x64" in begins
        assert "state=$arg2:x64" in ends


def test_a_recording_of_two_cpus_with_requests_at_once() -> None:
    found = read((GOLDEN / "two_cpus.txt").read_text())
    assert (found.unpaired, found.unread) == (0, 0)
    names = Counter(call["call"] for call in found.calls)
    assert names["dma_iova_try_alloc"] == names["dma_iova_sync"] == names["dma_iova_destroy"] > 4
    assert names["dma_iova_link"] > 150
    assert [call["time"] for call in found.calls] == sorted(call["time"] for call in found.calls)
    links = [call for call in found.calls if call["call"] == "dma_iova_link"]
    assert all(len(call["maps"]) == 1 and call["result"] == 0 and call["attrs"] == 0 for call in links)
    assert {call["dir"] for call in links} == {1, 2}
    assert all(len(call["unmaps"]) == 1 for call in found.calls if call["call"] == "dma_iova_destroy")
    first = next(call for call in found.calls if call["call"] == "dma_iova_try_alloc")
    assert first == {
        "call": "dma_iova_try_alloc",
        "time": 12.827942,
        "seconds": 0.001462,
        "device": "0000:02:00.0",
        "state": 1,
        "phys": 0x1FCB3200,
        "size": 0x4000,
        "maps": [],
        "unmaps": [],
        "result": 1,
        "addr": 0xFFFB0200,
        "range": 0x4000,
    }
    assert found.calls[0]["call"] == "dma_map_phys"
    assert found.calls[0]["maps"] == [[0xFFFF8000, 0x1FC01000, 4096]]
    # A queue's memory is mapped by another function, and is nobody's here.
    assert found.maps > sum(len(call["maps"]) for call in found.calls)


def test_a_recording_where_the_api_is_refused() -> None:
    found = read((GOLDEN / "identity_domain.txt").read_text())
    names = Counter(call["call"] for call in found.calls)
    assert set(names) == {"dma_iova_try_alloc", "dma_map_phys", "dma_unmap_phys"}
    assert {call["result"] for call in found.calls if call["call"] == "dma_iova_try_alloc"} == {0}
    assert (found.maps, found.unmaps, found.unpaired, found.unread) == (0, 0, 0, 0)
    assert all(call["addr"] == call["phys"] for call in found.calls if call["call"] == "dma_map_phys")


def test_an_interrupts_call_lies_within_the_tasks() -> None:
    text = enter("kworker/0:1H-7", 1.0, "dma_iova_try_alloc", ALLOC)
    text += enter("kworker/0:1H-7", 1.1, "dma_iova_destroy", "state=0x2 size=0x1000 dir=1 attrs=0x0 addr=0x0 range=0x0")
    text += line("kworker/0:1H-7", 1.2, "unmap: IOMMU: iova=0x1000 - 0x2000 size=4096 unmapped_size=4096")
    text += leave("kworker/0:1H-7", 1.3, "dma_iova_destroy", "state=0x2")
    text += leave("kworker/0:1H-7", 1.4, "dma_iova_try_alloc", f"{STATE} result=1 addr=0x200 range=0x1000")
    outer, inner = read(text).calls
    assert (outer["call"], outer["state"], outer["unmaps"], outer["seconds"]) == ("dma_iova_try_alloc", 1, [], 0.4)
    assert (inner["call"], inner["state"], inner["unmaps"]) == ("dma_iova_destroy", 2, [[4096, 4096, 4096]])


def test_idle_tasks_of_two_cpus_are_two_tasks() -> None:
    text = enter("<idle>-0", 1.0, "dma_iova_try_alloc", ALLOC, cpu=0)
    text += enter("<idle>-0", 1.1, "dma_iova_sync", "state=0x2 offset=0x0 size=0x1000", cpu=1)
    text += leave("<idle>-0", 1.2, "dma_iova_try_alloc", f"{STATE} result=0 addr=0x0 range=0x0", cpu=0)
    text += leave("<idle>-0", 1.3, "dma_iova_sync", "state=0x2 result=0", cpu=1)
    assert [call["seconds"] for call in read(text).calls] == [0.2, 0.2]


@pytest.mark.parametrize("task", ["a task-9", "kworker/u4:2+nvme-wq-9", "x-y-9"])
def test_names_of_tasks_may_have_anything_in_them(task: str) -> None:
    text = enter(task, 1.0, "dma_iova_sync", f"{STATE} offset=0x0 size=0x1000")
    text += leave("other-9", 1.1, "dma_iova_sync", f"{STATE} result=-12")
    (call,) = read(text).calls
    assert call["result"] == -12


def test_a_call_of_which_one_end_is_missing_is_counted_and_left_out() -> None:
    begun = enter("a-1", 1.0, "dma_iova_try_alloc", ALLOC)
    ended = leave("a-1", 1.1, "dma_iova_try_alloc", f"{STATE} result=1 addr=0x200 range=0x1000")
    for text in (begun, ended, begun + leave("a-1", 1.1, "dma_iova_sync", f"{STATE} result=0")):
        found = read(text)
        assert found.calls == []
        assert found.unpaired >= 1


def test_a_mapping_of_another_task_is_not_the_calls() -> None:
    text = enter("a-1", 1.0, "dma_iova_try_alloc", ALLOC) + mapped("b-2", 1.05, 0x1000)
    text += leave("a-1", 1.1, "dma_iova_try_alloc", f"{STATE} result=1 addr=0x200 range=0x1000")
    found = read(text)
    assert (found.calls[0]["maps"], found.maps) == ([], 1)


@pytest.mark.parametrize(
    "text",
    [
        "what is this\n",
        line("a-1", 1.0, "other: x"),
        line("a-1", 1.0, "map: nothing"),
        line("a-1", 1.0, "dma_map_phys: ?"),
    ],
)
def test_lines_that_nobody_knows_are_counted(text: str) -> None:
    found = read(text)
    assert (found.unread, found.calls) == (1, [])


def test_comments_and_empty_lines_say_nothing() -> None:
    found = read("# tracer: nop\n#\n\n")
    assert (found.calls, found.unread, found.unpaired) == ([], 0, 0)
    assert iova_trace.EVENTS[0] == "iommu/map"
