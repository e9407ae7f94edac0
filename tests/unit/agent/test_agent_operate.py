"""The step `operate` on the real model: where a refused address is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_qat import IOVA, PAGE, Rig, rigged

from harness.agent.context import Context
from harness.agent.execute import execute

UNMAPPED = 0x90_0000


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    with rigged(monkeypatch) as rig:
        yield _context(rig)


def _context(rig: Rig) -> Context:
    context = Context()
    context.devices["q"] = rig.driver
    return context


def compare(context: Context, source: list[int], destination: list[int]) -> dict[str, Any]:
    sides = {
        name: [{"iova": iova, "size": PAGE} for iova in places]
        for name, places in (("source", source), ("destination", destination))
    }
    answer = execute(context, "operate", {"device": "q", "op": "compare", **sides})
    assert answer["error"] is None
    values: dict[str, Any] = answer["values"]
    assert (values["status"], values["refused"]) == ("read_refused", UNMAPPED)
    return values


@pytest.mark.parametrize(
    ("source", "destination", "place"),
    [
        ([IOVA, UNMAPPED], [IOVA, IOVA], PAGE),
        ([IOVA, IOVA], [UNMAPPED, IOVA], 0),
        ([IOVA, UNMAPPED], [IOVA, UNMAPPED], PAGE),
        ([IOVA, UNMAPPED], [UNMAPPED, IOVA], None),
    ],
)
def test_where_a_compare_was_refused(
    context: Context, source: list[int], destination: list[int], place: int | None
) -> None:
    assert compare(context, source, destination).get("refused_at") == place
