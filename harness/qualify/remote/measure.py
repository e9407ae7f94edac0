"""What a worker has: cores, memory, KVM, the host's own QEMU, its cache."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.machine.accel import decide
from harness.machine.builds import BUILDS, find_build, list_builds
from harness.paths import cache_dir

_NO_BUILD = "there is no QEMU build here yet to try it with"


def measure_kvm() -> tuple[bool | None, str]:
    """Whether KVM works here, and how that is known; None while no QEMU build is here to try it with."""
    problem: HarnessError | None = None
    for build in reversed(list_builds()):
        try:
            decision = decide(build)
        except HarnessError as error:
            problem = error
            continue
        return decision.accelerator == "kvm", decision.reason
    return None, _NO_BUILD if problem is None else f"QEMU cannot be run: {problem.message}"


def system_version() -> str | None:
    """The version of the host's own QEMU, None without."""
    try:
        return find_build(BUILDS[0]).version
    except HarnessError:
        return None


def cache_identity() -> str:
    """The same for processes that share a cache, and for no others.

    Raises:
        OSError: the cache cannot be made.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    stat = cache_dir().stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{stat.st_dev}:{stat.st_ino}"
