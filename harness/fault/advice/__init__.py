"""Advice for a fault: what usually leads to it, what to look at next, which scenario shows it.

The texts are data, by subject in the files of this folder; this file says which of them belongs to which code.
"""

from __future__ import annotations

from typing import Final

from harness.fault.advice import interrupts, mappings, others, tables
from harness.fault.advice.model import Advice
from harness.fault.decode import MSI_WINDOW, Context, above_width
from harness.fault.known import find_range
from harness.fault.pci import Requester
from harness.fault.reasons import REASONS
from harness.results import FaultRecord

__all__ = ["Advice", "advise"]

_VTD: Final[dict[int, Advice]] = {
    0x00: others.UNKNOWN,
    **dict.fromkeys((0x01, 0x02, 0x39, 0x41), tables.NO_DOMAIN),
    **dict.fromkeys((0x03, 0x0A, 0x0B, 0x0C, 0x0E, 0x30, 0x3A, 0x42, 0x43, 0x48, 0x5B), tables.BAD_ENTRY),
    **dict.fromkeys((0x52, 0x5A, 0x72, 0x74, 0x7A, 0x84), tables.BAD_ENTRY),
    **dict.fromkeys((0x07, 0x08, 0x09, 0x38, 0x40, 0x50, 0x58, 0x70, 0x73), tables.NO_ACCESS),
    **dict.fromkeys((0x75, 0x76, 0x77, 0x78, 0x7B), tables.NO_ACCESS),
    **dict.fromkeys((0x0D, 0x0F, 0x31, 0x32, 0x33, 0x44, 0x45, 0x47, 0x88, 0x89), tables.BLOCKED),
    **dict.fromkeys((0x46, 0x51, 0x59), tables.PASID),
    **dict.fromkeys((0x5C, 0x5D, 0x81, 0x82), tables.EXECUTE),
    **dict.fromkeys((0x7C, 0x7D, 0x90, 0x91, 0x92), tables.DIRTY),
    **dict.fromkeys((0x04, 0x80, 0x83), mappings.WIDTH),
    **dict.fromkeys((0x05, 0x85), mappings.WRITE),
    **dict.fromkeys((0x06, 0x86), mappings.READ),
    **dict.fromkeys((0x71, 0x79), mappings.ACCESS),
    0x87: mappings.MSI,
    **dict.fromkeys((0x20, 0x21, 0x22), interrupts.ENTRY),
    **dict.fromkeys((0x25, 0x29), interrupts.FORMAT),
    0x26: interrupts.SOURCE,
    **dict.fromkeys((0x23, 0x24, 0x27, 0x28), interrupts.TABLE),
}
_AMD: Final[dict[int, Advice]] = {
    0x1: others.NO_ENTRY,
    0x2: mappings.ACCESS,
    0x3: others.TABLE,
    0x4: others.TABLE,
    0x7: others.TIMEOUT,
    0x8: others.REQUEST,
    0x9: others.REQUEST,
    0xD: others.RMP,
    0xE: others.TABLE,
}
_ARM: Final[dict[int, Advice]] = {
    **dict.fromkeys((0x02, 0x04, 0x06, 0x08, 0x0A), others.NO_ENTRY),
    **dict.fromkeys((0x03, 0x09, 0x0B, 0x20, 0x21, 0x25), others.TABLE),
    **dict.fromkeys((0x01, 0x05, 0x07, 0x24), others.REQUEST),
    **dict.fromkeys((0x10, 0x12, 0x13), mappings.ACCESS),
    0x11: mappings.WIDTH,
}
_VIRTIO: Final[dict[int, Advice]] = {0: others.UNKNOWN, 1: others.NO_ENTRY, 2: mappings.ACCESS}
_TABLES: Final = {"amd": _AMD, "arm": _ARM, "virtio": _VIRTIO}
_OF_ADDRESS: Final = (mappings.ACCESS, mappings.READ, mappings.WRITE)

if set(_VTD) != set(REASONS):
    # A code without advice would be explained as unknown.
    raise AssertionError(f"VT-d's codes and their advice differ: {sorted(set(_VTD) ^ set(REASONS))}")


def advise(fault: FaultRecord, context: Context) -> Advice:
    """The advice for a fault, with its device filled in.

    What the address alone tells comes first: above the width, in the MSI window, in a mapping that had ended.
    """
    by_code = _TABLES.get(fault.vendor, _VTD)
    advice = others.UNKNOWN if fault.reason is None else by_code.get(fault.reason, others.UNKNOWN)
    if advice is mappings.ACCESS and fault.access in ("read", "write"):
        advice = mappings.READ if fault.access == "read" else mappings.WRITE
    elif fault.access == "interrupt" and fault.vendor == "amd":
        advice = interrupts.ENTRY
    return _filled(_joined([*_by_address(fault, context, advice), advice]), fault)


def _by_address(fault: FaultRecord, context: Context, advice: Advice) -> list[Advice]:
    if fault.address is None or advice not in _OF_ADDRESS:
        return []
    known = None if context.ranges is None else find_range(context.ranges, fault.address)
    return [
        *([mappings.WIDTH] if above_width(fault, context) else []),
        *([mappings.MSI] if fault.address in MSI_WINDOW else []),
        *([mappings.ENDED] if known is not None and known.until is not None else []),
    ]


def _joined(parts: list[Advice]) -> Advice:
    return Advice(
        causes=tuple(dict.fromkeys(text for part in parts for text in part.causes)),
        checks=tuple(dict.fromkeys(text for part in parts for text in part.checks)),
        scenarios=tuple(dict.fromkeys(name for part in parts for name in part.scenarios)),
    )


def _filled(advice: Advice, fault: FaultRecord) -> Advice:
    requester = Requester.parse(fault.requester)
    device = fault.requester if requester is None or requester.domain else f"0000:{requester}"
    bus = "" if requester is None else f"{requester.bus:02x}"
    return Advice(
        causes=advice.causes,
        checks=tuple(text.replace("{device}", device).replace("{bus}", bus) for text in advice.checks),
        scenarios=advice.scenarios,
    )
