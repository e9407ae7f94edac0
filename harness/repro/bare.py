"""A fault without a guest: a bare scenario whose tables are as the line's reason wants them."""

from __future__ import annotations

from typing import Final

from harness.fault import reason_name
from harness.fault.decode import MSI_WINDOW
from harness.repro.place import DEVICE, NotReproducible
from harness.repro.recipes import ENTRIES, FEW_ENTRIES, RECIPES, RULES, Recipe
from harness.results import FaultRecord

_PAGE: Final = 0x1000
_BYTES: Final = 16
_WIDTH: Final = 48
_INDEX_BEYOND, _NOT_CANONICAL = 0x21, 0x80
_CANONICAL: Final = 47


def bare_text(record: FaultRecord, requester: str, title: str, source: str) -> tuple[str, str]:
    """A bare scenario that gives a fault.

    Args:
        record: access, address (of an interrupt: index) and reason of it are used.
        requester: its address, without the PCI domain.
        title: the scenario's title, as YAML.
        source: its source, as YAML.

    Returns:
        The scenario file, and the state in words.

    Raises:
        NotReproducible: the emulated IOMMU never gives this fault.
    """
    reason = record.reason or 0
    recipe = RECIPES.get(reason)
    if recipe is None:
        raise NotReproducible(
            f"QEMU's IOMMU never gives reason 0x{reason:02x} ({reason_name(reason)})"
            + (f": {RULES[reason]}" if reason in RULES else ""),
            hint="docs/bare-tier.md says of each reason which rule of the emulator stands in the way",
        )
    _fits(record, recipe)
    page, index = (record.address or 0) & -_PAGE, record.index or 0
    values = {
        "{page}": f"{page:#x}",
        "{index}": str(index),
        # Another function, on a bus of its own.
        "{neighbour}": "03:00.0" if requester.startswith("02:") else "02:00.0",
    }

    def fill(lines: tuple[str, ...], indent: str) -> list[str]:
        filled = []
        for line in lines:
            for name, value in values.items():
                line = line.replace(name, value)
            filled.append(f"{indent}{line}")
        return filled

    if recipe.message:
        (step,) = fill((f"interrupt: {{device: {DEVICE}, {recipe.message}}}",), "")
        where, enable = f"index: {index}", "{interrupts: true}"
    else:
        step = f"dma_{record.access}: {{device: {DEVICE}, iova: {record.address or 0:#x}, size: {_BYTES}}}"
        where, enable = f"address: {record.address or 0:#x}", "{}"
    lines = [
        "tier: bare",
        f"title: {title}",
        f"source: {source}",
        *([f"needs: {{qemu: '{recipe.qemu}'}}"] if recipe.qemu else []),
        "machine:",
        *fill(recipe.machine, "  "),
        "  devices:",
        f'    {DEVICE}: {{model: edu, at: "{requester}"}}',
        *fill(recipe.beside, "    "),
        "tables:",
        *fill(recipe.tables, "  "),
        "steps:",
        *fill(recipe.before, "  "),
        f"  - enable: {enable}",
        f"  - {step}",
        "    id: refused",
        "expect:",
        "  faults:",
        f'    - {{requester: "{requester}", access: {record.access}, {where}, reason: 0x{reason:02x}, step: refused}}',
    ]
    return "\n".join(lines) + "\n", recipe.words


def _fits(record: FaultRecord, recipe: Recipe) -> None:
    """Refuse what the line says otherwise than its reason can be.

    Raises:
        NotReproducible: the message says what.
    """
    reason = f"reason 0x{record.reason or 0:02x}"
    kind = "interrupt" if record.access == "interrupt" else "DMA"
    wanted = "interrupt" if recipe.message else "DMA"
    if kind != wanted:
        raise NotReproducible(
            f"{reason} is about an {wanted}, the line is not" if recipe.message else f"{reason} is no interrupt's"
        )
    if kind == "interrupt":
        index = record.index or 0
        if record.reason == _INDEX_BEYOND and index < FEW_ENTRIES:
            raise NotReproducible(f"index {index} is in every table, so {reason} does not name it")
        if record.reason != _INDEX_BEYOND and index >= ENTRIES:
            raise NotReproducible(f"index {index} is beyond the tables of the bare tier, which have {ENTRIES} entries")
        return
    if record.access is None or record.address is None:
        raise NotReproducible("the line lacks the access or the address", hint="it may have been cut off")
    if recipe.access not in (None, record.access):
        raise NotReproducible(f"{reason} is about a {recipe.access}, the line about another access")
    if record.address in MSI_WINDOW:
        raise NotReproducible(
            f"{record.address:#x} is in the interrupt address range, where QEMU refuses no {record.access}"
        )
    if record.address >> _WIDTH:
        raise NotReproducible(f"{record.address:#x} is beyond 48 bits, where QEMU's IOMMU gives another reason")
    if record.reason == _NOT_CANONICAL and not record.address >> _CANONICAL:
        raise NotReproducible(f"{record.address:#x} is canonical, so {reason} does not name it")
