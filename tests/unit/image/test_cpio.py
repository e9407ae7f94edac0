"""Initramfs archives: what the kernel will unpack, and the same bytes for the same tree."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.image.cpio import NewcWriter, write_tree

HEADER = 110
Entry = tuple[str, dict[str, int], bytes]
FIELDS = (
    *("inode", "mode", "uid", "gid", "links", "mtime", "size", "major", "minor", "device_major", "device_minor"),
    *("name_size", "check"),
)


def parsed(data: bytes) -> list[Entry]:
    """Read an archive by the format's description, not by the writer's code."""
    found: list[Entry] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        values = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(len(FIELDS))]
        fields = dict(zip(FIELDS, values, strict=True))
        name = data[at + HEADER : at + HEADER + fields["name_size"]]
        assert name.endswith(b"\0")
        start = (at + HEADER + fields["name_size"] + 3) // 4 * 4
        found.append((name[:-1].decode(), fields, data[start : start + fields["size"]]))
        at = (start + fields["size"] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found


def tree(root: Path) -> Path:
    for name in ("usr/bin", "dev", "empty"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"\x7fELF")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "usr/bin/data").write_bytes(b"12345")
    (root / "bin").symlink_to("usr/bin")
    (root / "dangling").symlink_to("/nowhere")
    return root


def archive(root: Path) -> bytes:
    out = io.BytesIO()
    write_tree(root, out)
    return out.getvalue()


def test_a_tree_comes_out_as_it_is(tmp_path: Path) -> None:
    entries = {name: (fields, data) for name, fields, data in parsed(archive(tree(tmp_path / "root")))}
    modes = {name: fields["mode"] for name, (fields, _) in entries.items()}
    assert modes == {
        "bin": stat.S_IFLNK | 0o777,
        "dangling": stat.S_IFLNK | 0o777,
        "dev": stat.S_IFDIR | 0o755,
        "dev/console": stat.S_IFCHR | 0o600,
        "empty": stat.S_IFDIR | 0o755,
        "usr": stat.S_IFDIR | 0o755,
        "usr/bin": stat.S_IFDIR | 0o755,
        "usr/bin/data": stat.S_IFREG | 0o644,
        "usr/bin/tool": stat.S_IFREG | 0o755,
        "TRAILER!!!": 0,
    }
    assert entries["usr/bin/data"][1] == b"12345"
    assert entries["bin"][1] == b"usr/bin"
    console = entries["dev/console"][0]
    assert (console["device_major"], console["device_minor"]) == (5, 1)


def test_folders_come_before_what_is_in_them(tmp_path: Path) -> None:
    seen = {""}
    for name, _, _ in parsed(archive(tree(tmp_path / "root"))):
        assert os.path.dirname(name) in seen  # noqa: PTH120 - names in an archive
        seen.add(name)


def test_nothing_of_the_host_gets_in(tmp_path: Path) -> None:
    entries = parsed(archive(tree(tmp_path / "root")))
    assert [fields["inode"] for _, fields, _ in entries] == list(range(1, len(entries) + 1))
    for _, fields, _ in entries:
        assert [fields[name] for name in ("uid", "gid", "mtime", "major", "minor", "check")] == [0] * 6
        assert fields["links"] == 1


def _touch(root: Path) -> None:
    os.utime(root / "usr/bin/data", (1e9, 1e9))


def _permissions(root: Path) -> None:
    (root / "usr/bin/data").chmod(0o600)
    (root / "usr/bin/tool").chmod(0o4711)
    (root / "empty").chmod(0o700)


def _nothing(root: Path) -> None:
    """The same tree elsewhere."""


@pytest.mark.parametrize("change", [_nothing, _touch, _permissions])
def test_times_place_and_odd_permissions_do_not_change_the_bytes(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    first = archive(tree(tmp_path / "one"))
    other = tree(tmp_path / "another, longer place")
    change(other)
    assert archive(other) == first


def test_the_order_of_creation_does_not_change_the_bytes(tmp_path: Path) -> None:
    for folder, names in (("up", "abc"), ("down", "cba")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(name)
    assert archive(tmp_path / "up") == archive(tmp_path / "down")


@pytest.mark.parametrize("size", range(5))
def test_entries_stay_aligned_for_every_length(size: int) -> None:
    out = io.BytesIO()
    writer = NewcWriter(out)
    writer.entry("n" * (size + 1), stat.S_IFREG | 0o644, b"x" * size)
    writer.entry("next", stat.S_IFREG | 0o644, b"y")
    writer.finish()
    assert [(name, data) for name, _, data in parsed(out.getvalue())] == [
        ("n" * (size + 1), b"x" * size),
        ("next", b"y"),
        ("TRAILER!!!", b""),
    ]


def test_a_name_beyond_ascii_is_counted_in_bytes() -> None:
    out = io.BytesIO()
    writer = NewcWriter(out)
    writer.entry("größe", stat.S_IFREG | 0o644, b"1")
    writer.finish()
    assert [name for name, _, _ in parsed(out.getvalue())] == ["größe", "TRAILER!!!"]
