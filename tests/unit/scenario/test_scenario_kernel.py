"""Lint of the steps in which the kernel's own driver has a device."""

from __future__ import annotations

import re

import pytest
from scenario_said import FILE, problems_of

from harness.scenario import parse_scenario

HEAD = """\
title: t
source: s
machine: {devices: {edu0: {model: edu, at: "02:00.0"}, nvme0: {model: nvme, at: "03:00.0"}}}
needs: {kernel: ">=6.16", kernel_options: {FPROBE_EVENTS: true}}
steps:
"""
DRIVER, TRACE, END = "kernel_driver: {device: nvme0}", "trace: {name: t}", "trace_end: {name: t}"
IO = "disk_io: {device: nvme0}"


def text(*steps: str) -> str:
    return HEAD + "".join(f"  - {step}\n" for step in steps)


def test_what_is_right_has_its_defaults():
    steps = parse_scenario(text(DRIVER, TRACE, IO, END), FILE).steps
    assert steps[0].args_json() == {"device": "nvme0", "driver": "nvme"}
    io = steps[2].args_json()
    assert (io["device"], io["at"], io["piece"], io["pieces"], io["offset"]) == ("nvme0", 0, 4096, 1, 0)
    assert (io["order"], io["op"], io["seed"], "stride" in io) == ("ascending", "both", 0, False)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((IO,), "expected a device that the kernel's driver has, found 'nvme0'"),
        ((DRIVER, "register: {device: nvme0}", IO), "expected a device that the kernel's driver has, found 'nvme0'"),
        (("kernel_driver: {device: edu0}",), "expected an nvme, found 'edu0', model: edu"),
        (("kernel_driver: {device: nvme9}",), "expected a device of the machine, found 'nvme9'"),
        ((TRACE,), "expected an end of the recording, found none"),
        ((END,), "expected a recording that runs, found 't'"),
        ((TRACE, END, TRACE, END), "expected a new name, found 't' again"),
        ((TRACE, "trace: {name: u}", "trace_end: {name: u}"), "expected no trace while 't' is being recorded"),
        (("register: {device: edu0}", "replay: {device: edu0, trace: t}"), "expected a recording that has ended"),
        (
            ("register: {device: edu0}", TRACE, END, "trace: {name: u}", "replay: {device: edu0, trace: t}"),
            "expected no replay while 'u' is being recorded",
        ),
        ((TRACE, END, "replay: {device: edu0, trace: t}"), "expected an open device, found 'edu0'"),
        (("register: {device: nvme0}", DRIVER), "expected a device that is not open for kernel_driver, found 'nvme0'"),
        (("open: {device: nvme0}", DRIVER), "expected a device that is not open for kernel_driver, found 'nvme0'"),
        ((f"fork: {{steps: [{{{TRACE}}}]}}",), "expected no trace inside another step, found one"),
    ],
)
def test_a_mistake_between_steps_is_told(steps: tuple[str, ...], message: str):
    assert message in " | ".join(problem.message for problem in problems_of(text(*steps)))


@pytest.mark.parametrize("away", ["close: {device: nvme0}", "unbind: {device: nvme0}"])
def test_a_device_that_is_not_open_any_more_is_the_kernels(away: str):
    assert parse_scenario(text("open: {device: nvme0}", away, DRIVER), FILE)


@pytest.mark.parametrize(
    "needs",
    [
        "{}",
        "{kernel_options: {FPROBE_EVENTS: true}}",
        '{kernel: ">=6.16"}',
        '{kernel: ">=6.12", kernel_options: {FPROBE_EVENTS: true}}',
        '{kernel: ">=6.16", kernel_options: {FPROBE_EVENTS: false}}',
    ],
)
def test_a_recording_wants_a_kernel_that_has_the_functions_and_their_events(needs: str):
    told = re.sub("^needs: .*$", f"needs: {needs}", text(TRACE, END), flags=re.MULTILINE)
    (found,) = problems_of(told)
    assert (found.line, found.column) == (6, 5)
    wanted = 'needs: {kernel: ">=6.16", kernel_options: {FPROBE_EVENTS: true}}'
    assert found.message == f"expected {wanted} beside trace, found none"
    assert parse_scenario(told.replace(f"needs: {needs}", wanted), FILE)
    assert parse_scenario(told.replace(f"needs: {needs}", wanted.replace(">=6.16", ">=7.0, <8")), FILE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("piece: 100", "whole sectors"),
        ("at: 100", "whole sectors"),
        ("piece: 0", "whole sectors"),
        ("piece: 8M, pieces: 3", "bytes of the disk"),
        ("stride: 2K", "a stride of the piece or more"),
        ("offset: 2", "a multiple of 4 for offset"),
        ("stride: 4098", "a multiple of 4 for stride"),
        ("offset: 4K", "an offset within a page"),
        ("pieces: 1025", "1024"),
        ("order: sorted", "ascending"),
    ],
)
def test_a_mistake_in_a_request_is_told(arguments: str, message: str):
    found = problems_of(text(DRIVER, f"disk_io: {{device: nvme0, {arguments}}}"))
    assert message in found[0].message


def test_only_shapes_that_there_are():
    (found,) = problems_of(text(TRACE, f"{END}\n    expect: {{shapes: [round]}}"))
    assert "several_links" in found.message
