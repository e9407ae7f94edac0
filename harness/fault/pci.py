"""Requester IDs: bus, device and function, and which VF of which PF a requester is.

The routing IDs of VFs are those of the SR-IOV chapter of PCI Express: VF n (from 1) of a PF has the PF's plus First VF
Offset plus (n - 1) times VF Stride, in sixteen bits, so that it may lie on a later bus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BDF: Final = re.compile(
    r"(?:(?P<domain>[0-9a-fA-F]{4,8}):)?(?P<bus>[0-9a-fA-F]{1,2}):(?P<device>[01]?[0-9a-fA-F])\.(?P<function>[0-7])"
)


@dataclass(frozen=True)
class Requester:
    """A function of PCI.

    Args:
        domain: the PCI domain as printed, or None where it is not said.
        rid: the requester ID, 16 bits: bus, device, function.
    """

    domain: str | None
    rid: int

    @classmethod
    def parse(cls, text: str) -> Requester | None:
        """``02:01.2`` or ``0000:02:01.2``; None when the text is no such address."""
        match = _BDF.fullmatch(text)
        if match is None:
            return None
        bus, device, function = (int(match[name], 16) for name in ("bus", "device", "function"))
        return cls(match["domain"], bus << 8 | device << 3 | function)

    @property
    def bus(self) -> int:
        """0 to 255."""
        return self.rid >> 8

    @property
    def device(self) -> int:
        """0 to 31."""
        return self.rid >> 3 & 0x1F

    @property
    def function(self) -> int:
        """0 to 7."""
        return self.rid & 7

    def __str__(self) -> str:
        domain = "" if self.domain is None else f"{self.domain}:"
        return f"{domain}{self.bus:02x}:{self.device:02x}.{self.function}"


@dataclass(frozen=True)
class Pf:
    """A PF and where its VFs are.

    Args:
        address: the PF itself.
        offset: First VF Offset, >= 1.
        stride: VF Stride, >= 0; 0 where there is one VF.
        vfs: how many VFs it has, >= 1.
    """

    address: Requester
    offset: int
    stride: int
    vfs: int

    def vf_number(self, requester: Requester) -> int | None:
        """Which VF of this PF the requester is, counted from 1; None when it is none."""
        if None not in (self.address.domain, requester.domain) and self.address.domain != requester.domain:
            return None
        behind = (requester.rid - self.address.rid - self.offset) & 0xFFFF
        if self.stride == 0:
            return 1 if behind == 0 else None
        number, rest = divmod(behind, self.stride)
        return number + 1 if rest == 0 and number < self.vfs else None


def requester_name(rid: int) -> str:
    """A requester ID of 16 bits as ``bus:device.function``."""
    return str(Requester(None, rid & 0xFFFF))


def without_domain_0(requester: str) -> str:
    """A requester without the PCI domain 0, which some lines print and no trace has; another domain stays."""
    return requester.removeprefix("0000:")
