"""One implementation against the other: the same is a pass, a known difference too, any other one a failure."""

from __future__ import annotations

import pytest

from harness.judge import judge_both
from harness.judge.implementations import compare_implementations
from harness.results import Check, Evidence, StepError, StepEvidence
from harness.scenario.model import Scenario

NEW, OLD = "26.08.0-2", "24.02.0-1"
MIB = 1 << 20
MAP = {"buffer": "b", "size": 4096}
RANGES = [[0, 0xFEDFFFFF], [0xFEF00000, (1 << 39) - 1]]


def scenario(*steps, faults=(), known=None):
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    expect = {"faults": list(faults)} | ({} if known is None else {"libusdm": known})
    return Scenario.model_validate(
        {"title": "t", "source": "s", "machine": machine, "steps": list(steps), "expect": expect}
    )


def ran(index, kind, *, error=None, args=None, **fields):
    if error is not None:
        fields["error"] = StepError(type=error, message=f"{error} of its own words")
    return StepEvidence(index=index, kind=kind, args=args or {}, **fields)


def evidence(*steps, libusdm=""):
    return Evidence(steps=steps, libusdm=libusdm, devices={"edu0": "02:00.0"})


def compared(one, ours, theirs, version=NEW) -> list[Check]:
    return list(compare_implementations(one, evidence(*ours), evidence(*theirs, libusdm=version)))


def of_step(step, left, right, version=NEW) -> Check:
    """The comparison of one step; what it left is told as keywords of `ran`."""
    kind = next(iter(step))
    checks = compared(scenario(step), [ran(0, kind, **left)], [ran(0, kind, **right)], version)
    assert [check.name for check in checks] == [f"both do step 0 ({kind})", "both meet the same faults"]
    assert checks[1].passed
    return checks[0]


# ---- what is the same


@pytest.mark.parametrize(
    ("step", "left", "right"),
    [
        # addresses differ from run to run
        ({"map": MAP}, {"returns": 2 * MIB, "values": {"iova": 2 * MIB}}, {"returns": MIB, "values": {"iova": 64}}),
        ({"alloc": {"as": "a", "size": 1}}, {"returns": 1 << 46}, {"returns": 1 << 45}),
        ({"alloc_plain": {"as": "a", "size": 1}}, {"returns": 1}, {"returns": 2}),
        ({"map_each": {**MAP, "count": 2}}, {"returns": 1, "values": {"done": 2}},
         {"returns": 2, "values": {"done": 2}}),
        ({"translate": {"buffer": "b"}}, {"values": {"present": 2, "absent": 0, "contiguous": True, "first": 1}},
         {"values": {"present": 2, "absent": 0, "contiguous": True, "first": 9}}),
        ({"buffer": {"as": "a", "size": 1}}, {"values": {"address": 1}}, {"values": {"address": 2}}),
        # each has its own names and words for errors
        ({"map": MAP}, {"error": "TooLarge", "returns": 0}, {"error": "CFailure", "returns": 0}),
        ({"free": {"buffer": "b"}}, {"error": "DoubleFree", "values": {"pointer": "kept"}},
         {"error": "CFailure", "values": {"pointer": "kept"}}),
        # an address that is none is 0 or NULL
        ({"alloc": {"as": "a", "size": 0}}, {"error": "BadSize", "returns": None}, {"error": "CFailure", "returns": 0}),
        ({"dma_read": {"device": "edu0", "buffer": "b", "size": 1}}, {"values": {"completed": True, "iova": 1}},
         {"values": {"completed": True, "iova": 2}}),
        ({"map": MAP}, {"returns": 1, "seconds": 0.1}, {"returns": 1, "seconds": 9.0}),
    ],
)  # fmt: skip
def test_the_same_for_a_program(step, left, right):
    check = of_step(step, left, right)
    assert (check.passed, check.message, check.observed) == (True, "the same", "the same")


# ---- what is not


@pytest.mark.parametrize(
    ("step", "left", "right", "said"),
    [
        ({"map": MAP}, {"returns": 0, "error": "X"}, {"returns": 2 * MIB}, 'failed: true and false; address: "none"'),
        ({"alloc": {"as": "a", "size": 1}}, {"returns": 1}, {"returns": None}, 'address: "given" and "none"'),
        ({"register": {"device": "edu0"}}, {"returns": 0}, {"returns": 1}, "returned: 0 and 1"),
        ({"register_fd": {"fd": "null"}}, {"returns": -1, "error": "X"}, {"returns": 1, "error": "Y"}, "returned: -1"),
        ({"check": {"buffer": "b", "pattern": "zero"}}, {"values": {"equal": True}},
         {"values": {"equal": False, "first_difference": 9}}, "equal: true and false; first_difference: null and 9"),
        ({"compare": {**MAP, "with": "c"}}, {"values": {"equal": True}}, {"values": {"equal": False}}, "equal"),
        ({"translate": {"buffer": "b"}}, {"values": {"present": 4, "absent": 0, "contiguous": True}},
         {"values": {"present": 3, "absent": 1, "contiguous": True}}, "present: 4 and 3; absent: 0 and 1"),
        ({"translate": {"buffer": "b"}}, {"values": {"present": 4, "absent": 0, "contiguous": True}},
         {"values": {"present": 4, "absent": 0, "contiguous": False}}, "contiguous: true and false"),
        ({"translate_back": {"buffer": "b"}}, {"values": {"same": True}}, {"values": {"same": False}}, "same"),
        ({"free": {"buffer": "b"}}, {"values": {"pointer": "null"}}, {"values": {"pointer": "kept"}}, "pointer"),
        ({"free_plain": {"buffer": "b"}}, {"values": {"pointer": "null"}}, {"values": {"pointer": "kept"}}, "pointer"),
        ({"map_each": {**MAP, "count": 9}}, {"values": {"done": 9}}, {"values": {"done": 8}}, "done: 9 and 8"),
        ({"unmap_each": {**MAP, "count": 9}}, {"values": {"done": 9}}, {"values": {"done": 8}}, "done: 9 and 8"),
        ({"threads": {"count": 1, "rounds": 1}}, {"values": {"counts": {"done": 1, "wrong": 0}}},
         {"values": {"counts": {"done": 0, "wrong": 1}}}, "counts"),
        ({"container_info": {"device": "edu0"}}, {"values": {"counts": {"mappings_left": 5}}},
         {"values": {"counts": {"mappings_left": 4}}}, "counts"),
        ({"nodes": {"buffer": "b"}}, {"values": {"nodes": [1], "absent": 0}},
         {"values": {"nodes": [0], "absent": 0}}, "nodes: [1] and [0]"),
        ({"open": {"device": "edu0"}}, {"values": {"address": "02:00.0", "iova_ranges": RANGES}},
         {"values": {"address": "02:00.0", "iova_ranges": None}}, "iova_ranges"),
    ],
)  # fmt: skip
def test_a_difference_that_nobody_knows_fails(step, left, right, said):
    check = of_step(step, left, right)
    assert not check.passed
    assert check.message.startswith("expected the same, observed ")
    assert said in check.message
    assert check.expected == "usdm and libusdm do the same"


def test_observations_of_a_step_that_failed_are_not_compared():
    left = {"error": "NotMapped", "values": {"present": 1}}
    assert of_step({"translate": {"buffer": "b"}}, left, {"error": "CFailure", "values": {"present": 2}}).passed


def test_a_difference_that_is_known_passes_and_says_so():
    step = {"unmap": MAP, "libusdm": {"defect": "D2", "versions": ">=26.02"}}
    check = of_step(step, {"returns": 1}, {"returns": 0})
    assert (check.passed, check.message) == (True, "known as D2: returned: 1 and 0")
    assert check.expected == "usdm and libusdm do the same, or differ as D2"
    assert not of_step(step, {"returns": 1}, {"returns": 0}, OLD).passed, "not of this version"
    assert of_step(step, {"returns": 0}, {"returns": 0}).message == "the same"


def test_the_librarys_known_difference_excuses_no_other_step():
    known = {"unmap": MAP, "libusdm": {"defect": "D2"}}
    checks = compared(
        scenario(known, {"unmap": MAP}),
        [ran(0, "unmap", returns=1), ran(1, "unmap", returns=1)],
        [ran(0, "unmap", returns=0), ran(1, "unmap", returns=0)],
    )
    assert [check.passed for check in checks] == [True, False, True]
    assert [check.step for check in checks] == [0, 1, None]


# ---- addresses within what the container has


@pytest.mark.parametrize(
    ("iova", "size", "inside"),
    [
        (2 * MIB, 4096, True),
        (0xFEE00000, 4096, False),  # the interrupt window
        (0xFED00000, 1 * MIB, True),  # ends right before it
        (0xFED00000, 1 * MIB + 1, False),
        ((1 << 39) - 4096, 4096, True),
        (1 << 39, 4096, False),  # beyond the width
    ],
)
@pytest.mark.parametrize("kind", ["map", "alloc"])
def test_an_iova_that_the_container_cannot_translate(kind, iova, size, inside):
    step = {"map": {**MAP, "size": size}, "alloc": {"as": "b", "size": size}}[kind]
    one = scenario({"open": {"device": "edu0"}}, {kind: step})
    opened = ran(0, "open", values={"iova_ranges": RANGES})
    left = ran(1, kind, returns=1, values={"iova": 2 * MIB})
    right = ran(1, kind, returns=1, values={"iova": iova})
    check = compared(one, [opened, left], [opened, right])[1]
    assert check.passed is inside
    if not inside:
        assert "in the container's ranges: true and false" in check.message


def test_where_nobody_told_the_ranges_all_addresses_are_good():
    check = of_step({"map": MAP}, {"returns": 1, "values": {"iova": 0}}, {"returns": 1, "values": {"iova": 1 << 63}})
    assert check.passed


# ---- what did not run


def test_evidence_of_one_side_only_fails_although_the_step_is_known():
    one = scenario({"map": MAP}, {"map": MAP, "libusdm": {"defect": "D4"}}, {"map": MAP})
    checks = compared(one, [ran(0, "map", returns=1), ran(1, "map", returns=1)], [ran(0, "map", returns=1)])
    assert checks[0].passed
    assert "only one of the two ran it" in checks[1].message
    assert checks[2].message == "the same", "neither ran it, which each side's own checks tell"
    unknown = compared(scenario({"map": MAP}), [], [ran(0, "map")])
    assert not unknown[0].passed


def test_a_side_that_stopped_early_fails_as_a_whole():
    one = scenario({"map": MAP}, {"map": MAP})
    ours = evidence(ran(0, "map", returns=1), ran(1, "map", returns=1))
    assert not judge_both(one, ours, evidence(ran(0, "map", returns=1), libusdm=NEW)).passed


# ---- children of a fork

FORK = {"fork": {"steps": [{"map": MAP}, {"unmap": MAP, "libusdm": {"defect": "F1"}}, {"unmap": MAP}]}}


def forked(*returns):
    kinds = ("map", "unmap", "unmap")
    return ran(1, "fork", children=tuple(ran(0, kind, returns=one) for kind, one in zip(kinds, returns, strict=False)))


def test_the_children_of_a_fork_are_compared_by_their_place():
    one = scenario({"map": MAP}, FORK)
    before = ran(0, "map", returns=1)
    checks = compared(one, [before, forked(5, 1, 1)], [before, forked(7, 0, 1)])
    assert [(check.name, check.passed, check.step) for check in checks[:-1]] == [
        ("both do step 0 (map)", True, 0),
        ("both do step 1 (fork)", True, 1),
        ("both do step 1.0 (map)", True, 1),
        ("both do step 1.1 (unmap)", True, 1),
        ("both do step 1.2 (unmap)", True, 1),
    ]
    assert checks[3].message.startswith("known as F1")
    assert not compared(one, [before, forked(5, 1, 1)], [before, forked(7, 0, 0)])[4].passed
    missing = compared(one, [before, forked(5, 1, 1)], [before, forked(7, 0)])[4]
    assert (missing.passed, "only one of the two ran it" in missing.message) == (False, True)


# ---- the verdict of both


def test_a_verdict_of_both_names_each_side():
    known = {"defect": "D1", "expect": {"translation": "partial"}}
    step = {"translate": {"buffer": "b"}, "expect": {"translation": "absent"}, "libusdm": known}
    right = {"present": 3, "absent": 1, "contiguous": True}
    ours = evidence(ran(0, "translate", values={"present": 0, "absent": 4, "contiguous": False}))
    theirs = evidence(ran(0, "translate", values=right), libusdm=NEW)
    found = judge_both(scenario(step), ours, theirs)
    assert found.passed
    assert [check.name for check in found.checks] == [
        "usdm: step 0 (translate)",
        "usdm: faults",
        "usdm: witnesses",
        "libusdm: step 0 (translate), known as D1",
        "libusdm: faults",
        "libusdm: witnesses",
        "both do step 0 (translate)",
        "both meet the same faults",
    ]
    assert [(one.defect, one.step) for one in found.findings] == [("D1", 0)]
    # usdm with the library's defect is not excused by it.
    same = judge_both(scenario(step), evidence(ran(0, "translate", values=right)), theirs)
    assert [check.name for check in same.checks if not check.passed] == ["usdm: step 0 (translate)"]
    # And a library without it is a failure of the list.
    fixed = judge_both(scenario(step), ours, evidence(*ours.steps, libusdm=NEW))
    assert [check.name for check in fixed.checks if not check.passed] == ["libusdm: step 0 (translate), known as D1"]
    assert fixed.findings == ()


def test_both_pass_by_themselves_and_differ():
    """What nobody expected of the step, such as a return value, is compared all the same."""
    found = judge_both(
        scenario({"register": {"device": "edu0"}}),
        evidence(ran(0, "register", returns=0)),
        evidence(ran(0, "register", returns=2), libusdm=NEW),
    )
    assert [check.name for check in found.checks if not check.passed] == ["both do step 0 (register)"]
