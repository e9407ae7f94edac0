"""What an oracle's name means to those who judge and report: the one place that knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

OracleName = Literal["libusdm", "kernel"]


@dataclass(frozen=True, slots=True)
class Traits:
    """How an oracle differs from ``usdm`` in what can be seen of it at all.

    Args:
        title: what it is called in a sentence.
        failures: how it says that a call failed: not why in the words of usdm, so each is every error of usdm.
        own_errnos: which errno a refusal has is its own, and not compared.
        counts: of kinds of steps, by name, the counts that it keeps; of other kinds it keeps all.
        containers: it goes through VFIO's containers, and is told what they offer.
        of_the_guest: its version is that of the guest's kernel.
    """

    title: str
    failures: tuple[str, ...]
    own_errnos: bool = False
    counts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    containers: bool = True
    of_the_guest: bool = False


TRAITS: Final[Mapping[OracleName, Traits]] = {
    "libusdm": Traits("the C library", ("CFailure",)),
    "kernel": Traits(
        "the kernel",
        ("KernelRefused", "KernelWarned"),
        own_errnos=True,
        # It has no list of what is linked.
        counts={"iova_info": ("in_use", "reserved")},
        containers=False,
        of_the_guest=True,
    ),
}
"""Of each oracle, by its name."""
