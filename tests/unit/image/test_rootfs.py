"""The guest's files out of unpacked packages: what goes in, what stays out, and the same bytes every time.

The packages are made here. Their programs are shell scripts that stand in for the guest's busybox, loader and Python,
because the build runs those on the host; tests/guest boots what comes of real packages.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.build import modules_below_usr
from harness.image.kernel_build import Kernel
from harness.image.recipe import Recipe
from harness.image.rootfs import build_files

RELEASE = "6.12.1-amd64"
CONFIG = "#\n# Linux/x86\n#\nCONFIG_VFIO=m\nCONFIG_PCI=y\n# CONFIG_VFIO_NOIOMMU is not set\nCONFIG_NR_CPUS=64\n"
LIB = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
PYTHON = "usr/lib/python3.13"
DYNLOAD = f"{PYTHON}/lib-dynload"

RECIPE = Recipe(
    name="mine",
    title="A guest",
    kernel="6.12",
    suites=("trixie",),
    kernel_pattern="linux-image-.*",
    kernel_depends="linux-modules-.*",
    packages=("everything",),
    modules=("vfio-pci",),
)


def elf(*parts: tuple[bytes, int, bytes, int]) -> bytes:
    """An ELF file of sections: name, kind, content, index of the section it refers to (counted from 1)."""
    names = b"\0"
    content = b""
    rows = [bytes(64)]
    for name, kind, data, link in (*parts, (b".shstrtab", 3, b"", 0)):
        at = len(names)
        names += name + b"\0"
        data = names if name == b".shstrtab" else data
        rows.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(content), len(data), link, 0, 1, 0))
        content += data
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(content), 0, 64, 0, 0, 64, len(rows), len(rows) - 1
    )
    return header + content + b"".join(rows)


def program(*libraries: str) -> bytes:
    """A program or library that asks for libraries."""
    strings = b"\0"
    dynamic = b""
    for library in libraries:
        dynamic += struct.pack("<qQ", 1, len(strings))
        strings += library.encode() + b"\0"
    return elf((b".dynamic", 6, dynamic + bytes(16), 2), (b".dynstr", 3, strings, 0))


def module(name: str, depends: str = "") -> bytes:
    return elf((b".modinfo", 1, f"depends={depends}\0name={name}\0".encode(), 0))


def bzimage() -> bytes:
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
    payload = gzip.compress(elf((b".notes", 7, note, 0)), mtime=0)
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 0, len(payload))
    return bytes(setup) + payload


def put(root: Path, name: str, data: bytes | str, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def unpacked(root: Path) -> Path:
    """A tree of packages that has everything an image needs, and some of what it must not take."""
    put(root, "usr/bin/busybox", "#!/bin/sh\nprintf '%s\\n' busybox ls sh insmod dropbear\n", 0o755)
    put(root, "usr/sbin/dropbear", program("libtom.so.1", "libc.so.6"), 0o755)
    put(root, "usr/bin/python3.13", f'#!/bin/sh\nunset PYTHONHOME\nexec {sys.executable} "$@"\n', 0o755)
    # Runs a program as the loader does: after its own two arguments.
    put(root, LOADER, '#!/bin/sh\nshift 2\nexec "$@"\n', 0o755)
    put(root, f"{LIB}/libc.so.6", program("ld-linux-x86-64.so.2"), 0o755)
    put(root, f"{LIB}/libtom.so.1.0.3", program("libmath.so.1"))
    (root / LIB / "libtom.so.1").symlink_to("libtom.so.1.0.3")
    for name in ("libmath.so.1", "libffi.so.8", "libgcc_s.so.1", "libunasked.so.1"):
        put(root, f"{LIB}/{name}", program("libc.so.6"))
    sources = ("os.py", "json/__init__.py", "encodings/utf_8.py", "encodings/cp437.py")
    dropped = ("test/test_os.py", "tkinter/__init__.py", "encodings/big5.py", "idlelib/idle.py", "config-3.13/Makefile")
    for name in (*sources, *dropped):
        put(root, f"{PYTHON}/{name}", f'"""{name}"""\nNAMES = {{"b", "a", "c"}}\n')
    put(root, f"{PYTHON}/__pycache__/os.cpython-313.pyc", b"stale")
    put(root, f"{DYNLOAD}/_ctypes.so", program("libffi.so.8"))
    put(root, f"{DYNLOAD}/_ssl.so", program("libssl.so.3"))
    put(root, f"{DYNLOAD}/_testcapi.so", program())
    put(root, f"boot/vmlinuz-{RELEASE}", bzimage())
    put(root, f"boot/config-{RELEASE}", CONFIG)
    kernel = f"usr/lib/modules/{RELEASE}/kernel"
    put(root, f"{kernel}/vfio.ko", module("vfio"))
    put(root, f"{kernel}/vfio-pci.ko", module("vfio_pci", "vfio"))
    put(root, f"{kernel}/unasked.ko", module("unasked"))
    put(root, "usr/share/doc/busybox/copyright", "text")
    put(root, "usr/lib/terminfo/v/vt100", b"terminal")
    return root


def images(folder: Path) -> Path:
    """The images folder as a checkout that lost its permissions."""
    for name in ("init", "lspci"):
        put(folder, f"guest/{name}", f"#!/bin/sh\n# {name}\n", 0o640)
    return folder


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every entry of an initramfs."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 109 + fields[11]].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = (start + fields[6] + 3) // 4 * 4


def build(packages: Path, out: Path, recipe: Recipe = RECIPE) -> dict[str, tuple[int, bytes]]:
    out.mkdir(parents=True)
    build_files(packages, recipe, images(out.parent / f"{out.name}-images"), out)
    return entries((out / "initrd.img").read_bytes())


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return unpacked(tmp_path / "packages")


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_facts_and_files_are_all_that_is_left(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = build_files(packages, RECIPE, images(tmp_path / "images"), out)
    assert facts == {
        "kernel_release": RELEASE,
        "options": ["PCI", "VFIO"],
        "python": "3.13",
        "modules": ["vfio", "vfio_pci"],
        "modules_on_demand": [],
    }
    assert sorted(path.name for path in out.iterdir()) == ["initrd.img", "vmlinux"]
    assert (out / "vmlinux").read_bytes().startswith(b"\x7fELF")


def test_programs_and_applets(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    assert found["init"] == (0o100755, b"#!/bin/sh\n# init\n")
    assert found["usr/bin/lspci"][0] == 0o100755
    assert found["usr/sbin/dropbear"][0] == 0o100755
    for name in ("ls", "sh", "insmod"):
        assert found[f"usr/bin/{name}"] == (0o120777, b"busybox")
    # An applet does not hide a program of that name.
    assert "usr/bin/dropbear" not in found
    assert found["usr/bin/python3"] == (0o120777, b"python3.13")
    assert {name: found[name][1] for name in ("bin", "sbin", "lib", "lib64")} == {
        "bin": b"usr/bin",
        "sbin": b"usr/sbin",
        "lib": b"usr/lib",
        "lib64": b"usr/lib64",
    }
    assert found["etc/passwd"][1] == b"root:x:0:0:root:/root:/bin/sh\n"
    assert b"root:*:" in found["etc/shadow"][1]
    for name in ("dev", "proc", "sys", "run", "tmp", "root"):
        assert found[name][0] == 0o40755


def test_libraries_are_those_that_something_asks_for(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    libraries = {Path(name).name for name in found if name.startswith(f"{LIB}/")}
    # libmath is asked for by a library only; libgcc_s by nobody, glibc loads it by name.
    assert libraries == {"libc.so.6", "libtom.so.1", "libmath.so.1", "libffi.so.8", "libgcc_s.so.1"}
    assert found[f"{LIB}/libtom.so.1"] == (0o100644, program("libmath.so.1"))
    assert found[LOADER][0] == 0o100755


def test_python_has_what_is_useful(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    assert f"{DYNLOAD}/_ctypes.so" in found
    # libssl is in no package, so the extension could not be imported.
    for name in ("lib-dynload/_ssl.so", "lib-dynload/_testcapi.so", "test", "tkinter", "idlelib", "config-3.13"):
        assert f"{PYTHON}/{name}" not in found
    assert f"{PYTHON}/encodings/cp437.py" in found
    assert f"{PYTHON}/encodings/big5.py" not in found
    assert b"stale" not in {data for _, data in found.values()}


def test_python_is_compiled_without_times_and_places(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    compiled = {name: data for name, (_, data) in found.items() if name.endswith(".pyc")}
    sources = {name for name in found if name.startswith(PYTHON) and name.endswith(".py")}
    assert len(compiled) == len(sources) == 4
    for data in compiled.values():
        # PEP 552: bit 0 says that a hash stands in place of the time, bit 1 that it is checked.
        assert struct.unpack_from("<I", data, 4) == (1,)
        assert str(tmp_path).encode() not in data


def test_modules_are_listed_in_load_order(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    folder = f"/lib/modules/{RELEASE}"
    assert found["etc/harness/modules"][1].decode().splitlines() == [f"{folder}/vfio.ko", f"{folder}/vfio_pci.ko"]
    assert found[f"usr{folder}/vfio_pci.ko"][1] == module("vfio_pci", "vfio")
    assert found[f"usr{folder}/modules.dep"][1] == b"vfio.ko:\nvfio_pci.ko: vfio.ko\n"
    assert f"usr{folder}/unasked.ko" not in found


def test_modules_on_demand_lie_there_and_are_not_loaded(packages: Path, tmp_path: Path) -> None:
    kernel = f"usr/lib/modules/{RELEASE}/kernel"
    for name, *needs in (("crc", ""), ("auth", "crc"), ("core", "auth"), ("disk", "core,vfio,auth")):
        put(packages, f"{kernel}/{name}.ko", module(name, *filter(None, needs)))
    recipe = RECIPE.model_copy(update={"modules_on_demand": ("disk", "vfio-pci")})
    out = tmp_path / "out"
    out.mkdir()
    facts = build_files(packages, recipe, images(tmp_path / "images"), out)
    assert (facts["modules"], facts["modules_on_demand"]) == (["vfio", "vfio_pci"], ["crc", "auth", "core", "disk"])
    found = entries((out / "initrd.img").read_bytes())
    folder = f"/lib/modules/{RELEASE}"
    assert found["etc/harness/modules"][1].decode().splitlines() == [f"{folder}/vfio.ko", f"{folder}/vfio_pci.ko"]
    assert found[f"usr{folder}/disk.ko"][1] == module("disk", "core,vfio,auth")
    listed = dict(line.split(":") for line in found[f"usr{folder}/modules.dep"][1].decode().splitlines())
    # All that it needs, the last to be loaded first: busybox' modprobe loads them from the right.
    needs = [name.removesuffix(".ko") for name in listed["disk.ko"].split()]
    assert set(needs) == {"crc", "auth", "core", "vfio"}
    assert needs.index("core") < needs.index("auth") < needs.index("crc")
    assert listed["vfio_pci.ko"] == " vfio.ko"


def test_two_builds_give_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    build(packages, tmp_path / "one")
    build(unpacked(tmp_path / "elsewhere" / "again"), tmp_path / "another, longer place")
    for name in ("vmlinux", "initrd.img"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "another, longer place" / name).read_bytes()


@pytest.mark.usefixtures("strict_umask")
def test_the_umask_does_not_show(packages: Path, tmp_path: Path) -> None:
    found = build(packages, tmp_path / "out")
    assert {mode & 0o777 for mode, _ in found.values() if mode & 0o170000 == 0o100000} == {0o644, 0o755}
    assert {mode for mode, _ in found.values() if mode & 0o170000 == 0o040000} == {0o40755}


def test_a_kernel_image_beside_its_modules_is_found(packages: Path, tmp_path: Path) -> None:
    """Where Debian's kernels of 6.19 and later have it."""
    for name in ("vmlinuz", "config"):
        (packages / f"boot/{name}-{RELEASE}").rename(packages / f"usr/lib/modules/{RELEASE}/{name}")
    out = tmp_path / "out"
    out.mkdir()
    assert build_files(packages, RECIPE, images(tmp_path / "images"), out)["options"] == ["PCI", "VFIO"]
    assert (out / "vmlinux").read_bytes().startswith(b"\x7fELF")


def test_a_kernel_without_its_configuration_is_told(packages: Path, tmp_path: Path) -> None:
    (packages / f"boot/config-{RELEASE}").unlink()
    with pytest.raises(InfrastructureError, match=f"{RELEASE} have no file with its configuration") as caught:
        build(packages, tmp_path / "out")
    assert "kernel_depends" in str(caught.value.hint)


def compiled(folder: Path) -> Kernel:
    """A kernel of the project's own, outside of the packages."""
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
    put(folder, "vmlinux", elf((b".notes", 7, note, 0)))
    return Kernel("k", folder / "vmlinux", "CONFIG_VFIO=y\nCONFIG_VFIO_NOIOMMU=y\n", "7.2.12-lab")


def test_a_compiled_kernel_takes_the_place_of_a_packaged_one(packages: Path, tmp_path: Path) -> None:
    shutil.rmtree(packages / "usr/lib/modules")
    shutil.rmtree(packages / "boot")
    kernel, out = compiled(tmp_path), tmp_path / "out"
    out.mkdir()
    facts = build_files(packages, RECIPE.model_copy(update={"modules": ()}), images(tmp_path / "images"), out, kernel)
    assert (facts["kernel_release"], facts["options"], facts["modules"]) == ("7.2.12-lab", ["VFIO", "VFIO_NOIOMMU"], [])
    assert (out / "vmlinux").read_bytes() == kernel.file.read_bytes()
    assert entries((out / "initrd.img").read_bytes())["etc/harness/modules"][1] == b""


def test_a_compiled_kernel_has_no_modules_to_load(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mine\.yaml asks for vfio-pci"):
        build_files(packages, RECIPE, images(tmp_path / "images"), tmp_path, compiled(tmp_path))


@pytest.mark.parametrize("name", ["usr/sbin/dropbear", "usr/bin/busybox", LOADER])
def test_a_package_that_is_missing_is_told_by_its_file(packages: Path, tmp_path: Path, name: str) -> None:
    (packages / name).unlink()
    with pytest.raises(InfrastructureError, match=name):
        build(packages, tmp_path / "out")


@pytest.mark.parametrize("name", ["libtom.so.1", "libmath.so.1"])
def test_a_library_that_is_missing_is_told(packages: Path, tmp_path: Path, name: str) -> None:
    (packages / LIB / name).unlink()
    with pytest.raises(InfrastructureError, match=name):
        build(packages, tmp_path / "out")


def test_two_kernels_are_refused(packages: Path, tmp_path: Path) -> None:
    (packages / "usr/lib/modules/6.12.2-amd64").mkdir()
    with pytest.raises(InfrastructureError, match="2 kernels"):
        build(packages, tmp_path / "out")


def test_no_kernel_is_refused(packages: Path, tmp_path: Path) -> None:
    shutil.rmtree(packages / "usr/lib/modules")
    with pytest.raises(InfrastructureError, match="0 kernels"):
        build(packages, tmp_path / "out")


def test_a_module_that_the_kernel_lacks_is_told(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'absent'"):
        build(packages, tmp_path / "out", RECIPE.model_copy(update={"modules": ("absent",)}))


def test_a_program_of_the_packages_that_fails_is_told(packages: Path, tmp_path: Path) -> None:
    put(packages, "usr/bin/busybox", "#!/bin/sh\necho wrong machine >&2\nexit 1\n", 0o755)
    with pytest.raises(InfrastructureError, match=r"busybox.*wrong machine"):
        build(packages, tmp_path / "out")


def test_modules_outside_usr_are_put_below_it(packages: Path, tmp_path: Path) -> None:
    """As the kernels of Debian 12 have them."""
    (packages / "lib").mkdir(exist_ok=True)
    (packages / "usr/lib/modules").rename(packages / "lib/modules")
    with pytest.raises(InfrastructureError, match="0 kernels instead of one"):
        build(packages, tmp_path / "before")
    modules_below_usr(packages)
    found = build(packages, tmp_path / "after")
    assert any(name.endswith("vfio_pci.ko") for name in found)
    modules_below_usr(packages)
