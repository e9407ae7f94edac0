"""Cache entries on their way to another cache."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image import cache, parcel
from harness.image.cache import Entry
from harness.image.parcel import DamagedParcelError, Label


@pytest.fixture(autouse=True)
def sender(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "sender"))


@pytest.fixture
def entry() -> Entry:
    def fill(folder: Path) -> dict[str, object]:
        (folder / "usr/bin").mkdir(parents=True)
        (folder / "usr/bin/tool").write_bytes(b"\x7fELF" + bytes(70_000))
        (folder / "usr/bin/tool").chmod(0o755)
        (folder / "usr/bin/name").symlink_to("/etc/nowhere")
        (folder / "empty").touch()
        return {"name": "it", "packages": {"a": "1"}}

    return cache.store("qemu", "k" * 64, fill)


@pytest.fixture
def packed(entry: Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Label, bytes]:
    label, file = parcel.pack(entry)
    with file:
        file.seek(0)
        data = file.read()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "receiver"))
    return label, data


def test_an_entry_arrives_as_it_was(entry: Entry, packed: tuple[Label, bytes]):
    label, data = packed
    assert label.size == len(data) < 10_000
    assert cache.find("qemu", entry.key) is None
    parcel.unpack(label, io.BytesIO(data))
    found = cache.find("qemu", entry.key)
    assert found is not None
    assert found.folder != entry.folder
    assert (found.kind, found.key, found.facts, found.size) == (entry.kind, entry.key, entry.facts, entry.size)
    assert cache.digests(found) == cache.digests(entry) == cache.digests_of(found.folder)
    assert str((found.folder / "usr/bin/name").readlink()) == "/etc/nowhere"
    assert (found.folder / "usr/bin/tool").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data[:50] + b"?" + data[51:], lambda data: b""]
)
def test_what_was_damaged_on_its_way_is_not_kept(packed: tuple[Label, bytes], change):
    label, data = packed
    with pytest.raises(DamagedParcelError, match="the qemu kkkkkkkkkkkk was damaged on its way"):
        parcel.unpack(label, io.BytesIO(change(data)))
    assert cache.find(label.kind, label.key) is None


def test_what_is_not_as_its_manifest_says_is_not_kept(packed: tuple[Label, bytes]):
    label, data = packed
    other = {**label.files, "empty": "0" * 64}
    for files in (other, {**label.files, "more": "0" * 64}):
        with pytest.raises(DamagedParcelError, match=r"is not what its manifest says: (empty|more) differs"):
            parcel.unpack(replace(label, files=files), io.BytesIO(data))
    fewer = {name: digest for name, digest in label.files.items() if name != "empty"}
    with pytest.raises(DamagedParcelError, match="cannot be unpacked: empty has no place in it"):
        parcel.unpack(replace(label, files=fewer), io.BytesIO(data))
    assert cache.find(label.kind, label.key) is None


def test_nothing_is_written_beside_the_entry(packed: tuple[Label, bytes], tmp_path: Path):
    label, _ = packed
    outside = {"../outside": "0" * 64}
    out = io.BytesIO()
    import hashlib
    import tarfile

    import zstandard

    with (
        zstandard.ZstdCompressor().stream_writer(out, closefd=False) as packed_stream,
        tarfile.open(fileobj=packed_stream, mode="w|") as archive,
    ):
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    data = out.getvalue()
    bad = replace(label, files=outside, size=len(data), digest=hashlib.sha256(data).hexdigest())
    with pytest.raises(DamagedParcelError, match="has no place in it"):
        parcel.unpack(bad, io.BytesIO(data))
    assert not list(tmp_path.rglob("outside"))


def test_an_entry_that_is_gone_is_an_error_of_this_machine(entry: Entry):
    cache.remove(entry)
    with pytest.raises(InfrastructureError, match="has no qemu kkkk"):
        cache.by_key(entry.kind, entry.key)
    with pytest.raises(InfrastructureError, match="cannot be used"):
        parcel.pack(entry)
