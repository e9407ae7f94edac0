from __future__ import annotations

import pytest
from report_data import RUN
from report_qualified import EVERY, KNOWN, qualification, qualified

from harness.qualified.records import NotRun, from_run
from harness.report.points import points_of, value_text
from harness.report.verdict import counts_text, exit_code, sentence
from harness.results import Outcome

FAIL, ERROR = Outcome.FAIL, Outcome.ERROR


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([qualified("a"), qualified("b")], "Works with QEMU 11.1, kernel 6.12: 2 scenarios pass."),
        ([qualified("a")], "Works with QEMU 11.1, kernel 6.12: 1 scenario passes."),
        ([qualified("a"), qualified("a", "7.2")], "Works on all 2 points with kernel 6.12."),
        (
            [qualified("a"), qualified("b", outcome=FAIL)],
            "Fails with QEMU 11.1, kernel 6.12: 1 of 2 scenarios (b).",
        ),
        (
            [qualified("a"), qualified("b", kernel="6.1", outcome=FAIL), qualified("c", "7.2", "6.1", outcome=FAIL)],
            "Works on 1 of 3 points. Fails on kernel 6.1: 2 scenarios (b, c).",
        ),
        (
            [
                qualified("a", viommu="virtio"),
                qualified("a", kernel="6.1"),
                qualified("a", kernel="6.1", viommu="virtio", outcome=FAIL),
            ],
            "Works on 2 of 3 points with QEMU 11.1. Fails on kernel 6.1 with virtio-iommu: 1 scenario (a).",
        ),
        (
            [qualified("a", outcome=FAIL), qualified("a", "7.2", outcome=ERROR)],
            "Works on 0 of 2 points with kernel 6.12. Fails on QEMU 11.1: 1 scenario (a). "
            "Not judged on QEMU 7.2: 1 error of class boot (a).",
        ),
        (
            [qualified("a"), qualified("b", outcome=ERROR)],
            "Not judged: 1 error of class boot (b).",
        ),
        (
            [qualified("a", outcome=FAIL), qualified("a", "7.2", outcome=FAIL)],
            "Works on 0 of 2 points with kernel 6.12. Fails on each of them: 1 scenario (a).",
        ),
        (
            [qualified("a", outcome=ERROR), qualified("b", "7.2", outcome=ERROR)],
            "Works on 0 of 2 points with kernel 6.12. Not judged on any of them: 2 errors of class boot (a, b).",
        ),
        (
            [qualified("a", kernel="6.1", outcome=FAIL, known=KNOWN), qualified("a")],
            "Works on 1 of 2 points with QEMU 11.1. Known to fail on kernel 6.1: 1 scenario (a).",
        ),
        ([], "Nothing was run."),
    ],
)
def test_the_sentence_says_where_it_works_and_what_fails(cells, expected):
    assert sentence(qualification(*cells)) == expected


def test_a_value_of_an_axis_on_which_nothing_ran_is_named():
    axes = {"qemu": ("11.1",), "kernel": ("6.12",), "viommu": ("intel", "virtio", "none")}
    skipped = NotRun(scenario="a", point={"viommu": "virtio"}, reason="about VT-d")
    one = qualification(qualified("a"), axes=axes, not_run=(skipped,))
    assert sentence(one).endswith("1 scenario passes. Nothing was run on virtio-iommu or no vIOMMU (about VT-d).")
    none = NotRun(scenario="a", point={"viommu": "none"}, reason="excluded")
    more = one.model_copy(update={"not_run": (skipped, none, NotRun(scenario="b", reason="needs 7.2"))})
    assert sentence(more).endswith("Nothing was run on virtio-iommu or no vIOMMU (2 reasons).")
    assert "Nothing was run" not in sentence(one.model_copy(update={"planned": 2}))


def test_points_without_a_common_cause_are_named_while_there_are_few():
    good = [qualified("a", q, k, v) for q, k, v in (("11.1", "6.1", "intel"), ("7.2", "6.12", "virtio"))]
    bad = [qualified("b", outcome=FAIL), qualified("b", "7.2", "6.1", "virtio", outcome=FAIL)]
    text = sentence(qualification(*good, *bad))
    assert "Fails: b on QEMU 11.1, kernel 6.12, intel-iommu; b on QEMU 7.2, kernel 6.1, virtio-iommu." in text


def test_what_is_not_finished_never_looks_as_if_it_worked():
    one = qualification(qualified("a"), planned=3)
    assert (
        sentence(one)
        == "Not finished: 1 of 3 cells have been run. Works so far with QEMU 11.1, kernel 6.12: 1 scenario passes."
    )
    assert exit_code(one) == 130
    assert "2 left to run" in counts_text(one)


@pytest.mark.parametrize(
    ("cells", "status"),
    [
        ([qualified("a")], 0),
        ([qualified("a", outcome=FAIL)], 1),
        ([qualified("a", outcome=FAIL), qualified("b", outcome=ERROR)], 3),
        ([qualified("a", outcome=FAIL, known=KNOWN)], 0),
        ([], 2),
    ],
)
def test_the_exit_code_is_that_of_the_worst_that_is_not_known(cells, status):
    assert exit_code(qualification(*cells)) == status


def test_counts():
    assert counts_text(EVERY) == "2 passed, 1 failed, 1 error, 1 known failure, 3 not run"


def test_a_run_is_a_qualification_whose_points_are_those_of_its_commands():
    cells = [
        one.model_copy(update={"rerun": f"harness run x.yaml --qemu {qemu} --kernel 7.2 --viommu virtio"})
        for one, qemu in zip(RUN.cells[:1] * 2, ("11.1", "10.0"), strict=True)
    ]
    one = from_run(RUN.model_copy(update={"cells": tuple(cells)}))
    assert one.axes["qemu"] == ("11.1", "10.0")
    assert one.cells[0].point == {"qemu": "11.1", "kernel": "7.2", "viommu": "virtio", "implementation": "usdm"}


def test_a_run_that_was_interrupted_never_looks_as_if_it_worked():
    done = [cell for cell in RUN.cells if cell.outcome is Outcome.PASS]
    one = from_run(RUN.model_copy(update={"cells": tuple(done), "interrupted": True}))
    assert exit_code(from_run(RUN.model_copy(update={"cells": tuple(done), "interrupted": False}))) == 0
    assert not one.complete
    assert exit_code(one) == 130
    assert sentence(one).startswith(f"Not finished: interrupted after {len(done)} cell")
    assert "so far" in sentence(one)


def test_points_are_in_the_matrix_order_and_shorter_ones_come_last():
    bare = qualified("bare/x").model_copy(update={"point": {"qemu": "11.1"}})
    one = qualification(bare, qualified("a", "7.2", "6.1"), qualified("a"))
    assert [dict(point) for point in points_of(one)] == [
        {"qemu": "11.1", "kernel": "6.12"},
        {"qemu": "11.1"},
        {"qemu": "7.2", "kernel": "6.1"},
    ]


def test_a_value_that_nobody_knows_is_shown_as_it_is():
    assert value_text("viommu", "quantum") == "quantum"
