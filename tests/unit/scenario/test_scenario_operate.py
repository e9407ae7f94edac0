"""Mistakes in steps about a qat, with their place and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.scenario import lint

HEAD = """\
title: t
source: s
machine: {devices: {q: {model: qat, at: "02:00.0"}, e: {model: edu, at: "03:00.0"}}}
steps:
  - open: {device: q}
  - open: {device: e}
  - alloc: {as: a, size: 64K}
  - buffer: {as: b, size: 64K}
"""
A, B = "{buffer: a, size: 4K}", "{iova: 0x1000, size: 4K}"


def said(tmp_path: Path, step: str) -> list[str]:
    file = tmp_path / "one.yaml"
    file.write_text(HEAD + f"  - {step}\n")
    return [str(problem).split(":", 1)[1] for problem in lint([file])]


@pytest.mark.parametrize(
    "step",
    [
        f"operate: {{device: q, op: copy, source: [{A}], destination: [{B}]}}",
        f"operate: {{device: q, op: crc32, source: [{A}, {B}], completion: interrupt, wait: false}}",
        "operate: {device: q, op: nop}",
        f"operate: {{device: q, op: copy, source_list: {{buffer: a}}, destination: [{B}]}}",
        f"operate: {{device: q, op: store, destination: [{A}], device_offset: 16773120}}",
        "reset: {device: e}",
    ],
)
def test_good(tmp_path: Path, step: str) -> None:
    assert said(tmp_path, step) == []


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (f"operate: {{device: e, op: fill, destination: [{A}]}}", "expected a qat for operate, found 'e', model: edu"),
        ("collect: {device: e}", "expected a qat for collect, found 'e', model: edu"),
        ("counters: {device: e}", "expected a qat for counters, found 'e', model: edu"),
        (
            f"operate: {{device: q, op: copy, source: [{A}]}}",
            "expected a destination with op: copy, found no destination",
        ),
        (
            f"operate: {{device: q, op: crc32, source: [{A}], destination: [{A}]}}",
            "expected no destination with op: crc32",
        ),
        (f"operate: {{device: q, op: nop, source: [{A}]}}", "expected no source with op: nop"),
        (
            f"operate: {{device: q, op: crc32, source: [{A}], source_list: {{buffer: a}}}}",
            "expected source or source_list",
        ),
        (f"operate: {{device: q, op: copy, source: [{A}, {A}], destination: [{B}]}}", "found 8192 and 4096 bytes"),
        (
            "operate: {device: q, op: crc32, source: [{buffer: a, size: 0}]}",
            "expected a size from 1 to 16777216, found 0",
        ),
        ("operate: {device: q, op: crc32, source: [{buffer: a, size: 17M}]}", "expected a size from 1 to 16777216"),
        (
            "operate: {device: q, op: crc32, source: [{iova: 0x1000, size: 9M}, {iova: 0x1000, size: 9M}]}",
            "expected at most 16777216 bytes of source, found 18874368",
        ),
        (
            f"operate: {{device: q, op: copy, source: [{A}], destination: [{B}], byte: 3}}",
            "expected byte with op: fill",
        ),
        (f"operate: {{device: q, op: crc32, source: [{A}], device_offset: 3}}", "expected device_offset with op: load"),
        (f"operate: {{device: q, op: load, source: [{A}], device_offset: 16773121}}", "expected device_offset + bytes"),
        (
            "operate: {device: q, op: crc32, source: [{buffer: c, size: 1}]}",
            "expected a buffer that an earlier step made",
        ),
        (
            "operate: {device: q, op: crc32, source: [{buffer: b, size: 1}]}",
            "expected a buffer with an IOVA, found 'b'",
        ),
        ("operate: {device: q, op: crc32, source_list: {buffer: b}}", "expected a buffer with an IOVA, found 'b'"),
        ("operate: {device: q, op: crc32, source: [{size: 1}]}", "expected exactly one of buffer, range and iova"),
        (
            "operate: {device: q, op: crc32, source: [{iova: 1, offset: 1, size: 1}]}",
            "expected an offset only beside buffer",
        ),
        ("collect: {device: q, count: 49}", "49"),
    ],
)
def test_bad(tmp_path: Path, step: str, message: str) -> None:
    (found,) = said(tmp_path, step)
    assert message in found
    assert found.startswith("9:"), "the line of the step"


def test_a_fault_can_be_of_an_operation(tmp_path: Path) -> None:
    tail = "\nexpect: {faults: [{device: q, access: read, address: 0x1000, reason: 6, step: one}]}"
    step = f"operate: {{device: q, op: crc32, source: [{B}]}}\n    id: one"
    assert said(tmp_path, step + tail) == []
