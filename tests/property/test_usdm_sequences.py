"""Sequences of USDM calls on a simulated container; `tests/fuzz/run.py` runs the same ones in guests."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from sequences import Program, programs
from sequences_memory import PAGE
from sequences_native import Make, failures
from usdm_fake_vfio import MAP, UNMAP, FakeVfio

from harness.scenario import Scenario, parse_scenario
from usdm import errors
from usdm.driver import Usdm

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def check(program: Program, make: Make) -> None:
    found = failures(program, make)
    assert not found, "\n".join(f"{one.name}: {one.message}" for one in found)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs())
def test_sequences(program: Program) -> None:
    check(program, lambda vfio: Usdm(vfio.ioctl))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs())
def test_a_sequence_is_a_scenario_file(program: Program) -> None:
    scenario = parse_scenario(program.text(description="what was found"), "sequence.yaml")
    assert scenario.steps == Scenario.model_validate(program.scenario()).steps


# ---- implementations with one mistake each: what the sequences find today they must find tomorrow


class KeepsTranslations(Usdm):
    """D1: memory that was unmapped is still translated."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)
        self.old: dict[int, int] = {}

    def unmap(self, virt: int, size: int) -> None:
        iovas = {page: super(KeepsTranslations, self).virt_to_phys(page) for page in self._pages(virt, size)}
        super().unmap(virt, size)
        self.old.update(iovas)

    def _pages(self, virt: int, size: int) -> Iterator[int]:
        for page in range(virt, virt + min(size, 1 << 24), PAGE):
            try:
                super().virt_to_phys(page)
            except errors.UsdmError:
                continue
            yield page

    def virt_to_phys(self, address: int) -> int:
        try:
            return super().virt_to_phys(address)
        except errors.NotMapped:
            if address not in self.old:
                raise
            return self.old[address]


class MapsOnePageShort(Usdm):
    """The device does not reach the last page of a mapping."""

    def __init__(self, vfio: FakeVfio) -> None:
        def ioctl(fd: int, request: int, argument: bytearray | int) -> int:
            if request in (MAP, UNMAP) and isinstance(argument, bytearray):
                at = 24 if request == MAP else 16
                size = struct.unpack_from("=Q", argument, at)[0]
                if size > PAGE:
                    struct.pack_into("=Q", argument, at, size - PAGE)
                    vfio.ioctl(fd, request, argument)
                    struct.pack_into("=Q", argument, at, size)
                    return 0
            return vfio.ioctl(fd, request, argument)

        super().__init__(ioctl)


class NeverUnmaps(Usdm):
    """The device keeps its access."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(lambda fd, request, argument: 0 if request == UNMAP else vfio.ioctl(fd, request, argument))


class LosesIovas(Usdm):
    """A mapping that the kernel refuses takes its IOVA with it."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)

    def map(self, virt: int, size: int) -> int:
        try:
            return super().map(virt, size)
        except errors.MapFailed:
            self._space.iovas.allocate(size)
            raise


class AllowsOverlaps(Usdm):
    """D4: what is mapped may be mapped again."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)

    def map(self, virt: int, size: int) -> int:
        try:
            return super().map(virt, size)
        except errors.AlreadyMapped:
            return 1 << 38


class ForgetsRegistrations(Usdm):
    """The first unregistration is the last one."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)

    def unregister_device(self, fd: int) -> None:
        super().unregister_device(fd)
        while self.registered:
            super().unregister_device(fd)


class WorksInChild(Usdm):
    """F1: a child goes on with its parent's container."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)

    def _forked(self) -> None:
        pass

    def free(self, address: int, zero: bool = True) -> None:
        super().free(address, False)  # the child has not the memory, and would end


class FreesInside(Usdm):
    """A3: an address inside an allocation is taken for the allocation."""

    def __init__(self, vfio: FakeVfio) -> None:
        super().__init__(vfio.ioctl)

    def free(self, address: int, zero: bool = True) -> None:
        try:
            super().free(address, zero)
        except errors.InteriorPointer:
            return


BROKEN = (
    *(KeepsTranslations, MapsOnePageShort, NeverUnmaps, LosesIovas),
    *(AllowsOverlaps, ForgetsRegistrations, WorksInChild, FreesInside),
)


@pytest.mark.parametrize("broken", BROKEN)
def test_mistakes_are_found(broken: Make) -> None:
    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs())
    def run(program: Program) -> None:
        check(program, broken)

    with pytest.raises(AssertionError):
        run()
