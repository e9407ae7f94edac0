"""The kernel's source: what of the archive is unpacked, and archives that are none."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image.kernel_source import extract, is_left_out

TOP = "linux-source-7.2"
FILES = {
    "Makefile": "VERSION = 7\n",
    "arch/x86/kernel/head.S": "code",
    "arch/arm64/Kconfig": "config ARM64\n",
    "tools/perf/Makefile": "left out",
    "arch/arm64/kernel/head.S": "left out",
    "drivers/gpu/drm/Makefile": "obj-y\n",
    "drivers/gpu/drm/drm_drv.c": "left out",
    "drivers/net/loopback.c": "code",
    "drivers/net/ethernet/intel/e1000e/netdev.c": "left out",
    "drivers/net/ethernet/intel/Kconfig.e1000e": "config E1000E\n",
    "scripts/mkcompile_h": "#!/bin/sh\n",
}


def archive(path: Path, files: dict[str, str], top: str = TOP, link: tuple[str, str] | None = None) -> Path:
    with lzma.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as out:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(text)
            member.mode = 0o775 if text.startswith("#!") else 0o664
            out.addfile(member, io.BytesIO(text.encode()))
        if link:
            member = tarfile.TarInfo(f"{top}/{link[0]}")
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            out.addfile(member)
    return path


def test_what_is_needed_is_unpacked_without_the_archives_own_folder(tmp_path: Path):
    extract(archive(tmp_path / "a.tar.xz", FILES, link=("scripts/dtc", "../x86")), tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(found) == {name for name, text in FILES.items() if text != "left out"}
    assert {name for name, path in found.items() if path.stat().st_mode & 0o111} == {"scripts/mkcompile_h"}
    assert str((tmp_path / "out/scripts/dtc").readlink()) == "../x86"


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("arch/x86/Kconfig", False),
        ("arch/x86/kvm/mmu.c", False),
        ("arch/Kconfig", False),
        ("drivers/iommu/intel/iommu.c", False),
        ("drivers/gpu/Makefile", False),
        ("drivers/gpu/trace.c", True),
        ("tools/testing/selftests/vfio/x.c", True),
        ("tools/objtool/check.c", False),
        ("fs/nfs_common/grace.c", False),
        ("include/dt-bindings/leds/common.h", False),
        ("include/dt-bindings/clock/imx7d-clock.h", True),
        ("net/socket.c", False),
        ("net/ipv4/tcp.c", False),
        ("net/wireless/core.c", True),
        ("tools/perf/perf.c", True),
        ("fs/nfs/inode.c", True),
    ],
)
def test_which_files_are_left_out(name: str, left_out: bool):
    assert is_left_out(name) is left_out


def test_a_damaged_archive_is_told(tmp_path: Path):
    path = archive(tmp_path / "a.tar.xz", FILES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InfrastructureError, match=r"a\.tar\.xz cannot be unpacked"):
        extract(path, tmp_path / "cut")
    path.write_bytes(b"no archive")
    with pytest.raises(InfrastructureError, match=r"a\.tar\.xz cannot be unpacked"):
        extract(path, tmp_path / "none")


def test_an_archive_of_something_else_is_told(tmp_path: Path):
    with pytest.raises(InfrastructureError, match="no Makefile"):
        extract(archive(tmp_path / "a.tar.xz", {"README": "text"}), tmp_path / "out")


@pytest.mark.parametrize("top", ["../elsewhere", "/elsewhere"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, top: str):
    with pytest.raises(InfrastructureError, match="outside of its folder"):
        extract(archive(tmp_path / "a.tar.xz", FILES, top=top), tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()
