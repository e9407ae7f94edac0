"""From a fault record to a scenario whose run gives the same fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from harness.fault import reason_name
from harness.repro.kinds import State
from harness.repro.line import line_pattern
from harness.repro.place import NotReproducible, place
from harness.repro.state import VTD, approach
from harness.results import FaultRecord

_IOMMU: Final = {**dict.fromkeys(VTD, "intel"), "virtio": "virtio", "amd": "amd"}
# The names that scenarios have for the reasons of other IOMMUs.
_NAMES: Final = {"virtio": "mapping", "amd": "io_page_fault"}
_DOMAIN = "0000:"


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario that gives a fault again.

    Args:
        wanted: the fault, in PCI domain 0.
        text: the scenario file.
        words: what state gives the fault, in words.
        remarks: what of the line cannot be the same, and why.
    """

    wanted: FaultRecord
    text: str
    words: str
    remarks: tuple[str, ...] = ()


def plan(record: FaultRecord, line: str, state: State = State.NEVER_MAPPED) -> Plan:
    """Plan how to make a fault happen again.

    Args:
        record: the fault.
        line: the line that says it, for the scenario's source.
        state: what the page at its address is like.

    Raises:
        NotReproducible: no machine of the harness can give it; the message names the rule.
    """
    iommu = _IOMMU.get(record.vendor)
    if iommu is None:
        raise NotReproducible("the line is about an SMMU of Arm's, and the machines of the harness are x86")
    remarks = []
    domain, requester = _split(record.requester)
    if domain not in ("", _DOMAIN):
        remarks.append(f"PCI domain {domain.rstrip(':')}: the emulated machine has domain 0000 only")
    if record.pasid is not None:
        remarks.append(f"PASID {record.pasid:#x}: the emulated devices make requests without PASID")
    if record.vendor == "amd":
        remarks.append("the kernel's line: QEMU's amd-iommu logs neither bus nor address nor access of a fault")
    wanted = record.model_copy(update={"requester": requester, "pasid": None})
    if wanted.access is None and record.vendor not in VTD:
        remarks.append("the access: the line does not say it, a read is made")
        wanted = wanted.model_copy(update={"access": "read"})
    # virtio-iommu says the access only of a page that is mapped without it.
    if record.vendor == "virtio" and record.access == "write" and state is State.NEVER_MAPPED:
        state = State.READ_ONLY
    where = place(requester, vf=record.vendor in VTD)
    way = approach(wanted, where.device, state, sectors="vf" in where.devices[-1])
    reason = _NAMES.get(record.vendor) or f"0x{record.reason or 0:02x}"
    fault = f"a {wanted.access} at {record.address or 0:#x} with reason {reason}"
    lines = [
        f"title: {requester} is refused {fault} ({reason_name(record.reason, record.vendor)})",
        f"source: {_quoted('a fault line: ' + line)}",
        f"description: {_quoted('Made from that line: ' + way.words + '.')}",
        "machine:",
        f"  iommu: {iommu}",
        f"  aw_bits: {way.aw_bits}",
        "  devices:",
        *(f"    {one}" for one in where.devices),
        "steps:",
        *(f"  {one}" for one in where.bring_up),
        f"  - register: {{device: {where.device}}}",
        "    expect: {returns: 0}",
        f"  - bus_master: {{device: {where.device}, enabled: true}}",
        *(f"  {one}" for one in way.before),
        f"  - {way.access}",
        "    id: refused",
        "expect:",
        "  faults:",
        f'    - {{requester: "{requester}", access: {wanted.access}, address: {record.address or 0:#x}, '
        f"reason: {reason}, step: refused}}",
    ]
    if record.vendor in VTD:
        lines += ["  kernel_log:", f"    - {_quoted(line_pattern(wanted))}"]
    return Plan(wanted, "\n".join(lines) + "\n", way.words, tuple(remarks))


def _split(requester: str) -> tuple[str, str]:
    """A requester's PCI domain, with its colon or empty, and the rest."""
    domain, found, rest = requester.partition(":")
    return (f"{domain}:", rest) if found and ":" in rest else ("", requester)


def _quoted(text: str) -> str:
    """Text as a YAML scalar in single quotes; what YAML cannot hold becomes a question mark."""
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return "'" + printable.replace("'", "''") + "'"
