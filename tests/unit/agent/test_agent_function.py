from __future__ import annotations

from pathlib import Path

import pytest

from harness.agent import steps_function
from harness.agent.context import Context
from harness.agent.outcome import NotSet
from harness.agent.steps_function import noiommu


@pytest.mark.parametrize(("enabled", "written"), [(True, "Y"), (False, "N")])
def test_the_no_iommu_mode_is_the_modules_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, written: str
) -> None:
    parameter = tmp_path / "mode"
    parameter.touch()
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(parameter))
    assert noiommu(Context(), {"enabled": enabled}).returns is None
    assert parameter.read_text() == written


def test_a_kernel_without_the_no_iommu_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(tmp_path / "none"))
    with pytest.raises(NotSet, match="CONFIG_VFIO_NOIOMMU"):
        noiommu(Context(), {"enabled": True})
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(tmp_path))
    with pytest.raises(NotSet, match="Is a directory"):
        noiommu(Context(), {"enabled": True})
