"""For each fault reason of VT-d that QEMU's IOMMU gives: the tables that lead to it, as pieces of a bare scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# Memory ends at 64 MiB, so nothing answers there.
_NO_MEMORY: Final = "0x40000000"
_MEMORY: Final = "0x200000"
ENTRIES: Final = 256
"""How many entries the interrupt-remapping table has, unless the index is to be beyond it."""

FEW_ENTRIES: Final = 2
"""How many it has then."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The state of an IOMMU that gives one reason.

    Args:
        words: the state in words.
        tables: lines of ``tables``; ``{page}`` is the page of the line's address, ``{index}`` an interrupt's index.
        before: steps before the refused one.
        machine: lines of ``machine`` beside the devices.
        message: of an interrupt the arguments of its step beside the device; empty for DMA.
        access: the only access that has this reason, or None for reads and writes.
        beside: lines of further devices.
        qemu: the versions that give this reason, as a requirement; empty for all.
    """

    words: str
    tables: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    message: str = ""
    access: Literal["read", "write", "interrupt"] | None = None
    beside: tuple[str, ...] = ()
    qemu: str = ""


def _mapped(context: str = "", pages: str = "", to: str = _MEMORY, stage: str = "") -> tuple[str, ...]:
    """A domain in which the page of the address is mapped, and the function's context entry."""
    return (
        f"domains: {{d: {{{stage}pages: [{{iova: {{page}}, to: {to}{pages}}}]}}}}",
        f"contexts: {{dut: {{domain: d{context}}}}}",
    )


def _scalable(words: str, tables: tuple[str, ...], qemu: str = ">=10.0") -> Recipe:
    """Scalable mode; QEMU 7.2 says 0x58 of everything about PASID entries."""
    return Recipe(words, ("mode: scalable", *tables), machine=("scalable: true",), qemu=qemu)


def _first(
    words: str,
    context: str = "",
    pages: str = "",
    before: tuple[str, ...] = (),
    access: Literal["write"] | None = None,
) -> Recipe:
    """The first stage of scalable mode, which QEMU has from 10.0 on."""
    return Recipe(
        words,
        ("mode: scalable", *_mapped(context, pages, stage="stage: first, ")),
        before,
        ("scalable: true", "first_stage: true"),
        access=access,
        qemu=">=10.0",
    )


def _interrupt(
    words: str,
    entry: str = "",
    *,
    table: str = "",
    entries: int = ENTRIES,
    message: str = "index: {index}",
    beside: tuple[str, ...] = (),
) -> Recipe:
    """An interrupt in the remappable format; QEMU 7.2 refuses it without a record."""
    parts = [
        f"entries: {entries}",
        *([f"entry: [{{index: {{index}}{entry}}}]"] if entry else []),
        *([table] if table else []),
    ]
    tables = ("contexts: {dut: {type: pass_through}}", f"interrupts: {{{', '.join(parts)}}}")
    return Recipe(words, tables, message=message, access="interrupt", beside=beside, qemu=">=10.0")


_NOT_MAPPED: Final = ("domains: {d: {}}", "contexts: {dut: {domain: d}}")

RECIPES: Final[dict[int, Recipe]] = {
    0x01: Recipe("the root entry of the bus is not present", ("roots: {dut: {present: false}}",)),
    0x02: Recipe("the function has no context entry", ("roots: {dut: {}}",)),
    0x03: Recipe("the context entry has a type that means nothing", _mapped(", type: reserved")),
    0x05: Recipe("nothing is mapped at the address", _NOT_MAPPED, access="write"),
    0x06: Recipe("nothing is mapped at the address", _NOT_MAPPED, access="read"),
    0x07: Recipe(
        "a page table is where no memory is",
        _mapped(),
        (f"- entry: {{domain: d, iova: {{page}}, level: 2, table: {_NO_MEMORY}}}",),
    ),
    0x08: Recipe("the root table is where no memory is", (f"root_table: {_NO_MEMORY}", *_mapped())),
    0x09: Recipe("the context table is where no memory is", (*_mapped(), f"roots: {{dut: {{table: {_NO_MEMORY}}}}}")),
    0x0A: Recipe("a reserved bit of the root entry is set", (*_mapped(), "roots: {dut: {bits: [4]}}")),
    0x0B: Recipe("a reserved bit of the context entry is set", _mapped(", bits: [4]")),
    0x0C: Recipe("a reserved bit of the page's entry is set", _mapped(pages=", bits: [50]")),
    0x0E: Recipe("the page leads into the interrupt address range", _mapped(to="0xfee00000")),
    0x21: _interrupt(f"the table has {FEW_ENTRIES} entries", entries=FEW_ENTRIES),
    0x22: _interrupt("the table's entry is not present"),
    0x23: _interrupt("the table is where no memory is", table=f"table: {_NO_MEMORY}"),
    0x24: _interrupt("a reserved bit of the table's entry is set", ", vector: 0x51, bits: [100]"),
    0x26: _interrupt(
        "the table's entry is another function's",
        ", vector: 0x51, source: other",
        beside=('other: {model: edu, at: "{neighbour}"}',),
    ),
    0x50: _scalable("the PASID directory is where no memory is", _mapped(f", table: {_NO_MEMORY}")),
    0x51: _scalable("the PASID directory entry is not present", _mapped(", directory: {present: false}")),
    0x58: _scalable("the PASID table is where no memory is", _mapped(f", directory: {{table: {_NO_MEMORY}}}"), ""),
    0x59: _scalable("the PASID table entry is not present", _mapped(", pasid: {present: false}")),
    0x5B: _scalable("the PASID table entry has a type that means nothing", _mapped(", pasid: {type: 7}")),
    0x70: _first(
        "a first-stage page table is where no memory is",
        before=(f"- entry: {{domain: d, iova: {{page}}, level: 2, table: {_NO_MEMORY}}}",),
    ),
    0x71: _first(
        "nothing is mapped at the address",
        before=("- unmap: {domain: d, iova: {page}}",),
    ),
    0x72: _first("a reserved bit of the page's entry is set", pages=", bits: [50]"),
    0x73: _first("the first first-stage page table is where no memory is", f", pasid: {{table: {_NO_MEMORY}}}"),
    0x80: Recipe(
        "the address is not canonical",
        ("mode: scalable", "domains: {d: {stage: first}}", "contexts: {dut: {domain: d}}"),
        machine=("scalable: true", "first_stage: true"),
        qemu=">=10.0",
    ),
    0x81: _first(
        "the page is for privileged requests only",
        before=(f"- entry: {{domain: d, iova: {{page}}, level: 1, table: {_MEMORY}, access: none, bits: [0, 1]}}",),
    ),
    0x85: _first("the page is mapped read-only", pages=", access: read", access="write"),
    0x87: _scalable("the page leads into the interrupt address range", _mapped(to="0xfee00000"), ""),
}
"""The states by reason. What is not here, QEMU's IOMMU never says of a device's request."""

RULES: Final[dict[int, str]] = {
    0x20: "a device's own message has no reserved bits; of one that is written by DMA QEMU names ff:1f.7 as requester",
    0x25: "QEMU lets messages of the old format through, whether they are allowed or not",
    0x30: "QEMU takes a root table of a reserved mode for one of legacy mode",
}
"""Why QEMU's IOMMU never gives some of the other reasons."""
