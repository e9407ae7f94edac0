from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import FakeVfio, Rig
from agent_worker_process import WorkerProcess

from usdm import qae_mem
from usdm.driver import Usdm

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """The sources as they are laid out in the guest."""
    folder = tmp_path / "payload"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "usdm", folder / "usdm", ignore=skip)
    shutil.copytree(ROOT / "harness/agent", folder / "harness/agent", ignore=skip)
    shutil.copy(ROOT / "harness/__init__.py", folder / "harness/__init__.py")
    return folder


@pytest.fixture
def worker(payload: Path) -> Iterator[WorkerProcess]:
    one = WorkerProcess(payload)
    yield one
    if one.process.returncode is None:
        one.end()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Steps on a simulated container, with a USDM of their own."""
    vfio = FakeVfio(check_memory=True)
    driver = Usdm(vfio.ioctl)
    monkeypatch.setattr(qae_mem, "_driver", driver)
    yield Rig(vfio)
    driver.close()
    vfio.close()
