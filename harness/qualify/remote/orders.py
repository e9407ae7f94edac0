"""What goes between the machine of a qualification and its workers: plain data, of one version of the harness."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from harness.machine.accel import Decision
from harness.results import CellResult
from harness.run.cells import Cell, machine_spec
from harness.run.jobs import BARE_BYTES, OVERHEAD_BYTES
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario
from harness.sources import sources_hash

MEMORY: Final = "memory"
"""The resource of Dask that counts bytes."""
KVM: Final = "kvm"
"""The resource of Dask that a worker has 1 of where KVM works, else 0."""
# A resource of Dask is used up; KVM serves any number of guests.
KVM_SHARE: Final = 1 / 1024

SHIPPED: Final = ("image", "qemu", "module", "library")
"""The kinds of cache entries that are sent to workers."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cache entry that a cell needs, by its hash."""

    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class CellOrder:
    """A cell, and what it runs on by content hash.

    Args:
        key: its name in Dask; another one for each attempt.
        session: the qualification's run that it belongs to.
        cell: the cell: its scenario at its point, and what is in its command line.
        options: deadlines and the way guests are started.
        qemu: key of the QEMU build; None for ``system``, which each machine has its own of.
        image: key of the image, None for a bare scenario.
        accelerator: what the qualification's machine decided, so that a result is the same wherever its cell runs.
        payload: key of what is sent into the guest.
        library: key of the C library, None without.
        module: key of the test module, None without.
        no_module: why there is none, where there is none.
    """

    key: str
    session: str
    cell: Cell
    options: RunOptions
    qemu: str | None
    image: str | None
    accelerator: Decision
    payload: str
    library: str | None
    module: str | None
    no_module: str | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What must be in the cache of the worker that runs it."""
        keys = zip(SHIPPED, (self.image, self.qemu, self.module, self.library), strict=True)
        return tuple(Entry(kind, key) for kind, key in keys if key is not None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker gives back for an order.

    Args:
        result: the cell's result; paths in it are still the worker's.
        folder: the worker's folder that they begin with.
        evidence: the files of that folder, packed; empty when there are none.
    """

    result: CellResult
    folder: str
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What a cell takes of a worker.

    Args:
        memory: bytes, > 0.
        kvm: whether its guest runs under KVM.
        system: the version of the host's own QEMU that the worker must have too; None where a build is sent.
    """

    memory: int
    kvm: bool = False
    system: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """As Dask takes them."""
        return {MEMORY: self.memory} | ({KVM: KVM_SHARE} if self.kvm else {})


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker is.

    Args:
        name: its name in Dask.
        address: where it is.
        source: hash of its harness's sources (:func:`source_key`).
        version: its harness's version.
        cores: those that it may use.
        threads: cells that it runs at once.
        memory: bytes for all of them.
        kvm: whether KVM works there.
        kvm_reason: how that is known.
        system: version of the host's own QEMU, None without.
        cache: the same for workers that share a cache.
    """

    name: str
    address: str
    source: str
    version: str
    cores: float
    threads: int
    memory: int
    kvm: bool
    kvm_reason: str
    system: str | None
    cache: str


@functools.cache
def source_key() -> str:
    """Hash over every Python file of the harness: all of it has a part in a result."""
    return sources_hash()


def needs_of(cell: Cell, resources: Resources) -> Needs:
    """What a cell takes of the worker that runs it."""
    emulation = resources.emulations[cell.qemu]
    guest = not isinstance(cell.scenario, BareScenario)
    memory = BARE_BYTES if isinstance(cell.scenario, BareScenario) else cell.scenario.machine.memory + OVERHEAD_BYTES
    system = emulation.build.version if emulation.build.folder is None else None
    return Needs(memory, guest and emulation.accelerator.accelerator == "kvm", system)


def make_order(number: int, session: str, cell: Cell, resources: Resources, options: RunOptions) -> CellOrder:
    """The order for an attempt at a cell; ``number`` is another one for each attempt of the session."""
    emulation = resources.emulations[cell.qemu]
    image = resources.images.get(cell.kernel)
    module = resources.modules.get(cell.kernel)
    library = resources.library_of(cell.libusdm) if cell.oracle == "libusdm" else None
    return CellOrder(
        key=f"cell-{number}-{session}",
        session=session,
        cell=cell,
        options=options,
        qemu=None if emulation.build.folder is None else emulation.build.key,
        image=image.key if image else None,
        accelerator=emulation.accelerator,
        payload=resources.payload.key,
        library=library.key if library else None,
        module=module.key if module and cell.oracle == "kernel" else None,
        no_module=resources.no_module.get(cell.kernel),
    )


def template_of(cell: Cell) -> Hashable:
    """The same for cells whose guests are cloned from one template; None for one without a guest."""
    if isinstance(cell.scenario, BareScenario):
        return None
    return machine_spec(cell.scenario).frozen, cell.qemu, cell.kernel
