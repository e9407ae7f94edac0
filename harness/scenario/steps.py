"""The kinds of steps, and a step as it stands in a scenario file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from harness.oracle_traits import TRAITS
from harness.scenario.args import (
    Alloc,
    AllocPlain,
    Args,
    AtFork,
    Buffer,
    BusMaster,
    Check,
    Close,
    Compare,
    ContainerInfo,
    ContainerMap,
    ContainerUnmap,
    DmaRead,
    DmaWrite,
    Environment,
    Fill,
    Free,
    FreePlain,
    Hugepages,
    LimitMemory,
    Map,
    MapEach,
    MemDestroy,
    MemInit,
    MemInitFd,
    Nodes,
    Open,
    Register,
    RegisterFd,
    Release,
    Statistics,
    Threads,
    Translate,
    TranslateBack,
    Unmap,
    UnmapEach,
    Unregister,
)
from harness.scenario.args_device import DEVICE_KINDS
from harness.scenario.args_function import (
    DisableVfs,
    EnableVfs,
    Mappings,
    NoIommu,
    PassThrough,
    PhysicalAddress,
    Remap,
    RemapSize,
    Unbind,
    Unplug,
    Unremap,
)
from harness.scenario.args_iova import IOVA_KINDS, IOVA_RETURNS
from harness.scenario.args_kernel import KERNEL_KINDS
from harness.scenario.bare_steps import BARE_KINDS
from harness.scenario.expect import Deviation, KernelDeviation, LibraryDeviation, StepExpect
from harness.scenario.kind_step import KindStep
from harness.scenario.values import Name


class Nested(Args):
    """Arguments of a step that has steps inside."""

    steps: tuple[Step, ...]

    def args_json(self) -> dict[str, Any]:
        """The steps inside, each as ``{"kind": …, "args": {…}}``."""
        return {"steps": [{"kind": step.kind, "args": step.args_json()} for step in self.steps]}


class Fork(Nested):
    """A child process runs steps, then ends. Names that it gives are unknown to its parent."""

    steps: tuple[Step, ...] = Field(strict=False, min_length=1, description="The child's steps; none may be a fork.")


class InVm(Nested):
    """The virtual machine inside the guest runs steps. Names that they give are known to later ones there only."""

    steps: tuple[Step, ...] = Field(
        strict=False, min_length=1, description="Its steps; none may be a fork, nor one about virtual machines."
    )


KINDS: dict[str, type[Args]] = {
    "open": Open,
    "close": Close,
    "bus_master": BusMaster,
    "container_info": ContainerInfo,
    "register": Register,
    "unregister": Unregister,
    "register_fd": RegisterFd,
    "alloc": Alloc,
    "free": Free,
    "alloc_plain": AllocPlain,
    "free_plain": FreePlain,
    "buffer": Buffer,
    "release": Release,
    "map": Map,
    "unmap": Unmap,
    "map_each": MapEach,
    "unmap_each": UnmapEach,
    "translate": Translate,
    "translate_back": TranslateBack,
    "at_fork": AtFork,
    "mem_init": MemInit,
    "mem_destroy": MemDestroy,
    "mem_init_fd": MemInitFd,
    "statistics": Statistics,
    "environment": Environment,
    "hugepages": Hugepages,
    "limit_memory": LimitMemory,
    "nodes": Nodes,
    "threads": Threads,
    "fill": Fill,
    "check": Check,
    "compare": Compare,
    "dma_read": DmaRead,
    "dma_write": DmaWrite,
    "container_map": ContainerMap,
    "container_unmap": ContainerUnmap,
    "noiommu": NoIommu,
    "enable_vfs": EnableVfs,
    "disable_vfs": DisableVfs,
    "unbind": Unbind,
    "unplug": Unplug,
    "physical_address": PhysicalAddress,
    "remap_size": RemapSize,
    "remap": Remap,
    "unremap": Unremap,
    **IOVA_KINDS,
    "mappings": Mappings,
    **DEVICE_KINDS,
    **KERNEL_KINDS,
    "pass_through": PassThrough,
    "in_vm": InVm,
    "fork": Fork,
}
"""Every kind of step and the model of its arguments."""

ORACLES = tuple(TRAITS)
"""What a step can run on beside ``usdm``, by the key that says what that does otherwise."""

NESTED = tuple(kind for kind, model in KINDS.items() if issubclass(model, Nested))
"""The kinds of steps that have steps inside."""

_RETURNS = (
    *("register", "unregister", "register_fd", "alloc", "alloc_plain", "map", "unmap", "map_each", "unmap_each"),
    *("mem_init", "mem_init_fd", "remap_size", "remap", "unremap"),
    *IOVA_RETURNS,
)
_OBSERVES = {
    "container_info": ("counts",),
    "map_each": ("counts",),
    "unmap_each": ("counts",),
    "statistics": ("counts",),
    "hugepages": ("counts",),
    "threads": ("counts",),
    "check": ("equal",),
    "compare": ("equal",),
    "translate_back": ("same",),
    "translate": ("translation", "counts"),
    "free": ("pointer",),
    "free_plain": ("pointer",),
    "nodes": ("nodes",),
    "enable_vfs": ("counts",),
    "disable_vfs": ("counts",),
    "unbind": ("counts",),
    "unplug": ("counts",),
    "physical_address": ("counts",),
    "iova_link_each": ("counts",),
    "iova_info": ("counts",),
    "mappings": ("mapped", "page_sizes", "counts"),
    "operate": ("status", "equal", "counts"),
    "collect": ("status", "counts"),
    "counters": ("counts",),
    "surprise_removal": ("counts",),
    "kernel_driver": ("counts",),
    "disk_io": ("equal", "counts"),
    "trace_end": ("shapes", "counts"),
    "replay": ("counts",),
}


def expect_keys(kind: str) -> tuple[str, ...]:
    """The keys of ``expect`` that fit a kind of step; none for ``fork`` and ``in_vm``, whose steps have their own."""
    if kind in NESTED:
        return ()
    return ("error", "says", *(("returns",) if kind in _RETURNS else ()), *_OBSERVES.get(kind, ()))


class Step(KindStep):
    """One step: a mapping with one key that names its kind, beside ``expect`` and ``id``.

    Attributes:
        kind: the kind, e.g. ``dma_read``.
        args: its arguments, an instance of ``KINDS[kind]``.
        expect: what must be seen.
        id: the name that an expected fault can refer to.
        libusdm: what Intel's C library does instead.
        kernel: what Linux's own functions do instead.
    """

    KINDS = KINDS
    BESIDE = ("expect", "id", *ORACLES)

    expect: StepExpect = Field(default_factory=StepExpect, description="What must be seen of this step.")
    id: Name | None = Field(default=None, description="A name for this step, for expect.faults.")
    libusdm: LibraryDeviation | None = Field(
        default=None, description="What Intel's C library does in this step, where it is something else."
    )
    kernel: KernelDeviation | None = Field(
        default=None, description="What Linux's own functions do in this step, where it is something else."
    )

    @property
    def deviations(self) -> Mapping[str, Deviation | None]:
        """What each oracle does otherwise, by its name."""
        return {"libusdm": self.libusdm, "kernel": self.kernel}

    @classmethod
    def hint(cls, word: str) -> str:
        """What to say of a word that is no kind."""
        if word in BARE_KINDS:
            return "it is a step of the bare tier: write 'tier: bare' at the top of a file of its own"
        return super().hint(word)

    def args_json(self) -> dict[str, Any]:
        """The arguments as plain JSON for the worker in the guest: sizes as integers, keys as in the file."""
        return self.args.args_json()


Nested.model_rebuild()
Fork.model_rebuild()
InVm.model_rebuild()
