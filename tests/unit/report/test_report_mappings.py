"""A step that read the IOMMU's tables, in a report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_data import cell

from harness.report.evidence import steps_table
from harness.report.mappings import mappings_text
from harness.results import Evidence, Outcome, StepEvidence

RUNS = [[0x200000, 0x7000, 8192, 4096, "rw"], [0x202000, 0x5000, 4096, 4096, "rw"]]
TABLES = {"way": "translated", "untranslated": False, "runs": RUNS}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"iova": 0x200000, "tables": TABLES, "pages": [[0, 0x7000, 8192]], "debugfs": None},
            "iova=0x200000 tables: translated, 12K in 2 runs; buffer: 8K in 1 piece; debugfs: none in this kernel",
        ),
        (
            {"iova": 0, "tables": {"way": "no IOMMU", "runs": []}, "pages": None, "debugfs": []},
            "iova=0x0 tables: no IOMMU, nothing; buffer: not named; debugfs: nothing",
        ),
        ({}, "tables: not read; buffer: not named; debugfs: none in this kernel"),
    ],
)
def test_text(values, text):
    assert mappings_text(values) == text


def test_a_table_of_steps_has_it():
    step = StepEvidence(index=0, kind="mappings", args={"device": "edu0"}, values={"iova": 4096, "tables": TABLES})
    table = steps_table(cell("tables/x", Outcome.PASS, evidence=Evidence(steps=(step,))))
    assert "iova=0x1000 tables: translated, 12K in 2 runs" in table
    assert "[[" not in table


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=9,
)


@given(st.dictionaries(st.sampled_from(["iova", "tables", "pages", "debugfs"]), json_values))
def test_odd_values_have_a_text_too(values):
    assert mappings_text(values)
