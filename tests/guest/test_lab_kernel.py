"""The lab kernel: it really has what its configuration says, and what it is compiled for works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import BOOT_SECONDS, EDU, said

from harness.guest.guest import Guest, running_guest
from harness.image.build import Image
from harness.image.kernel_build import promised_options
from harness.image.recipe import load_recipe
from harness.machine.spec import MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

# The kernel's own DMA mapping, which the NVMe driver uses.
FUNCTIONS = (
    "dma_iova_try_alloc",
    "dma_iova_link",
    "dma_iova_sync",
    "dma_iova_unlink",
    "dma_iova_destroy",
    "dma_iova_free",
)


@pytest.fixture(scope="module")
def lab() -> Resources:
    return prepare(RunOptions(kernels=("lab",), fetch=True), print)


@pytest.fixture(scope="module")
def image(lab: Resources) -> Image:
    return lab.images["lab"]


@pytest.fixture(scope="module")
def guest(lab: Resources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    machine = MachineSpec(devices=(EDU,), kernel_args=("numa=fake=2",))
    folder = tmp_path_factory.mktemp("lab")
    with running_guest(lab.plan(machine, "11.1", "lab", folder), BOOT_SECONDS, lambda stage: None) as guest:
        said(guest, "mount -t debugfs debugfs /sys/kernel/debug; mount -t tracefs tracefs /sys/kernel/tracing")
        yield guest


def test_the_image_knows_its_kernel(guest: Guest, image: Image):
    assert said(guest, "uname -r") == image.kernel_release
    assert image.kernel_release.endswith("-lab")
    source = load_recipe("lab").source
    assert source is not None
    assert promised_options(source) <= image.options
    assert {"VFIO_NOIOMMU", "IOMMUFD", "IOMMU_DEBUGFS", "NUMA_EMU"} <= image.options
    assert not {"MODULES", "CPU_MITIGATIONS", "STRICT_DEVMEM"} & image.options
    # Nothing was loaded, and nothing was said to be wrong.
    assert said(guest, "cat /etc/harness/modules; dmesg | grep -i 'harness: module' || true") == ""


def test_vfio_with_and_without_an_iommu(guest: Guest):
    switch = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    assert said(guest, f"cat {switch}; echo 1 >{switch}; cat {switch}; echo 0 >{switch}") == "N\nY"
    device = "/sys/bus/pci/devices/0000:02:00.0"
    said(guest, f"echo vfio-pci >{device}/driver_override; echo 0000:02:00.0 >/sys/bus/pci/drivers_probe")
    group = said(guest, f"basename $(readlink {device}/iommu_group)")
    assert said(guest, f"ls -d /dev/iommu /dev/vfio/vfio /dev/vfio/{group} /dev/vfio/devices/vfio0").count("\n") == 3


def test_the_iommu_tells_of_itself(guest: Guest):
    assert "dmar_translation_struct" in said(guest, "ls /sys/kernel/debug/iommu/intel")
    assert "Register Base Address: fed90000" in said(guest, "cat /sys/kernel/debug/iommu/intel/iommu_regset")
    assert said(guest, "ls /sys/class/iommu") == "dmar0"


def test_probes_on_the_kernels_dma_mapping(guest: Guest):
    tracing = "/sys/kernel/tracing"
    probes = "; ".join(f"echo 'p:{name} {name}' >>kprobe_events" for name in FUNCTIONS)
    assert said(guest, f"cd {tracing}; {probes}; echo 1 >events/kprobes/enable; ls -d events/kprobes/*/ | wc -l") == "6"
    assert said(guest, f"cd {tracing}/events; ls -d iommu/map iommu/unmap dma/dma_map_phys").count("\n") == 2
    said(guest, f"cd {tracing}; echo 0 >events/kprobes/enable; echo >kprobe_events")


def test_numa_nodes_hugepages_and_physical_addresses(guest: Guest):
    assert said(guest, "cat /sys/devices/system/node/has_memory") == "0-1"
    pool = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    assert said(guest, f"echo 4 >{pool}; cat {pool}; echo 0 >{pool}") == "4"
    frame = (
        "import os, mmap, ctypes; m = mmap.mmap(-1, 4096); m[:6] = b'marked'; "
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m)); p = os.open('/proc/self/pagemap', os.O_RDONLY); "
        "n = int.from_bytes(os.pread(p, 8, a // 4096 * 8), 'little') & (1 << 55) - 1; "
        "print(os.pread(os.open('/dev/mem', os.O_RDONLY), 6, n * 4096))"
    )
    assert said(guest, f'python3 -I -S -c "{frame}"') == "b'marked'"


def test_drivers_are_built_in(guest: Guest):
    drivers = said(guest, "ls /sys/bus/pci/drivers /sys/bus/virtio/drivers")
    assert {"nvme", "pvpanic-pci", "vfio-pci", "virtio_blk", "virtio_console"} <= set(drivers.split())
