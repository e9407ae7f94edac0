"""What must be seen: of one step, and of the whole scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from harness.scenario.base import Model
from harness.scenario.defects import DEFECTS, OTHER
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES, WITHOUT_SCENARIO
from harness.scenario.values import (
    Address,
    Bdf,
    ErrorName,
    Name,
    Regex,
    Requirement,
    Returns,
    SignedSize,
    Size,
    refuse,
    satisfies,
)

SHAPES: Final = (
    *("several_links", "unaligned_first", "unaligned_last", "large_link", "to_device", "from_device"),
    *("refused", "streaming"),
)
"""What a recording can be asked to have in it."""


class StepExpect(Model):
    """What must be seen of one step. Without it: no error, and check, compare and translate_back say equal, same."""

    error: ErrorName | None = Field(
        default=None, description="Class name of the error that must be raised, from usdm/errors.py. Default: no error."
    )
    returns: Returns = Field(
        default=None,
        description="The C return value: an integer, null (C's NULL), or nonzero. Default: not looked at.",
    )
    equal: bool | None = Field(default=None, description="check, compare: whether the bytes are equal. Default: true.")
    same: bool | None = Field(
        default=None, description="translate_back: whether the IOVA gives the virtual address back. Default: true."
    )
    translation: Literal["contiguous", "absent", "partial"] | None = Field(
        default=None,
        description="translate: contiguous (every page present, ascending from the first), absent (none is), or "
        "partial (some are).",
    )

    says: Regex | None = Field(default=None, description="Regular expression that must be found in the error's text.")
    pointer: Literal["null", "kept"] | None = Field(
        default=None, description="free, free_plain: what the program's pointer is afterwards."
    )
    counts: dict[Name, int] | None = Field(
        default=None, description="Numbers that the step observed, by name; those that are not named may be any."
    )
    nodes: tuple[int, ...] | None = Field(
        default=None, strict=False, description="nodes: the NUMA nodes that the pages are on, ascending."
    )
    mapped: Literal["one_to_one", "whole", "none", "partial", "untranslated"] | None = Field(
        default=None,
        description="mappings: whole (each page leads to the buffer's own page), one_to_one (and its IOVA is its "
        "physical address), none (nothing of the range is mapped), partial (some is), untranslated (no table is asked: "
        "no IOMMU, translation disabled, or pass-through). Without it: no page leads to what is not the buffer's.",
    )
    page_sizes: tuple[Size, ...] | None = Field(
        default=None, strict=False, description="mappings: the sizes of the pages that map the range, each once."
    )

    status: Literal["done", "read_refused", "write_refused", "invalid"] | None = Field(
        default=None,
        description="operate, collect: how the device says that it went, of collect all of them. Default: done.",
    )

    shapes: tuple[Literal[SHAPES], ...] | None = Field(  # type: ignore[valid-type]
        default=None,
        strict=False,
        description="trace_end: what the recording must have in it: ranges with several_links, an unaligned_first or "
        "unaligned_last link, a large_link of several pages, directions to_device and from_device; or refused, where "
        "the API cannot be used at all, and streaming, calls of the streaming API instead. Default: a range.",
    )

    def names(self, key: str) -> bool:
        """Whether the key was written in the file; ``returns: null`` says something, leaving it out does not."""
        return key in self.model_fields_set


class Known(Model):
    """Something that an oracle is known to do otherwise."""

    versions: Requirement | None = Field(
        default=None,
        description="Comparisons with the library's version (the kernel's release); others do as expect says, e.g. "
        '">=26.02".',
    )

    def applies(self, version: str) -> bool:
        """Whether this version of the oracle is meant, e.g. ``26.08.0-2``."""
        return self.versions is None or satisfies(version, self.versions)

    @property
    def id(self) -> str:
        """Which known difference it is, e.g. ``D1``."""
        raise NotImplementedError


class OfLibrary(Known):
    """Something that Intel's C library is known to do otherwise."""

    defect: Literal[tuple(DEFECTS) + tuple(OTHER)] = Field(  # type: ignore[valid-type]
        description="Which known defect it is (docs/libusdm-findings.md), or policy, or absent."
    )

    @property
    def id(self) -> str:
        """See ``Known``."""
        return str(self.defect)


def _parse_difference(value: object) -> object:
    if isinstance(value, str) and value in WITHOUT_SCENARIO:
        raise refuse("a difference that a scenario can show", value, WITHOUT_SCENARIO[value])
    if value not in list(KERNEL_DIFFERENCES):
        hint = "; ".join(f"{name}: {meaning}" for name, meaning in KERNEL_DIFFERENCES.items())
        raise refuse("the id of a known difference", value, hint)
    return value


class OfKernel(Known):
    """Something that Linux's own functions are known to do otherwise."""

    differs: Annotated[
        Literal[tuple(KERNEL_DIFFERENCES)],  # type: ignore[valid-type]
        BeforeValidator(_parse_difference),
    ] = Field(
        description="Which known difference it is (docs/kernel-dma-iova.md). "
        + " ".join(f"{name}: {meaning}." for name, meaning in KERNEL_DIFFERENCES.items())
    )

    @property
    def id(self) -> str:
        """See ``Known``."""
        return str(self.differs)


class Deviation(Known):
    """What an oracle does in a step instead. Without it, the oracle must do what ``expect`` says."""

    expect: StepExpect = Field(
        default_factory=StepExpect,
        description="What must be seen of it: the whole expectation, instead of the step's own. The error of a call "
        "that fails is CFailure on the C library and KernelRefused on the kernel.",
    )


class LibraryDeviation(OfLibrary, Deviation):
    """What Intel's C library does in this step instead. Without it, the library must do what ``expect`` says."""


class KernelDeviation(OfKernel, Deviation):
    """What Linux's own functions do in this step instead. Without it, the kernel must do what ``expect`` says."""


def exactly_one(model: Model, *names: str) -> None:
    """Check that a model has one of some values that exclude each other; raises pydantic's custom error."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        found = f"both {_listed(given, 'and')}" if len(given) == 2 else _listed(given, "and") or "neither"
        wanted = f"exactly one of {_listed(names, 'and')}"
        raise refuse(wanted, found, f"write {_listed(names, 'or')}", quote=False)


def _listed(names: Sequence[str], word: str) -> str:
    """``a, b and c``."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


OTHER_REASONS: Final[dict[str, tuple[Literal["virtio", "amd"], int]]] = {
    "unknown": ("virtio", 0),
    "domain": ("virtio", 1),
    "mapping": ("virtio", 2),
    "io_page_fault": ("amd", 2),
}
"""The reasons of vIOMMUs other than VT-d, which are written by name: whose it is, and its code there."""


def parse_reason(value: object) -> int | str:
    """A fault reason as files have it; raises pydantic's custom error."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_REASON:
        return value
    if isinstance(value, str) and value in OTHER_REASONS:
        return value
    hint = f"a code of VT-d from 1 to {_MAX_REASON}, or with another vIOMMU one of {', '.join(OTHER_REASONS)}"
    raise refuse("a fault reason", value, hint)


_MAX_REASON: Final = 0xFF
Reason = Annotated[
    int | str,
    BeforeValidator(parse_reason),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": _MAX_REASON}, {"enum": list(OTHER_REASONS)}]}
    ),
]


class FaultExpect(Model):
    """A refused DMA that must be reported."""

    device: Name | None = Field(default=None, description="The device that asked, by its name in machine.devices.")
    requester: Bdf | None = Field(default=None, description="Or the requester's PCI address.")
    access: Literal["read", "write"] = Field(description="What the device wanted to do with the memory.")
    address: Address | None = Field(default=None, description="The IOVA. Compared by page: the kernel prints no more.")
    buffer: Name | None = Field(default=None, description="Or the buffer whose IOVA it is.")
    range: Name | None = Field(default=None, description="Or the range of iova_alloc.")
    offset: SignedSize = Field(
        default=0, description="Offset from the IOVA of the buffer or range, negative for a place before it."
    )
    reason: Reason = Field(
        description="VT-d's fault reason: 4 beyond the address width, 5 no write permission, 6 no read permission. "
        "With iommu: virtio the reason by its name: mapping (no mapping, or not with this access), domain, unknown. "
        "With iommu: amd the name of the event: io_page_fault.",
    )
    step: Name | None = Field(default=None, description="The id of the step that causes it.")

    @property
    def vendor(self) -> Literal["intel", "virtio", "amd"]:
        """Whose fault it is."""
        return "intel" if isinstance(self.reason, int) else OTHER_REASONS[self.reason][0]

    @property
    def code(self) -> int:
        """The reason as that vIOMMU's code."""
        return self.reason if isinstance(self.reason, int) else OTHER_REASONS[self.reason][1]

    @model_validator(mode="after")
    def _one_of(self) -> FaultExpect:
        exactly_one(self, "device", "requester")
        exactly_one(self, "address", "buffer", "range")
        if self.address is not None and self.offset:
            raise refuse(
                "an offset only beside buffer or range", "address and offset", "add it to the address", quote=False
            )
        return self


class ScenarioDeviation(Known):
    """The faults that an oracle leads to instead."""

    faults: tuple[FaultExpect, ...] = Field(default=(), strict=False, description="Every fault that happens then.")


class FaultsOnLibrary(OfLibrary, ScenarioDeviation):
    """The faults that Intel's C library leads to instead."""


class FaultsOnKernel(OfKernel, ScenarioDeviation):
    """The faults that happen instead when the kernel's own functions do the mapping."""


class ScenarioExpect(Model):
    """What must be seen of the whole scenario. Without it: no fault happens."""

    faults: tuple[FaultExpect, ...] = Field(
        default=(),
        strict=False,
        description="Every fault that happens; none may be missing, none may be beside them. The kernel reports about "
        "three per five seconds.",
    )
    kernel_log: tuple[Regex, ...] = Field(
        default=(), strict=False, description="Regular expressions that must each be found in the guest's kernel log."
    )
    libusdm: FaultsOnLibrary | None = Field(
        default=None, description="The faults when the steps run on Intel's C library, where they differ."
    )
    kernel: FaultsOnKernel | None = Field(
        default=None, description="The faults when the steps run on the kernel's own functions, where they differ."
    )

    @property
    def deviations(self) -> Mapping[str, ScenarioDeviation | None]:
        """What each oracle does otherwise, by its name."""
        return {"libusdm": self.libusdm, "kernel": self.kernel}
