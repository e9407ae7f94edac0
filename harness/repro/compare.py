"""A wanted fault and the one that happened, field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.fault import reason_name
from harness.fault.pci import without_domain_0
from harness.fault.trace import PAGE_SHIFT, page_of
from harness.results import FaultRecord, Record


class Aspect(Record):
    """One field of two faults.

    Args:
        name: the field.
        wanted: what the given line says, in words.
        seen: what the reproduced one says.
        equal: whether they are the same; None where one of them does not say it.
    """

    name: str
    wanted: str
    seen: str
    equal: bool | None


def aspects(wanted: FaultRecord, seen: FaultRecord) -> tuple[Aspect, ...]:
    """Compare two faults.

    Addresses are compared by page, because Linux prints no more.

    Args:
        wanted: the fault of the given line.
        seen: the one that happened.
    """
    vendor = wanted.vendor

    def reason(code: object) -> str:
        return f"0x{code:02x} {reason_name(code, vendor)}" if isinstance(code, int) else str(code)

    rows: list[tuple[str, object, object, Callable[[object], str]]] = [
        ("requester", without_domain_0(wanted.requester), without_domain_0(seen.requester), str),
        ("access", wanted.access, seen.access, str),
        ("address", _page(wanted.address), _page(seen.address), _hex),
        ("reason", wanted.reason, seen.reason, reason),
        ("PASID", wanted.pasid, seen.pasid, _hex),
    ]
    return tuple(
        Aspect(
            name=name,
            wanted="not said" if one is None else words(one),
            seen="not said" if other is None else words(other),
            equal=None if one is None or other is None else one == other,
        )
        for name, one, other, words in rows
        if one is not None or other is not None
    )


def best(wanted: FaultRecord, faults: Iterable[FaultRecord]) -> FaultRecord | None:
    """The fault that is most like the wanted one, the kernel's before another witness's; None of none."""
    ranked = sorted(faults, key=lambda one: (-_equal(wanted, one), one.witness != "kernel"))
    return ranked[0] if ranked else None


def _equal(wanted: FaultRecord, fault: FaultRecord) -> int:
    return sum(aspect.equal is True for aspect in aspects(wanted, fault))


def _page(address: int | None) -> int | None:
    """Where the page of an address begins."""
    page = page_of(address)
    return None if page is None else page << PAGE_SHIFT


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else str(value)
