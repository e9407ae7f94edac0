from __future__ import annotations

import pytest
from agent_rig import Rig

from harness.agent import registry
from usdm import errors, qae_mem


def test_registration(rig: Rig) -> None:
    assert rig.error("unregister", device="edu0") == (1, "NotRegistered")
    assert rig.error("register", device="edu0") == (0, None)
    assert rig.error("unregister", device="edu0") == (0, None)
    assert rig.error("register_fd", fd="null") == (-1, "NotAContainer")
    assert rig.error("unregister", device="edu9") == (None, "UnknownDevice")


def test_memory_of_usdm(rig: Rig) -> None:
    rig("register", device="edu0")
    answer = rig("alloc", **{"as": "a"}, size=4096, align=4096, node=-1)
    assert answer["error"] is None
    assert answer["values"] == {"iova": qae_mem.qaeVirtToPhysNUMA(answer["returns"])}
    assert rig("translate_back", buffer="a", offset=4095)["values"]["same"] is True
    assert rig.error("free", buffer="a", offset=1024, zero=True) == (None, "InteriorPointer")
    rig("fill", buffer="a", pattern=1)
    assert rig.error("free", buffer="a", zero=False) == (None, None)
    assert rig.error("free", buffer="a") == (None, "DoubleFree")
    assert rig.error("fill", buffer="a", pattern=1) == (None, "NotAccessible")
    # The device may still be sent there.
    rig("dma_write", device="edu0", buffer="a", offset=-64, size=64, device_offset=8)
    assert rig.dmas == [(answer["values"]["iova"] - 64, 64, 8, True)]


def test_mapping_of_a_part_gives_the_buffer_its_start(rig: Rig) -> None:
    rig("register", device="edu0")
    rig("buffer", **{"as": "b"}, size=64 << 10)
    assert rig("dma_read", device="edu0", buffer="b", size=1)["error"]["type"] == "NoIova"
    answer = rig("map", buffer="b", offset=8192, size=4096)
    iova = answer["returns"]
    assert answer["values"] == {"iova": iova}
    done = rig("dma_read", device="edu0", buffer="b", offset=8200, size=16, device_offset=0)
    assert done["values"] == {"iova": iova + 8, "completed": True}
    found = rig("translate", buffer="b", offset=4096, size=8192, stride=4096)["values"]
    assert found == {"present": 1, "absent": 1, "contiguous": True, "first": iova}
    assert rig.error("map", buffer="b", offset=0, size=16384) == (0, "AlreadyMapped")
    assert rig.error("unmap", buffer="b", offset=8192, size=4096) == (0, None)
    assert rig("translate", buffer="b")["values"] == {"present": 0, "absent": 16, "contiguous": False, "first": None}
    assert rig("translate_back", buffer="b")["error"]["type"] == "NotMapped"
    # After the unmap the name still stands for the place.
    assert rig("dma_read", device="edu0", buffer="b", offset=8192, size=16)["values"]["iova"] == iova


def test_mappings_beside_usdm(rig: Rig) -> None:
    rig("register", device="edu0")
    address = rig("buffer", **{"as": "b"}, size=8192)["values"]["address"]
    args = {"device": "edu0", "buffer": "b", "offset": 4096, "size": 4096, "iova": 0x40000000}
    assert rig("container_map", **args, access="read")["values"] == {"iova": 0x40000000}
    assert rig.entries[0x40000000] == (address + 4096, 4096)
    assert rig.context.iova({"buffer": "b", "offset": 0}) == 0x3FFFF000
    assert rig.error("container_map", **args, access="write") == (None, "MapFailed")
    unmap = {"device": "edu0", "iova": 0x40000000, "size": 4096}
    assert rig("container_unmap", **unmap)["values"] == {"size": 4096}
    assert rig("container_unmap", **unmap)["values"] == {"size": 0}


def test_read_only_memory_is_refused_by_the_kernel(rig: Rig) -> None:
    rig("register", device="edu0")
    rig("buffer", **{"as": "b"}, size=4096, backing="read_only")
    assert rig.error("map", buffer="b", offset=0, size=4096) == (0, "MapFailed")


def test_plain_memory(rig: Rig) -> None:
    assert rig("alloc_plain", **{"as": "p"}, size=5000)["returns"]
    assert rig("check", buffer="p", pattern="zero")["values"]["equal"] is True
    assert rig.error("release", buffer="p") == (None, "NotAccessible")
    assert rig.error("free_plain", buffer="p") == (None, None)
    assert rig.error("free_plain", buffer="p") == (None, "DoubleFree")


def test_an_error_that_no_translation_explains_is_not_taken_for_absence(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig("buffer", **{"as": "b"}, size=4096)

    def refuse(address: int) -> int:
        raise errors.ForkedChild("pid", 1)

    monkeypatch.setattr(qae_mem.default_instance(), "virt_to_phys", refuse)
    assert rig.error("translate", buffer="b") == (None, "ForkedChild")


def test_every_kind_answers_when_arguments_are_missing(rig: Rig) -> None:
    """A defect is an error of its own, never an exception that ends the worker."""
    without = ("at_fork", "mem_init", "mem_destroy", "mem_init_fd", "statistics")
    for kind in registry.KINDS:
        error = rig(kind)["error"]
        if kind in without:
            assert error is None or error["type"] == "Unsupported", kind
        else:
            assert error["type"] in ("InternalError", "UnknownBuffer", "NoVm"), kind
