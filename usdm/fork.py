"""What happens to USDM's states in a forked child."""

from __future__ import annotations

import os
from _weakref import ref  # what weakref wraps, without its imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Forked(Protocol):
        """Is told that its process is a new one."""

        def _forked(self) -> None: ...


_states: list[ref[Forked]] = []


def watch(state: Forked) -> None:
    """Have `state._forked()` called in every forked child, by the only thread that the child has."""
    _states.append(ref(state, _states.remove))


def _after_fork() -> None:
    for weak in list(_states):
        state = weak()
        if state is not None:
            state._forked()


os.register_at_fork(after_in_child=_after_fork)
