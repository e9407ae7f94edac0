"""The kinds of steps of bare scenarios, and a step as it stands in a file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args
from harness.scenario.bare_args import (
    BareBusMaster,
    BareCheck,
    BareDmaRead,
    BareDmaWrite,
    BareFill,
    BareMap,
    BareUnmap,
    ClearFault,
    Context,
    Disable,
    Enable,
    Entry,
    FaultEvent,
    Interrupt,
    InvalidateContext,
    InvalidateInterrupts,
    InvalidateIotlb,
    InvalidatePasids,
    IrteArgs,
    ReadRegisters,
    Reset,
    Root,
)
from harness.scenario.base import Model
from harness.scenario.expect import exactly_one
from harness.scenario.kind_step import KindStep
from harness.scenario.values import Address, Bdf, Name, Requirement, refuse, satisfies

BARE_KINDS: dict[str, type[Args]] = {
    "enable": Enable,
    "disable": Disable,
    "reset": Reset,
    "bus_master": BareBusMaster,
    "dma_read": BareDmaRead,
    "dma_write": BareDmaWrite,
    "interrupt": Interrupt,
    "map": BareMap,
    "unmap": BareUnmap,
    "entry": Entry,
    "root": Root,
    "context": Context,
    "irte": IrteArgs,
    "invalidate_context": InvalidateContext,
    "invalidate_iotlb": InvalidateIotlb,
    "invalidate_pasids": InvalidatePasids,
    "invalidate_interrupts": InvalidateInterrupts,
    "fault_event": FaultEvent,
    "clear_fault": ClearFault,
    "registers": ReadRegisters,
    "fill": BareFill,
    "check": BareCheck,
}
"""Every kind of step of the bare tier and the model of its arguments."""

_OBSERVES = {
    "dma_read": ("completed",),
    "dma_write": ("completed", "result"),
    "check": ("equal",),
    "registers": ("recorded", "fault", "overflow", "pending", "interrupt_pending"),
}


def bare_expect_keys(kind: str) -> tuple[str, ...]:
    """The keys of ``expect`` that fit a kind of step."""
    return (*_OBSERVES.get(kind, ()), "interrupts")


class FaultFields(Model):
    """One fault, as the trace or the registers have it."""

    device: Name | None = Field(default=None, description="The device that asked, by its name in machine.devices.")
    requester: Bdf | None = Field(default=None, description="Or the requester's PCI address.")
    access: Literal["read", "write", "interrupt"] = Field(description="What the device wanted to do.")
    address: Address | None = Field(
        default=None, description="The IOVA. The start of a page means the page, any other address is compared exactly."
    )
    index: int | None = Field(
        default=None, ge=0, le=0xFFFF, description="Of an interrupt: the index into the interrupt-remapping table."
    )
    reason: int = Field(ge=1, le=0xFF, description="VT-d's fault reason: docs/bare-tier.md lists them.")

    @model_validator(mode="after")
    def _one_of(self) -> FaultFields:
        exactly_one(self, "device", "requester")
        if (self.access == "interrupt") != (self.index is not None) or (self.address is None) != (
            self.access == "interrupt"
        ):
            expected = "an index of an interrupt, an address of a read or write"
            raise refuse(expected, "something else", "an interrupt has no address", quote=False)
        return self


class RecordedFault(FaultFields):
    """The fault that the fault recording register must hold."""


class BareFault(FaultFields):
    """A refused DMA or interrupt that must be reported."""

    step: Name | None = Field(default=None, description="The id of the step that causes it.")
    qemu: Requirement | None = Field(
        default=None, description='Only on these versions of QEMU, where they differ, e.g. ">=10.0".'
    )


class BareExpect(Model):
    """What must be seen of one step. Without it: a DMA completes, check says equal, no interrupt is delivered."""

    completed: bool | None = Field(
        default=None, description="dma_read, dma_write: whether the device says that it is done. Default: true."
    )
    result: Literal["ok", "blocked", "mismatch", "error"] | None = Field(
        default=None,
        description="dma_write of iommu_testdev: what the device says: ok (default), blocked by the IOMMU, mismatch: "
        "the bytes are not where they should be, error: another one.",
    )
    equal: bool | None = Field(default=None, description="check: whether the bytes are equal. Default: true.")
    recorded: bool | None = Field(
        default=None, description="registers: whether the fault recording register holds a fault (F)."
    )
    fault: RecordedFault | None = Field(default=None, description="registers: the fault that it holds.")
    overflow: bool | None = Field(default=None, description="registers: FSTS.PFO, a fault was lost.")
    pending: bool | None = Field(default=None, description="registers: FSTS.PPF, a record waits.")
    interrupt_pending: bool | None = Field(default=None, description="registers: FECTL.IP, the fault event waits.")
    interrupts: tuple[int, ...] = Field(
        default=(),
        strict=False,
        description="Vectors of the interrupts that are delivered, in order. Default: none.",
    )


class BareStep(KindStep):
    """One step: a mapping with one key that names its kind, beside ``expect``, ``id`` and ``qemu``.

    Attributes:
        kind: the kind, e.g. ``dma_read``.
        args: its arguments, an instance of ``BARE_KINDS[kind]``.
        expect: what must be seen.
        id: the name that an expected fault can refer to.
        qemu: the versions on which it is done.
    """

    KINDS = BARE_KINDS
    BESIDE = ("expect", "id", "qemu")
    WHAT = "a kind of step of the bare tier"

    expect: BareExpect = Field(default_factory=BareExpect, description="What must be seen of this step.")
    id: Name | None = Field(default=None, description="A name for this step, for expect.faults.")
    qemu: Requirement | None = Field(
        default=None, description='The step is done on these versions of QEMU only, where they differ, e.g. ">=10.0".'
    )

    @classmethod
    def hint(cls, word: str) -> str:
        """What to say of a word that is no kind."""
        from harness.scenario.steps import KINDS  # which knows this module

        if word in KINDS:
            return "it is a step of a guest, and a bare scenario has none: it belongs into a file without 'tier: bare'"
        return super().hint(word)

    def args_json(self) -> dict[str, Any]:
        """The arguments as plain JSON: sizes as integers, keys as in the file, only those that were written."""
        return self.args.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def runs_on(self, qemu: str) -> bool:
        """Whether the step is done on this version of QEMU."""
        return self.qemu is None or satisfies(qemu, self.qemu)
