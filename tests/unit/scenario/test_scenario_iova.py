"""Mistakes in steps of two-step DMA mapping, with their place and what to do."""

from __future__ import annotations

import pytest
from scenario_said import FILE, problems_of

from harness.scenario import parse_scenario

HEAD = """\
title: t
source: s
machine: {devices: {edu0: {model: edu, at: "02:00.0"}, q: {model: qat, at: "03:00.0"}}}
needs: {kernel_options: {IOMMUFD: true, VFIO_DEVICE_CDEV: true}}
steps:
  - register: {device: edu0}
  - buffer: {as: a, size: 16K}
  - iova_alloc: {device: edu0, as: r, buffer: a, size: 16K}
"""
LINE = HEAD.count("\n") + 1


def said(step: str, head: str = HEAD, more: str = "") -> list[str]:
    found = problems_of(f"{head}  - {step}\n{more}")
    return [f"{one.line}:{one.column} {one.message} ({one.hint})" for one in found]


@pytest.mark.parametrize(
    "step",
    [
        "iova_link: {range: r, buffer: a, size: 4K}",
        "iova_link: {range: r, buffer: a, offset: 0x10, at: 4080, size: 0, direction: none, attrs: [mmio]}",
        "iova_link_each: {range: r, buffer: a, size: 4K, count: 4, order: scattered}",
        "iova_link_each: {range: r, buffer: a, size: 2K, count: 7}",
        "iova_alloc: {device: edu0, as: r, buffer: a, size: 0x8000000000000000}",
        "iova_alloc: {device: edu0, as: other, buffer: a, size: 1}",
        "dma_read: {device: edu0, range: r, offset: -4, size: 4}",
        "mappings: {device: edu0, range: r, offset: 4K, size: 4K}",
        "dma_limits: {device: edu0, bits: 32, untrusted: true}",
        "fork: {steps: [{iova_destroy: {range: r, size: 4K}}]}",
        "open: {device: q, through: iommufd}",
    ],
)
def test_good(step: str) -> None:
    assert parse_scenario(f"{HEAD}  - {step}\n", FILE).steps


def test_streaming_gives_a_buffer_an_iova() -> None:
    dma = "  - dma_read: {device: edu0, buffer: a, size: 4}\n"
    assert "expected a buffer with an IOVA" in problems_of(HEAD + dma)[0].message
    assert parse_scenario(f"{HEAD}  - stream_map: {{device: edu0, buffer: a, size: 4K}}\n{dma}", FILE)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            "iova_link: {range: x, buffer: a, size: 4K}",
            "9:24 expected a range that an earlier iova_alloc made, found 'x' (the ranges so far are: r)",
        ),
        ("iova_sync: {range: a, size: 4K}", "9:24 expected a range, found 'a', a buffer (write buffer: a)"),
        ("dma_read: {device: edu0, range: a, size: 4}", "9:37 expected a range, found 'a', a buffer (write buffer: a)"),
        ("dma_read: {device: edu0, buffer: r, size: 4}", "9:38 expected a buffer, found 'r', a range (write"),
        (
            "mappings: {device: edu0, buffer: r, size: 4K}",
            "9:38 expected a buffer, found 'r', a range (write",
        ),
        (
            "fill: {buffer: r, pattern: zero}",
            "9:20 expected a buffer, found 'r', a range (a range has no memory: name the buffer",
        ),
        (
            "compare: {buffer: a, with: r, size: 1}",
            "9:32 expected a buffer, found 'r', a range (a range has no memory: name the buffer",
        ),
        (
            "map: {buffer: r, size: 4K}",
            "9:19 expected a buffer, found 'r', a range (a range has no memory: name the buffer",
        ),
        ("buffer: {as: r, size: 4K}", "9:18 expected a new name, found 'r' again"),
        ("iova_alloc: {device: edu0, as: a, buffer: a, size: 1}", "9:36 expected a new name, found 'a' again"),
        (
            "iova_alloc: {device: q, as: s, buffer: a, size: 1}",
            "9:26 expected an open device, found 'q' (open or register it before)",
        ),
        ("iova_link: {range: r, buffer: b, size: 4K}", "9:35 expected a buffer that an earlier step made, found 'b'"),
        (
            "iova_link: {range: r, buffer: a, size: 4K, direction: in}",
            "9:59 expected both, to_device, from_device or none, found 'in'",
        ),
        (
            "iova_link: {range: r, buffer: a, size: 4K, attrs: [cached]}",
            "9:56 expected mmio, require_coherent or skip_cpu_sync, found 'cached'",
        ),
        (
            "iova_link_each: {range: r, buffer: a, size: 4K, count: 14, order: scattered}",
            "expected a count that is no multiple of 7 with order: scattered, found 14",
        ),
        ("dma_limits: {device: edu0, bits: 65}", "expected a number of at most 64, found 65"),
        ("dma_limits: {device: edu0, bits: 11}", "expected a number of at least 12, found 11"),
        (
            "dma_read: {device: edu0, range: r, buffer: a, size: 4}",
            "expected exactly one of iova, buffer and range, found both buffer and range",
        ),
        (
            "dma_read: {device: edu0, iova: 1, range: r, buffer: a, size: 4}",
            "expected exactly one of iova, buffer and range, found iova, buffer and range",
        ),
        (
            "open: {device: q, through: iommufd, container: c}",
            "expected no container and no type beside through: iommufd, found one",
        ),
        (
            "{iova_free: {range: r}, expect: {returns: 0}}",
            "expected a key that fits iova_free, found 'returns' (these do: error, says)",
        ),
    ],
)
def test_mistakes(step: str, message: str) -> None:
    (found,) = said(step)
    assert found.startswith(f"{LINE}:")
    assert message in found


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ("iova_link: {range: r, buffer: a, offset: 12K, size: 8K}", "offset 12288 + size 8192"),
        ("iova_link: {range: r, buffer: a, offset: 16K, size: 0}", "offset 16384"),
        ("iova_link_each: {range: r, buffer: a, offset: 4K, size: 4K, count: 4}", "offset 4096 + size 4096 * 4"),
        ("iova_alloc: {device: edu0, as: s, buffer: a, offset: 16K, size: 4K}", "offset 16384"),
        ("stream_map: {device: edu0, buffer: a, offset: 12K, size: 4097}", "offset 12288 + size 4097"),
        (
            "{iova_link: {range: r, buffer: a, offset: 17K, size: 1}, expect: {error: OutsideRange}}",
            "offset 17408",
        ),
    ],
)
def test_memory_beyond_the_buffer(step: str, found: str) -> None:
    (one,) = said(step)
    assert f"expected bytes inside 'a' of 16384 bytes, found {found}" in one


@pytest.mark.parametrize(
    "step",
    [
        "iova_link: {range: r, buffer: a, offset: 12K, size: 4K}",
        "iova_link_each: {range: r, buffer: a, size: 4K, count: 4}",
        "iova_alloc: {device: edu0, as: s, buffer: a, offset: 12K, size: 1M}",
        "{stream_map: {device: edu0, buffer: a, size: 1M}, expect: {error: NoIovaSpace}}",
        "{stream_unmap: {device: edu0, buffer: a, size: 4K}, expect: {error: NotStreamed}}",
    ],
)
def test_what_is_inside_or_shall_fail(step: str) -> None:
    assert parse_scenario(f"{HEAD}  - {step}\n", FILE)


def test_a_stream_unmap_of_what_was_never_mapped() -> None:
    step = "stream_unmap: {device: edu0, buffer: a, size: 4K}"
    (found,) = said(step)
    assert "9:42 expected a buffer that a stream_map mapped, found 'a' (write a stream_map of it before" in found
    mapped = "  - stream_map: {device: edu0, buffer: a, size: 4K}\n"
    assert parse_scenario(f"{HEAD}{mapped}  - {step}\n", FILE)
    assert parse_scenario(f"{HEAD}{mapped}  - fork: {{steps: [{step}]}}\n".replace(f"[{step}]", f"[{{{step}}}]"), FILE)


def test_a_device_that_is_open_otherwise() -> None:
    step = "open: {device: edu0, through: iommufd}"
    (found,) = said(step)
    assert "9:20 expected a device that is not open for through: iommufd, found 'edu0', opened through vfio" in found
    assert parse_scenario(f"{HEAD}  - close: {{device: edu0}}\n  - {step}\n", FILE)


def test_a_buffer_stays_one_when_a_range_wants_its_name() -> None:
    step = "iova_alloc: {device: edu0, as: a, buffer: a, size: 1}"
    (found,) = said(step, more="  - fill: {buffer: a, size: 16K, pattern: zero}\n  - release: {buffer: a}\n")
    assert "expected a new name, found 'a' again" in found


def test_a_range_before_any_is_made() -> None:
    head = HEAD.replace("  - iova_alloc: {device: edu0, as: r, buffer: a, size: 16K}\n", "")
    (found,) = said("iova_sync: {range: r, size: 4K}", head)
    assert "found 'r' (write 'iova_alloc: {device: ..., as: r, buffer: ..., size: ...}' before)" in found


def test_a_range_of_a_child_is_unknown_to_its_parent() -> None:
    fork = "fork: {steps: [{iova_alloc: {device: edu0, as: inner, buffer: a, size: 4K}}]}"
    (found,) = said(fork, more="  - iova_free: {range: inner}\n")
    assert "expected a range that an earlier iova_alloc made, found 'inner'" in found


def test_a_mistake_in_iova_alloc_is_told_once() -> None:
    (found,) = said("iova_alloc: {device: edu0, as: s, buffer: a}", more="  - iova_free: {range: s}\n")
    assert "expected 'size' in 'iova_alloc', found none" in found


def test_places_of_operate() -> None:
    head = HEAD + "  - open: {device: q}\n"
    good = "operate: {device: q, op: load, source: [{range: r, size: 4K}]}"
    assert parse_scenario(f"{head}  - {good}\n", FILE)
    (found,) = said(good.replace("range: r", "range: x"), head)
    assert "10:53 expected a range that an earlier iova_alloc made, found 'x'" in found
    (found,) = said(good.replace("range: r", "buffer: r"), head)
    assert "10:54 expected a buffer, found 'r', a range (write range: r)" in found


# ---- faults


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("range: x", "expected a range that an earlier iova_alloc made, found 'x'"),
        ("range: a", "expected a range, found 'a', a buffer (write buffer: a)"),
        ("buffer: r", "expected a buffer, found 'r', a range (write range: r)"),
        ("range: r, address: 0", "expected exactly one of address, buffer and range, found both address and range"),
    ],
)
def test_faults(place: str, message: str) -> None:
    expect = "expect: {faults: [{device: edu0, access: read, %s, reason: 6, step: s}]}\n"
    dma = "{dma_read: {device: edu0, range: r, size: 4}, id: s}"
    assert parse_scenario(f"{HEAD}  - {dma}\n{expect % 'range: r, offset: 4K'}", FILE).expect.faults[0].range == "r"
    (found,) = said(dma, more=expect % place)
    assert message in found


# ---- iommufd


@pytest.mark.parametrize(
    "step",
    [
        "register: {device: q}",
        "unregister: {device: q}",
        "container_info: {device: q}",
        "container_map: {device: q, buffer: a, size: 4K, iova: 0, access: read}",
        "container_unmap: {device: q, iova: 0, size: 4K}",
        "unbind: {device: q}",
        "unplug: {device: q}",
        "surprise_removal: {device: q}",
    ],
)
def test_a_device_of_an_ioas_has_no_container(step: str) -> None:
    opened = HEAD + "  - open: {device: q, through: iommufd}\n"
    (found,) = said(step, opened)
    kind = step.partition(":")[0]
    assert f"expected a device of a container for {kind}, found 'q', opened through iommufd" in found
    closed = f"{opened}  - close: {{device: q}}\n  - open: {{device: q}}\n  - {step}\n"
    assert parse_scenario(closed, FILE), "after it was opened in the other way"


@pytest.mark.parametrize("options", ["{IOMMUFD: true}", "{IOMMUFD: true, VFIO_DEVICE_CDEV: false}", "{VFIO: true}"])
def test_iommufd_needs_a_kernel_that_has_it(options: str) -> None:
    head = HEAD.replace("{IOMMUFD: true, VFIO_DEVICE_CDEV: true}", options)
    (found,) = said("open: {device: q, through: iommufd}", head)
    assert "9:32 expected needs.kernel_options {IOMMUFD: true, VFIO_DEVICE_CDEV: true} beside through: iommufd" in found
    assert said("open: {device: q, through: iommufd}", HEAD.replace("needs: ", "# ")) != []
    assert parse_scenario(f"{head}  - open: {{device: q, through: vfio}}\n", FILE)
