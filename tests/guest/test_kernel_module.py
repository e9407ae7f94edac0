"""The test module on a stock kernel: what the kernel's own DMA mapping API answers, also to what no driver asks.

docs/kernel-dma-iova.md has the same answers beside the document's rules and usdm's. A kernel that answers otherwise
fails here, and then that table is to be changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BOOT_SECONDS, EDU, said

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.bring import load_module
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.image.module import Module, fetch_module
from harness.machine.spec import MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

PROGRAM = (Path(__file__).parent / "programs/kernel_answers.py").read_bytes()
KERNEL = "7.2"
UNLINK = "__iommu_dma_iova_unlink"
# Bounce buffers, which a guest of this size would otherwise have none of.
BOUNCING = ("swiotlb=force",)

MAIN: dict[str, Any] = {
    "good": {
        "boundary": 4095,
        "translated": True,
        "offset": 512,
        "links": [0, 0, 0],
        "sync": 0,
        "maps": ["map 4096"] * 3,
        "both_ways": True,
        "pinned": 3,
        "end": None,
        "unmaps": ["unmap 12288"],
        "pinned_after": 0,
        "reach_after": False,
    },
    # The first link, one whose memory is within a granule, the end.
    "memory_unaligned": [0, "-EIO", None],
    # 100 bytes; the next at 100; the next at a granule; sync; the end; what was mapped.
    "size_unaligned": [0, "-ENXIO", 0, 0, None, "map 4096", "map 0", "unmap 0", "map 4096", "unmap 8192"],
    "other_offset": ["-ENXIO"] * 3,
    "overlap": [0, "-EADDRINUSE", None],
    # Beyond the end; far beyond; the device reaches both; the end, after which it does not reach the second either.
    "beyond": [0, 0, True, True, None, True],
    "without_range": ["StateWithoutRange"] * 4,
    # Reached; 100 bytes of the page unlinked; not reached any more.
    "part_of_a_page": [True, None, False, None],
    # The second of four pages unlinked: the others stay.
    "part_of_a_link": [None, "map 16384", "unmap 4096", True, False, True],
    # One page of 2 MiB unlinked: all of it goes.
    "part_of_a_large_page": [0, UNLINK, "map 2097152", "unmap 2097152", 0],
    # The hole; from before it to behind it: up to it; the rest.
    "hole": [UNLINK, "unmap 0", UNLINK, "unmap 4096", None, None],
    # Free; the device reaches the memory; the IOVA is given again; and cannot be used.
    "free_linked": [None, True, True, "-EADDRINUSE", None],
    "destroy_shorter": [None, False, True],
    # Of a range without links; of one with; whose memory the device reaches.
    "destroy_nothing": [None, None, True],
    "destroy_longer": [UNLINK, False, "map 4096", "unmap 4096"],
    # Link; the device reads; it writes.
    "directions": {
        "both": [0, True, True],
        "to_device": [0, True, False],
        "from_device": [0, False, True],
        "none": ["-EINVAL", False, False],
        "7": ["-EINVAL", False, False],
    },
    "other_direction": [0, None, None],
    # Refused; linked; arrives without a sync.
    "before_sync": [False, 0, True],
    "sync_anything": [0, 0, 0, None],
    "unlink_before_sync": [0, None, 0, None],
    "sizes": {"0": "false", "bit 63": "false", "largest": "false", "2^47": 1, "link 0": "-EINVAL"},
    "state_again": [1, True, None],
    "state_after": [1, True, "StateWithoutRange", 1] * 2,
    "given_again": {"whole": True, "part, same size": False, "part, its size": True},
    "masks": {"64": [1, 0], "32": [1, 0], "20": [1, 0], "13": [1, 0], "12": ["false", 0]},
    "attributes": [0, 0, 0, 0, None],
    "streaming": [512, 0, "map 4096", None, "NothingMapped", "WouldStop", 0],
    "streaming_undone_otherwise": [True, None, "unmap 4096", False, True, None, "unmap 4096", True],
    # The call; what is pinned later; the device's write; a second one who opens it.
    "unbound": ["ENODEV", 0, False, "EBUSY"],
    "not_a_call": ["ENOTTY", "ENOTTY", "ENOTTY"],
    # Pinned by two mappings of a page; by one; by none.
    "untranslated": [False, True, 2, None, 1, None, 0, True],
    "memory_of_the_program": ["MemoryScattered", "NotPinned", 0, None],
    # Pinned while something is left mapped; not when the file was closed, and the device reaches nothing.
    "closed_linked": [4, 0, False],
    "no_bounce_buffers": [["-ENOMEM", None], [0, "map 8192", None]],
}
BOUNCE: dict[str, Any] = {
    # The bounce buffer begins elsewhere in its granule than the IOVA.
    "bounce_head_moved": ["-ENXIO", "map 0", "unmap 0", None],
    "bounce": {
        "whole": [0, "map 8192", None],
        "head and tail": [0, "map 4096", "map 4096", "map 4096", None],
        "tail": [0, "map 4096", "map 4096", None],
        "inside": [0, "map 4096", None],
        "mmio": ["-EPERM", None],
        "coherent": ["-EPERM", None],
        "mmio whole": [0, "map 4096", None],
        "coherent whole": [0, "map 4096", None],
        "coherent after": [0, "-EOPNOTSUPP", None],
    },
    # Linked; synced; nothing arrives before the end, then what was linked and not what lies around it.
    "bounce_protects": [0, 0, False, False, None, True, False],
}


@pytest.fixture(scope="module")
def stock() -> Resources:
    return prepare(RunOptions(kernels=(KERNEL,), fetch=True), print)


@pytest.fixture(scope="module")
def module(stock: Resources) -> Module:
    return fetch_module(stock.images[KERNEL])


@pytest.fixture(scope="module", params=[(), BOUNCING], ids=["main", "bounce"])
def guest(
    request: pytest.FixtureRequest, stock: Resources, module: Module, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    plan = stock.plan(
        MachineSpec(devices=(EDU,), kernel_args=request.param), "11.1", KERNEL, tmp_path_factory.mktemp("run")
    )
    # The first machine is that of most scenarios on this kernel. Of the second there is one guest: a boot is less work.
    if not request.param:
        plan = replace(plan, template=get_template(plan, BOOT_SECONDS, print))
    with running_guest(plan, BOOT_SECONDS, lambda stage: None) as guest:
        guest.start_worker(Deadline.after(30))
        guest.find_devices(Deadline.after(30))
        load_module(guest, module, Deadline.after(30))
        said(guest, "echo 1 >/proc/sys/vm/nr_hugepages; mount -t tracefs tracefs /sys/kernel/tracing")
        yield guest


def test_what_the_kernel_answers(guest: Guest):
    which, expected = ("bounce", BOUNCE) if BOUNCING[0] in guest.spec.kernel_args else ("main", MAIN)
    done = guest.run(f"cd /run/payload && PYTHONPATH=. python3 -S - {which}", Deadline.after(60), PROGRAM)
    assert done.status == 0, done.stderr.decode()
    answers = json.loads(done.stdout)
    assert {name: answers[name] for name in expected} == expected
    assert answers.keys() == expected.keys()
    # What it warns of is in the log, and it goes on.
    assert said(guest, "cat /proc/sys/kernel/panic_on_warn") == "0"
    warnings = said(guest, "dmesg | grep -c 'WARNING: drivers/iommu/dma-iommu.c' || true")
    assert int(warnings) == {"main": 7, "bounce": 1}[which]
    assert said(guest, "dmesg | grep -E 'BUG|Oops' || true") == ""


def test_a_module_for_another_kernel_is_refused_with_the_kernels_reason(guest: Guest, module: Module, tmp_path: Path):
    changed = tmp_path / "other.ko"
    release = module.release.encode()
    changed.write_bytes(module.file.read_bytes().replace(b"vermagic=" + release, b"vermagic=" + release[::-1]))
    said(guest, "rmmod dma_iova_test")
    with pytest.raises(InfrastructureError, match=r"does not take the test module for .*version magic"):
        load_module(guest, replace(module, file=changed), Deadline.after(30))
    load_module(guest, module, Deadline.after(30))
