"""A point of a matrix is what the guest's own kernel finds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from conftest import said

from harness.guest.guest import Guest
from harness.run.cells import spec_of
from harness.scenario import Machine
from harness.scenario.point import Point, machine_at

_WIDTHS = "cat /sys/class/iommu/dmar0/intel-iommu/cap /sys/class/iommu/dmar0/intel-iommu/ecap"


@pytest.mark.timeout(300)
def test_every_axis_is_seen_in_the_guest(start: Callable[..., AbstractContextManager[Guest]]) -> None:
    point = Point(viommu="intel-scalable-39", cmdline="strict", hugepages=8, vcpus=2)
    spec = spec_of(machine_at(Machine(), point))
    axes = {name: getattr(spec, name) for name in ("aw_bits", "scalable", "cpus", "kernel_args")}
    with start(**axes) as guest:
        assert said(guest, "grep -c ^processor /proc/cpuinfo") == "2"
        assert "HugePages_Total:       8" in said(guest, "grep HugePages_Total /proc/meminfo")
        log = said(guest, "dmesg")
        assert "iommu: DMA domain TLB invalidation policy: strict mode" in log
        assert "DMAR: Enable scalable mode if hardware supports" in log
        capabilities, extended = (int(text, 16) for text in said(guest, _WIDTHS).split())
        assert (capabilities >> 16 & 0x3F) + 1 == 39  # MGAW
        assert extended >> 43 & 1  # SMTS
