"""What a pytest session finds once for all cells that need the same."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_rig import SCENARIO

from harness.plugin import state
from harness.plugin.state import State
from harness.run.cells import Cell, calls_kernel
from harness.run.options import RunOptions
from harness.scenario import parse_scenario

ON_KERNEL = """\
title: t
source: s
machine: {iommu: intel, devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - register: {device: edu0}
  - buffer: {as: a, size: 4K}
  - iova_alloc: {device: edu0, as: r0, buffer: a, size: 4K}
"""


@pytest.mark.parametrize("texts", [(SCENARIO, ON_KERNEL), (ON_KERNEL, SCENARIO)])
def test_a_cell_on_the_kernel_has_the_module_whichever_comes_first(
    monkeypatch: pytest.MonkeyPatch, texts: tuple[str, str]
) -> None:
    asked: list[bool] = []

    def prepare_for(cells: list[Cell], options: RunOptions, say: Any) -> tuple[list[Cell], Any]:
        asked.append(calls_kernel(cells[0]))
        return cells, asked[-1]

    monkeypatch.setattr(state, "prepare_for", prepare_for)
    session = State.__new__(State)
    session._prepared = {}
    cells = [Cell(parse_scenario(text, "x.yaml"), "11.1", "7.2", "x", implementation="kernel") for text in texts]
    found = [session.prepare(cell, RunOptions())[1] for cell in (*cells, *cells)]
    assert found == [text is ON_KERNEL for text in (*texts, *texts)]
    assert len(asked) == 2
