"""From a fault record to a scenario whose run gives the same fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from harness.fault import reason_name
from harness.fault.pci import Requester, requester_name
from harness.repro.bare import bare_text
from harness.repro.kinds import State, Tier
from harness.repro.line import line_pattern
from harness.repro.place import DEVICE, NotReproducible, place
from harness.repro.state import IN_A_GUEST, VTD, approach
from harness.results import FaultRecord

_IOMMU: Final = {**dict.fromkeys(VTD, "intel"), "virtio": "virtio", "amd": "amd"}
# The names that scenarios have for the reasons of other IOMMUs.
_NAMES: Final = {"virtio": "mapping", "amd": "io_page_fault"}
_DOMAIN: Final = "0000"


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario that gives a fault again.

    Args:
        wanted: the fault, in PCI domain 0.
        tier: whether a guest or the bare tier gives it.
        text: the scenario file.
        words: what state gives the fault, in words.
        remarks: what of the line cannot be the same, and why.
    """

    wanted: FaultRecord
    tier: Tier
    text: str
    words: str
    remarks: tuple[str, ...] = ()


def plan(record: FaultRecord, line: str, state: State = State.NEVER_MAPPED, tier: Tier = Tier.AUTO) -> Plan:
    """Plan how to make a fault happen again.

    Args:
        record: the fault.
        line: the line that says it, for the scenario's source.
        state: what the page at its address is like, in a guest.
        tier: where it is to happen; by itself in a guest, and on the bare tier what Linux never does.

    Raises:
        NotReproducible: no machine of the harness can give it; the message names the rule.
    """
    if record.vendor not in _IOMMU:
        raise NotReproducible("the line is about an SMMU of Arm's, and the machines of the harness are x86")
    if record.reason is None:
        raise NotReproducible("the line lacks the reason", hint="it may have been cut off")
    if tier is Tier.AUTO:
        tier = Tier.GUEST if record.vendor not in VTD or record.reason in IN_A_GUEST else Tier.BARE
    if tier is Tier.BARE and record.vendor not in VTD:
        raise NotReproducible("the bare tier has VT-d only", hint="leave --tier out")
    requester = Requester.parse(record.requester)
    if requester is None:
        raise NotReproducible(f"{record.requester} is no PCI address")
    name = requester_name(requester.rid)
    wanted = record.model_copy(update={"requester": name, "pasid": None})
    remarks = _remarks(record, requester.domain)
    if wanted.access is None and record.vendor not in VTD:
        wanted = wanted.model_copy(update={"access": "read"})
    reason = _NAMES.get(record.vendor) or f"0x{record.reason:02x}"
    if wanted.access == "interrupt":
        fault = f"an interrupt with index {record.index or 0:#x}"
    else:
        fault = f"a {wanted.access} at {record.address or 0:#x}"
    title = _quoted(f"{name} is refused {fault} with reason {reason} ({reason_name(record.reason, record.vendor)})")
    source = _quoted(f"a fault line: {line}")
    if tier is Tier.BARE:
        place(requester, vf=False)
        text, words = bare_text(wanted, name, title, source)
    else:
        text, words = _guest_text(wanted, requester, state, reason, title, source)
    return Plan(wanted, tier, text, words, tuple(remarks))


def _remarks(record: FaultRecord, domain: str | None) -> list[str]:
    remarks = []
    if domain not in (None, _DOMAIN):
        remarks.append(f"PCI domain {domain}: the emulated machine has domain 0000 only")
    if record.pasid is not None:
        remarks.append(f"PASID {record.pasid:#x}: the emulated devices make requests without PASID")
    if record.vendor == "amd":
        remarks.append("the kernel's line: QEMU's amd-iommu logs neither bus nor address nor access of a fault")
    if record.access is None and record.vendor not in VTD:
        remarks.append("the access: the line does not say it, a read is made")
    return remarks


def _guest_text(
    wanted: FaultRecord, requester: Requester, state: State, reason: str, title: str, source: str
) -> tuple[str, str]:
    """A scenario of the guest tier, and the state in words."""
    # virtio-iommu says the access only of a page that is mapped without it.
    if wanted.vendor == "virtio" and wanted.access == "write" and state is State.NEVER_MAPPED:
        state = State.READ_ONLY
    where = place(requester, vf=wanted.vendor in VTD)
    way = approach(wanted, DEVICE, state, sectors=where.is_vf)
    lines = [
        f"title: {title}",
        f"source: {source}",
        "machine:",
        f"  iommu: {_IOMMU[wanted.vendor]}",
        f"  aw_bits: {way.aw_bits}",
        "  devices:",
        *(f"    {one}" for one in where.devices),
        "steps:",
        *(f"  {one}" for one in where.bring_up),
        f"  - register: {{device: {DEVICE}}}",
        "    expect: {returns: 0}",
        f"  - bus_master: {{device: {DEVICE}, enabled: true}}",
        f"  # {way.words}",
        *(f"  {one}" for one in way.before),
        f"  - {way.access}",
        "    id: refused",
        "expect:",
        "  faults:",
        f'    - {{requester: "{wanted.requester}", access: {wanted.access}, address: {wanted.address or 0:#x}, '
        f"reason: {reason}, step: refused}}",
    ]
    if wanted.vendor in VTD:
        lines += ["  kernel_log:", f"    - {_quoted(line_pattern(wanted))}"]
    return "\n".join(lines) + "\n", way.words


def _quoted(text: str) -> str:
    """Text as a YAML scalar in single quotes; what YAML cannot hold becomes a question mark."""
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return "'" + printable.replace("'", "''") + "'"
