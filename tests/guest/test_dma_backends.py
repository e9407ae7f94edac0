"""DMA ranges over both versions of type 1 and over IOMMUFD, on a real kernel with a device that does the DMA."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import BOOT_SECONDS, EDU

from harness.deadline import Deadline
from harness.guest.freeze import get_template
from harness.guest.guest import running_guest
from harness.machine.spec import MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import prepare

PROGRAM = (Path(__file__).parent / "programs/dma_backends.py").read_bytes()

SEEN = {
    # A link is no mapping, and a DMA before sync does not arrive.
    "before sync": False,
    "calls before sync": [],
    # One mapping a link.
    "sync": ["map"] * 3,
    "first": True,
    "second": True,
    "to device": False,
    "hole": False,
    # Two links at once.
    "unlink": ["unmap"],
    "unlink error": "",
    "after unlink": False,
    "info": {"in_use": 1, "links": 1, "synced": 1, "mappings": 1, "reserved": 16384},
    "again": True,
    # The second of three mappings fails: the third is not tried, the first is taken back.
    "no memory": "EFAULT",
    "taken back": ["map", "map", "unmap"],
    "other": {"in_use": 1, "links": 3, "synced": 0, "mappings": 0, "reserved": 12288},
    "destroy": ["unmap"],
    "destroy error": "",
    "after destroy": False,
    "single": True,
    "after single": False,
    "left": 0,
    "mappings": 0,
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    lab = prepare(RunOptions(kernels=("lab",), fetch=True), print)
    plan = lab.plan(MachineSpec(devices=(EDU,)), "11.1", "lab", tmp_path_factory.mktemp("backends"))
    plan = replace(plan, template=get_template(plan, BOOT_SECONDS, print))
    with running_guest(plan, BOOT_SECONDS, lambda stage: None) as guest:
        deadline = Deadline.after(120)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        done = guest.run("python3 -I -", deadline, stdin=PROGRAM)
    assert done.status == 0, done.stderr.decode()
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("backend", ["type1", "type1v2", "iommufd"])
def test_a_range_and_its_device(observed: dict[str, dict[str, object]], backend: str):
    assert {name: observed[backend][name] for name in SEEN} == SEEN


def test_the_life_of_an_ioas(observed: dict[str, dict[str, object]]):
    found = observed["iommufd"]
    assert found["ranges"] == [[0, 0xFEDFFFFF], [0xFEF00000, (1 << 48) - 1]]
    assert "EBUSY" in str(found["destroy while attached"])
    assert (found["detached"], found["attached again"]) == (False, True)
    assert found["after the ioas"] == [0, -22]
    assert "the device's IOVA space must not have ended" in str(found["after the ioas says"])
