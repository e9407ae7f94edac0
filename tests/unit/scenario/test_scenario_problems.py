"""Every kind of bad input gives its place, what was expected, what was found, and a hint."""

from __future__ import annotations

import pytest
from scenario_said import FILE, HEAD, problems_of, said

from harness.errors import FailureClass
from harness.scenario import ScenarioError, parse_scenario

# name: text, what is said about it
WHOLE = {
    "empty": ("", "1:1 expected a scenario, found an empty file"),
    "only a comment": ("# nothing\n", "1:1 expected a scenario, found an empty file"),
    "a list": ("- a\n", "1:1 expected a mapping, found a list"),
    "a word": ("hello", "1:1 expected a mapping, found 'hello'"),
    "null": ("~", "1:1 expected a mapping, found nothing"),
    "second document": (
        HEAD + "steps: [{open: {device: edu0}}]\n---\na: 1\n",
        "5:1 expected one document, found a second",
    ),
    "control character": ("title: a\x07b", "1:9 expected text, found the control character U+0007"),
    "unclosed bracket": ("title: [a\n", None),
    "tab": ("title: a\nmachine:\n\tiommu: intel\n", None),
    "bad escape": ('title: "\\UFFFFFFFF"', None),
}


@pytest.mark.parametrize("name", WHOLE)
def test_text_that_is_no_scenario(name: str) -> None:
    text, message = WHOLE[name]
    found = said(text)
    if message is None:
        assert len(found) == 1
        assert "expected YAML, found a mistake: " in found[0]
    else:
        assert found == [message]


def test_a_tab_is_named() -> None:
    [problem] = problems_of("title: a\nmachine:\n\tiommu: intel\n")
    assert (problem.line, problem.column) == (3, 1)
    assert problem.hint == "indent with spaces, not with tabs"


def test_missing_parts() -> None:
    found = said("{}\n")
    assert found == [
        f"1:1 expected '{key}' in the scenario, found none" for key in ("machine", "source", "steps", "title")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("needs: {qemu: 10.0}", "4:15 expected a comparison with a version, found 10.0"),
        ('needs: {qmu: ">=1"}', "4:9 expected a known key in 'needs', found 'qmu'"),
        ("timeout: soon", "4:10 expected a duration, found 'soon'"),
        ("timeout: 0", "4:10 expected a duration from 1s to 24h, found 0"),
        ("description: 5", "4:14 expected a text, found 5"),
        ("descripton: x", "4:1 expected a known key in the scenario, found 'descripton'"),
        ("title: again", "4:1 expected each key once, found 'title' again"),
        ("5: x", "4:1 expected a word as a key, found 5"),
        ("[a]: x", "4:1 expected a word as a key, found a list or a mapping"),
        ("? {a: 1}\n: x", "4:3 expected a word as a key, found a list or a mapping"),
        ("&a b: x", "4:1 expected a word as a key, found an anchor or a tag"),
        ("<<: {a: 1}", "4:1 expected a key, found the merge key '<<'"),
        ('"\\0a": x', "4:1 expected a word as a key, found a control character"),
        (": x",
         "4:1 expected YAML, found a mistake: while parsing a block mapping; expected <block end>, but found ':'"),
        ("? ~\n: x", "4:3 expected a word as a key, found ~"),
        ("on: x", "4:1 expected a value with one meaning, found on"),
        ("timeout: &a 60", "4:10 expected a value, found the anchor '&a'"),
        ("timeout: *a", "4:10 expected a value, found the alias '*a'"),
        ("timeout: !!int 60", "4:10 expected a value, found the tag 'tag:yaml.org,2002:int'"),
        ("timeout: !!python/object:os.system 60",
         "4:10 expected a value, found the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("timeout: 010", "4:10 expected a number with one meaning, found 010"),
        ("timeout: 0o17", "4:10 expected a number with one meaning, found 0o17"),
        ("timeout: " + "9" * 5000, "4:10 expected a number of at most 40 digits, found 5000"),
        ("timeout: 02:00", "4:10 expected a duration, found '02:00'"),
        ("timeout: 1_000", "4:10 expected a duration, found '1_000'"),
        ("description: yes", "4:14 expected a value with one meaning, found yes"),
        ("expect: [a]", "4:9 expected a mapping, found a list"),
        ("expect: {fault: []}", "4:10 expected a known key in 'expect', found 'fault'"),
        ("expect: {kernel_log: ['(']}", "4:23 expected a regular expression, found '('"),
        ("expect: {kernel_log: x}", "4:22 expected a list, found 'x'"),
        ("expect: {faults: [5]}", "4:19 expected a mapping, found 5"),
    ],
)  # fmt: skip
def test_top_level(line: str, message: str) -> None:
    found = said(HEAD + line + "\nsteps: [{open: {device: edu0}}]\n")
    assert found == [message]


def steps(*lines: str, setup: bool = True) -> list[str]:
    """What is said about steps; the first of them is in line 8, its kind at column 4."""
    before = ["  - register: {device: edu0}", "  - buffer: {as: a, size: 8K}", "  - map: {buffer: a, size: 8K}"]
    return said(HEAD + "\n".join(["steps:", *(before if setup else []), *(f"  - {line}" for line in lines)]) + "\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # what a step is
        ("5", "8:5 expected a mapping, found 5"),
        ("open", "8:5 expected a mapping, found 'open'"),
        ("", None),
        ("{}", "8:5 expected exactly one key that names the kind of step, found none"),
        ("id: x", "8:5 expected exactly one key that names the kind of step, found none"),
        ("{open: {device: edu0}, close: {device: edu0}}",
         "8:5 expected exactly one key that names the kind of step, found open and close"),
        ("dma_reed: {device: edu0}", "8:5 expected a kind of step, found 'dma_reed'"),
        ("{open: {device: edu0}, expct: {}}", "8:28 expected a known key in the step, found 'expct'"),
        ("open: edu0", "8:11 expected a mapping, found 'edu0'"),
        ("open:", "8:10 expected a mapping, found nothing"),
        ("open: {}", "8:5 expected 'device' in 'open', found none"),
        ("open: {device: edu0, at: 1}", "8:26 expected a known key in 'open', found 'at'"),
        ("{open: {device: edu0}, id: a b}", "8:32 expected a name, found 'a b'"),
        # arguments
        ("bus_master: {device: edu0, enabled: 1}", "8:41 expected true or false, found 1"),
        ("bus_master: {device: edu0, enabled: on}", "8:41 expected a value with one meaning, found on"),
        ("register_fd: {fd: open}", "8:23 expected closed, null, device or group, found 'open'"),
        ("register_fd: {fd: null}", "8:23 expected closed, null, device or group, found nothing"),
        ("alloc: {as: b, size: 4KB}", "8:26 expected a size, found '4KB'"),
        ("alloc: {as: b, size: -1}", "8:26 expected a size from 0 to 2^64-1, found -1"),
        ("alloc: {as: b, size: 1, node: 2147483648}",
         "8:35 expected a number of less than 2147483648, found 2147483648"),
        ("alloc: {as: 1b, size: 1}", "8:17 expected a name, found '1b'"),
        ("alloc: {as: y, size: 1}", "8:17 expected a value with one meaning, found y"),
        ("buffer: {as: b, size: 0}", "8:27 expected a buffer size from 1 to 64 TiB, found 0"),
        ("buffer: {as: b, size: 1, backing: shared}",
         "8:39 expected anonymous, repeated, read_only or huge, found 'shared'"),
        ("map: {size: 4K}", "8:10 expected exactly one of buffer and address, found neither"),
        ("map: {buffer: a, address: 0, size: 4K}",
         "8:10 expected exactly one of buffer and address, found both buffer and address"),
        ('map: {address: "0x1000", size: 4K}', "8:20 expected an address from 0 to 2^64-1, found '0x1000'"),
        ("map: {buffer: a}", "8:5 expected 'size' in 'map', found none"),
        ("translate: {buffer: a, stride: 0}", "8:36 expected a stride of at least 1, found 0"),
        ("fill: {buffer: a, pattern: 256}", "8:32 expected random, counter, zero or a byte from 0 to 255, found 256"),
        ("fill: {buffer: a, pattern: noise}",
         "8:32 expected random, counter, zero or a byte from 0 to 255, found 'noise'"),
        ("fill: {buffer: a, pattern: zero, seed: -1}", "8:44 expected a number of at least 0, found -1"),
        ("dma_read: {device: edu0, size: 16}", "8:15 expected exactly one of iova, buffer and range, found neither"),
        ("dma_read: {device: edu0, iova: 1, buffer: a, size: 16}",
         "8:15 expected exactly one of iova, buffer and range, found both iova and buffer"),
        ("dma_read: {device: edu0, iova: 1, offset: 1, size: 16}",
         "8:15 expected an offset only beside buffer or range, found iova and offset"),
        ("dma_read: {device: edu0, buffer: a, size: 0}", "8:47 expected a DMA size from 1 to 4096, found 0"),
        ("dma_read: {device: edu0, buffer: a, size: 8K}", "8:47 expected a DMA size from 1 to 4096, found 8192"),
        ("dma_write: {device: edu0, buffer: a, size: 4095, device_offset: 2}",
         "8:69 expected device_offset + size of at most 4096, found 2 + 4095 = 4097"),
        ("container_map: {device: edu0, buffer: a, size: 4K, iova: 0, access: rw}",
         "8:73 expected read, write or read_write, found 'rw'"),
        # names
        ("open: {device: edu1}", "8:20 expected a device of the machine, found 'edu1'"),
        ("map: {buffer: b, size: 4K}", "8:19 expected a buffer that an earlier step made, found 'b'"),
        ("map: {buffer: b, size: 4Q}", "8:28 expected a size, found '4Q'"),
        ("compare: {buffer: a, with: b, size: 1}", "8:32 expected a buffer that an earlier step made, found 'b'"),
        ("buffer: {as: a, size: 1}", "8:18 expected a new name, found 'a' again"),
        ("free_plain: {buffer: a}", "8:26 expected a buffer of alloc_plain, found 'a' of buffer"),
        ("fill: {buffer: a, offset: 4K, size: 8K, pattern: zero}",
         "8:20 expected bytes inside 'a' of 8192 bytes, found offset 4096 + size 8192"),
        ("fill: {buffer: a, offset: 8K, pattern: zero}",
         "8:20 expected bytes inside 'a' of 8192 bytes, found offset 8192"),
        ("compare: {buffer: a, with: a, with_offset: 1, size: 8K}",
         "8:32 expected bytes inside 'a' of 8192 bytes, found offset 1 + size 8192"),
        # expectations
        ("{open: {device: edu0}, expect: 5}", "8:36 expected a mapping, found 5"),
        ("{open: {device: edu0}, expect: {eror: X}}", "8:37 expected a known key in 'expect', found 'eror'"),
        ("{open: {device: edu0}, expect: {returns: 0}}", "8:37 expected a key that fits open, found 'returns'"),
        ("{map: {buffer: a, size: 4K}, expect: {equal: true}}", "8:43 expected a key that fits map, found 'equal'"),
        ("{map: {buffer: a, size: 4K}, expect: {returns: null}}", "8:52 expected an integer or nonzero, found null"),
        ("{map: {buffer: a, size: 4K}, expect: {returns: some}}",
         "8:52 expected an integer, null or nonzero, found 'some'"),
        ("{map: {buffer: a, size: 4K}, expect: {returns: true}}",
         "8:52 expected an integer, null or nonzero, found true"),
        ("{map: {buffer: a, size: 4K}, expect: {error: not mapped}}",
         "8:50 expected the class name of an error of usdm, found 'not mapped'"),
        ("{translate: {buffer: a}, expect: {translation: some}}",
         "8:52 expected contiguous, absent or partial, found 'some'"),
        ("{check: {buffer: a, pattern: zero}, expect: {error: X, equal: true}}",
         "8:60 expected either error or equal, found both"),
        # fork
        ("fork: {steps: []}", "8:19 expected at least one item, found an empty list"),
        ("fork: {steps: [{fork: {steps: [{open: {device: edu0}}]}}]}",
         "8:21 expected no fork inside a fork, found one"),
        ("in_vm: {steps: [{statistics: {}}]}",
         "8:5 expected a machine with a virtual machine before in_vm, found none"),
        ("fork: {steps: [{in_vm: {steps: [{statistics: {}}]}}]}", "8:21 expected no in_vm inside a fork, found one"),
        ("fork: {steps: [{open: {device: edu9}}]}", "8:36 expected a device of the machine, found 'edu9'"),
        ("fork: {steps: [{alloc: {as: b, size: 1q}}]}", "8:42 expected a size, found '1q'"),
        ("fork: {steps: [{alloc: {as: b, sise: 1, size: 1}}]}", "8:36 expected a known key in 'alloc', found 'sise'"),
        ("fork: {steps: [{alloc: {as: b}}]}", "8:21 expected 'size' in 'alloc', found none"),
        ("{fork: {steps: [{open: {device: edu0}}]}, expect: {error: X}}",
         "8:56 expected a key that fits fork, found 'error'"),
    ],
)  # fmt: skip
def test_one_mistake_in_a_step(line: str, message: str | None) -> None:
    found = steps(line)
    if message is None:
        assert found == ["8:4 expected a mapping, found nothing"]
        return
    # A step that is no YAML mistake only, but also names something unknown, tells both.
    assert message in found
    assert all("earlier step" in other for other in found if other != message)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["bus_master: {device: edu0, enabled: true}"], "5:26 expected an open device, found 'edu0'"),
        (["open: {device: edu0}", "close: {device: edu0}", "close: {device: edu0}"],
         "7:21 expected an open device, found 'edu0'"),
        (["register_fd: {fd: device}"], "5:23 expected an open device before fd: device, found none"),
        (["open: {device: edu0}", "buffer: {as: a, size: 1}", "dma_read: {device: edu0, buffer: a, size: 1}"],
         "7:38 expected a buffer with an IOVA, found 'a'"),
        (["alloc: {as: a, size: 1}", "release: {buffer: a}"], "6:23 expected a buffer of buffer, found 'a' of alloc"),
        (["fork: {steps: [{buffer: {as: a, size: 1}}]}", "release: {buffer: a}"],
         "6:23 expected a buffer that an earlier step made, found 'a'"),
        (["{open: {device: edu0}, id: x}", "{open: {device: edu0}, id: x}"],
         "6:32 expected an id of its own, found 'x' again"),
        (["{open: {device: edu0}, id: x}", "fork: {steps: [{open: {device: edu0}, id: x}]}"],
         "6:47 expected an id of its own, found 'x' again"),
    ],
)  # fmt: skip
def test_mistakes_between_steps(lines: list[str], message: str) -> None:
    assert steps(*lines, setup=False) == [message]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("{device: edu0, access: read, reason: 6}",
         "7:7 expected exactly one of address, buffer and range, found neither"),
        ("{access: read, address: 1, reason: 6}", "7:7 expected exactly one of device and requester, found neither"),
        ("{device: edu0, requester: 02:00.0, access: read, address: 1, reason: 6}",
         "7:7 expected exactly one of device and requester, found both device and requester"),
        ("{device: edu0, access: read, address: 1, offset: 1, reason: 6}",
         "7:7 expected an offset only beside buffer or range, found address and offset"),
        ("{device: edu0, access: read, address: 1}", "7:7 expected 'reason' in item 1 of faults, found none"),
        ("{device: edu0, access: exec, address: 1, reason: 6}", "7:30 expected read or write, found 'exec'"),
        ("{device: edu0, access: read, address: 1, reason: 0}", "7:56 expected a fault reason, found 0"),
        ("{device: edu0, access: read, address: -1, reason: 6}", "7:45 expected an address from 0 to 2^64-1, found -1"),
        ("{device: edu1, access: read, address: 1, reason: 6}", "7:16 expected a device of the machine, found 'edu1'"),
        ("{device: edu0, access: read, buffer: b, reason: 6}",
         "7:44 expected a buffer that an earlier step made, found 'b'"),
        ("{device: edu0, access: read, address: 1, reason: 6, step: z}",
         "7:65 expected the id of a step, found 'z'"),
        ("{device: edu0, access: read, address: 1, reason: 6, step: x}",
         "7:65 expected a step of kind dma_read, found 'x', a open"),
        ("{device: edu0, access: read, address: 1, reason: 6, stp: x}",
         "7:59 expected a known key in item 1 of faults, found 'stp'"),
        ("{requester: 2:0.0, access: read, address: 1, reason: 6}",
         "7:19 expected a PCI address (bus:device.function), found '2:0.0'"),
    ],
)  # fmt: skip
def test_expected_faults(fault: str, message: str) -> None:
    text = HEAD + f"steps: [{{open: {{device: edu0}}, id: x}}]\nexpect:\n  faults:\n    - {fault}\n"
    assert said(text) == [message]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("dma_reed: {device: edu0}", "did you mean 'dma_read'?"),
        ("open: {device: ed0}", "did you mean 'edu0'?"),
        ("open: {device: nic}", "the machine's devices are: edu0"),
        ("open: {devise: edu0}", "did you mean 'device'?"),
        ("map: {buffer: aa, size: 4K}", "did you mean 'a'?"),
        ("alloc: {as: b, size: 4KB}",
         "write bytes as a number, or a number with K, M or G (powers of 1024): 4096, 64K, 2M, 1G"),
        ("bus_master: {device: edu0, enabled: on}",
         "write true or false for a truth value, or 'on' in quotes for a word"),
        ("bus_master: {device: edu0}", "add 'enabled: ...': true: the device may do DMA."),
        ("{map: {buffer: a, size: 4K}, expect: {equal: true}}", "these do: error, says, returns"),
        ("{alloc: {as: b, size: 010}}", "YAML versions read it differently; write 10, 0x10, or quotes around it"),
    ],
)  # fmt: skip
def test_hints(line: str, hint: str) -> None:
    found = problems_of(
        HEAD + "steps:\n  - register: {device: edu0}\n  - buffer: {as: a, size: 8K}\n  - " + line + "\n"
    )
    assert hint in [problem.hint for problem in found]


def test_all_mistakes_are_told_at_once_in_their_order() -> None:
    text = """\
title: yes
machine: {iommu: arm, devices: {edu0: {model: edu, at: ff:00.0}}}
steps:
  - opn: {device: edu0}
  - open: {device: edu1}
  - alloc: {as: a, size: 4KB}
  - fill: {buffer: a, pattern: zero}
  - fill: {buffer: b, pattern: zero}
expect:
  faults:
    - {device: edu9, access: read, address: 1, reason: 6, step: x}
"""
    assert said(text) == [
        "1:1 expected 'source' in the scenario, found none",
        "1:8 expected a value with one meaning, found yes",
        "2:18 expected intel, virtio, amd or none, found 'arm'",
        "2:56 expected a PCI address where a device can be, found 'ff:00.0'",
        "4:5 expected a kind of step, found 'opn'",
        "5:20 expected a device of the machine, found 'edu1'",
        "6:26 expected a size, found '4KB'",
        "8:20 expected a buffer that an earlier step made, found 'b'",
        "11:16 expected a device of the machine, found 'edu9'",
        "11:65 expected the id of a step, found 'x'",
    ]


def test_the_error_shows_all_problems() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("title: t\nsource: s\nmachine: {}\nsteps: [5, {}]\n", FILE)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 problems:"
    assert lines[1].startswith("  case.yaml:4:9: expected a mapping, found 5 (hint: ")
    assert lines[2].startswith("  case.yaml:4:12: expected exactly one key")
    assert caught.value.failure_class is FailureClass.CONFIGURATION
    assert caught.value.exit_code == 2


def test_the_error_of_one_problem_is_the_problem() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("", FILE)
    assert str(caught.value) == "case.yaml:1:1: expected a scenario, found an empty file"
    assert caught.value.hint == "a scenario begins with 'title: ...'"
    assert str(caught.value.problems[0]) == f"{caught.value} (hint: {caught.value.hint})"


def test_deep_nesting_is_refused() -> None:
    [problem] = problems_of("title: " + "[" * 5000)
    assert problem.message == "expected at most 40 levels, found more"


def test_aliases_cannot_blow_the_data_up() -> None:
    lines = ["a: &a [x]"] + [
        f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert any("alias" in message for message in said("\n".join(lines)))
