from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import FakeVfio
from usdm_faulty_kernel import NODES, FaultyKernel
from usdm_rig import KIB, MIB, Rig

from usdm import errors, numa
from usdm.driver import Usdm
from usdm.kernel import MADV_POPULATE_WRITE, Kernel


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def create(nodes: str, pool: int = 0) -> Rig:
        made.append(Rig(FaultyKernel(FakeVfio(), pool, nodes), pool))
        return made[-1]

    yield create
    for rig in made:
        rig.vfio.close()


@pytest.mark.parametrize(
    ("text", "nodes"), [("0", {0}), ("0-1", {0, 1}), ("0,2-3", {0, 2, 3}), ("1", {1}), ("", {0}), ("70", {70})]
)
def test_nodes_with_memory(text: str, nodes: set[int]) -> None:
    assert numa.memory_nodes(FaultyKernel(FakeVfio(), 0, text)) == nodes


def test_a_kernel_without_numa_has_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FaultyKernel(FakeVfio())
    kernel.fail("read_text", 2)
    assert numa.memory_nodes(kernel) == {0}


@pytest.mark.parametrize("size", [KIB, 3 * MIB])
def test_n1_a_node_that_does_not_exist(make: Callable[..., Rig], size: int) -> None:
    rig = make("0-1")
    for node in (2, 99, -2, -7, -(1 << 31), (1 << 31) - 1):
        with pytest.raises(errors.NoSuchNode, match="nodes with memory: 0, 1"):
            rig.usdm.allocate(size, node)
    assert "mmap" not in rig.kernel.calls
    assert rig.usdm.allocate(size, -1)
    assert "mbind" not in rig.kernel.calls


def test_a_node_that_gets_memory_later_is_taken(make: Callable[..., Rig]) -> None:
    rig = make("0")
    assert rig.usdm.allocate(KIB, 0)
    with pytest.raises(errors.NoSuchNode):
        rig.usdm.allocate(KIB, 1)
    rig.kernel.nodes = "0-1"
    assert rig.usdm.allocate(KIB, 1)


def test_a_machine_with_one_node_needs_no_policy(make: Callable[..., Rig]) -> None:
    rig = make("0")
    rig.usdm.allocate(KIB, 0)
    assert "mbind" not in rig.kernel.calls


@pytest.mark.parametrize("pool", [0, 16])
def test_slabs_are_per_node(make: Callable[..., Rig], pool: int) -> None:
    rig = make("0-1", pool)
    blocks = {node: [rig.usdm.allocate(KIB, node) for _ in range(3)] for node in (-1, 0, 1)}
    slabs = {node: {address >> 21 for address in some} for node, some in blocks.items()}
    assert all(len(one) == 1 for one in slabs.values())
    assert len(set.union(*slabs.values())) == 3
    assert sorted(rig.kernel.preferred.values()) == [0, 1]
    nodes = {int(one["virt"]) >> 21: one["node"] for one in rig.usdm.maps()}
    for node, some in slabs.items():
        assert nodes[min(some)] == node
    # A freed block of one node never serves another.
    for address in blocks[1]:
        rig.usdm.free(address)
    assert rig.usdm.allocate(KIB, 0) >> 21 in slabs[0]
    assert rig.usdm.allocate(KIB, 1) >> 21 in slabs[1]
    rig.consistent()
    rig.end()


def test_an_empty_slab_of_another_node_is_not_taken(make: Callable[..., Rig]) -> None:
    rig = make("0-1")
    rig.usdm.free(rig.usdm.allocate(2 * MIB - 1, 0))
    address = rig.usdm.allocate(5 * KIB, 1)
    assert rig.kernel.preferred[address & -(2 * MIB)] == 1


@pytest.mark.parametrize(("pool", "kind"), [(0, errors.NoMemory), (16, errors.HugepagesExhausted)])
@pytest.mark.parametrize("size", [KIB, 3 * MIB])
def test_pages_that_came_from_elsewhere_are_not_handed_out(
    make: Callable[..., Rig], pool: int, kind: type[errors.UsdmError], size: int
) -> None:
    rig = make("0-1", pool)
    rig.usdm.register_device(rig.fd)
    held = rig.held()
    rig.kernel.elsewhere = 1
    with pytest.raises(kind, match=r"1 of [0-9]+ pages came from other nodes"):
        rig.usdm.allocate(size, 1)
    assert rig.held() == held
    assert rig.usdm.allocate(size, 1)
    rig.end()


def test_the_real_calls() -> None:
    """Whatever nodes the machine has: pages are asked for, there, and where they should be."""
    kernel = Kernel()
    address = kernel.mmap(4 * MIB)
    nodes = numa.memory_nodes(kernel)
    try:
        kernel.prefer_node(address, 4 * MIB, min(nodes))
    except OSError:
        pytest.skip("the kernel has no NUMA")
    kernel.madvise(address, 4 * MIB, MADV_POPULATE_WRITE)
    assert set(kernel.nodes_of(address, 4 * MIB, 4096)) <= nodes
    assert numa.node_of(address + 5) in nodes
    kernel.munmap(address, 4 * MIB)
    with pytest.raises(OSError, match="Bad address"):
        numa.node_of(address)
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.prefer_node(kernel.mmap(4096), 4096, 900)


def test_a_kernel_that_cannot_tell_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr("usdm.kernel._NUMBERS", {})
    assert numa.node_of(1, kernel) == 0


def test_a_real_allocation_from_a_node() -> None:
    node = min(numa.memory_nodes(Kernel()))
    usdm = Usdm()
    address = usdm.allocate(3 * MIB, node)
    Kernel().madvise(address, 4096, MADV_POPULATE_WRITE)
    assert numa.node_of(address) == node
    usdm.close()


def test_where_the_list_of_nodes_is() -> None:
    assert NODES == numa.HAS_MEMORY
