"""The step `mappings`: pages by pagemap, what the kernel's debugfs says, on files of real guests and made ones."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest
from agent_rig import Rig

from harness.agent import iommu_debugfs, pagemap

GOLDEN = Path(__file__).parents[2] / "golden" / "iommu_debugfs"
PAGE = 4096
MIB2 = 2 << 20
PRESENT = 1 << 63


# ---- pagemap


def made(path: Path, first: int, entries: list[int]) -> str:
    """A pagemap with entries from a page on."""
    with path.open("wb") as file:
        file.seek(first * 8)
        file.write(struct.pack(f"={len(entries)}Q", *entries))
    return str(path)


def test_consecutive_pages_are_one_piece(tmp_path: Path):
    soft_dirty, exclusive = 1 << 55, 1 << 56
    entries = [5, 6 | soft_dirty, 7 | exclusive, 0, 9, 8, 100]
    path = made(tmp_path / "pagemap", 16, [entry and entry | PRESENT for entry in entries])
    assert pagemap.runs(16 * PAGE, 7 * PAGE, path) == [
        [0, 5 * PAGE, 3 * PAGE],
        [4 * PAGE, 9 * PAGE, PAGE],
        [5 * PAGE, 8 * PAGE, PAGE],
        [6 * PAGE, 100 * PAGE, PAGE],
    ]
    assert pagemap.runs(17 * PAGE, PAGE, path) == [[0, 6 * PAGE, PAGE]]


def test_pages_that_are_not_there_are_in_no_piece(tmp_path: Path):
    swapped = 1 << 62
    path = made(tmp_path / "pagemap", 0, [0, 4 | PRESENT, swapped | 5, 5 | PRESENT])
    assert pagemap.runs(0, 4 * PAGE, path) == [[PAGE, 4 * PAGE, PAGE], [3 * PAGE, 5 * PAGE, PAGE]]
    # Behind the end of the file, as behind the end of the address space, is nothing.
    assert pagemap.runs(8 * PAGE, 4 * PAGE, path) == []


def test_a_gigabyte_in_one_piece(tmp_path: Path):
    path = made(tmp_path / "pagemap", 0, [frame | PRESENT for frame in range(1, (1 << 18) + 1)])
    assert pagemap.runs(0, 1 << 30, path) == [[0, PAGE, 1 << 30]]


def test_hidden_frame_numbers_are_an_error(tmp_path: Path):
    path = made(tmp_path / "pagemap", 0, [PRESENT])
    with pytest.raises(pagemap.NotReadable, match="CAP_SYS_ADMIN"):
        pagemap.runs(0, PAGE, path)


# ---- debugfs


def lines(name: str) -> list[str]:
    return (GOLDEN / f"{name}.txt").read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "legacy",
            [
                [0x200000, 0xEB3000, PAGE, PAGE, "rw"],
                [0x201000, 0xF25000, PAGE, PAGE, "rw"],
                [0x202000, 0x25F4000, 2 * PAGE, PAGE, "rw"],
                [0x400000, 0x4200000, 2 * MIB2, MIB2, "rw"],
                [0x40000000, 0x25F3000, PAGE, PAGE, "r"],
            ],
        ),
        (
            "scalable_second_stage",
            [
                [0x200000, 0x239A000, PAGE, PAGE, "rw"],
                [0x201000, 0xEE5000, PAGE, PAGE, "rw"],
                [0x202000, 0xEE3000, 2 * PAGE, PAGE, "rw"],
                [0x400000, 0x1E800000, 2 * MIB2, MIB2, "rw"],
                [0x40000000, 0xEE7000, PAGE, PAGE, "r"],
            ],
        ),
        (
            "scalable_first_stage",
            [
                [0x200000, 0xED9000, PAGE, PAGE, "rw"],
                [0x201000, 0x23E5000, PAGE, PAGE, "rw"],
                [0x202000, 0x23EC000, 2 * PAGE, PAGE, "rw"],
                [0x400000, 0x4000000, 2 * MIB2, MIB2, "rw"],
                [0x40000000, 0x23EA000, PAGE, PAGE, "r"],
            ],
        ),
    ],
)
def test_what_linux_7_2_says(name: str, expected: list[list[int | str]]):
    assert iommu_debugfs.parse(lines(name), 0, 1 << 40) == expected


@pytest.mark.parametrize("name", ["legacy", "scalable_first_stage"])
def test_older_kernels_end_the_line_of_a_large_page_with_nothing(name: str):
    older = []
    for line in lines(name):
        words = line.split()
        missing = 7 - len(words) if "|" in line else 0
        older.append(line.rstrip("\n") + "\t0x0000000000000000" * missing + "\n")
    assert older != lines(name)
    assert iommu_debugfs.parse(older, 0, 1 << 40) == iommu_debugfs.parse(lines(name), 0, 1 << 40)


def test_only_what_lies_in_the_range():
    found = iommu_debugfs.parse(lines("legacy"), 0x201000, PAGE)
    assert found == [[0x201000, 0xF25000, PAGE, PAGE, "rw"]]
    # A large page that begins before the range is given whole.
    assert iommu_debugfs.parse(lines("legacy"), 0x5FF000, 2 * PAGE) == [[0x400000, 0x4200000, 2 * MIB2, MIB2, "rw"]]
    assert iommu_debugfs.parse(lines("legacy"), 0x800000, MIB2) == []


def test_a_gibibyte_page_and_rights_that_an_upper_entry_takes():
    text = (
        "0x0000000040000 |\t0x0000000000000000\t0x0000000000001003\t0x0000000080000081\n"
        "0x0000000080000 |\t0x0000000000000000\t0x0000000000002001\t0x00000000c0000083\n"
        "0x00000000c0000 |\t0x0000000000000000\t0x0000000000002001\t0x00000000c0000082\n"
    )
    gib = 1 << 30
    assert iommu_debugfs.parse(text.splitlines(), 0, 1 << 40) == [[gib, 2 * gib, 2 * gib, gib, "r"]]


def test_where_the_files_are(tmp_path: Path):
    assert iommu_debugfs.runs("02:00.0", 0, PAGE, str(tmp_path / "none")) is None
    (tmp_path / "other").mkdir()
    assert iommu_debugfs.runs("02:00.0", 0, PAGE, str(tmp_path)) is None
    folder = tmp_path / "iommu" / "intel" / "0000:02:00.0"
    folder.mkdir(parents=True)
    (folder / "domain_translation_struct").write_text("".join(lines("legacy")))
    assert iommu_debugfs.runs("02:00.0", 0x201000, PAGE, str(tmp_path)) == [[0x201000, 0xF25000, PAGE, PAGE, "rw"]]
    assert iommu_debugfs.runs("03:00.0", 0x201000, PAGE, str(tmp_path)) == []


def test_a_debugfs_that_cannot_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Libc:
        def mount(self, *_: object) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    with pytest.raises(iommu_debugfs.NotMounted, match="Operation not permitted"):
        iommu_debugfs.runs("02:00.0", 0, PAGE, str(tmp_path))


# ---- the step


@pytest.fixture
def step(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Steps on a made debugfs, and a pagemap whose frame numbers are those of the virtual addresses."""

    def runs(address: int, size: int) -> list[list[int]]:
        return [[0, address, size]]

    monkeypatch.setattr(pagemap, "runs", runs)
    monkeypatch.setattr(iommu_debugfs, "runs", lambda *args: list(args))
    return rig


def test_a_buffer_its_pages_and_its_iova(step: Rig):
    address = step("buffer", **{"as": "a", "size": 4 * PAGE})["values"]["address"]
    assert step.error("mappings", device="edu0", buffer="a", size=PAGE) == (None, "NoIova")
    iova = 0x40000000
    step("container_map", device="edu0", buffer="a", size=4 * PAGE, iova=iova, access="read")
    values = step("mappings", device="edu0", buffer="a", offset=PAGE, size=2 * PAGE)["values"]
    assert values == {
        "iova": iova + PAGE,
        "pages": [[0, address + PAGE, 2 * PAGE]],
        "debugfs": ["02:00.0", iova + PAGE, 2 * PAGE],
    }


def test_an_iova_has_no_pages_of_its_own(step: Rig):
    del step.context.devices["edu0"]  # the device need not be open
    values = step("mappings", device="edu0", iova=0x5000, size=PAGE)["values"]
    assert values == {"iova": 0x5000, "pages": None, "debugfs": ["02:00.0", 0x5000, PAGE]}


def test_what_begins_at_no_page_is_refused(step: Rig):
    step("buffer", **{"as": "a", "size": 2 * PAGE})
    step("container_map", device="edu0", buffer="a", size=PAGE, iova=0x40000000, access="read")
    for place in ({"buffer": "a", "offset": 1}, {"iova": 0x5001}):
        assert step.error("mappings", device="edu0", size=PAGE, **place) == (None, "NotAccessible")
    assert step.error("mappings", device="edu1", iova=0, size=PAGE) == (None, "UnknownDevice")


def test_the_real_pagemap_tells_frames_or_says_why_not(rig: Rig):
    address = rig("buffer", **{"as": "a", "size": PAGE})["values"]["address"]
    ctypes.memset(address, 1, PAGE)
    try:
        ((offset, physical, size),) = pagemap.runs(address, PAGE)
    except pagemap.NotReadable:
        assert os.geteuid() or "CapEff:\t000001ffffffffff" not in Path("/proc/self/status").read_text()
    else:
        assert (offset, size) == (0, PAGE)
        assert physical
        assert physical % PAGE == 0
