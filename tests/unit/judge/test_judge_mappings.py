"""What the IOMMU's tables say, against the buffer's own pages and against the kernel's debugfs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import judge
from harness.judge.implementations import compare_implementations
from harness.judge.mappings import mapping
from harness.results import Check, Evidence, StepEvidence
from harness.scenario.model import Scenario

PAGE = 4096
MIB2 = 2 << 20
IOVA = 0x200000
TRANSLATED = {"way": "translated", "untranslated": False}


def values(runs, pages=None, debugfs=None, iova=IOVA, **tables):
    return {"iova": iova, "pages": pages, "debugfs": debugfs, "tables": {**TRANSLATED, "runs": runs, **tables}}


def seen(size, /, **values):
    return StepEvidence(index=0, kind="mappings", args={"device": "edu0", "size": size}, values=values)


def scenario(expect, size):
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    step = {"mappings": {"device": "edu0", "iova": IOVA, "size": size}, "expect": expect}
    return Scenario.model_validate({"title": "t", "source": "s", "machine": machine, "steps": [step]})


def check(size, expect, runs, pages=None, debugfs=None, **more) -> Check:
    evidence = Evidence(steps=(seen(size, **values(runs, pages, debugfs, **more)),))
    return judge(scenario(expect, size), evidence).checks[0]


SCATTERED = [[IOVA, 0x7000, PAGE, PAGE, "rw"], [IOVA + PAGE, 0x5000, PAGE, PAGE, "rw"]]
OWN = [[0, 0x7000, PAGE], [PAGE, 0x5000, PAGE]]


@pytest.mark.parametrize(
    ("runs", "pages", "kind"),
    [
        (SCATTERED, OWN, "whole"),
        (SCATTERED, None, "whole"),
        (SCATTERED[:1], OWN, "partial"),
        (SCATTERED[1:], OWN, "partial"),
        ([], OWN, "none"),
        ([], [], "none"),
        ([[IOVA, IOVA, 2 * PAGE, PAGE, "rw"]], [[0, IOVA, 2 * PAGE]], "one_to_one"),
        ([[IOVA, 0x7000, 2 * PAGE, PAGE, "rw"]], OWN, "wrong"),
        (SCATTERED, OWN[:1], "wrong"),  # the program has no page there any more
        (SCATTERED, [], "wrong"),
        ([[IOVA, IOVA, 2 * PAGE, PAGE, "rw"]], OWN, "wrong"),
        # A part of a large page, by large pages.
        ([[0, MIB2 * 4, 2 * MIB2, MIB2, "rw"]], [[0, MIB2 * 5, 2 * PAGE]], "whole"),
        ([[0, MIB2 * 4, 2 * MIB2, MIB2, "rw"]], [[0, MIB2 * 5 + PAGE, 2 * PAGE]], "wrong"),
    ],
)
def test_kinds(runs, pages, kind):
    found = mapping(seen(2 * PAGE, **values(runs, pages)))
    assert found is not None
    assert found.kind == kind
    for expected in ("whole", "one_to_one", "none", "partial", "untranslated"):
        good = kind == expected or (kind, expected) == ("one_to_one", "whole")
        assert check(2 * PAGE, {"mapped": expected}, runs, pages).passed is good
    # Without an expectation everything is right but somebody else's page.
    assert check(2 * PAGE, {}, runs, pages).passed is (kind != "wrong")


@pytest.mark.parametrize("way", ["no IOMMU", "translation disabled", "pass-through"])
def test_without_translation(way):
    tables = {"way": way, "untranslated": True}
    assert check(PAGE, {"mapped": "untranslated"}, [], OWN, **tables).passed
    bad = check(PAGE, {"mapped": "none"}, [], OWN, **tables)
    assert bad.message == f"expected nothing mapped, observed untranslated ({way})"


def test_a_context_that_is_not_there_maps_nothing():
    good = check(PAGE, {"mapped": "none"}, [], OWN, way="context entry not present")
    assert good.passed
    assert good.observed.startswith("no error; none (context entry not present)")


def test_the_message_says_where_it_differs_first():
    runs = [[IOVA, 0x7000, PAGE, PAGE, "rw"], [IOVA + PAGE, 0x9000, PAGE, PAGE, "rw"]]
    wrong = check(2 * PAGE, {"mapped": "whole"}, runs, OWN)
    assert wrong.message == (
        "expected every page mapped, to the buffer's own, observed wrong: 2 of 2 pages mapped by pages of 4K, 2 of them"
        " writable, 1 wrong: IOVA 0x201000 leads to 0x9000, the buffer's page is 0x5000"
    )
    gap = check(3 * PAGE, {"mapped": "whole"}, SCATTERED, [*OWN, [2 * PAGE, 0xA000, PAGE]])
    assert gap.message.endswith("; IOVA 0x202000 leads nowhere, the buffer's page is 0xa000")
    gone = check(2 * PAGE, {}, SCATTERED, OWN[:1])
    assert gone.message.endswith("1 wrong: IOVA 0x201000 leads to 0x5000, the buffer has no page there")


def test_page_sizes_and_counts():
    runs = [[IOVA, MIB2 * 5, MIB2, MIB2, "r"], [IOVA + MIB2, 0x5000, PAGE, PAGE, "w"]]
    size = MIB2 + 2 * PAGE
    counts = {"mapped": 513, "unmapped": 1, "readable": 512, "writable": 1, "wrong": 0}
    assert check(size, {"mapped": "partial", "page_sizes": ["2M", "4K"], "counts": counts}, runs).passed
    bad = check(size, {"page_sizes": ["2M"]}, runs)
    assert bad.message == "expected pages of 2M, observed pages of 4K, 2M"
    for name in counts:
        assert not check(size, {"counts": {name: 7}}, runs).passed
    assert check(size, {"counts": {"other": 7}}, runs).message == "expected other 7, observed no word on it"
    assert check(PAGE, {"mapped": "none", "page_sizes": []}, []).passed


def test_witnesses_that_agree_and_that_do_not():
    assert check(2 * PAGE, {"mapped": "whole"}, SCATTERED, OWN, SCATTERED).passed
    assert "debugfs agrees in 2 runs" in check(2 * PAGE, {}, SCATTERED, OWN, SCATTERED).observed
    other = [SCATTERED[0], [IOVA + PAGE, 0x5000, PAGE, PAGE, "r"]]
    bad = check(2 * PAGE, {"mapped": "whole"}, SCATTERED, OWN, other)
    assert bad.message == (
        "expected tables and debugfs that agree, observed at run 1 the tables say 0x201000 to 0x5000, 4K by"
        " 4K, rw and debugfs says 0x201000 to 0x5000, 4K by 4K, r"
    )
    short = check(2 * PAGE, {"mapped": "whole"}, SCATTERED, OWN, SCATTERED[:1])
    assert short.message.endswith("debugfs says nothing more")
    # That one says something where nobody translates is no agreement either.
    assert not check(2 * PAGE, {"mapped": "untranslated"}, [], OWN, SCATTERED, untranslated=True).passed
    assert not check(2 * PAGE, {"mapped": "whole"}, SCATTERED, OWN, "nonsense").passed


@pytest.mark.parametrize(
    "change",
    [
        {"tables": None},
        {"tables": {}},
        {"iova": None},
        {"pages": "nonsense"},
        {"pages": [[0, 1]]},
        {"pages": [[0, 0x7000, -1]]},
        {"tables": {**TRANSLATED, "runs": [[IOVA, 0x7000, 0, PAGE, "rw"]]}},
        {"tables": {**TRANSLATED, "runs": [[IOVA, True, PAGE, PAGE, "rw"]]}},
        {"tables": {**TRANSLATED, "runs": [*SCATTERED, SCATTERED[0]]}},
    ],
)
def test_odd_evidence_fails_a_check(change):
    evidence = Evidence(steps=(seen(2 * PAGE, **{**values(SCATTERED, OWN), **change}),))
    (found, *_) = judge(scenario({"mapped": "whole"}, 2 * PAGE), evidence).checks
    assert not found.passed
    assert found.message.endswith("observed no word on it")


def test_evidence_without_a_size_fails_a_check():
    evidence = Evidence(steps=(StepEvidence(index=0, kind="mappings", args={}, values=values(SCATTERED)),))
    assert not judge(scenario({}, PAGE), evidence).checks[0].passed


def test_an_error_is_judged_as_that_of_any_step():
    from harness.results import StepError

    hidden = StepEvidence(index=0, kind="mappings", args={}, error=StepError(type="NotReadable", message="hidden"))
    (found, *_) = judge(scenario({"mapped": "whole"}, PAGE), Evidence(steps=(hidden,))).checks
    assert found.message == "expected no error, observed the error NotReadable: hidden"


def test_implementations_are_compared_by_the_kind_alone():
    one_to_one = values([[IOVA, IOVA, PAGE, PAGE, "rw"]], [[0, IOVA, PAGE]])
    elsewhere = values([[0x800000, 0x9000, PAGE, PAGE, "rw"]], [[0, 0x9000, PAGE]], iova=0x800000)

    def compared(left, right):
        ours, theirs = (Evidence(steps=(seen(PAGE, **one),)) for one in (left, right))
        theirs = theirs.model_copy(update={"libusdm": "26.08"})
        return next(compare_implementations(scenario({}, PAGE), ours, theirs))

    assert compared(one_to_one, elsewhere).passed
    bad = compared(one_to_one, values([]))
    assert bad.message == 'expected the same, observed mapped: "whole" and "none"'


pieces = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.booleans(), st.booleans()), max_size=8)


@given(pieces)
def test_pieces_against_page_by_page(cut: list[tuple[int, int, bool, bool]]):
    """Runs and pieces that begin and end anywhere give what a look at each page gives."""
    runs, pages, at = [], [], 0
    wanted: dict[str, int] = {"mapped": 0, "unmapped": 0, "wrong": 0}
    for count, frame, mapped, present in cut:
        size, physical = count * PAGE, (100 * at // PAGE + frame) * PAGE
        if mapped:
            runs.append([IOVA + at, physical, size, PAGE, "rw"])
        if present:
            # Page by page, and the last one is another where the frame is odd.
            for place in range(count):
                moved = PAGE * 50 if frame % 2 and place == count - 1 else 0
                pages.append([at + place * PAGE, physical + place * PAGE + moved, PAGE])
        wanted["mapped"] += count * mapped
        wanted["unmapped"] += count * (not mapped)
        wanted["wrong"] += mapped * (count if not present else frame % 2)
        at += size
    if not at:
        return
    found = mapping(seen(at, **values(runs, pages)))
    assert found is not None
    assert {name: found.counts[name] for name in wanted} == wanted
    assert (found.wrong is not None) is (wanted["wrong"] > 0)
    assert (found.gap is not None) is (wanted["unmapped"] > 0)


def test_tables_of_another_mode_than_the_machines_fail():
    """A kernel that finds no scalable mode takes legacy mode without a word."""
    whole = {"mode": "scalable", "asked": "scalable"}
    assert check(PAGE, {}, [], **whole).passed
    bad = check(PAGE, {}, [], **{**whole, "mode": "legacy"})
    assert not bad.passed
    assert "expected tables of scalable mode, observed tables of legacy mode" in str(bad)
