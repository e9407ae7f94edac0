"""The worker's steps on a simulated container."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from harness.agent.context import Context
from harness.agent.execute import execute
from usdm import container as container_calls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "usdm"))
from usdm_fake_vfio import FakeVfio


class Rig:
    """Steps on a fake kernel: USDM of its own, a container, a device that records its DMA."""

    no_iommu = False

    def __init__(self, vfio: FakeVfio) -> None:
        self.vfio = vfio
        self.fd = vfio.open()
        self.dmas: list[tuple[int, int, int, bool]] = []
        self.context = Context()
        self.context.addresses["edu0"] = "02:00.0"
        self.context._containers["default"] = self  # type: ignore[assignment]
        self.context.devices["edu0"] = self  # type: ignore[assignment]

    @property
    def entries(self) -> dict[int, tuple[int, int]]:
        entries: dict[int, tuple[int, int]] = self.vfio.of(self.fd).entries
        return entries

    def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool, write: bool) -> None:
        container_calls.map_dma(self.fd, self.vfio.ioctl, vaddr, iova, size, read | write << 1)

    def unmap_dma(self, iova: int, size: int) -> int:
        return container_calls.unmap_dma(self.fd, self.vfio.ioctl, iova, size)

    def info(self) -> Any:
        return container_calls.get_info(self.fd, self.vfio.ioctl)

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool) -> None:
        self.dmas.append((iova, size, device_offset, write))

    def __call__(self, kind: str, **args: Any) -> dict[str, Any]:
        return execute(self.context, kind, args)

    def error(self, kind: str, **args: Any) -> tuple[int | None, str | None]:
        answer = self(kind, **args)
        return answer["returns"], answer["error"] and answer["error"]["type"]
