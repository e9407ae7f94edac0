"""Where what a check is about stands in a file, and what a failure shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plugin.failure import FilePlaces, Shown, failure_text, properties, sections
from harness.plugin.state import folder_name
from harness.results import CellResult, Check, Evidence, Outcome, StepEvidence, Verdict

TEXT = """\
title: t
source: s
machine: {devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - register: {device: edu0}
  - fork:
      steps:
        - buffer: {as: a, size: 4K}
        - unmap: {buffer: a, size: 4K}
  - dma_read: {device: edu0, iova: 0x900000, size: 16}
expect:
  faults:
    - {device: edu0, access: read, address: 0x900000, reason: 0x06}
  kernel_log:
    - 'one'
    - 'two'
"""


def check(name: str, message: str = "m", step: int | None = None) -> Check:
    return Check(name=name, passed=False, message=message, step=step)


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (check("step 0 (register)"), 5),
        (check("step 1 (fork)"), 6),
        (check("step 1.1 (unmap)"), 9),
        (check("libusdm: step 1.0 (buffer), known as D1"), 8),
        (check("step 7 (map)"), 5),
        (check("faults", "expected 2 faults, observed 1; missing: edu0 read"), 12),
        (check("usdm: faults", "expected no faults, observed 1; unexpected: 02:00.0 read 0x1000, step 2"), 10),
        (check("kernel log /two/"), 16),
        (check("device in step 2 (dma_read)", step=2), 10),
    ],
)
def test_places_in_a_file(tmp_path: Path, one: Check, line: int):
    file = tmp_path / "a.yaml"
    file.write_text(TEXT)
    assert FilePlaces(file, "a.yaml")(one) == f"a.yaml:{line}"


def test_what_has_no_place_has_the_file(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text(TEXT.partition("expect:")[0])
    assert FilePlaces(file, "a.yaml")(check("witnesses")) == "a.yaml"
    assert FilePlaces(file, "a.yaml")(check("faults", "missing: edu0")) == "a.yaml:1"
    assert FilePlaces(tmp_path / "gone.yaml", "gone.yaml")(check("step 0 (map)")) == "gone.yaml:1"


def result(**more: object) -> CellResult:
    fields = {"scenario": "a", "title": "t", "source": "s", "file": "a.yaml", "outcome": Outcome.FAIL}
    return CellResult.model_validate({**fields, "rerun": "harness run a.yaml", "folder": "/out/a", **more})


def shown(**more: object) -> Shown:
    return Shown(result(**more), lambda check: f"a.yaml:{check.step}", "pytest a.yaml", {"qemu": "11.1"})


def test_every_failed_check_is_told_with_its_place():
    checks = (check("step 3 (map)", "expected x", 3), Check(name="ok", passed=True, message="fine"))
    text = failure_text(shown(verdict=Verdict(passed=False, checks=checks)))
    assert text.splitlines() == [
        "a.yaml:3: step 3 (map): expected x",
        "evidence: /out/a",
        "rerun: pytest a.yaml",
        "   or: harness run a.yaml",
    ]


def test_an_error_has_its_class_and_hint():
    more = {"outcome": Outcome.ERROR, "failure_class": "panic", "message": "it panicked", "hint": "look"}
    assert failure_text(shown(**more)).splitlines()[:2] == ["a.yaml: panic: it panicked", "hint: look"]


def test_the_log_is_cut_and_nothing_of_a_guest_reaches_the_terminal():
    log = tuple(f"line {number}\x1b[2J" for number in range(30))
    step = StepEvidence(index=0, kind="map", args={})
    found = dict(sections(shown(evidence=Evidence(steps=(step,), kernel_log=log), console_tail=("\x1b]0;x\x07end",))))
    assert list(found) == ["harness: steps", "harness: kernel log", "harness: console"]
    assert found["harness: kernel log"].splitlines()[:2] == ["... 10 lines before are in kernel.log", "line 10"]
    assert "\x1b" not in "".join(found.values())


def test_properties_are_texts():
    found = dict(properties(shown()))
    assert found["harness.qemu"] == "11.1"
    assert found["harness.rerun"] == "harness run a.yaml"
    assert "harness.failure_class" not in found


def test_names_of_folders():
    assert folder_name("a/b.yaml::[qemu 11.1, kernel 6.12]") == "a-b.yaml-qemu-11.1-kernel-6.12"
    assert folder_name("../../x") == "x"
    assert folder_name("::") == "test"
    long, other = folder_name("x" * 300), folder_name("x" * 299 + "y")
    assert long != other
    assert len(long) < 140
