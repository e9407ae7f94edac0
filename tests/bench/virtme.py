"""How long virtme-ng takes for one command in a guest with the same kernel, on the same QEMU, without KVM.

virtme-ng boots the host's own root file system by 9p, so it needs no image; it needs the kernel's package with its
modules, kmod and busybox, which come as Debian packages like everything else, and a ``qemu-system-x86_64`` on PATH.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import HarnessError
from harness.image import apt, cache
from harness.image.recipe import recipe_for_kernel
from harness.paths import cache_dir
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

VERSION = "1.42"
_QEMU, _KERNEL = "11.1", "6.12"
_SECONDS = 180.0
# kmod and what it is linked with; it runs by its own loader.
_TOOLS = ("busybox-static", "kmod", "libkmod2", "libc6", "liblzma5", "libzstd1", "libssl3t64", "zlib1g")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class VirtmeResult:
    """What was measured.

    Args:
        command: the command line.
        seconds: wall time of each run, from the start of vng to its end.
        reason: why it could not be measured, or empty.
    """

    command: tuple[str, ...] = ()
    seconds: tuple[float, ...] = field(default=())
    reason: str = ""


def measure(resources: Resources, runs: int) -> VirtmeResult:
    """Run ``uname -r`` by virtme-ng, several times.

    Args:
        resources: the QEMU build and the image whose kernel is taken.
        runs: how often.
    """
    try:
        program = _install()
        packages = _packages(resources)
    except (HarnessError, subprocess.SubprocessError, OSError) as error:
        return VirtmeResult(reason=str(error))
    release = resources.images[_KERNEL].kernel_release
    seconds: list[float] = []
    command: list[str] = []
    with tempfile.TemporaryDirectory(prefix="harness-virtme-") as scratch:
        tools = _tools(Path(scratch), packages, resources)
        shared = Path(scratch, "shared")
        shared.mkdir()
        answer = shared / "answer"
        command = [str(program), "--disable-kvm", "--force-9p", f"--busybox={packages}/usr/bin/busybox"]
        command += [f"--qemu={tools}/qemu-system-x86_64", f"--run={packages}/boot/vmlinuz-{release}"]
        command += [f"--rwdir={shared}", "--", f"uname -r > {answer}"]
        env = {**os.environ, "PATH": f"{program.parent}:{tools}:{os.environ['PATH']}", "HOME": scratch}
        # The first run also lists the modules; that is not counted.
        for number in range(runs + 1):
            answer.unlink(missing_ok=True)
            started = time.monotonic()
            said = _run(command, env)
            taken = time.monotonic() - started
            if not answer.exists() or answer.read_text(encoding="utf-8").strip() != release:
                return VirtmeResult(tuple(command), reason=f"the command did not run in the guest: {said[-500:]}")
            if number:
                seconds.append(taken)
    return VirtmeResult(tuple(command), tuple(seconds))


def _run(command: list[str], env: dict[str, str]) -> str:
    """Run vng to its end; its exit status says little without udev on the host, so the answer's file is what counts."""
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    ) as process:
        try:
            return process.communicate(timeout=_SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return f"vng did not end within {_SECONDS:g} s"


def _install() -> Path:
    """virtme-ng in an environment of its own in the cache; gives the path of ``vng``."""
    folder = cache_dir() / "bench" / f"virtme-ng-{VERSION}"
    program = folder / "bin" / "vng"
    if not program.exists():
        print(f"  installing virtme-ng {VERSION} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-q", f"virtme-ng=={VERSION}"]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return program


def _packages(resources: Resources) -> Path:
    """The kernel's package of our image, kmod and busybox, unpacked in the cache."""
    recipe = recipe_for_kernel(_KERNEL)
    kernel = f"linux-image-{resources.images[_KERNEL].kernel_release}"
    found = cache.find("bench", kernel, trust_stamps=True)
    if found is None:

        def fill(folder: Path) -> dict[str, object]:
            with apt.private_apt(recipe.suites, None, lambda text: print(f"  {text}", flush=True)) as packages:
                for deb in packages.download(packages.exactly([kernel, *_TOOLS])).values():
                    apt.unpack(deb, folder)
            for name in ("bin", "sbin", "lib", "lib64"):
                (folder / name).symlink_to(f"usr/{name}")
            return {"name": kernel}

        found = cache.store("bench", kernel, fill)
    return found.folder


def _tools(scratch: Path, packages: Path, resources: Resources) -> Path:
    """A folder for PATH: QEMU, modprobe and depmod, each a script that runs the unpacked program by its own loader."""
    folder = scratch / "bin"
    folder.mkdir()
    build = resources.emulations[_QEMU].build
    assignments = [f"{name}={value}" for name, value in build.env.items()]
    scripts = {"qemu-system-x86_64": ["env", *assignments, *build.argv_prefix]}
    for name in ("depmod", "modprobe"):
        loader = [f"{packages}/usr/lib64/ld-linux-x86-64.so.2", "--argv0", name]
        scripts[name] = [*loader, "--library-path", f"{packages}/{_LIBRARIES}", f"{packages}/usr/bin/kmod"]
    for name, words in scripts.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often (default 3)")
    result = measure(prepare(RunOptions(fetch=True), print), parser.parse_args().runs)
    print(shlex.join(result.command))
    print(result.reason or " ".join(f"{seconds:.2f}" for seconds in result.seconds))


if __name__ == "__main__":
    main()
