"""How many guests at once: cores and memory, and what control groups leave of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.run import jobs
from harness.run.jobs import available_cores, available_memory, default_jobs

MIB = 1 << 20
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
)


class Host:
    """A root folder with the kernel's files in it; by default 8 cores, 16 GiB, no control groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {16 * 1024 * 1024} kB\n")

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def version_2(self, group: str, mount: str = V2_MOUNT) -> None:
        self.write("proc/self/cgroup", f"0::{group}")
        self.write("proc/self/mountinfo", f"23 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mount}")

    def version_1(self, group: str, mounted: str = "/") -> None:
        self.write("proc/self/cgroup", f"4:memory:{group}\n3:cpu,cpuacct:{group}\n0::/")
        self.write("proc/self/mountinfo", V1_MOUNTS.format(root=mounted))

    def cores(self) -> float:
        return available_cores(self.root)

    def memory(self) -> int:
        return available_memory(self.root) // MIB


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return Host(tmp_path)


def test_a_host_without_control_groups(host: Host):
    assert (host.cores(), host.memory()) == (8, 16 * 1024)


def test_a_host_that_says_nothing_has_no_memory(host: Host):
    (host.root / "proc/meminfo").unlink()
    assert host.memory() == 0


def test_this_host_is_understood():
    assert 0 < available_cores() <= len(os.sched_getaffinity(0))
    assert available_memory() > 0
    assert default_jobs("clone") >= 1


def test_version_2_limits_of_the_own_group_and_of_those_around_it(host: Host):
    host.version_2("/ci/job")
    host.write("sys/fs/cgroup/ci/job/cpu.max", "max 100000")
    host.write("sys/fs/cgroup/ci/cpu.max", "150000 100000")
    host.write("sys/fs/cgroup/ci/job/memory.max", 4096 * MIB)
    host.write("sys/fs/cgroup/ci/job/memory.current", 1024 * MIB)
    host.write("sys/fs/cgroup/ci/job/memory.stat", f"anon 5\ninactive_file {512 * MIB}\nactive_file 7")
    assert (host.cores(), host.memory()) == (1.5, 4096 - 512)
    host.write("sys/fs/cgroup/ci/memory.max", 2048 * MIB)
    assert host.memory() == 2048
    host.write("sys/fs/cgroup/ci/memory.high", 1024 * MIB)
    assert host.memory() == 1024


def test_version_2_without_limits(host: Host):
    host.version_2("/job")
    host.write("sys/fs/cgroup/job/cpu.max", "max 100000")
    host.write("sys/fs/cgroup/job/memory.max", "max")
    host.write("sys/fs/cgroup/job/memory.current", 1024 * MIB)
    assert (host.cores(), host.memory()) == (8, 16 * 1024)


@pytest.mark.parametrize(
    ("group", "mount"),
    [
        ("/", V2_MOUNT),
        ("/../../other", V2_MOUNT),
        ("/docker/abc", V2_MOUNT.replace("0:26 / ", "0:26 /docker/abc ")),
        ("/elsewhere", V2_MOUNT.replace("0:26 / ", "0:26 /docker/abc ")),
    ],
)
def test_a_container_sees_its_own_group_at_the_mount(host: Host, group: str, mount: str):
    host.version_2(group, mount)
    host.write("sys/fs/cgroup/cpu.max", "50000 100000")
    host.write("sys/fs/cgroup/memory.max", 600 * MIB)
    host.write("sys/fs/cgroup/memory.current", 700 * MIB)
    assert (host.cores(), host.memory()) == (0.5, 0)


def test_a_mount_point_with_a_blank(host: Host):
    host.version_2("/job", V2_MOUNT.replace("/sys/fs/cgroup", r"/mnt/control\040groups"))
    host.write("mnt/control groups/job/cpu.max", "200000 100000")
    assert host.cores() == 2


@pytest.mark.parametrize(("group", "mounted"), [("/ci/job", "/"), ("/docker/abc", "/docker/abc")])
def test_version_1_limits(host: Host, group: str, mounted: str):
    host.version_1(group, mounted)
    inside = group if mounted == "/" else ""
    host.write(f"sys/fs/cgroup/cpu,cpuacct{inside}/cpu.cfs_quota_us", 300000)
    host.write(f"sys/fs/cgroup/cpu,cpuacct{inside}/cpu.cfs_period_us", 100000)
    host.write(f"sys/fs/cgroup/memory{inside}/memory.limit_in_bytes", 3000 * MIB)
    host.write(f"sys/fs/cgroup/memory{inside}/memory.usage_in_bytes", 2000 * MIB)
    host.write(f"sys/fs/cgroup/memory{inside}/memory.stat", f"inactive_file 1\ntotal_inactive_file {500 * MIB}")
    assert (host.cores(), host.memory()) == (3, 1500)


def test_version_1_without_limits(host: Host):
    host.version_1("/")
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000)
    host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    assert (host.cores(), host.memory()) == (8, 16 * 1024)


@pytest.mark.parametrize("text", ["", "garbage", "0 100000", "100000 0", "-1 x", "1 2 3"])
def test_a_quota_that_makes_no_sense_is_none(host: Host, text: str):
    host.version_2("/job")
    host.write("sys/fs/cgroup/job/cpu.max", text)
    assert host.cores() == 8


def test_garbage_in_the_kernels_files_is_no_error(host: Host):
    host.write("proc/self/cgroup", "\n:\n0\nx:y")
    host.write("proc/self/mountinfo", " - \n- cgroup2\n1 2 3 - cgroup2 x y\n1 2 3 / /sys - cgroup2")
    assert (host.cores(), host.memory()) == (8, 16 * 1024)


@pytest.mark.parametrize(
    ("cores", "mebibytes", "booted", "cloned"),
    [(8, 1 << 20, 8, 12), (8, 2800, 4, 12), (8, 1000, 1, 5), (2, 300, 1, 1), (0.5, 0, 1, 1), (1.5, 1 << 20, 1, 2)],
)
def test_as_many_guests_as_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, cores: float, mebibytes: int, booted: int, cloned: int
):
    monkeypatch.setattr(jobs, "available_cores", lambda: cores)
    monkeypatch.setattr(jobs, "available_memory", lambda: mebibytes * MIB)
    assert (default_jobs("boot"), default_jobs("clone")) == (booted, cloned)


def test_jobs_per_core_is_a_factor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "available_cores", lambda: 2.0)
    monkeypatch.setattr(jobs, "available_memory", lambda: 1 << 40)
    monkeypatch.setitem(jobs.JOBS_PER_CORE, "clone", 1.5)
    assert (default_jobs("boot"), default_jobs("clone")) == (2, 3)
