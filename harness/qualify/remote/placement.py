"""Which worker runs which cell: by what each needs and has, and where its template has been made. Starts nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import InfrastructureError
from harness.qualify.remote.orders import Needs, WorkerFacts

_NAMED = 3


@dataclass(slots=True)
class Host:
    """A worker, and what runs on it.

    Args:
        facts: what it is and has.
        running: the cells that were sent to it and have not come back, with what they take.
        templates: groups of cells (``Placement``) whose template was made in its cache, or is being made.
    """

    facts: WorkerFacts
    running: dict[int, Needs] = field(default_factory=dict)
    templates: set[Hashable] = field(default_factory=set)

    def could(self, needs: Needs) -> bool:
        """Whether it has what a cell needs when nothing else runs on it."""
        facts = self.facts
        return needs.memory <= facts.memory and (facts.kvm or not needs.kvm) and needs.system in (None, facts.system)

    def can(self, needs: Needs) -> bool:
        """Whether it has that now."""
        taken = sum(one.memory for one in self.running.values())
        return (
            len(self.running) < self.facts.threads and self.could(needs) and needs.memory + taken <= self.facts.memory
        )


class Placement:
    """The cells that wait, in the order in which they should be started.

    Args:
        needs: what each cell takes.
        groups: by which template a cell's guest is cloned from; None where there is none.
        order: the cells.
    """

    def __init__(self, needs: Mapping[int, Needs], groups: Mapping[int, Hashable], order: Iterable[int]) -> None:
        self._needs = needs
        self._groups = groups
        self._waiting = list(order)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The cells that run nowhere yet."""
        return tuple(self._waiting)

    def put_back(self, indices: Iterable[int]) -> None:
        """Have cells wait again, before all others."""
        self._waiting[:0] = indices

    def next_for(self, host: Host, hosts: Iterable[Host]) -> int | None:
        """Take the cell that a worker should begin with, or None when none can run there now.

        The first one that needs no template which another cache has and the worker's has not: each is made once for
        each cache, and makes more work than several cells. Else the first one.
        """
        fitting = [index for index in self._waiting if host.can(self._needs[index])]
        if not fitting:
            return None
        elsewhere: set[Hashable] = set().union(*(one.templates for one in hosts))
        made = elsewhere - host.templates
        chosen = next((index for index in fitting if self._groups[index] not in made), fitting[0])
        self._waiting.remove(chosen)
        host.running[chosen] = self._needs[chosen]
        if self._groups[chosen] is not None:
            host.templates.add(self._groups[chosen])
        return chosen

    def impossible(self, hosts: Sequence[Host]) -> list[int]:
        """The waiting cells that no worker could ever run."""
        return [index for index in self._waiting if not any(host.could(self._needs[index]) for host in hosts)]

    def refusal(self, indices: Sequence[int], names: Sequence[str], hosts: Sequence[Host]) -> InfrastructureError:
        """What to say of cells that no worker can run: what they need, and what the workers have."""
        by_needs: dict[Needs, list[str]] = {}
        for index, name in zip(indices, names, strict=True):
            by_needs.setdefault(self._needs[index], []).append(name)
        wanted = "; ".join(f"{_list(cells)} {_words(needs)}" for needs, cells in by_needs.items())
        have = "; ".join(describe(host.facts) for host in hosts)
        return InfrastructureError(
            f"no worker has what these cells need: {wanted}. Workers: {have or 'none'}",
            hint="start one that has it with 'harness worker', or leave these cells out",
        )


def describe(facts: WorkerFacts) -> str:
    """A worker and what it has, in a few words."""
    system = f", QEMU {facts.system} of its own" if facts.system else ""
    return (
        f"{facts.name} ({facts.address}) runs {facts.threads} at once, memory {facts.memory >> 20} MiB, "
        f"kvm {int(facts.kvm)} ({facts.kvm_reason}){system}"
    )


def _words(needs: Needs) -> str:
    words = [f"memory {needs.memory >> 20} MiB"]
    words += ["kvm 1"] if needs.kvm else []
    words += [f"QEMU {needs.system} as the host's own (--qemu system)"] if needs.system else []
    return f"need {' and '.join(words)}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
