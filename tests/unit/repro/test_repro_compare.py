"""Two faults side by side, and files written whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.repro.compare import aspects, best
from harness.repro.run import check_name, write_whole
from harness.results import FaultRecord

WANTED = FaultRecord(witness="kernel", requester="0000:02:01.2", access="read", address=0x900000, reason=6)


def test_equal_is_by_page_and_without_domain_0():
    seen = WANTED.model_copy(update={"requester": "02:01.2", "address": 0x900004, "witness": "trace"})
    assert [(one.name, one.equal) for one in aspects(WANTED, seen)] == [
        *(("requester", True), ("access", True), ("address", True), ("reason", True))
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"requester": "02:01.3"}, "requester"),
        ({"requester": "0001:02:01.2"}, "requester"),
        ({"access": "write"}, "access"),
        ({"address": 0x901000}, "address"),
        ({"reason": 5}, "reason"),
    ],
)
def test_each_difference_is_seen(change: dict[str, object], name: str):
    seen = WANTED.model_copy(update=change)
    assert [one.name for one in aspects(WANTED, seen) if one.equal is False] == [name]


def test_what_one_does_not_say_is_neither_equal_nor_different():
    seen = WANTED.model_copy(update={"pasid": 1, "reason": None})
    assert {one.name: one.equal for one in aspects(WANTED, seen)} == {
        "requester": True,
        "access": True,
        "address": True,
        "reason": None,
        "PASID": None,
    }


def test_the_most_alike_is_chosen_and_the_kernels_before_the_traces():
    other = WANTED.model_copy(update={"address": 0x1000})
    trace = WANTED.model_copy(update={"witness": "trace"})
    assert best(WANTED, [other, trace]) is trace
    assert best(WANTED, [other, trace, WANTED]) is WANTED
    assert best(WANTED, []) is None


def test_a_name_for_the_scenario_is_checked(tmp_path: Path):
    check_name(tmp_path / "again.yaml")
    (tmp_path / "there.yaml").write_text("")
    for name, why in (("again.txt", "ends in .yaml"), ("there.yaml", "there is such a file"), ("no/a.yaml", "folder")):
        with pytest.raises(ConfigurationError, match=why):
            check_name(tmp_path / name)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "a" / "b.yaml"
    write_whole(file, "text\n")
    assert file.read_text() == "text\n"
    assert [one.name for one in file.parent.iterdir()] == ["b.yaml"]
    with pytest.raises(InfrastructureError, match="cannot be written"):
        write_whole(file / "c.yaml", "text")
