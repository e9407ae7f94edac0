"""The image with a virtual machine inside, of a QEMU build of our own making; the real one is in scenarios/vm."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import cache, elf
from harness.machine import vm_image
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild
from harness.machine.vm_image import vm_boot

LIB = "usr/lib/x86_64-linux-gnu"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def build(tmp_path: Path) -> QemuBuild:
    """A build whose program is this Python's, so that it asks for libraries."""
    root = tmp_path / "qemu"
    for folder in ("usr/bin", LIB, "usr/share/qemu", "usr/lib64"):
        (root / folder).mkdir(parents=True)
    program = Path(sys.executable).resolve()
    shutil.copy(program, root / "usr/bin/qemu-system-x86_64")
    for name in elf.needed(program.read_bytes()):
        (root / LIB / name).write_bytes(program.read_bytes())
    (root / "usr/lib64" / vm_image._LOADER).write_bytes(program.read_bytes())
    for name in vm_image._FIRMWARE:
        (root / "usr/share/qemu" / name).write_bytes(b"rom")
    return QemuBuild("11.1", "11.1.3", "q" * 64, (), {}, root)


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(b"base")
    return Boot(tmp_path / "vmlinux", tmp_path / "initrd", "i" * 64)


def test_it_is_the_root_file_system_and_what_the_machine_needs_behind_it(build: QemuBuild, boot: Boot):
    said: list[str] = []
    made = vm_boot(build, boot, said.append)
    data = made.initrd.read_bytes()
    assert made.kernel == boot.kernel
    assert made.key not in (boot.key, build.key)
    assert data[:512] == b"base" + b"\0" * 508
    assert data[512:518] == b"070701"
    for name in ("qemu/qemu-system-x86_64", "qemu/lib/ld-linux-x86-64.so.2", "qemu/firmware/qboot.rom", "vmlinux"):
        assert f"opt/vm/{name}\0".encode() in data
    for name in elf.needed(Path(sys.executable).resolve().read_bytes()):
        assert f"opt/vm/qemu/lib/{name}\0".encode() in data
    assert len(said) == 1
    assert vm_boot(build, boot, pytest.fail) == made


def test_another_build_or_image_gives_another(build: QemuBuild, boot: Boot, tmp_path: Path):
    other = QemuBuild("11.1", "11.1.4", "r" * 64, (), {}, build.folder)
    keys = {vm_boot(*pair, lambda text: None).key for pair in ((build, boot), (other, boot))}
    keys.add(vm_boot(build, Boot(boot.kernel, boot.initrd, "j" * 64), lambda text: None).key)
    assert len(keys) == 3


def test_old_ones_give_way(build: QemuBuild, boot: Boot):
    for number in range(6):
        vm_boot(build, Boot(boot.kernel, boot.initrd, str(number)), lambda text: None)
    assert len(cache.entries(vm_image.KIND)) == 3


def test_a_damaged_one_is_made_anew(build: QemuBuild, boot: Boot):
    made = vm_boot(build, boot, lambda text: None)
    data = made.initrd.read_bytes()
    made.initrd.chmod(0o644)
    made.initrd.write_bytes(b"x" + data[1:])
    said: list[str] = []
    assert vm_boot(build, boot, said.append).initrd.read_bytes() == data
    assert "damaged" in said[0]


def test_the_hosts_own_qemu_cannot_be_taken_apart(boot: Boot):
    with pytest.raises(ConfigurationError, match="cannot run inside a guest") as caught:
        vm_boot(QemuBuild("system", "8.0", "s", (), {}, None), boot, pytest.fail)
    assert "--qemu 11.1" in str(caught.value.hint)


@pytest.mark.parametrize("missing", ["usr/share/qemu/pvh.bin", f"usr/lib64/{vm_image._LOADER}"])
def test_what_a_build_lacks_is_named_and_nothing_is_left(build: QemuBuild, boot: Boot, missing: str):
    assert build.folder is not None
    (build.folder / missing).unlink()
    with pytest.raises(InfrastructureError, match=Path(missing).name):
        vm_boot(build, boot, lambda text: None)
    assert cache.entries(vm_image.KIND) == []
