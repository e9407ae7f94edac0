"""What this host can do, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError
from harness.image.apt import KEYRING
from harness.image.build import find_image
from harness.image.library import find_library, library_names
from harness.image.mirror import host_mirror
from harness.image.module import find_module, module_kernels
from harness.image.recipe import load_recipe, recipe_for_kernel, recipe_names
from harness.machine.accel import decide
from harness.machine.builds import BUILDS, DEFAULT, list_builds
from harness.machine.template import list_templates
from harness.paths import cache_dir
from harness.run.jobs import available_memory, default_jobs
from harness.run.templates import default_key

_PROGRAMS = {"apt-get": "apt", "apt-config": "apt", "dpkg-deb": "dpkg", "gpgv": "gpgv", "setpriv": "util-linux"}
_PYTHON = (3, 11)
_MACHINES = ("x86_64", "AMD64")
# What the keys of the suites that the images come from say of themselves, as plain text in the keyring. Whether a
# signature is good is apt's business; this only finds a keyring that is older than the suite.
_SUITE_KEY = b"(13/trixie)"
_DISK = 2 << 30
_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        state: ``ok``, ``warn`` (it works without) or ``fail``.
        detail: what was found.
        remedy: what to do, empty for ``ok``.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {key: str(value) for key, value in asdict(self).items()}


def examine() -> list[Finding]:
    """Look at everything that a run needs; nothing is downloaded."""
    findings = [_python(), _machine()]
    findings += [_program(name, package) for name, package in _PROGRAMS.items()]
    findings += [_keyring(), _mirror(), _memory(), _disk(), _executable()]
    findings += _builds()
    findings += [_image(name) for name in recipe_names()]
    findings += [_library(name) for name in library_names()]
    findings += [_module(kernel) for kernel in module_kernels()]
    findings.append(templates_finding())
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        return Finding("Python", "fail", version, "install Python 3.11 or later, and make the venv with it")
    return Finding("Python", "ok", version)


def _machine() -> Finding:
    machine = platform.machine()
    if machine in _MACHINES:
        return Finding("machine", "ok", f"{machine}; no root, no user namespaces and no KVM are needed")
    return Finding("machine", "fail", machine, "the QEMU builds are amd64 programs: use an x86-64 host")


def _program(name: str, package: str) -> Finding:
    path = shutil.which(name)
    if path:
        return Finding(name, "ok", path)
    return Finding(name, "fail", "not on PATH", f"apt-get install {package}")


def _keyring() -> Finding:
    name = "archive keys"
    try:
        keys = KEYRING.read_bytes()
    except FileNotFoundError:
        return Finding(name, "fail", f"{KEYRING} is missing", "apt-get install debian-archive-keyring")
    except OSError as error:
        return Finding(name, "fail", f"{KEYRING} cannot be read: {error.strerror}", "make it readable for all")
    if _SUITE_KEY in keys:
        return Finding(name, "ok", f"{KEYRING}, with the keys of trixie")
    remedy = "apt-get update && apt-get install debian-archive-keyring"
    return Finding(name, "fail", f"{KEYRING} is older than trixie and lacks its keys", remedy)


def _mirror() -> Finding:
    try:
        return Finding("Debian mirror", "ok", host_mirror())
    except HarnessError as error:
        return Finding("Debian mirror", "warn", error.message, error.hint or "")


def _memory() -> Finding:
    free, guests = available_memory(), default_jobs("clone")
    detail = f"{free >> 20} MiB available, {len(os.sched_getaffinity(0))} cores: {guests} guests at once"
    return Finding(
        "memory", "ok" if free >= _MEMORY else "warn", detail, "" if free >= _MEMORY else "a guest takes 600 MB"
    )


def _cache_place() -> Path:
    """The cache folder, or the nearest one above it that is there."""
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    return folder


def _executable() -> Finding:
    """Whether programs can be run out of the cache, as QEMU is."""
    if os.statvfs(_cache_place()).f_flag & os.ST_NOEXEC:
        detail = f"{cache_dir()} is on a file system that is mounted noexec, and QEMU is run out of it"
        return Finding("cache", "fail", detail, "set XDG_CACHE_HOME to a folder on another file system")
    return Finding("cache", "ok", str(cache_dir()))


def _disk() -> Finding:
    folder = _cache_place()
    free = shutil.disk_usage(folder).free
    detail = f"{free >> 20} MiB free for {cache_dir()}"
    if free >= _DISK:
        return Finding("disk", "ok", detail)
    return Finding(
        "disk", "warn", detail, "a QEMU build and an image take about 1 GB while they are made, a template 500 MB"
    )


def _builds() -> list[Finding]:
    here = {build.name: build for build in list_builds()}
    findings = []
    for name in BUILDS:
        if name in here:
            findings.append(Finding(f"QEMU {name}", "ok", f"version {here[name].version}"))
        elif name == "system":
            findings.append(Finding("QEMU system", "ok", "not on PATH, and not needed"))
        else:
            findings.append(Finding(f"QEMU {name}", "warn", "not in the cache", f"harness qemu fetch {name}"))
    build = here.get(DEFAULT) or next(iter(here.values()), None)
    if build is None:
        findings.append(
            Finding("accelerator", "warn", "not measured: there is no QEMU yet", f"harness qemu fetch {DEFAULT}")
        )
    else:
        decision = decide(build)
        findings.append(Finding("accelerator", "ok", f"{decision.accelerator}: {decision.reason}"))
    return findings


def _image(name: str) -> Finding:
    title = f"image {name} (--kernel {load_recipe(name).kernel})"
    try:
        return Finding(title, "ok", find_image(name).kernel_release)
    except HarnessError as error:
        return Finding(title, "warn", error.message, f"harness image build {name}")


def _library(name: str) -> Finding:
    title = f"libusdm {name} (--libusdm {name})"
    try:
        return Finding(title, "ok", find_library(name).version)
    except HarnessError:
        # Only --implementation libusdm and both want it.
        return Finding(title, "ok", f"not in the cache; 'harness fetch --libusdm {name}' gets it")


def _module(kernel: str) -> Finding:
    title = f"test module (--kernel {kernel})"
    try:
        return Finding(title, "ok", f"for {find_module(find_image(recipe_for_kernel(kernel).name)).release}")
    except HarnessError:
        # Only --implementation kernel and both want it.
        return Finding(title, "ok", f"not in the cache; 'harness fetch --module {kernel}' builds it")


def templates_finding() -> Finding:
    """How many templates there are, and whether most guests of a run would have to wait for theirs."""
    found = list_templates()
    detail = f"{len(found)}, {sum(one.disk_bytes for one in found) >> 20} MiB" if found else "none"
    try:
        here = default_key() in {one.key for one in found}
    except HarnessError as error:
        return Finding(
            "templates", "warn", f"{detail}; none can be made yet: {error.message}", error.hint or "harness fetch"
        )
    if here:
        return Finding("templates", "ok", f"{detail}; the one that most guests are cloned from is there")
    return Finding("templates", "warn", f"{detail}; the first run makes those that it needs", "harness template build")
