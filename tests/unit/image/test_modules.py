"""Kernel modules: load order out of the modules themselves, compressed in every way that Debian has used."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.modules import depends_on, load_order, unpacked


def module(name: str, *depends: str) -> bytes:
    """A kernel module with nothing but its ``.modinfo``."""
    info = f"license=GPL\0depends={','.join(depends)}\0name={name}\0vermagic=6.12 SMP\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0)
    return header + info + names + sections


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".ko.gz": gzip.compress,
    ".ko.xz": lzma.compress,
    ".ko.zst": zstandard.ZstdCompressor().compress,
}


def kernel(folder: Path, suffix: str = ".ko.xz", builtin: str = "") -> Path:
    """The modules of a kernel as a package has them: no ``modules.dep``."""
    files = {
        "virt/lib/irqbypass": module("irqbypass"),
        "drivers/vfio/vfio": module("vfio"),
        "drivers/vfio/vfio_iommu_type1": module("vfio_iommu_type1", "vfio"),
        "drivers/vfio/pci/vfio-pci-core": module("vfio_pci_core", "vfio", "irqbypass"),
        "drivers/vfio/pci/vfio-pci": module("vfio_pci", "vfio-pci-core"),
        "drivers/net/unasked": module("unasked"),
    }
    root = folder / "6.12.1-amd64"
    for name, data in files.items():
        path = root / "kernel" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACKERS[suffix](data))
    if builtin:
        (root / "modules.builtin").write_text(builtin)
    return root


def names(folder: Path, *wanted: str) -> list[str]:
    return [name for name, _ in load_order(folder, wanted)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_module_comes_after_what_it_depends_on(tmp_path: Path, suffix: str) -> None:
    folder = kernel(tmp_path, suffix)
    order = load_order(folder, ("vfio_iommu_type1", "vfio-pci"))
    assert [name for name, _ in order] == ["vfio", "vfio_iommu_type1", "irqbypass", "vfio_pci_core", "vfio_pci"]
    assert dict(order)["vfio_pci"] == module("vfio_pci", "vfio-pci-core")


def test_the_wanted_order_is_kept_and_nothing_comes_twice(tmp_path: Path) -> None:
    folder = kernel(tmp_path)
    assert names(folder, "irqbypass", "vfio", "irqbypass") == ["irqbypass", "vfio"]
    assert names(folder, "vfio", "irqbypass") == ["vfio", "irqbypass"]


def test_dash_and_underscore_are_the_same(tmp_path: Path) -> None:
    folder = kernel(tmp_path)
    assert names(folder, "vfio_pci", "vfio-pci") == names(folder, "vfio-pci")


def test_built_in_modules_need_no_file(tmp_path: Path) -> None:
    folder = kernel(tmp_path, builtin="kernel/drivers/vfio/vfio.ko\nkernel/drivers/char/virtio-console.ko\n")
    assert names(folder, "virtio_console", "vfio_iommu_type1") == ["vfio_iommu_type1"]


@pytest.mark.parametrize(("wanted", "asker"), [("absent", "recipe"), ("needy", "needy")])
def test_a_module_that_is_not_there_is_told_with_who_wants_it(tmp_path: Path, wanted: str, asker: str) -> None:
    folder = kernel(tmp_path)
    (folder / "kernel" / "needy.ko").write_bytes(module("needy", "absent"))
    with pytest.raises(ConfigurationError, match="'absent'") as caught:
        load_order(folder, (wanted,))
    assert "6.12.1-amd64" in caught.value.message
    assert asker in caught.value.message


def test_other_files_beside_the_modules_are_no_modules(tmp_path: Path) -> None:
    folder = kernel(tmp_path)
    (folder / "kernel" / "vfio.ko.sig").write_bytes(b"signature")
    assert names(folder, "vfio") == ["vfio"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_cut_off_module_is_told(tmp_path: Path, suffix: str) -> None:
    folder = kernel(tmp_path, suffix)
    path = folder / "kernel/drivers/vfio" / f"vfio{suffix}"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InfrastructureError):
        load_order(folder, ("vfio",))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_that_is_no_module_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(b"this is neither compressed nor a module")
    with pytest.raises(InfrastructureError):
        depends_on(unpacked(path))


def test_a_module_without_dependencies_has_none() -> None:
    assert depends_on(module("alone")) == []
    assert depends_on(module("two", "a-b", "c")) == ["a_b", "c"]
