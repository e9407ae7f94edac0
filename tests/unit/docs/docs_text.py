"""What README and docs say, taken apart: files, fenced blocks, command lines, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
FILES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[\w ]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the words of a comment right before it."""

    file: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def is_scenario(self) -> bool:
        return self.language == "yaml" and bool(re.search(r"^title:", self.text, re.MULTILINE))


def blocks(file: Path) -> list[Block]:
    text = file.read_text(encoding="utf-8")
    return [
        Block(file, text.count("\n", 0, one.start()) + 1, one["language"], one["text"], one["mark"] or "")
        for one in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    return [block for file in FILES for block in blocks(file)]


def scenarios() -> list[Block]:
    return [block for block in all_blocks() if block.is_scenario]


def case(block: Block) -> object:
    """A parameter of a test that is named by its place."""
    return pytest.param(block, id=str(block))


def prose(file: Path) -> str:
    """A file without its fenced blocks."""
    return _FENCE.sub("", file.read_text(encoding="utf-8"))


def anchors(file: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them: repeated ones are numbered."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.*)$", prose(file), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def links(file: Path) -> list[str]:
    return re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(file))
