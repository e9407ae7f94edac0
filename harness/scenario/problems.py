"""What is wrong with a scenario file, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        file: the file, as the user named it or as it was found.
        line: 1-based, or 0 when it concerns the file as a whole.
        column: 1-based, in characters; 0 when it concerns the file as a whole.
        message: what was expected and what was found, one line.
        hint: what to write instead, or None.
    """

    file: Path
    line: int
    column: int
    message: str
    hint: str | None = None

    @property
    def place(self) -> str:
        """``file:line:column``, or the file alone."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else str(self.file)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f" (hint: {self.hint})" if self.hint else "")


class ScenarioError(ConfigurationError):
    """One or more scenario files cannot be meant so.

    Attributes:
        problems: all of them, by file and place.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        only = self.problems[0] if len(self.problems) == 1 else None
        if only is not None:
            super().__init__(f"{only.place}: {only.message}", hint=only.hint)
        else:
            super().__init__(
                f"{len(self.problems)} problems:\n" + "\n".join(f"  {problem}" for problem in self.problems)
            )


def suggest(word: str, known: Sequence[str], what: str = "known") -> str:
    """A hint for a word that is none of the known ones: the nearest, or all of them."""
    short = word.removesuffix("-iommu")
    if short != word and short in known:
        # 'intel-iommu' is QEMU's name of what is 'intel' here, and is nearer to 'intel-39'.
        return f"did you mean '{short}'?"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) if len(word) < 80 else []
    if near:
        return f"did you mean '{near[0]}'?"
    return f"{what}: {', '.join(known)}" if known else f"{what}: none"
