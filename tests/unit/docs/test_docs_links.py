"""Links within the project lead somewhere, and every page can be reached from the index."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_text import DOCS, FILES, ROOT, anchors, links


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_anchors_are_there(file: Path) -> None:
    for link in links(file):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.relative_to(ROOT)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{file.relative_to(ROOT)}: {link}"


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# A `b` c.\n\n# A `b` c.\n\n```sh\n# no heading\n```\n[x](b.md#d) [y](#a-b-c-1)\n")
    assert anchors(page) == {"a-b-c", "a-b-c-1"}
    assert links(page) == ["b.md#d", "#a-b-c-1"]


def test_every_page_is_in_the_index() -> None:
    for index in (DOCS / "README.md", DOCS / "steps" / "README.md"):
        named = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
        missing = set(index.parent.glob("*.md")) - named - {index}
        assert not missing, f"{index.relative_to(ROOT)} does not name {sorted(page.name for page in missing)}"
