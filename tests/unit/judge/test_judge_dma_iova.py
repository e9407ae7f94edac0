"""The rules of the two-step DMA mapping API: a real recording keeps them, and each broken one is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.agent import iova_trace
from harness.judge.dma_iova import RULES, check_recordings, sequences, shapes, violations
from harness.results import Check, Evidence, StepEvidence
from harness.scenario import parse_scenario

GOLDEN = Path(__file__).parents[2] / "golden" / "iova_trace"
RECORDED = iova_trace.read((GOLDEN / "two_cpus.txt").read_text()).calls
REFUSED = iova_trace.read((GOLDEN / "identity_domain.txt").read_text()).calls
G = 4096
WHOLE = {"cut": 0, "lost": 0, "unpaired": 0, "unread": 0}
Calls = list[dict[str, Any]]


def sequence() -> Calls:
    """The calls of a range of five links, the first of which begins within a page, and the last ends within one."""
    one = next(
        found.calls for found in sequences(RECORDED) if len(found.calls) == 8 and found.calls[0]["phys"] % G == 0x200
    )
    return copy.deepcopy(one)


def at(calls: Calls, name: str, number: int = 0) -> int:
    return [index for index, call in enumerate(calls) if call["call"] == name][number]


def change(name: str, number: int = 0, **values: Any) -> Callable[[Calls], None]:
    return lambda calls: calls[at(calls, name, number)].update(values)


def drop(name: str) -> Callable[[Calls], None]:
    return lambda calls: calls.pop(at(calls, name)) and None


def free_instead(calls: Calls) -> None:
    calls[-1] = {**calls[-1], "call": "dma_iova_free"}


def unlink(size: int, offset: int = 0) -> Callable[[Calls], None]:
    def put(calls: Calls) -> None:
        first = calls[0]["addr"] + offset
        rounded = [first - first % G, -(-(first % G + size) // G) * G]
        one = {
            **calls[-1],
            "call": "dma_iova_unlink",
            "offset": offset,
            "size": size,
            "unmaps": [[*rounded, rounded[1]]],
        }
        calls.insert(-1, one)

    return put


def shift_second_link(calls: Calls) -> None:
    link = calls[at(calls, "dma_iova_link", 1)]
    link["phys"] += 0x100


def short_first_link(calls: Calls) -> None:
    """The first link ends before its page does, and the second one begins there."""
    first, second = calls[at(calls, "dma_iova_link")], calls[at(calls, "dma_iova_link", 1)]
    first["size"] -= 0x100
    second["offset"] -= 0x100


BROKEN: list[tuple[str, Callable[[Calls], None]]] = [
    ("no range", drop("dma_iova_try_alloc")),
    ("no range", lambda calls: calls.append({**calls[1], "time": 99.0})),
    ("two ranges", lambda calls: calls.insert(1, copy.deepcopy(calls[0]))),
    ("address", change("dma_iova_try_alloc", addr=0xFFFB0300)),
    ("size", change("dma_iova_try_alloc", range=0x3000)),
    ("mapping", change("dma_iova_try_alloc", maps=[[0, 0, 4096]])),
    ("outside", change("dma_iova_link", 4, size=0x400)),
    ("outside", change("dma_iova_link", 4, size=0)),
    ("overlap", change("dma_iova_link", 2, offset=0xE00)),
    ("start", shift_second_link),
    ("start", change("dma_iova_link", phys=0x1FCB3300)),
    ("end", short_first_link),
    ("mapping", change("dma_iova_link", 1, maps=[])),
    ("mapping", change("dma_iova_link", 1, maps=[[0xFFFB1000, 0x1FCB2000, 8192]])),
    ("mapping", change("dma_iova_link", 1, maps=[[0xFFFB1000, 0x1FCB2000, 4096]] * 2)),
    ("mapping", change("dma_iova_link", 1, result=-12)),
    ("sync", drop("dma_iova_sync")),
    ("sync", change("dma_iova_sync", size=0x2E00)),
    ("outside", change("dma_iova_sync", size=0x5000)),
    ("unlinked", unlink(0x1000)),
    ("unlinked", unlink(0x800, 0xE00)),
    ("free", free_instead),
    ("destroy", change("dma_iova_destroy", size=0x3E00)),
    ("destroy", unlink(0xE00)),
    ("unmapping", change("dma_iova_destroy", unmaps=[])),
    ("unmapping", change("dma_iova_destroy", unmaps=[[0xFFFB0000, 0x5000, 0x4000]])),
    ("unmapping", change("dma_iova_destroy", unmaps=[[0xFFFB0000, 0x4000, 0x4000], [0xFFFB4000, 0x1000, 0x1000]])),
    ("direction", change("dma_iova_destroy", dir=2)),
    ("end of range", drop("dma_iova_destroy")),
]


def test_what_the_kernel_did_keeps_every_rule() -> None:
    assert violations(RECORDED, G) == []
    assert violations(REFUSED, G) == []
    assert violations(sequence(), G) == []


@pytest.mark.parametrize(("rule", "spoil"), BROKEN, ids=[f"{rule}-{number}" for number, (rule, _) in enumerate(BROKEN)])
def test_a_broken_rule_is_named_with_its_call(rule: str, spoil: Callable[[Calls], None]) -> None:
    calls = sequence()
    spoil(calls)
    found = violations(calls, G)
    assert rule in {one.rule for one in found}, found
    text = str(next(one for one in found if one.rule == rule))
    assert RULES[rule] in text
    assert "dma_iova_" in text


def test_every_rule_is_broken_above() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_a_range_managed_link_by_link_keeps_the_rules() -> None:
    calls = sequence()
    links = [call for call in calls if call["call"] == "dma_iova_link"]
    end = calls.pop()
    for link in links:
        rows = [[link["maps"][0][0], link["maps"][0][2], link["maps"][0][2]]]
        calls.append({**end, "call": "dma_iova_unlink", "offset": link["offset"], "size": link["size"], "unmaps": rows})
    calls.append({**end, "call": "dma_iova_free", "unmaps": []})
    assert violations(calls, G) == []


@pytest.mark.parametrize("number", [1, 4])
def test_what_is_linked_is_taken_back_without_a_sync_when_a_link_fails(number: int) -> None:
    """As blk_rq_dma_map_iova of block/blk-mq-dma.c does."""
    calls = sequence()
    failed = at(calls, "dma_iova_link", number)
    calls[failed].update(result=-12, maps=[])
    mapped, whole = calls[failed]["offset"], -(-(0x200 + calls[failed]["offset"]) // G) * G
    first = calls[0]["addr"] - calls[0]["addr"] % G
    calls[-1].update(size=mapped, unmaps=[[first, whole, whole]])
    del calls[failed + 1 : -1]
    assert [call["call"] for call in calls][-2:] == ["dma_iova_link", "dma_iova_destroy"]
    assert violations(calls, G) == []


def test_what_is_linked_is_taken_back_when_the_sync_fails() -> None:
    calls = sequence()
    calls[at(calls, "dma_iova_sync")].update(result=-12)
    assert violations(calls, G) == []


def test_a_failure_in_one_range_excuses_no_other() -> None:
    failed, other = sequence(), sequence()
    failed[at(failed, "dma_iova_sync")].update(result=-12)
    for call in other:
        call["state"] += 1000
    other.pop(at(other, "dma_iova_sync"))
    assert [one.rule for one in violations([*failed, *other], G)] == ["sync"]


def test_a_link_that_failed_is_none() -> None:
    calls = sequence()
    last = calls[at(calls, "dma_iova_link", 4)]
    last.update(result=-12, maps=[])
    calls[-1].update(size=0x3E00, unmaps=[[0xFFFB0000, 0x4000, 0x4000]])
    assert violations(calls, G) == []


# ---- the checks of a scenario


def checks(values: dict[str, Any], shapes: str = "") -> dict[str, Check]:
    expect = f"\n    expect: {{shapes: [{shapes}]}}" if shapes else ""
    needs = 'needs: {kernel: ">=6.16", kernel_options: {FPROBE_EVENTS: true}}'
    steps = "steps:\n  - trace: {name: t0}\n  - trace_end: {name: t0}"
    text = f"title: t\nsource: s\nmachine: {{}}\n{needs}\n{steps}{expect}\n"
    evidence = [
        StepEvidence(index=0, kind="trace", args={"name": "t0"}),
        StepEvidence(index=1, kind="trace_end", args={"name": "t0"}, values=values),
    ]
    found = check_recordings(parse_scenario(text, "x.yaml").steps, Evidence(steps=tuple(evidence)))
    return {check.name.removeprefix("recording t0").removeprefix(": "): check for check in found}


def values(calls: Calls, **counts: int) -> dict[str, Any]:
    return {"calls": calls, "granule": G, "counts": {**WHOLE, **counts}}


def test_a_whole_recording_passes() -> None:
    found = checks(values(RECORDED), "several_links, unaligned_first, large_link, to_device, from_device, streaming")
    assert all(check.passed for check in found.values()), found
    assert list(found) == ["whole", "shapes", "rules"]


def test_an_empty_recording_fails() -> None:
    found = checks(values([]))
    assert found["whole"].passed
    assert not found["shapes"].passed
    assert not found["rules"].passed
    assert not checks(values([call for call in RECORDED if "state" not in call]))["rules"].passed


@pytest.mark.parametrize("key", sorted(WHOLE))
def test_a_recording_that_is_not_whole_fails(key: str) -> None:
    found = checks(values(RECORDED, **{key: 3}))
    assert not found["whole"].passed
    assert "3 " in found["whole"].message


def test_a_shape_that_is_not_there_fails() -> None:
    found = checks(values(sequence()), "large_link")
    assert "some of each: large_link" in found["shapes"].message
    assert not found["shapes"].passed


def test_a_range_that_was_never_freed_counts_for_nothing() -> None:
    calls = sequence()[:-1]
    assert shapes(calls, G)["ranges"] == 0


def test_refusals_must_be_nothing_but_refusals() -> None:
    assert all(check.passed for check in checks(values(REFUSED), "refused, streaming").values())
    assert not checks(values([*REFUSED, *sequence()]), "refused, streaming")["shapes"].passed
    assert not checks(values(RECORDED), "refused")["shapes"].passed


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"calls": [{}], "granule": G, "counts": WHOLE},
        {"calls": None, "granule": G, "counts": WHOLE},
        values([{"call": 1, "state": 1}]),
    ],
)
def test_odd_evidence_is_a_failed_check(broken: dict[str, Any]) -> None:
    assert not all(check.passed for check in checks(broken).values())
