"""What an image is made of: initramfs archives, kernels out of their images, ELF files, modules in load order."""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import struct
from pathlib import Path

import pytest
import zstandard

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import elf
from harness.image.cpio import write_tree
from harness.image.kernel import extract_vmlinux
from harness.image.modules import depends_on, load_order

NOTE = 7
DYNAMIC = 6
STRINGS = 3


def make_elf(parts: list[tuple[str, int, bytes, int]]) -> bytes:
    """An ELF file with these sections: name, type, content, link (1 for the first of them)."""
    names = b"\0"
    rows: list[tuple[int, int, int, int, int]] = [(0, 0, 0, 0, 0)]
    body = b""
    for name, kind, content, link in [*parts, (".shstrtab", STRINGS, b"", 0)]:
        at = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else content
        rows.append((at, kind, 64 + len(body), len(content), link))
        body += content
    table = b"".join(struct.pack("<IIQQQQIIQQ", n, k, 0, 0, at, size, link, 0, 1, 0) for n, k, at, size, link in rows)
    header = b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HHIQQQ", 2, 62, 1, 0, 0, 64 + len(body))
    header += struct.pack("<IHHHHHH", 0, 64, 56, 0, 64, len(rows), len(rows) - 1)
    return header + body + table


def pvh_note(kind: int = 18, name: bytes = b"Xen\0") -> bytes:
    other = struct.pack("<III", 4, 5, 1) + b"GNU\0" + b"12345\0\0\0"
    return other + struct.pack("<III", len(name), 8, kind) + name + bytes(8)


def bzimage(payload: bytes) -> bytes:
    """A boot sector, two sectors of setup code, the payload."""
    image = bytearray(3 * 512)
    image[0x1F1] = 2
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"behind"


VMLINUX = make_elf([(".text", 1, b"code" * 1000, 0), (".notes", NOTE, pvh_note(), 0)])
SIZE = struct.pack("<I", len(VMLINUX))


@pytest.mark.parametrize(
    "payload",
    [
        zstandard.ZstdCompressor().compress(VMLINUX) + SIZE,
        lzma.compress(VMLINUX) + SIZE,
        gzip.compress(VMLINUX),
    ],
    ids=["zstd", "xz", "gzip"],
)
def test_the_kernel_comes_out_of_its_image_however_it_is_compressed(payload: bytes):
    assert extract_vmlinux(bzimage(payload)) == VMLINUX


def test_an_elf_kernel_is_taken_as_it_is():
    assert extract_vmlinux(VMLINUX) == VMLINUX


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "no bzImage"),
        (b"MZ" + bytes(4096), "no bzImage"),
        (bzimage(b"LZ4?" + bytes(100)), "unknown way"),
        (bzimage(lzma.compress(VMLINUX))[:-60], "cut off"),
        (bzimage(zstandard.ZstdCompressor().compress(VMLINUX[:-100])), "cut off"),
        (bzimage(b"\xfd7zXZ\0" + bytes(100)), "cannot be unpacked"),
        (bzimage(b"\x1f\x8b" + bytes(100)), "cannot be unpacked"),
        (bzimage(b"\x28\xb5\x2f\xfd" + b"\xff" * 100), "cannot be unpacked"),
        (bzimage(gzip.compress(b"not a program")), "no 64-bit ELF"),
        (make_elf([(".text", 1, b"code", 0)]), "no PVH entry"),
        (make_elf([(".notes", NOTE, pvh_note(kind=6), 0)]), "no PVH entry"),
        (make_elf([(".notes", NOTE, pvh_note(name=b"GNU\0"), 0)]), "no PVH entry"),
    ],
)
def test_what_is_no_kernel_for_us_is_refused(image: bytes, said: str):
    with pytest.raises(InfrastructureError, match=said):
        extract_vmlinux(image)


def test_needed_libraries_are_read():
    strings = b"\0libc.so.6\0libz.so.1\0"
    dynamic = struct.pack("<qQqQqQqQ", 1, 1, 5, 0, 1, 11, 0, 0)
    data = make_elf([(".dynstr", STRINGS, strings, 0), (".dynamic", DYNAMIC, dynamic, 1)])
    assert elf.needed(data) == ["libc.so.6", "libz.so.1"]
    assert elf.needed(VMLINUX) == []
    assert elf.section(data, ".dynstr") == strings
    assert elf.section(data, ".none") == b""


@pytest.mark.parametrize("length", [10, 70, len(VMLINUX) - 30])
def test_a_cut_off_elf_file_is_an_error(length: int):
    with pytest.raises(InfrastructureError, match=r"cut off|no 64-bit ELF"):
        elf.sections(VMLINUX[:length])


def module(name: str, depends: str) -> bytes:
    return make_elf([(".modinfo", 1, f"license=GPL\0depends={depends}\0name={name}\0".encode(), 0)])


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel's folder with modules in every form that Debian has or had."""
    folder = tmp_path / "7.0-test"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/pci/built-in-one.ko\n")
    for name, depends, suffix in (
        ("top-one", "middle_one,builtin_one", ".ko.xz"),
        ("middle-one", "base", ".ko.zst"),
        ("base", "", ".ko"),
        ("alone", "", ".ko.gz"),
    ):
        data = module(name.replace("-", "_"), depends.replace("builtin_one", "built_in_one"))
        pack = {".ko.xz": lzma.compress, ".ko.zst": zstandard.ZstdCompressor().compress, ".ko.gz": gzip.compress}
        (folder / "kernel" / f"{name}{suffix}").write_bytes(pack.get(suffix, bytes)(data))
    return folder


def test_modules_come_after_what_they_depend_on(kernel: Path):
    found = load_order(kernel, ("alone", "top_one", "middle-one", "built-in-one"))
    assert [name for name, _ in found] == ["alone", "base", "middle_one", "top_one"]
    assert depends_on(found[-1][1]) == ["middle_one", "built_in_one"]


def test_a_module_that_is_not_there_is_named_with_who_asked(kernel: Path):
    with pytest.raises(ConfigurationError, match=r"7\.0-test has no module 'nothing'.*recipe"):
        load_order(kernel, ("nothing",))
    (kernel / "kernel" / "base.ko").unlink()
    with pytest.raises(ConfigurationError, match=r"'base'.*middle.one"):
        load_order(kernel, ("top-one",))


@pytest.mark.parametrize(("name", "suffix"), [("top-one", ".ko.xz"), ("middle-one", ".ko.zst"), ("alone", ".ko.gz")])
def test_a_damaged_module_is_named(kernel: Path, name: str, suffix: str):
    path = kernel / "kernel" / f"{name}{suffix}"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InfrastructureError):
        load_order(kernel, (name,))


def read_newc(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, ...]]]:
    """A reader of its own: path to mode, content and all header fields."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = tuple(int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13))
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert data[at:].strip(b"\0") == b""
            return found
        found[name] = (fields[1], data[at : at + fields[6]], fields)
        at = (at + fields[6] + 3) // 4 * 4


def test_the_archive_has_every_file_and_nothing_of_the_host(tmp_path: Path):
    for place in ("one", "two"):
        tree = tmp_path / place
        (tree / "dev").mkdir(parents=True)
        names = ["usr/bin/program", "init", "etc/text"]
        for name in names if place == "one" else reversed(names):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(name.encode() * 3)
            (tree / name).chmod(0o700 if name != "etc/text" else 0o600)
        (tree / "bin").symlink_to("usr/bin")
    (tmp_path / "two" / "init").chmod(0o755)
    archives = []
    for place in ("one", "two"):
        out = io.BytesIO()
        write_tree(tmp_path / place, out)
        archives.append(out.getvalue())
    assert archives[0] == archives[1], "order of creation, times, owners and the umask do not matter"
    found = read_newc(archives[0])
    assert set(found) == {"bin", "dev", "dev/console", "etc", "etc/text", "init", "usr", "usr/bin", "usr/bin/program"}
    assert found["init"][:2] == (stat.S_IFREG | 0o755, b"init" * 3)
    assert found["etc/text"][0] == stat.S_IFREG | 0o644
    assert found["bin"][:2] == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert found["dev/console"][0] == stat.S_IFCHR | 0o600
    assert found["dev/console"][2][9:11] == (5, 1)
    inodes = [fields[0] for _, _, fields in found.values()]
    assert len(set(inodes)) == len(inodes)
    assert all(fields[2] == fields[3] == fields[5] == 0 for _, _, fields in found.values()), "owner 0, no times"
    order = list(found)
    assert all(order.index(name.rpartition("/")[0]) < order.index(name) for name in order if "/" in name)


def test_a_damaged_dynamic_section_is_an_error_of_ours():
    program = bytearray(Path("/bin/ls").read_bytes())
    assert "libc.so.6" in elf.needed(bytes(program))
    (dynamic,) = [found for found in elf.sections(bytes(program)) if found.kind == 6]
    program[dynamic.offset + 8 : dynamic.offset + 16] = b"\xff" * 7 + b"\x0f"
    with pytest.raises(InfrastructureError, match="dynamic section"):
        elf.needed(bytes(program))
