from __future__ import annotations

import io

import pytest
from usdm_fake_vfio import UNMAP, Factory, FakeContainer, FakeVfio

from usdm import dump, errors
from usdm.driver import Usdm

PAGE, KIB, MIB = 4096, 1024, 1 << 20


def test_statistics(usdm: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    empty = usdm.statistics()
    assert empty["mode"] == "4K"
    assert {empty[key] for key in ("allocations", "slabs", "mappings", "registrations", "maps", "failed")} == {0}
    assert empty["iova_free"] == (1 << 39) - 4 * MIB
    assert empty["container_mappings_left"] == -1
    fd = vfio.open(FakeContainer(limit=100))
    usdm.register_device(fd)
    usdm.register_device(fd)
    virt = buffer(8 * PAGE).address
    usdm.map(virt, PAGE)
    usdm.map(virt + 4 * PAGE, 2 * PAGE)
    usdm.unmap(virt, PAGE)
    for call in (lambda: usdm.map(1, PAGE), lambda: usdm.unmap(virt, PAGE), lambda: usdm.map(virt + 4 * PAGE, PAGE)):
        with pytest.raises(errors.UsdmError):
            call()
    usdm.allocate(1)
    usdm.free(usdm.allocate(1000))
    usdm.allocate(3 * MIB + 1)
    found = usdm.statistics()
    expected = {
        "allocations": 2,
        "bytes_asked": 3 * MIB + 2,
        "bytes_held": 3 * MIB + PAGE + KIB,
        "slabs": 1,
        "slabs_cached": 0,
        "blocks_waiting": 1,
        "large": 1,
        "mappings": 1,
        "bytes_mapped": 2 * PAGE,
        "container_mappings": 3,
        "container_mappings_left": 97,
        "iova_free": (1 << 48) - 4 * MIB - 8 * MIB,
        "registrations": 2,
        "maps": 2,
        "unmaps": 1,
        "failed": 3,
        "pages_left": 0,
    }
    assert {key: found[key] for key in expected} == expected
    assert 0 < int(found["iova_largest_gap"]) < int(found["iova_free"])
    assert all(type(value) in (int, str) for value in found.values())


def test_looking_changes_nothing(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    for turn in range(1, 5):
        assert usdm.map(virt, PAGE) == turn * 2 * MIB
        usdm.unmap(virt, PAGE)
        first, second = usdm.statistics(), usdm.statistics()
        assert first == second


def test_an_empty_slab_is_counted_as_kept(usdm: Usdm, fd: int) -> None:
    blocks = [usdm.allocate(2 * MIB - 1) for _ in range(6)]
    for address in blocks:
        usdm.free(address)
    found = usdm.statistics()
    assert (found["slabs"], found["slabs_cached"], found["allocations"]) == (4, 4, 0)


def test_maps_and_dump(usdm: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    block = usdm.allocate(5 * KIB)
    assert [one["mapped"] for one in usdm.maps()] == [0]
    usdm.register_device(vfio.open())
    large = usdm.allocate(2 * MIB)
    virt = buffer(2 * PAGE).address
    iova = usdm.map(virt, 2 * PAGE)
    found = {str(one["kind"]): one for one in usdm.maps()}
    assert [one["virt"] for one in usdm.maps()] == sorted(int(one["virt"]) for one in usdm.maps())
    slab = {"kind": "slab", "virt": block, "size": 2 * MIB, "iova": 0x200000, "node": -1}
    assert found["slab"] == {**slab, "blocks": 1, "used": 5 * KIB, "mapped": 1}
    assert found["large"]["virt"] == large
    assert (found["large"]["blocks"], found["large"]["used"]) == (1, 2 * MIB)
    assert (found["user"]["iova"], found["user"]["used"], found["user"]["blocks"]) == (iova, 2 * PAGE, 0)
    lines = dump.lines(usdm)
    assert f"{block:012x}-{block + 2 * MIB:012x} iova 000000200000 mapped   slab  node -1 1 blocks, 5120 bytes" in lines
    assert "registrations 1" in lines
    file = io.StringIO()
    dump.write(usdm, file)
    assert file.getvalue() == "".join(f"{line}\n" for line in lines)


def test_standard_error_is_where_a_dump_goes(usdm: Usdm, capsys: pytest.CaptureFixture[str]) -> None:
    dump.write(usdm)
    assert "mode 4K\n" in capsys.readouterr().err


def test_refused_unmaps_are_counted(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    usdm.map(virt, PAGE)
    vfio.fail(UNMAP, 22)
    with pytest.raises(errors.UnmapFailed):
        usdm.unmap(virt, PAGE)
    found = usdm.statistics()
    assert (found["maps"], found["unmaps"], found["failed"], found["mappings"]) == (1, 0, 1, 1)
