"""Clones on real guests: each is new, none knows of another, and many leave nothing behind."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import BootError, InfrastructureError
from harness.guest import control
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, GuestPlan, running_guest
from harness.guest.payload import Payload
from harness.machine.snapshot import Method
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

Clone = Callable[..., AbstractContextManager[Guest]]
EDU = DeviceSpec("edu0", "edu", "02:00.0")
MIB = 1 << 20


def plan_of(resources: Resources, folder: Path, qemu: str = "11.1", device: DeviceSpec = EDU) -> GuestPlan:
    folder.mkdir(parents=True)
    return resources.plan(MachineSpec(devices=(device,)), qemu, "6.12", folder)


@pytest.fixture
def clone(resources: Resources, tmp_path: Path) -> Clone:
    """Starts a clone in a folder of its own."""
    lock, numbers = threading.Lock(), iter(range(10_000))

    def starter(device: DeviceSpec = EDU) -> AbstractContextManager[Guest]:
        with lock:
            plan = plan_of(resources, tmp_path / str(next(numbers)), device=device)
        return running_guest(replace(plan, template=get_template(plan, 120, print)), 120, lambda stage: None)

    return starter


def said(guest: Guest, command: str) -> str:
    done = guest.run(command, Deadline.after(60))
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


def test_two_clones_share_no_secret(clone: Clone):
    random = "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid"
    files = "sha256sum /etc/dropbear/dropbear_ed25519_host_key /root/.ssh/authorized_keys /run/nonce"
    with clone() as first, clone() as second:
        pairs = [
            (first.identity.nonce, second.identity.nonce),
            (first.identity.host_key, second.identity.host_key),
            *zip(said(first, random).split(), said(second, random).split(), strict=True),
            *zip(said(first, files).split()[::2], said(second, files).split()[::2], strict=True),
        ]
        for one, other in pairs:
            assert one == "-" or one != other
        for guest in (first, second):
            assert said(guest, "cat /run/nonce") == guest.identity.nonce
            # The template's rehearsal had a key of its own; only this guest's is left.
            assert said(guest, "wc -l < /root/.ssh/authorized_keys") == "1"


def with_reseed(resources: Resources, body: str) -> Resources:
    """Resources whose payload has another ``reseed``."""
    out, name = io.BytesIO(), "harness/agent/identity.py"
    with tarfile.open(fileobj=io.BytesIO(resources.payload.data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for entry in old:
            data = old.extractfile(entry).read()  # type: ignore[union-attr]
            if entry.name == name:
                data = data.replace(b"def reseed(", b"def honest(") + f"\ndef reseed(entropy):\n    {body}\n".encode()
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return replace(resources, payload=Payload(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest()))


def test_without_the_new_seed_clones_would_make_the_same_random_numbers(resources: Resources, tmp_path: Path):
    """That two honest clones differ is the new seed's work, and not chance."""
    broken = with_reseed(resources, "return")
    drawn = []
    for number in range(2):
        plan = plan_of(broken, tmp_path / str(number))
        with running_guest(replace(plan, template=get_template(plan, 120, print)), 120, lambda stage: None) as guest:
            drawn.append(said(guest, "head -c 32 /dev/urandom | sha256sum"))
    assert drawn[0] == drawn[1]


def test_a_guest_whose_generator_cannot_be_reseeded_is_not_used(resources: Resources, tmp_path: Path):
    plan = plan_of(with_reseed(resources, "raise OSError('no')"), tmp_path / "run")
    with pytest.raises(BootError, match="taking on its identity"), running_guest(plan, 60, lambda stage: None):
        pytest.fail("it made itself ready")


def test_the_clock_is_the_hosts(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    ahead, honest = 10_000_000, time.time
    monkeypatch.setattr(control.time, "time", lambda: honest() + ahead)
    with clone() as guest:
        assert abs(int(said(guest, "date +%s")) - (honest() + ahead)) < 600


def test_nothing_passes_from_a_clone_to_the_next_or_to_the_template(clone: Clone, resources: Resources, tmp_path: Path):
    template = get_template(plan_of(resources, tmp_path / "plan"), 120, print)
    assert template.ram is not None
    files = (template.ram.file, template.state)
    before = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    with clone() as guest:
        said(guest, "echo left > /run/left; echo left-in-the-log > /dev/kmsg")
        said(guest, "dd if=/dev/urandom of=/tmp/big bs=1M count=50; sync")
    with clone() as guest:
        assert said(guest, "ls /run/left /tmp/big 2>/dev/null; dmesg | grep -c left-in-the-log; true") == "0"
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == before


@pytest.mark.parametrize("at", ["02:00.0", "00:05.0"])
def test_the_device_is_there_and_can_be_opened(clone: Clone, at: str):
    with clone(DeviceSpec("edu0", "edu", at)) as guest:
        deadline = Deadline.after(60)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        assert said(guest, f"ls /sys/bus/pci/devices/0000:{at}/iommu_group/devices") == f"0000:{at}"
        assert guest.ask("opening", "open", {"device": "edu0"}, deadline)["address"].endswith(at)


def test_a_device_that_is_not_there_is_an_error(clone: Clone):
    with clone() as guest:
        deadline = Deadline.after(60)
        guest.start_worker(deadline)
        guest.spec = replace(guest.spec, devices=(DeviceSpec("edu0", "edu", "03:00.0"),))
        with pytest.raises(InfrastructureError, match=r"no PCI function 0000:03:00\.0"):
            guest.find_devices(deadline)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("qemu", "method"), [("7.2", Method.FILE), ("10.0", Method.FILE), ("11.1", Method.STREAM)])
def test_other_builds_and_the_other_method(tmp_path: Path, qemu: str, method: Method):
    resources = prepare(RunOptions(qemu=(qemu,), fetch=True), print)
    plan = plan_of(resources, tmp_path / "run", qemu)
    template = get_template(plan, 120, print, method)
    assert (template.method, template.ram is None) == (method, method is Method.STREAM)
    with running_guest(replace(plan, template=template), 120, lambda stage: None) as guest:
        assert said(guest, "cat /run/nonce") == guest.identity.nonce


def private(pid: int) -> int:
    """Bytes that go away with a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


@pytest.mark.timeout(600)
def test_twenty_clones_at_once(clone: Clone):
    together = threading.Barrier(20, timeout=400)

    def one(_: int) -> int:
        with clone() as guest:
            guest.start_worker(Deadline.after(300))
            guest.find_devices(Deadline.after(300))
            together.wait()  # all twenty are alive here
            taken = private(guest.emulator.pid)
            together.wait()
            return taken

    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(one, range(20)))
    print(f"20 clones: {sum(taken) // MIB} MiB in all, {max(taken) // MIB} MiB at most")
    assert max(taken) < 512 * MIB


@pytest.mark.timeout(3000)
def test_many_clones_one_after_another_leave_nothing_behind(clone: Clone, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    count = int(os.environ.get("HARNESS_LEAK_CLONES", "30"))

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    early, memory = (0, 0), 0
    for number in range(count):
        with clone() as guest:
            assert said(guest, "cat /run/nonce") == guest.identity.nonce
        if number == 4:
            early, memory = held(), resident()
    growth = resident() - memory
    print(f"{count} clones: descriptors and threads {early} then {held()}, {growth / MIB:.1f} MiB more")
    assert held() == early
    assert growth < 64 * MIB
    assert list((tmp_path / "tmp").iterdir()) == []
