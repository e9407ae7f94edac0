"""What all models of a scenario have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr


class Model(BaseModel):
    """Base of the models: immutable, no unknown keys, no silent conversions (a string is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)


class FileModel(Model):
    """Base of what a whole file holds.

    Attributes:
        id: its path below the scenarios folder without ``.yaml``, e.g. ``dma/unmapped_read``; empty when not loaded.
        file: the file that it was loaded from.
    """

    _id: str = PrivateAttr(default="")
    _file: Path = PrivateAttr(default=Path())
    _data: Any = PrivateAttr(default=None)

    @property
    def id(self) -> str:
        """The path below the scenarios folder without ``.yaml``; empty when it was not loaded from a file."""
        return self._id

    @property
    def file(self) -> Path:
        """The file that it was loaded from."""
        return self._file

    @property
    def data(self) -> Any:
        """What the file holds, before the models: mappings and tuples; None when it was not loaded from one."""
        return self._data

    def located(self, scenario_id: str, file: Path, data: Any = None) -> Self:
        """The same with its id, its file and what that holds."""
        copy = self.model_copy()
        copy._id = scenario_id
        copy._file = file
        copy._data = data
        return copy


def frozen(value: Any) -> Any:
    """Plain data with tuples where it has lists, as files are read."""
    if isinstance(value, Mapping):
        return {key: frozen(one) for key, one in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value
