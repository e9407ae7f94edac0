from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from usdm_fake_vfio import Buffer, Factory, FakeVfio

from usdm.driver import Usdm
from usdm.errors import UsdmError


@pytest.fixture
def vfio() -> Iterator[FakeVfio]:
    fake = FakeVfio()
    yield fake
    fake.close()


@pytest.fixture
def usdm(vfio: FakeVfio) -> Iterator[Usdm]:
    """A fresh USDM on the fake kernel, nothing registered."""
    driver = Usdm(vfio.ioctl)
    yield driver
    vfio.failures.clear()
    with contextlib.suppress(UsdmError):
        driver.close()


@pytest.fixture
def fd(vfio: FakeVfio, usdm: Usdm) -> int:
    """A container, registered with `usdm`."""
    container = vfio.open()
    usdm.register_device(container)
    return container


@pytest.fixture
def buffer() -> Iterator[Factory]:
    """Makes buffers of the program."""
    made: list[Buffer] = []

    def make(size: int) -> Buffer:
        made.append(Buffer(size))
        return made[-1]

    yield make
    for one in made:
        one.close()
