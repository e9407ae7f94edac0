"""What a step ``mappings`` observed, in a line: the judge's word on it stands with the checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

KIND: Final = "mappings"
_SIZE: Final = 2  # the column of a row's bytes


def mappings_text(values: dict[str, Any]) -> str:
    """``iova=0x200000 tables: translated, 16K in 2 runs; buffer: 16K in 2 pieces; debugfs: none in this kernel``.

    Args:
        values: the step's; whatever they hold, there is a text.
    """
    iova, tables = values.get("iova"), values.get("tables")
    where = f"iova={iova:#x} " if isinstance(iova, int) else ""
    if isinstance(tables, dict):
        parts = [f"tables: {tables.get('way')}, {_amount(tables.get('runs'), 'run')}"]
    else:
        parts = ["tables: not read"]
    parts.append(f"buffer: {_amount(values.get('pages'), 'piece', 'not named')}")
    parts.append(f"debugfs: {_amount(values.get('debugfs'), 'run', 'none in this kernel')}")
    return where + "; ".join(parts)


def _amount(rows: Any, name: str, absent: str = "nothing said") -> str:
    if not isinstance(rows, list | tuple):
        return absent
    total = sum(row[_SIZE] for row in rows if _is_row(row))
    return f"{total >> 10}K in {len(rows)} {name}{'s' * (len(rows) != 1)}" if rows else "nothing"


def _is_row(row: Any) -> bool:
    return isinstance(row, Sequence) and len(row) > _SIZE and isinstance(row[_SIZE], int)
