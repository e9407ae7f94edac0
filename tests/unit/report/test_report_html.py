from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_data import EVIDENCE, VERDICT
from report_qualified import EVERY, qualification, qualified

from harness.qualified.records import NotRun
from harness.report import write_cell
from harness.report.html import html_report
from harness.report.html.detail import detail_of
from harness.report.html.grid import grid_of
from harness.report.html.logs import logs_of
from harness.report.html.timeline import timeline_of
from harness.results import Outcome

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m\x00\ud800\x1b]0;t\x07{{ 7*7 }}"
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Elements with their attributes; complains of tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.ids = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def packed(text):
    return [
        detail
        for chunk in re.findall(r'<script type="application/gzip" id="p\d+">([^<]*)</script>', text)
        for detail in json.loads(gzip.decompress(base64.b64decode(chunk)))
    ]


def test_the_page_is_well_formed_and_ids_are_unique():
    page = Page(html_report(EVERY))
    assert len(page.ids) == len(set(page.ids))
    for detail in packed(html_report(EVERY)):
        Page(detail)


def test_failures_are_in_the_page_and_passing_cells_are_packed():
    text = html_report(EVERY)
    assert "expected one fault, observed two" in text
    assert len(packed(text)) == 2
    page = Page(text)
    tiles = [attrs for tag, attrs in page.elements if tag == "a" and "tile" in attrs.get("class", "")]
    assert len(tiles) == 5
    assert all(attrs["aria-label"] for attrs in tiles)
    assert {attrs["href"] for attrs in tiles if "data-p" not in attrs} <= {f"#{one}" for one in page.ids}


def test_nothing_is_loaded_and_only_this_script_and_style_may_run():
    text = html_report(EVERY)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    page = Page(text)
    for tag, attrs in page.elements:
        assert not {"src", "style", "srcset", "action"} & set(attrs), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert attrs.get("href", "#").startswith(("#", "data:,"))


def hostile():
    texts = dict.fromkeys(("message", "title", "source", "hint", "file", "rerun", "folder"), HOSTILE)
    step = EVIDENCE.steps[1].model_copy(
        update={"kind": HOSTILE, "args": {HOSTILE: HOSTILE}, "values": {HOSTILE: HOSTILE}}
    )
    evidence = EVIDENCE.model_copy(update={"steps": (step,), "kernel_log": (f"DMAR {HOSTILE}",)})
    check = VERDICT.checks[1].model_copy(update=dict.fromkeys(("name", "message", "expected", "observed"), HOSTILE))
    fault = VERDICT.faults[0].model_copy(update={"requester": HOSTILE, "reason_text": HOSTILE})
    verdict = VERDICT.model_copy(update={"checks": (check,), "faults": (fault,), "notes": (HOSTILE,)})
    fields = {**texts, "evidence": evidence, "verdict": verdict, "console_tail": (HOSTILE,), "stages": {HOSTILE: 1.0}}
    bad = qualified(HOSTILE, outcome=Outcome.FAIL, fields=fields, note=HOSTILE, fingerprint=HOSTILE)
    good = qualified("a", fields=fields)
    more = {"title": HOSTILE, "matrix": HOSTILE, "host": {HOSTILE: HOSTILE}, "notes": (HOSTILE,), "argv": (HOSTILE,)}
    gone = (NotRun(scenario=HOSTILE, reason=HOSTILE), NotRun(scenario="a", point={"kernel": HOSTILE}, reason=HOSTILE))
    return qualification(bad, good, not_run=gone, **more)


def test_hostile_text_stays_text():
    text = html_report(hostile())
    for part in (text, *packed(text)):
        page = Page(part)
        assert not [tag for tag, _ in page.elements if tag == "img"]
        assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
        assert "\x00" not in part
        assert "\x1b" not in part
        part.encode("utf-8")
    assert len([tag for tag, attrs in Page(text).elements if tag == "script" and "type" not in attrs]) == 1
    assert "{{ 7*7 }}" in text


def test_a_thousand_cells_are_small():
    cells = [
        qualified(f"dma/s{n}", viommu=viommu, fields={"evidence": EVIDENCE})
        for n in range(500)
        for viommu in ("intel", "virtio")
    ]
    text = html_report(qualification(*cells))
    assert len(packed(text)) == 1000
    assert len(text) < 1_500_000


def test_failures_beyond_what_fits_are_packed_and_said_to_be(monkeypatch):
    monkeypatch.setattr("harness.report.html.page._PLAIN", 20_000)
    cells = [qualified(f"dma/{n}", outcome=Outcome.FAIL) for n in range(9)]
    text = html_report(qualification(*cells))
    number = len(packed(text))
    assert 0 < number < 9
    assert f"{number} further failures are packed" in text


def test_the_grid_has_headings_by_axis_and_a_place_for_each_cell():
    grid = grid_of(EVERY)
    assert [axis for axis, _ in grid.heads] == ["qemu", "kernel", "viommu"]
    assert [(head.text, head.span) for head in grid.heads[0][1]] == [("11.1", 2), ("7.2", 1)]
    assert [(column.good, column.total) for column in grid.columns] == [(1, 3), (1, 1), (1, 1)]
    lines = {line.scenario: line for _, lines in grid.folders for line in lines}
    assert [tile.kind for tile in lines["dma/a"].tiles] == ["pass", "known", "skip"]
    assert "about intel" in lines["dma/a"].tiles[2].title


def test_cells_that_no_axis_tells_apart_get_places_of_their_own():
    twice = qualification(qualified("a"), qualified("a", outcome=Outcome.FAIL))
    assert [tile.kind for tile in grid_of(twice).folders[0][1][0].tiles] == ["pass", "fail"]


def test_what_was_not_run_is_marked_only_where_it_must_be_meant():
    cells = [qualified("a"), qualified("a", "7.2"), qualified("b")]
    gone = (NotRun(scenario="b", reason="either", points=1),)
    assert grid_of(qualification(*cells, not_run=gone)).folders[0][1][1].tiles[1].kind == "skip"
    cells.append(qualified("a", kernel="6.1"))
    assert [tile.kind for tile in grid_of(qualification(*cells, not_run=gone)).folders[0][1][1].tiles] == [
        "pass",
        "",
        "",
    ]


def test_a_fault_of_the_kernel_stands_at_the_step_of_the_same_fault_in_the_trace():
    cell = qualified("a", outcome=Outcome.FAIL).result
    found = timeline_of(cell)
    assert found.matched == 1
    assert len({mark.x for mark in found.marks}) == 1
    other = VERDICT.faults[1].model_copy(update={"address": 0x1000})
    verdict = VERDICT.model_copy(update={"faults": (VERDICT.faults[0], other)})
    found = timeline_of(cell.model_copy(update={"verdict": verdict}))
    assert (found.matched, found.columns[-1][1]) == (0, "?")


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("[ 1.0] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x1000", "fault"),
        ("[ 1.0] AMD-Vi: Event logged [IO_PAGE_FAULT]", "fault"),
        ("[ 1.0] Kernel panic - not syncing: VFS", "broken"),
        ("[ 1.0] BUG: unable to handle page fault for address: 0", "broken"),
        ("[ 1.0] Call Trace:", "broken"),
        ("[ 1.0] WARNING: CPU: 0 PID: 1 at drivers/iommu/intel/iommu.c:1", "broken"),
        ("[ 1.0] tsc: warning: the clock is slow", ""),
        ("[ 1.0] Freeing unused memory", ""),
    ],
)
def test_lines_that_matter_are_marked(tmp_path, line, mark):
    (tmp_path / "kernel.log").write_text("\n".join(["x"] * 50 + [line] + ["y"] * 50))
    cell = qualified("a", fields={"folder": str(tmp_path)}).result
    (log,) = logs_of(cell, None, context=1, tail=2, limit=10)
    lines = [row for row in log.lines if row]
    assert log.total == 101
    assert {row.mark for row in lines if row.number == 51} == ({mark} if mark else set())
    assert [row.number for row in lines] == ([50, 51, 52] if mark else []) + [100, 101]


@pytest.mark.parametrize("line", ["qemu: warning: '-mon' is deprecated", "WARNING: Image format was not specified"])
def test_a_warning_of_qemu_is_not_what_broke(tmp_path, line):
    (tmp_path / "qemu.stderr").write_text(line + "\n")
    cell = qualified("a", fields={"folder": str(tmp_path)}).result
    (log,) = logs_of(cell, None, context=1, tail=2, limit=10)
    assert [row.mark for row in log.lines if row] == [""]


def test_what_broke_is_shown_however_many_faults_there_are(tmp_path):
    (tmp_path / "console.log").write_text("\n".join(["DMAR: fault"] * 500 + ["Kernel panic"] + ["DMAR: fault"] * 500))
    cell = qualified("a", fields={"folder": str(tmp_path)}).result
    (log,) = logs_of(cell, None, context=0, tail=0, limit=5)
    assert [row.number for row in log.lines if row] == [1, 2, 3, 4, 501]


def test_logs_of_a_folder_that_was_moved_are_found_and_of_one_that_is_gone_the_evidence_is_shown(tmp_path):
    one = qualified("a", outcome=Outcome.FAIL, fields={"folder": "/nowhere/a"})
    assert [log.name for log in detail_of(0, one, None).logs] == ["Kernel log"]
    write_cell(one.result, tmp_path / "a")
    (tmp_path / "a" / "console.log").write_text("hello\n")
    assert [log.name for log in detail_of(0, one, tmp_path).logs] == ["Console"]
