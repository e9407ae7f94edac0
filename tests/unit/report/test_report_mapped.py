from __future__ import annotations

import pytest

from harness.report.html.mapped import reaches_of, spans_of, tables_of
from harness.report.html.space import space_of
from harness.results import Evidence, FaultRecord, StepError, StepEvidence


def evidence(*steps):
    return Evidence(
        steps=tuple(
            StepEvidence(index=index, kind=kind, args=args, **more)
            for index, (kind, args, more) in enumerate((*one, {})[:3] for one in steps)
        )
    )


def shown(*steps):
    return [(one.name, one.first, one.size, one.access, one.since, one.until) for one in spans_of(evidence(*steps))]


REGISTER = ("register", {"device": "edu0"}, {"returns": 0})
BUFFER = ("buffer", {"as": "a", "size": 0x4000}, {"values": {"address": 0x7F0000}})
MAP = ("map", {"buffer": "a", "offset": 0, "size": 0x4000}, {"returns": 0x200000, "values": {"iova": 0x200000}})
ALLOC = ("alloc", {"as": "b", "size": 0x1000}, {"returns": 1, "values": {"iova": 0x400000}})


def test_a_mapping_lasts_until_it_is_unmapped():
    unmap = ("unmap", {"buffer": "a", "offset": 0, "size": 0x4000}, {"returns": 0})
    assert shown(REGISTER, BUFFER, MAP, unmap) == [("a", 0x200000, 0x4000, "rw", 2, 3)]


def test_what_is_unmapped_in_the_middle_leaves_both_ends():
    unmap = ("unmap", {"buffer": "a", "offset": 0x1000, "size": 0x1000}, {"returns": 0})
    assert sorted(shown(REGISTER, BUFFER, MAP, unmap)) == [
        ("a", 0x200000, 0x1000, "rw", 2, None),
        ("a", 0x201000, 0x1000, "rw", 2, 3),
        ("a", 0x202000, 0x2000, "rw", 2, None),
    ]


def test_an_address_is_the_buffer_that_lies_there():
    unmap = ("unmap", {"address": 0x7F1000, "size": 0x3000}, {"returns": 0})
    assert (("a", 0x201000, 0x3000, "rw", 2, 3)) in shown(REGISTER, BUFFER, MAP, unmap)


def test_a_step_that_failed_did_nothing():
    refused = ("unmap", {"buffer": "a", "offset": 0, "size": 0x4000}, {"error": StepError(type="X", message="")})
    assert shown(REGISTER, BUFFER, MAP, refused) == [("a", 0x200000, 0x4000, "rw", 2, None)]


def test_an_allocation_is_mapped_while_something_is_registered():
    unregister = ("unregister", {}, {"returns": 0})
    free = ("free", {"buffer": "b", "offset": 0})
    assert shown(ALLOC, REGISTER, unregister, REGISTER, free) == [
        ("b", 0x400000, 0x1000, "rw", 1, 2),
        ("b", 0x400000, 0x1000, "rw", 3, 4),
    ]


def test_a_link_is_mapped_when_it_is_synced():
    steps = [
        ("iova_alloc", {"as": "r", "buffer": "a", "size": 0x4000}, {"returns": 1, "values": {"iova": 0x800000}}),
        ("iova_link_each", {"range": "r", "at": 0, "size": 0x1000, "count": 4, "direction": "to_device"},
         {"values": {"done": 4}}),
        ("iova_sync", {"range": "r", "at": 0x1000, "size": 0x1000}, {"returns": 0}),
        ("iova_unlink", {"range": "r", "at": 0, "size": 0x4000}),
        ("iova_free", {"range": "r"}),
    ]  # fmt: skip
    assert shown(*steps) == [("r", 0x800000, 0x4000, "", 0, 4), ("r", 0x801000, 0x1000, "r", 2, 3)]


def test_container_remap_and_bare_mappings_are_ended_by_their_iova():
    steps = [
        ("container_map", {"buffer": "a", "size": 0x1000, "access": "read"}, {"values": {"iova": 0x1000}}),
        ("remap", {"buffer": "a", "size": 0x1000}, {"returns": 0, "values": {"iova": 0x1000}}),
        ("map", {"domain": "d", "iova": 0x1000, "size": 0x2000, "access": "write"}),
        ("container_unmap", {"iova": 0x1000, "size": 0x1000}),
        ("unremap", {"buffer": "a", "size": 0x1000}, {"values": {"iova": 0x1000}}),
        ("unmap", {"domain": "d", "iova": 0x1000}),
    ]  # fmt: skip
    assert [(access, until) for _, _, _, access, _, until in shown(*steps)] == [
        ("r", 3),
        ("rw", 4),
        ("w", 5),
        ("w", None),
    ]


@pytest.mark.parametrize("odd", [None, "x", -1, True, [1], {}])
def test_values_of_any_kind_are_met_quietly(odd):
    steps = evidence(
        ("map", {"buffer": odd, "size": odd, "offset": odd}, {"values": {"iova": odd}}),
        ("alloc", {"as": odd, "size": odd}, {"values": {"iova": odd}}),
        ("unmap", {"address": odd, "size": odd}),
        ("dma_read", {"size": odd}, {"values": {"iova": odd}}),
        ("mappings", {}, {"values": {"tables": odd}}),
        ("mappings", {}, {"values": {"tables": {"runs": [odd, [odd] * 5]}}}),
    )
    assert (spans_of(steps), reaches_of(steps), tables_of(steps)) == ((), (), ())


def test_the_picture_says_where_a_fault_lies():
    unmap = ("unmap", {"buffer": "a", "offset": 0, "size": 0x4000}, {"returns": 0})
    dma = ("dma_read", {"device": "edu0", "size": 64}, {"values": {"iova": 0x200000}})
    beyond = ("dma_read", {"device": "edu0", "size": 64}, {"values": {"iova": 0x204000}})

    def fault(step, address):
        return FaultRecord(witness="trace", requester="02:00.0", access="read", address=address, reason=6, step=step)

    found = space_of(evidence(REGISTER, BUFFER, MAP, beyond, unmap, dma), [fault(3, 0x204000), fault(5, 0x200000)])
    assert found is not None
    assert "The fault of step 3 at 0x204000 is right behind 'a'." in found.facts
    assert "The fault of step 5 at 0x200000 is where 'a' was mapped until step 4." in found.facts
    places = {label.text: label.x for label in found.labels}
    assert places["0x200000"] < places["0x204000"]


def test_what_is_left_is_told_and_what_is_unused_left_out():
    far = ("map", {"buffer": "z", "offset": 0, "size": 0x1000}, {"values": {"iova": 1 << 40}})
    found = space_of(evidence(REGISTER, BUFFER, MAP, far), [])
    assert found is not None
    assert any("At the end 20 KiB were still mapped: a, z" in fact for fact in found.facts)
    assert len(found.gaps) == 1
    assert all(box.x + box.width <= found.width for box in found.spans)


def test_thousands_of_mappings_leave_room():
    steps = [("map", {"buffer": f"b{n}", "size": 0x1000}, {"values": {"iova": n << 13}}) for n in range(3000)]
    found = space_of(evidence(*steps), [])
    assert found is not None
    assert (len(found.spans), found.left_out) == (40, 2960)


def test_no_picture_without_iovas():
    assert space_of(evidence(("fill", {"buffer": "a"})), []) is None
    assert space_of(None, []) is None
