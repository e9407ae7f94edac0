"""The image of a guest that has a virtual machine inside.

It is one initramfs of two archives, which the kernel takes in a row: the guest's own root file system, and QEMU, kernel
and root file system of the machine inside.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import cache, elf
from harness.image.cache import Say
from harness.image.cpio import NewcWriter
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild

KIND = "vm"
FOLDER = "opt/vm"
"""Where it is in the guest; harness/agent/vm.py names it too."""

FORMAT = "1"
"""Changes with how the image is made."""
# An image is 140 MB, and a new one comes with each image and each QEMU build.
_KEPT = 3
_INITRD = "initrd.img"
_LIB = "usr/lib/x86_64-linux-gnu"
_FOLDERS = (_LIB, "lib/x86_64-linux-gnu", "usr/lib64", "lib64")
_LOADER = "ld-linux-x86-64.so.2"
# Boots a kernel directly and does nothing else; the option ROMs are how QEMU gives it the kernel.
_FIRMWARE = ("qboot.rom", "pvh.bin", "linuxboot_dma.bin")
_ALIGN = 512


def vm_boot(build: QemuBuild, boot: Boot, say: Say) -> Boot:
    """What a guest boots that has a machine inside, from the cache or made.

    Args:
        build: the QEMU build; the machine inside runs on the same one.
        boot: kernel and root file system, of both guests.
        say: told what takes time.

    Raises:
        ConfigurationError: the host's own QEMU, which cannot be taken apart.
        InfrastructureError: the build lacks a file, or the cache cannot be written.
    """
    if build.folder is None:
        raise ConfigurationError(
            "the host's own QEMU cannot run inside a guest", hint="use a fetched build, e.g. --qemu 11.1"
        )
    root = build.folder
    key = hashlib.sha256("\n".join((FORMAT, build.key, boot.key)).encode()).hexdigest()

    def fill(folder: Path) -> dict[str, object]:
        say(f"putting QEMU {build.version} into an image, for a virtual machine inside the guest")
        with (folder / _INITRD).open("wb") as out:
            with boot.initrd.open("rb") as base:
                shutil.copyfileobj(base, out)
            out.write(b"\0" * (-out.tell() % _ALIGN))
            writer = NewcWriter(out)
            for name in ("opt", FOLDER, f"{FOLDER}/qemu", f"{FOLDER}/qemu/lib", f"{FOLDER}/qemu/firmware"):
                writer.entry(name, stat.S_IFDIR | 0o755)
            for name, path in _files(root, boot):
                writer.entry(f"{FOLDER}/{name}", stat.S_IFREG | 0o755, path.read_bytes())
            writer.finish()
        return {"qemu": build.key, "image": boot.key}

    try:
        entry = cache.find(KIND, key, trust_stamps=True)
    except cache.DamagedEntryError as error:
        say(f"{error.message}, and is being made anew")
        entry = None
    if entry is None:
        entry = cache.store(KIND, key, fill, say)
        for old in sorted(cache.entries(KIND), key=cache.last_used, reverse=True)[_KEPT:]:
            cache.remove(old)
    cache.mark_used(entry)
    return Boot(boot.kernel, entry.folder / _INITRD, entry.key)


def _files(root: Path, boot: Boot) -> Iterator[tuple[str, Path]]:
    """What the machine inside needs, by its name below :data:`FOLDER`."""
    program = root / "usr/bin/qemu-system-x86_64"
    # In some builds the emulator of instructions is a module.
    modules = sorted((root / _LIB / "qemu").glob("accel-tcg*.so"))
    yield "qemu/qemu-system-x86_64", program
    for path in (*modules, *_libraries(root, [program, *modules])):
        yield f"qemu/lib/{path.name}", path
    for name in _FIRMWARE:
        found = [root / folder / name for folder in ("usr/share/qemu", "usr/share/seabios")]
        file = next((one for one in found if one.is_file()), None)
        if file is None:
            raise InfrastructureError(f"the QEMU build in {root} has no firmware {name}")
        yield f"qemu/firmware/{name}", file
    yield "vmlinux", boot.kernel
    yield "initrd.img", boot.initrd


def _libraries(root: Path, programs: list[Path]) -> list[Path]:
    """The shared libraries that programs ask for, and theirs, and the loader."""
    found: dict[str, Path] = {}
    wanted = [_LOADER, *(name for path in programs for name in elf.needed(path.read_bytes()))]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        path = next((root / folder / name for folder in _FOLDERS if (root / folder / name).is_file()), None)
        if path is None:
            raise InfrastructureError(f"the QEMU build in {root} has no library {name}")
        found[name] = path
        wanted += elf.needed(path.read_bytes())
    return [found[name] for name in sorted(found)]
