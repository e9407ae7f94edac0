"""The shape of advice: data, in the files beside this one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What usually leads to a fault, and what to look at.

    ``{device}`` in a text stands for the requester with its PCI domain, as in sysfs, ``{bus}`` for its bus.

    Args:
        causes: the likeliest first.
        checks: what to do next, short and imperative, with a command where one helps.
        scenarios: ids of scenarios of the harness that show such a fault.
    """

    causes: tuple[str, ...]
    checks: tuple[str, ...]
    scenarios: tuple[str, ...] = ()
