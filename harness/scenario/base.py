"""What all models of a scenario have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Self

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

    @property
    def id(self) -> str:
        """The path below the scenarios folder without ``.yaml``; empty when it was not loaded from a file."""
        return self._id

    @property
    def file(self) -> Path:
        """The file that it was loaded from."""
        return self._file

    def located(self, scenario_id: str, file: Path) -> Self:
        """The same with its id and its file."""
        copy = self.model_copy()
        copy._id = scenario_id
        copy._file = file
        return copy
