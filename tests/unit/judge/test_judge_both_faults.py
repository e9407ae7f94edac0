"""The faults of two implementations, compared by buffer and offset: their IOVAs differ."""

from __future__ import annotations

from harness.judge import judge_both
from harness.judge.implementations import compare_implementations
from harness.results import Check, Evidence, StepEvidence
from harness.scenario.model import Scenario

NEW = "26.08.0-2"
MIB = 1 << 20
MAP = {"buffer": "b", "size": 4096}
ALLOC = {"alloc": {"as": "b", "size": 16384}}
READ = {"dma_read": {"device": "edu0", "buffer": "b", "offset": 4096, "size": 64}, "id": "late"}
FAULT = {"device": "edu0", "access": "read", "buffer": "b", "offset": 4096, "reason": 6, "step": "late"}


def scenario(*steps, faults=(), known=None) -> Scenario:
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    expect = {"faults": list(faults)} | ({} if known is None else {"libusdm": known})
    return Scenario.model_validate(
        {"title": "t", "source": "s", "machine": machine, "steps": list(steps), "expect": expect}
    )


def alloc(index: int, iova: int, name: str = "b") -> StepEvidence:
    return StepEvidence(index=index, kind="alloc", args={"as": name}, returns=1, values={"iova": iova})


def trace(address: int, *, words: int = 4, reason: int = 6, write: int = 0, sid: int = 0x200) -> tuple[str, ...]:
    return tuple(
        f"vtd_dmar_fault sid {sid:#x} fault {reason} addr {address + 4 * i:#x} write {write}" for i in range(words)
    )


def read(
    index: int, lines: tuple[str, ...] = (), *, base: int | None = None, offset: int = 4096, buffer: str | None = "b"
) -> StepEvidence:
    """A DMA to 64 bytes at an offset of a buffer, which begins at ``base``, else where the first fault's 2 MiB do."""
    if base is None:
        base = int(lines[0].split(" addr ")[1].split()[0], 16) // (2 * MIB) * (2 * MIB) if lines else 2 * MIB
    args = {"size": 64, "offset": offset} | ({} if buffer is None else {"buffer": buffer})
    values = {"completed": True, "iova": base + offset}
    return StepEvidence(index=index, kind="dma_read", args=args, values=values, trace=lines)


def side(*steps: StepEvidence, libusdm: str = "", log: tuple[int, ...] = ()) -> Evidence:
    printed = tuple(
        line
        for address in log
        for line in (
            "[    9.000000] DMAR: DRHD: handling fault status reg 2",
            f"[    9.000001] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr {address:#x} "
            "[fault reason 0x06] words",
        )
    )
    return Evidence(steps=steps, libusdm=libusdm, devices={"edu0": "02:00.0"}, kernel_log=printed)


def faults(one: Scenario, ours: Evidence, theirs: Evidence) -> Check:
    check = list(compare_implementations(one, ours, theirs))[-1]
    assert check.name == "both meet the same faults"
    return check


def test_the_same_place_of_a_buffer_at_another_iova_is_the_same_fault():
    one = scenario(ALLOC, READ, faults=[FAULT])
    ours = side(alloc(0, 2 * MIB), read(1, trace(2 * MIB + 4096)), log=(2 * MIB + 4096,))
    theirs = side(alloc(0, 6 * MIB), read(1, trace(6 * MIB + 4096)), libusdm=NEW, log=(6 * MIB + 4096,))
    assert faults(one, ours, theirs).message == "the same"
    assert judge_both(one, ours, theirs).passed


def test_how_many_words_were_refused_of_a_page_does_not_matter():
    one = scenario(ALLOC, READ)
    ours = side(alloc(0, 2 * MIB), read(1, trace(2 * MIB + 4096, words=16)))
    theirs = side(alloc(0, 6 * MIB), read(1, trace(6 * MIB + 4096 + 8, words=1)), libusdm=NEW)
    assert faults(one, ours, theirs).passed


def test_another_page_access_reason_device_or_step_is_another_fault():
    one = scenario(ALLOC, READ, {"dma_read": {"device": "edu0", "buffer": "b", "size": 64}})
    ours = side(alloc(0, 2 * MIB), read(1, trace(2 * MIB + 4096)), read(2))
    same = trace(6 * MIB + 4096)
    for lines, later in (
        (trace(6 * MIB), ()),
        (trace(6 * MIB + 4096, write=1), ()),
        (trace(6 * MIB + 4096, reason=5), ()),
        (trace(6 * MIB + 4096, sid=0x300), ()),
        ((), same),
        (same, same),
        ((), ()),
    ):
        theirs = side(alloc(0, 6 * MIB), read(1, lines), read(2, later), libusdm=NEW)
        assert not faults(one, ours, theirs).passed
        assert not faults(one, side(*theirs.steps), side(*ours.steps, libusdm=NEW)).passed, "whichever side has it"
    assert faults(one, ours, side(alloc(0, 6 * MIB), read(1, same), read(2), libusdm=NEW)).passed


def test_the_side_that_has_it_is_named():
    one = scenario(ALLOC, READ)
    ours = side(alloc(0, 2 * MIB), read(1, trace(2 * MIB + 4096)))
    theirs = side(alloc(0, 6 * MIB), read(1), libusdm=NEW)
    check = faults(one, ours, theirs)
    assert not check.passed
    words = "step 1: 02:00.0 read b, page at 0x1000, reason 0x06"
    assert check.message.startswith(f"expected the same, observed usdm only: {words}")
    assert f"libusdm only: {words}" in faults(one, side(*theirs.steps), side(*ours.steps, libusdm=NEW)).message


def test_faults_that_are_known_to_differ():
    known = {"defect": "D10", "versions": ">=26.08", "faults": []}
    one = scenario(ALLOC, READ, faults=[FAULT], known=known)
    ours = side(alloc(0, 2 * MIB), read(1, trace(2 * MIB + 4096)), log=(2 * MIB + 4096,))
    check = faults(one, ours, side(alloc(0, 6 * MIB), read(1), libusdm=NEW))
    assert (check.passed, check.message.startswith("known as D10: usdm only: ")) == (True, True)
    assert not faults(one, ours, side(alloc(0, 6 * MIB), read(1), libusdm="24.02.0-1")).passed


def test_a_fault_in_no_buffer_is_compared_by_its_address():
    one = scenario(ALLOC, {"dma_read": {"device": "edu0", "iova": 0x90000000, "size": 16}})
    ours = side(alloc(0, 2 * MIB), read(1, trace(0x90000000), buffer=None))
    assert faults(one, ours, side(alloc(0, 6 * MIB), read(1, trace(0x90000000), buffer=None), libusdm=NEW)).passed
    assert not faults(one, ours, side(alloc(0, 6 * MIB), read(1, trace(0x90001000), buffer=None), libusdm=NEW)).passed


def test_the_iova_that_a_buffer_had_at_that_step_counts():
    """It was mapped anew afterwards, and the place of one is that of the other's later."""

    def mapped(index: int, iova: int) -> StepEvidence:
        return StepEvidence(index=index, kind="map", args={"buffer": "b"}, returns=iova, values={"iova": iova})

    made = {"buffer": {"as": "b", "size": 8192}}
    one = scenario(made, {"map": MAP}, READ, {"map": MAP})
    made_it = StepEvidence(index=0, kind="buffer", args={"as": "b"})
    ours = side(made_it, mapped(1, 2 * MIB), read(2, trace(2 * MIB + 4096)), mapped(3, 8 * MIB))
    theirs = side(made_it, mapped(1, 8 * MIB), read(2, trace(8 * MIB + 4096)), mapped(3, 2 * MIB), libusdm=NEW)
    assert faults(one, ours, theirs).passed
    assert not faults(one, ours, side(*ours.steps[:2], read(2, trace(8 * MIB)), mapped(3, 8 * MIB), libusdm=NEW)).passed


def test_a_place_right_before_or_behind_a_buffer_is_the_same_at_another_iova():
    for offset in (-4096, 16384):
        step = {"dma_read": {"device": "edu0", "buffer": "b", "offset": offset, "size": 64}}
        mine, other = (read(1, trace(base + offset), base=base, offset=offset) for base in (2 * MIB, 6 * MIB))
        ours = side(alloc(0, 2 * MIB), mine)
        theirs = side(alloc(0, 6 * MIB), other, libusdm=NEW)
        assert faults(scenario(ALLOC, step), ours, theirs).passed


def test_a_fault_in_a_child_is_compared_by_the_childs_buffers():
    child = {"alloc": {"as": "c", "size": 16384}}, {"dma_read": {"device": "edu0", "buffer": "c", "size": 64}}
    one = scenario({"fork": {"steps": list(child)}})

    def forked(iova: int) -> StepEvidence:
        inner = alloc(0, iova, "c"), read(1, base=iova, offset=0, buffer="c")
        return StepEvidence(index=0, kind="fork", args={}, children=inner, trace=trace(iova))

    assert faults(one, side(forked(2 * MIB)), side(forked(6 * MIB), libusdm=NEW)).passed
