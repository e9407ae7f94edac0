"""A recording of the kernel against the same calls on usdm: the same is the same, and each difference is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.agent import iova_trace
from harness.judge.dma_iova_replay import check_replays, compare
from harness.results import Evidence, StepEvidence

GOLDEN = Path(__file__).parents[2] / "golden" / "iova_trace"
CALLS = [call for call in iova_trace.read((GOLDEN / "two_cpus.txt").read_text()).calls if "state" in call]
G = 4096
MOVED = 0x200000 - 0xF0000000
Calls = list[dict[str, Any]]


def replayed() -> Calls:
    """What usdm does in the same calls: at other addresses, each mapping in dma_iova_sync, long ones in two events."""
    done, waiting = [], {}
    for call in CALLS:
        row = {key: call[key] for key in ("call", "state")}
        row |= {"result": call.get("result"), "addr": call.get("addr", 0) + MOVED, "range": call.get("range", 0)}
        row |= {"refused": "", "map_calls": 0, "unmap_calls": len(call["unmaps"]), "maps": []}
        row["unmaps"] = [
            [iova + MOVED, half, half] for iova, size, _ in call["unmaps"] for iova, half in halves(iova, size)
        ]
        waiting.setdefault(call["state"], []).extend(call["maps"])
        if call["call"] == "dma_iova_sync":
            mine = waiting.pop(call["state"])
            row["map_calls"] = len(mine)
            row["maps"] = [[at + MOVED, 0x7000, half] for iova, _, size in mine for at, half in halves(iova, size)]
        done.append(row)
    return done


def halves(iova: int, size: int) -> list[tuple[int, int]]:
    return [(iova, size)] if size == G else [(iova, G), (iova + G, size - G)]


def change(name: str, number: int = 0, **values: Any) -> Callable[[Calls], None]:
    def spoil(calls: Calls) -> None:
        [call for call in calls if call["call"] == name][number].update(values)

    return spoil


def first_map_gone(calls: Calls) -> None:
    next(call for call in calls if call["maps"])["maps"].pop(0)


DIFFERENT: list[tuple[str, Callable[[Calls], None]]] = [
    ("says 1, usdm 0 (NoIovaSpace)", change("dma_iova_try_alloc", result=0, refused="NoIovaSpace")),
    ("says 0, usdm -22", change("dma_iova_link", 3, result=-22, refused="OutsideRange")),
    ("says 0, usdm -12", change("dma_iova_sync", result=-12)),
    ("usdm refuses it with StillLinked", change("dma_iova_destroy", refused="StillLinked")),
    ("begins at", change("dma_iova_try_alloc", addr=0x300)),
    ("usdm's 0x3000", change("dma_iova_try_alloc", range=0x3000)),
    ("usdm 7", change("dma_iova_sync", map_calls=7)),
    ("made 0 mappings, usdm 1", change("dma_iova_link", map_calls=1)),
    ("of the range, usdm", first_map_gone),
    ("by 1 calls, usdm by 5", change("dma_iova_destroy", unmap_calls=5)),
    ("usdm nothing", change("dma_iova_destroy", unmaps=[])),
    ("not the same", lambda calls: calls.pop() and None),
    ("not the same", lambda calls: calls.reverse()),
]


def test_the_same_calls_are_the_same() -> None:
    assert list(compare(CALLS, replayed(), G)) == []


@pytest.mark.parametrize(("said", "spoil"), DIFFERENT, ids=[str(number) for number in range(len(DIFFERENT))])
def test_a_difference_is_told(said: str, spoil: Callable[[Calls], None]) -> None:
    calls = copy.deepcopy(replayed())
    spoil(calls)
    found = list(compare(CALLS, calls, G))
    assert any(said in one for one in found), found


def judged(recorded: Calls | None, done: Calls) -> Any:
    counts = {"calls": 1, "ranges": 1, "links": 1}
    steps = [StepEvidence(index=0, kind="replay", args={"trace": "t0"}, values={"calls": done, "counts": counts})]
    if recorded is not None:
        values = {"calls": recorded, "granule": G}
        steps.insert(0, StepEvidence(index=1, kind="trace_end", args={"name": "t0"}, values=values))
    (check,) = check_replays(Evidence(steps=tuple(steps)))
    return check


def test_the_check_of_a_replay() -> None:
    assert judged(CALLS, replayed()).passed
    failed = judged(CALLS, replayed()[:-1])
    assert not failed.passed
    assert "expected the kernel's results" in failed.message


@pytest.mark.parametrize("recorded", [None, [], [{}], [{"state": 1}]])
def test_nothing_that_can_be_compared_fails(recorded: Calls | None) -> None:
    assert not judged(recorded, []).passed


def test_a_replay_that_met_an_error_is_judged_as_a_step() -> None:
    from harness.results import StepError

    error = StepError(type="NotSet", message="")
    step = StepEvidence(index=0, kind="replay", args={"trace": "t0"}, error=error)
    assert check_replays(Evidence(steps=(step,))) == []
