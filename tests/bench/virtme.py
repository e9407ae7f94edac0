"""How long virtme-ng takes for one command: same kernel, QEMU, number of CPUs and memory as our guests, no KVM.

virtme-ng boots the host's own root file system, read-only, so it needs no image. What it needs beside QEMU comes from
the archive of our image's packages, unpacked in the cache and never installed: the kernel's package with its modules,
kmod, a static busybox for its initramfs, and virtiofsd, which it prefers to QEMU's 9p. It is given what makes it fast:
by 9p, and with its default of all of the host's CPUs, it takes longer.

Its time depends on the host too, whose systemd-tmpfiles and udev its init runs if they are there: then it is slower.
Without udev the guest has no names for the ports that carry a command's output and exit status, so the command writes
into a shared folder, and its answer is what counts, not the status of ``vng``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from figures import HEAD, Figure
from guests import KERNEL, QEMU

from harness.errors import HarnessError, InfrastructureError
from harness.image import apt, cache
from harness.image.build import Image
from harness.image.recipe import recipe_for_kernel
from harness.machine.builds import QemuBuild
from harness.machine.spec import MachineSpec
from harness.paths import cache_dir
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

VERSION = "1.42"
_SECONDS = 180
_BUSYBOX, _KMOD, _VIRTIOFSD = "usr/bin/busybox", "usr/bin/kmod", "usr/libexec/virtiofsd"
_LOADER, _LIBRARIES = "usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"
# The programs, and the libraries that kmod and virtiofsd are linked with.
_TOOLS = ("busybox-static", "kmod", "virtiofsd")
_LINKED = (
    "libc6",
    "libcap-ng0",
    "libgcc-s1",
    "libkmod2",
    "liblzma5",
    "libseccomp2",
    "libssl3t64",
    "libzstd1",
    "zlib1g",
)


@dataclass(frozen=True)
class VirtmeResult:
    """What was measured.

    Args:
        version: the version of virtme-ng.
        command: the command line; empty when it did not come to that.
        seconds: wall time of each run, from the start of ``vng`` to its end, in seconds.
        reason: why it could not be measured on this host, or empty.
    """

    version: str = VERSION
    command: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class _Run:
    """One run: wall time in seconds, what the command wrote in the guest, the end of what vng said."""

    seconds: float
    answer: str
    said: str


def measure(resources: Resources, runs: int) -> VirtmeResult:
    """Run ``uname -r`` by virtme-ng; one run more than asked for comes first, to warm the caches, and is not counted.

    Whatever fails is told as the result's reason, not raised.

    Args:
        resources: the QEMU build, and the image whose kernel is taken.
        runs: how often, >= 1.
    """
    try:
        program, packages = _install(), _packages(resources.images[KERNEL])
        with tempfile.TemporaryDirectory(prefix="harness-virtme-") as scratch:
            return _measure(resources, runs, program, packages, Path(scratch))
    except (HarnessError, OSError) as error:
        return VirtmeResult(reason=str(error))


def _measure(resources: Resources, runs: int, program: Path, packages: Path, scratch: Path) -> VirtmeResult:
    """:func:`measure` with everything at hand and an empty folder."""
    release, machine = resources.images[KERNEL].kernel_release, MachineSpec()
    tools = _tools(scratch / "bin", packages, resources.emulations[QEMU].build)
    shared = scratch / "shared"
    shared.mkdir()
    vng = [str(program), "--disable-kvm", f"--run={packages}/boot/vmlinuz-{release}"]
    vng += [f"--cpus={machine.cpus}", f"--memory={machine.memory >> 20}M"]
    vng += [f"--busybox={packages}/{_BUSYBOX}", f"--rwdir={shared}", "--"]
    command = [*vng, _command("uname -r", shared)]
    # Neither its settings nor what it leaves are the user's.
    path = f"{program.parent}:{tools}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HOME": str(scratch), "TMPDIR": str(scratch)}
    run = _run(vng, "cat /proc/mounts", shared, env)
    if " / virtiofs " not in run.answer:
        why = "virtiofsd did not start, and by 9p it is slower" if run.answer else "the guest did not answer"
        return VirtmeResult(command=command, reason=f"{why}; vng said: {run.said}")
    seconds: list[float] = []
    for _ in range(runs):
        run = _run(vng, "uname -r", shared, env)
        if run.answer != release:
            reason = f"'uname -r' gave '{run.answer}' instead of {release}; vng said: {run.said}"
            return VirtmeResult(command=command, reason=reason)
        seconds.append(run.seconds)
    return VirtmeResult(command=command, seconds=seconds)


def _command(command: str, shared: Path) -> str:
    """What a shell in the guest is given: the command with its output into the file ``answer``."""
    return f"{command} > {shlex.quote(str(shared / 'answer'))}"


def _run(vng: list[str], command: str, shared: Path, env: dict[str, str]) -> _Run:
    """Run vng to its end; it and all that it started are killed when it takes too long."""
    answer = shared / "answer"
    answer.unlink(missing_ok=True)
    started = time.monotonic()
    with subprocess.Popen(
        [*vng, _command(command, shared)],
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    ) as process:
        try:
            said = process.communicate(timeout=_SECONDS)[0][-500:].strip() or "nothing"
        except subprocess.TimeoutExpired:
            said = f"nothing, and did not end within {_SECONDS} s"
        finally:
            # Not waited for yet: the number is still its own, and its group's.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    taken = time.monotonic() - started
    return _Run(taken, answer.read_text(errors="replace").strip() if answer.is_file() else "", said)


def _install() -> Path:
    """virtme-ng in an environment of its own in the cache; gives the path of ``vng``.

    Raises:
        InfrastructureError: it cannot be installed, or does not run.
    """
    folder = cache_dir() / "bench" / f"venv-virtme-ng-{VERSION}"
    program = folder / "bin" / "vng"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with cache.waiting_lock(folder.with_name(f"{folder.name}.lock"), _say):
        if not _runs(program):
            _say(f"installing virtme-ng {VERSION} by pip into {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            _do([sys.executable, "-m", "venv", str(folder)])
            _do([str(folder / "bin" / "pip"), "install", "--quiet", f"virtme-ng=={VERSION}"])
            if not _runs(program):
                raise InfrastructureError(f"{program} does not run after its installation")
    return program


def _runs(program: Path) -> bool:
    """Whether this is a virtme-ng of our version that can be started; one half installed cannot."""
    if not program.is_file():
        return False
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and VERSION in done.stdout


def _packages(image: Image) -> Path:
    """The kernel package of our image and the tools, unpacked in the cache, with the kernel's list of modules.

    Raises:
        InfrastructureError: the packages cannot be had, e.g. because the archive has moved on to another kernel.
    """
    kernel = [f"{name}={version}" for name, version in image.packages.items() if name.startswith("linux-")]
    wanted = [*kernel, *_TOOLS, *_LINKED]
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    found = cache.find("bench", key, trust_stamps=True)
    if found is None:

        def fill(folder: Path) -> dict[str, object]:
            with apt.private_apt(recipe_for_kernel(KERNEL).suites, None, _say) as packages:
                debs = packages.download(packages.exactly(wanted))
                _say("unpacking them and listing the kernel's modules")
                for deb in debs.values():
                    apt.unpack(deb, folder)
            (folder / "lib").symlink_to("usr/lib")
            _do([*_by_loader(folder, _KMOD, "depmod"), "-b", str(folder), image.kernel_release])
            return {"name": image.kernel_release}

        found = cache.store("bench", key, fill, _say)
    return found.folder


def _by_loader(packages: Path, program: str, name: str) -> list[str]:
    """The command line of an unpacked program under a name, with its own loader and libraries."""
    return [
        f"{packages}/{_LOADER}",
        "--argv0",
        name,
        "--library-path",
        f"{packages}/{_LIBRARIES}",
        f"{packages}/{program}",
    ]


def _tools(folder: Path, packages: Path, build: QemuBuild) -> Path:
    """A new folder for PATH with scripts for the programs that virtme-ng looks for there."""
    folder.mkdir()
    # Should this process be killed, the guest still does not live longer than a run may take.
    limit = ["timeout", "--foreground", "--signal=KILL", str(_SECONDS)]
    setting = ["env", *(f"{name}={value}" for name, value in build.env.items())]
    scripts = {
        "qemu-system-x86_64": [*limit, *setting, *build.argv_prefix],
        "modprobe": _by_loader(packages, _KMOD, "modprobe"),
        "virtiofsd": _by_loader(packages, _VIRTIOFSD, "virtiofsd"),
    }
    for name, words in scripts.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


def _do(argv: list[str]) -> None:
    """Run a program to its end.

    Raises:
        InfrastructureError: it failed; with what it said last.
    """
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise InfrastructureError(f"'{shlex.join(argv)}' failed: {said[-1]}")


def _say(text: str) -> None:
    """Progress, beside the table."""
    print(f"  {text}", flush=True)


def main() -> None:
    """Measure and print a line of the bench's table, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often (default 3)")
    result = measure(prepare(RunOptions(fetch=True), _say), parser.parse_args().runs)
    if result.command:
        print(shlex.join(result.command))
    if result.reason:
        sys.exit(f"virtme-ng {result.version} could not be measured: {result.reason}")
    figure = Figure(f"virtme-ng {result.version} --disable-kvm: uname -r", "s", values=result.seconds)
    print(f"{HEAD}\n{figure.row()}")


if __name__ == "__main__":
    main()
