"""A small folder of scenarios, and matrices in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.paths import scenarios_dir

SCENARIOS = (
    "dma/unmapped_read",
    "dma/unmapped_write",
    "dma/roundtrip_allocated",
    "dma/beyond_width_39",
    "virtio/roundtrip",
    "bare/read_unmapped",
    "bare/write_unmapped",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scenarios"
    for name in SCENARIOS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenarios_dir() / f"{name}.yaml", root / f"{name}.yaml")
    (root / "schema.json").write_text("{}")
    return root


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Writes a matrix, and known failures when there are any."""

    def writer(text: str, known: str = "", name: str = "m.yaml") -> Path:
        if known:
            (folder / "known.yaml").write_text(known)
        file = folder / name
        file.write_text(text)
        return file

    return writer
