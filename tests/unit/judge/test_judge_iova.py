"""What is judged of two-step DMA mapping: addresses, their place in the granule, counts, faults at a range."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge import judge
from harness.judge.bindings import Bindings
from harness.results import Check, Evidence, StepError, StepEvidence, Verdict
from harness.scenario.model import Scenario

ALLOC = {"device": "edu0", "as": "r", "buffer": "a", "offset": 0x234, "size": 8192}
STREAM = {"device": "edu0", "buffer": "a", "offset": 4096, "size": 100}
READ = {"device": "edu0", "range": "r", "offset": 4096, "size": 16}


def ran(index: int, kind: str, args: dict[str, Any], returns: int | None = None, error: str = "", **values: Any) -> Any:
    said = StepError(type=error, message="because") if error else None
    return StepEvidence(index=index, kind=kind, args=args, returns=returns, error=said, values=values)


def scenario(*steps: dict[str, Any], faults: tuple[dict[str, Any], ...] = ()) -> Scenario:
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    data = {"title": "t", "source": "s", "machine": machine, "steps": list(steps), "expect": {"faults": list(faults)}}
    return Scenario.model_validate(data)


def one(step: dict[str, Any], seen: StepEvidence) -> Check:
    return judge(scenario(step), Evidence(steps=(seen,))).checks[0]


# ---- addresses


def test_a_range_has_the_iova_of_its_last_reservation() -> None:
    seen = [
        ran(0, "iova_alloc", ALLOC, 1, iova=0x200234),
        ran(1, "iova_destroy", {"range": "r", "size": 1}),
        ran(2, "iova_alloc", {**ALLOC, "size": 0}, 0, "BadSize"),
        ran(3, "iova_alloc", ALLOC, 1, iova=0x300234),
        ran(4, "stream_map", STREAM, 0x500000, iova=0x500000),
    ]
    bindings = Bindings((), seen)
    # The offset of the memory is none of the range.
    assert [bindings.iova("r", step) for step in range(5)] == [None, 0x200234, 0x200234, 0x200234, 0x300234]
    assert bindings.iova("a", 5) == 0x500000 - 4096
    assert bindings.iova("a", 4) is None


@pytest.mark.parametrize(("kind", "args"), [("iova_alloc", ALLOC), ("stream_map", STREAM)])
def test_an_iova_has_the_memory_s_offset_in_its_granule(kind: str, args: dict[str, Any]) -> None:
    assert one({kind: args}, ran(0, kind, args, 1, iova=0x200234, inside=0x234)).passed
    moved = one({kind: args}, ran(0, kind, args, 1, iova=0x200235, inside=0x234))
    assert not moved.passed
    assert moved.message == "expected an IOVA at 0x234 of its granule, as the memory, observed the IOVA 0x200235"
    assert not one({kind: args}, ran(0, kind, args, 1)).passed, "a success says where"
    # Nothing is said of one that was refused.
    refused = {kind: args, "expect": {"error": "NoIovaSpace"}}
    assert one(refused, ran(0, kind, args, 0, "NoIovaSpace")).passed


@pytest.mark.parametrize(("returns", "passes"), [(0, True), (-22, False), (None, False)])
def test_returns(returns: int | None, passes: bool) -> None:
    args = {"range": "r", "buffer": "a", "size": 4096}
    assert one({"iova_link": args, "expect": {"returns": 0}}, ran(0, "iova_link", args, returns)).passed is passes


def test_a_void_function_that_fails_is_not_what_was_expected() -> None:
    args = {"range": "r", "size": 4096}
    assert not one({"iova_unlink": args}, ran(0, "iova_unlink", args, error="NotLinked")).passed
    refused = {"iova_unlink": args, "expect": {"error": "NotLinked"}}
    assert one(refused, ran(0, "iova_unlink", args, error="NotLinked")).passed
    assert not one(refused, ran(0, "iova_unlink", args)).passed


def test_counts() -> None:
    step = {"iova_info": {"range": "r"}, "expect": {"counts": {"links": 2, "in_use": 1}}}
    counts = {"links": 2, "synced": 0, "in_use": 1}
    assert one(step, ran(0, "iova_info", {"range": "r"}, counts=counts)).passed
    assert not one(step, ran(0, "iova_info", {"range": "r"}, counts={**counts, "links": 3})).passed
    assert not one(step, ran(0, "iova_info", {"range": "r"})).passed


# ---- faults


def verdict(expected: dict[str, Any], address: int) -> Verdict:
    fault = {"device": "edu0", "access": "read", "reason": 6, "step": "bad", **expected}
    wanted = scenario({"iova_alloc": ALLOC}, {"dma_read": READ, "id": "bad"}, faults=(fault,))
    trace = (f"vtd_dmar_fault sid 0x200 fault 6 addr {address:#x} write 0",)
    read = StepEvidence(index=1, kind="dma_read", args=READ, values={"completed": True}, trace=trace)
    steps = (ran(0, "iova_alloc", ALLOC, 1, iova=0x200234, inside=0x234), read)
    return judge(wanted, Evidence(steps=steps, devices={"edu0": "02:00.0"}))


def faults(expected: dict[str, Any], address: int) -> Check:
    (found,) = [check for check in verdict(expected, address).checks if check.name == "faults"]
    return found


@pytest.mark.parametrize(
    ("offset", "address", "passes"),
    [(4096, 0x201234, True), (4096, 0x201238, False), (0, 0x200234, True), (-0x234, 0x200000, True), (0, 0x234, False)],
)
def test_a_fault_at_a_range(offset: int, address: int, passes: bool) -> None:
    assert faults({"range": "r", "offset": offset}, address).passed is passes


def test_a_fault_elsewhere_is_told_with_the_range() -> None:
    found = faults({"range": "r", "offset": 4096}, 0x900000)
    assert "missing: edu0 (02:00.0) read r+0x1000 (0x201234), reason 0x06" in found.message
    unknown = faults({"range": "other"}, 0x900000)
    assert "read other (no IOVA known)" in unknown.message
