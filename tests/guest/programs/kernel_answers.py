"""What the kernel's dma_iova_* really answer, also to wrong arguments. Runs in a guest; prints JSON, case by case.

Usage: python3 kernel_answers.py main|bounce
"""

import errno
import json
import sys
from pathlib import Path

from harness.agent import kernel_device, own_memory, pagemap
from harness.agent.kernel_dma import KernelDma
from harness.agent.outcome import StepError
from usdm.errors import DeviceError

PAGE = 4096
HUGE = 2 << 20
EVENTS = "/sys/kernel/tracing"
BOTH, TO_DEVICE, FROM_DEVICE, NONE = range(4)
SKIP_CPU_SYNC, MMIO, REQUIRE_COHERENT = 1 << 5, 1 << 10, 1 << 12
MARK = b"\xa5" * 16


class State:
    addr = 0
    size = 0


class Case:
    """A device that was just opened, so that no case meets what another left behind."""

    def __init__(self, memory):
        self.mem = memory
        self.edu = kernel_device.open_edu("02:00.0")
        self.dev = self.edu.device
        self.api = KernelDma()
        self.edu.set_bus_master(True)
        self.said = {}
        self.events()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.edu.close()
        self.api.close()

    def call(self, function, *arguments):
        """What was returned, else the refusal's number, the function that warned, or the module's own refusal."""
        try:
            value, error = self.api.call(function, *arguments)
        except StepError as refusal:
            return type(refusal).__name__
        return value if error is None else str(error).partition(": ")[2].rpartition(" at ")[2]

    def events(self):
        """IOMMU mappings made and removed since the last time, as bytes."""
        path = Path(EVENTS) / "trace"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        path.write_text("")
        return [f"{'un' if ' unmap: ' in line else ''}map {line.rpartition('size=')[2]}" for line in lines]

    def alloc(self, size=4 * PAGE, at=0):
        state = State()
        assert self.call("dma_iova_try_alloc", self.dev, state, self.mem + at, size) == 1
        return state

    def link(self, state, at, size=PAGE, memory=None, direction=BOTH, attrs=0):
        virt = self.mem + (at if memory is None else memory)
        return self.call("dma_iova_link", self.dev, state, virt, at, size, direction, attrs)

    def sync(self, state, at=0, size=4 * PAGE):
        return self.call("dma_iova_sync", self.dev, state, at, size)

    def unlink(self, state, at, size=PAGE, direction=BOTH):
        return self.call("dma_iova_unlink", self.dev, state, at, size, direction)

    def free(self, state):
        return self.call("dma_iova_free", self.dev, state)

    def destroy(self, state, size, direction=BOTH, attrs=0):
        return self.call("dma_iova_destroy", self.dev, state, size, direction, attrs)

    def load(self, state):
        """Let the device read a mark, which it writes from then on."""
        own_memory.write(self.mem, MARK)
        self.edu.dma(state.addr, len(MARK), 0, write=False)

    def writes(self, iova, memory):
        """Whether a DMA write to an IOVA arrives in memory there."""
        own_memory.write(self.mem + memory, bytes(len(MARK)))
        self.edu.dma(iova, len(MARK), 0, write=True)
        return own_memory.read(self.mem + memory, len(MARK)) == MARK


def good(case):
    said = {"boundary": case.call("dma_get_merge_boundary", case.dev), "translated": case.dev.info().use_iommu}
    state = case.alloc(3 * PAGE, at=512)
    addr = state.addr
    said["offset"] = addr % PAGE
    first = PAGE - 512
    said["links"] = [case.link(state, 0, first, 512), case.link(state, first, PAGE, PAGE)]
    said["links"].append(case.link(state, first + PAGE, 100, 2 * PAGE))
    said["sync"] = case.sync(state, 0, first + PAGE + 100)
    said["maps"] = case.events()
    own_memory.write(case.mem + 512, MARK)
    case.edu.dma(state.addr, len(MARK), 0, write=False)
    said["both_ways"] = case.writes(addr + first, PAGE)
    said["pinned"] = case.dev.info().pinned
    said["end"] = case.destroy(state, first + PAGE + 100)
    said["unmaps"] = case.events()
    said["pinned_after"] = case.dev.info().pinned
    said["reach_after"] = case.writes(addr + first, PAGE)
    return said


def memory_unaligned(case):
    state = case.alloc()
    return [case.link(state, 0), case.link(state, PAGE, PAGE - 100, PAGE + 100), case.destroy(state, PAGE)]


def size_unaligned(case):
    state = case.alloc()
    links = [case.link(state, 0, 100), case.link(state, 100, memory=PAGE), case.link(state, PAGE)]
    return [*links, case.sync(state), case.destroy(state, 2 * PAGE), *case.events()]


def other_offset(case):
    aligned, inside = case.alloc(), case.alloc(at=512)
    return [case.link(aligned, 0, PAGE - 512, 512), case.link(inside, 0, PAGE, 0), case.link(inside, 0, 100, 100)]


def overlap(case):
    state = case.alloc()
    return [case.link(state, 0, 2 * PAGE), case.link(state, PAGE, memory=4 * PAGE), case.destroy(state, 2 * PAGE)]


def beyond(case):
    state = case.alloc(PAGE)
    linked = case.link(state, 0, 2 * PAGE), case.link(state, 8 * PAGE)
    case.load(state)
    near, far = (state.addr + PAGE, PAGE), (state.addr + 8 * PAGE, 8 * PAGE)
    return [*linked, case.writes(*near), case.writes(*far), case.destroy(state, 2 * PAGE), case.writes(*far)]


def without_range(case):
    return [case.link(State(), 0), case.sync(State()), case.free(State()), case.destroy(State(), 0)]


def part_of_a_page(case):
    state = case.alloc()
    case.link(state, 0)
    case.load(state)
    before = case.writes(state.addr + 2048, 2048)
    return [before, case.unlink(state, 0, 100), case.writes(state.addr + 2048, 2048), case.free(state)]


def part_of_a_link(case):
    state = case.alloc()
    case.link(state, 0, 4 * PAGE)
    case.load(state)
    said = [case.unlink(state, PAGE, PAGE), *case.events()]
    return [*said, *(case.writes(state.addr + at, at) for at in (0, PAGE, 2 * PAGE))]


def part_of_a_large_page(case):
    state = case.alloc(2 * HUGE)
    # An IOVA that is as well aligned as the memory, so that the tables can have one entry for both.
    at = -state.addr % HUGE
    said = [case.call("dma_iova_link", case.dev, state, case.mem, at, HUGE, BOTH), case.unlink(state, at, PAGE)]
    case_events = case.events()
    return [*said, *case_events, case.dev.info().pinned]


def hole(case):
    state = case.alloc()
    case.link(state, 0), case.link(state, 2 * PAGE)
    case.events()
    said = [case.unlink(state, PAGE), *case.events(), case.unlink(state, 0, 3 * PAGE), *case.events()]
    return [*said, case.unlink(state, 2 * PAGE), case.free(state)]


def free_linked(case):
    state = case.alloc()
    addr = state.addr
    case.link(state, 0), case.sync(state)
    case.load(state)
    said = [case.free(state), case.writes(addr, 0)]
    again = case.alloc()
    return [*said, again.addr == addr, case.link(again, 0, memory=PAGE), case.free(again)]


def destroy_shorter(case):
    state = case.alloc()
    addr = state.addr
    case.link(state, 0, 4 * PAGE), case.sync(state)
    case.load(state)
    return [case.destroy(state, 2 * PAGE), case.writes(addr, 0), case.writes(addr + 2 * PAGE, 2 * PAGE)]


def destroy_nothing(case):
    state, linked = case.alloc(), case.alloc()
    addr = linked.addr
    case.link(linked, 0)
    case.load(linked)
    return [case.destroy(state, 0), case.destroy(linked, 0), case.writes(addr, 0)]


def destroy_longer(case):
    state = case.alloc()
    addr = state.addr
    case.link(state, 0)
    case.load(state)
    return [case.destroy(state, 4 * PAGE), case.writes(addr, 0), *case.events()]


def directions(case):
    said = {}
    for name, direction in (
        ("both", BOTH),
        ("to_device", TO_DEVICE),
        ("from_device", FROM_DEVICE),
        ("none", NONE),
        ("7", 7),
    ):
        full, state = case.alloc(), case.alloc(at=PAGE)
        case.link(full, 0)
        case.load(full)
        linked = case.call("dma_iova_link", case.dev, state, case.mem + PAGE, 0, PAGE, direction)
        written = case.writes(state.addr, PAGE)
        # A read that is refused leaves the device's bytes as they are.
        own_memory.write(case.mem + PAGE, b"\x11" * 16)
        case.edu.dma(state.addr, 16, 16, write=False)
        own_memory.write(case.mem, bytes(16))
        case.edu.dma(full.addr, 16, 16, write=True)
        said[name] = [linked, own_memory.read(case.mem, 16) == b"\x11" * 16, written]
        case.destroy(full, PAGE), case.destroy(state, PAGE if linked == 0 else 0)
    return said


def other_direction(case):
    state = case.alloc()
    return [case.link(state, 0, direction=TO_DEVICE), case.unlink(state, 0, direction=FROM_DEVICE), case.free(state)]


def before_sync(case):
    state = case.alloc()
    loader = case.alloc()
    case.link(loader, 0)
    case.load(loader)
    # Refused first, so that something could have been remembered of it.
    refused = case.writes(state.addr, 0)
    return [refused, case.link(state, 0), case.writes(state.addr, 0)]


def sync_anything(case):
    state = case.alloc()
    return [case.sync(state, 0, 0), case.sync(state), case.sync(state, 4 * PAGE, 64 * PAGE), case.free(state)]


def unlink_before_sync(case):
    state = case.alloc()
    return [case.link(state, 0), case.unlink(state, 0), case.link(state, 0, memory=PAGE), case.destroy(state, PAGE)]


def sizes(case):
    said = {}
    for name, size in (
        ("0", 0),
        ("bit 63", 1 << 63),
        ("largest", (1 << 63) - PAGE),
        ("2^47", 1 << 47),
        ("link 0", None),
    ):
        state = State()
        if size is None:
            state = case.alloc()
            said[name] = case.link(state, 0, 0)
        else:
            said[name] = case.call("dma_iova_try_alloc", case.dev, state, case.mem, size)
        case.free(state)
    return said


def state_again(case):
    state = case.alloc()
    addr = state.addr
    return [case.call("dma_iova_try_alloc", case.dev, state, case.mem, PAGE), state.addr != addr, case.free(state)]


def state_after(case):
    """Whether it says that it has a range, and which, after each end; what a second end is answered, and try_alloc."""
    said = []
    for end in (case.free, lambda state: case.destroy(state, 0)):
        state = case.alloc()
        was = state.addr, state.size
        end(state)
        said += [case.call("dma_use_iova", state), (state.addr, state.size) == was, end(state)]
        said.append(case.call("dma_iova_try_alloc", case.dev, state, case.mem, PAGE))
    return said


def given_again(case):
    """Whether a range's IOVAs are given to the next one, by what it was ended with and the next one's size."""
    said = {}
    for name, linked, size in (("whole", 4, 4), ("part, same size", 1, 4), ("part, its size", 2, 2)):
        state = case.alloc()
        addr = state.addr
        case.link(state, 0, linked * PAGE), case.destroy(state, linked * PAGE)
        said[name] = case.alloc(size * PAGE).addr == addr
    return said


def masks(case):
    said = {}
    for bits in (64, 32, 20, 13, 12):
        case.dev.set_dma_mask((1 << bits) - 1)
        state = State()
        said[str(bits)] = case.call("dma_iova_try_alloc", case.dev, state, case.mem, PAGE), state.addr >> bits
        case.free(state)
    case.dev.set_dma_mask((1 << 64) - 1)
    return said


def attributes(case):
    state = case.alloc()
    wanted = (1 << 40, MMIO, REQUIRE_COHERENT, SKIP_CPU_SYNC)
    said = [case.link(state, index * PAGE, attrs=attrs) for index, attrs in enumerate(wanted)]
    return [*said, case.destroy(state, 4 * PAGE)]


def streaming(case):
    addr = case.call("dma_map_single", case.dev, case.mem + 512, 100, BOTH)
    said = [addr % PAGE, case.call("dma_mapping_error", case.dev, addr), *case.events()]
    for arguments in ((addr, 100, BOTH), (addr, 100, BOTH)):
        said.append(case.call("dma_unmap_single", case.dev, *arguments))
    return [*said, case.call("dma_map_single", case.dev, case.mem, 100, NONE), case.dev.info().pinned]


def streaming_undone_otherwise(case):
    """Unmapping 100 bytes, the other way, of a page; then the first of two pages."""
    loader = case.alloc()
    case.link(loader, 0)
    case.load(loader)
    said = []
    for size, undone, at in ((PAGE, 100, 0), (2 * PAGE, PAGE, PAGE)):
        addr = case.call("dma_map_single", case.dev, case.mem + PAGE, size, FROM_DEVICE)
        case.events()
        said += [case.writes(addr + at, PAGE + at), case.call("dma_unmap_single", case.dev, addr, undone, TO_DEVICE)]
        said += [*case.events(), case.writes(addr + at, PAGE + at)]
    return said


def unbound(case):
    """The driver is unbound while its file is open; then it gets the device again."""
    state = case.alloc()
    addr = state.addr
    case.link(state, 0, 4 * PAGE)
    case.load(state)
    driver = f"/sys/bus/pci/drivers/{kernel_device.MODULE}"
    Path(f"{driver}/unbind").write_text("0000:02:00.0")
    try:
        case.sync(state)
    except DeviceError as error:
        said = [errno.errorcode[error.errno]]
    Path(f"{driver}/bind").write_text("0000:02:00.0")
    with Case(case.mem) as again:
        said += [again.dev.info().pinned, again.writes(addr, 0)]
        try:
            kernel_device.KernelDevice("02:00.0")
        except DeviceError as error:
            said.append(errno.errorcode[error.errno])
    return said


def not_a_call(case):
    """Numbers that the module does not have, with and without a range, and one with another size."""
    from harness.agent import kernel_abi

    said = []
    for request in (kernel_abi.LINK + 9, kernel_abi.LINK + 98, kernel_abi.LINK ^ 8 << 16):
        try:
            case.dev.call(request, kernel_abi.call_request())
        except DeviceError as error:
            said.append(errno.errorcode[error.errno])
    return said


def set_domain(kind):
    """Give the device's group a domain of another type; nobody may drive it meanwhile."""
    driver = Path(f"/sys/bus/pci/drivers/{kernel_device.MODULE}")
    (driver / "unbind").write_text("0000:02:00.0")
    Path("/sys/bus/pci/devices/0000:02:00.0/iommu_group/type").write_text(kind)
    (driver / "bind").write_text("0000:02:00.0")


def untranslated(case):
    """Without a translation two mappings of a page have one address, and each keeps the page."""
    case.edu.close()
    set_domain("identity")
    try:
        with Case(case.mem) as other:
            said = [other.dev.info().use_iommu]
            both = [other.call("dma_map_single", other.dev, other.mem, PAGE, BOTH) for _ in range(2)]
            said += [both[0] == both[1], other.dev.info().pinned]
            for addr in both:
                said += [other.call("dma_unmap_single", other.dev, addr, PAGE, BOTH), other.dev.info().pinned]
    finally:
        set_domain("DMA")
    with Case(case.mem) as again:
        return [*said, again.dev.info().use_iommu]


def memory_of_the_program(case):
    # The same memory twice, filled from its start on: after its last page comes its first one.
    memory = own_memory.take(2 * own_memory.PIECE, "repeated")
    own_memory.write(memory, bytes(own_memory.PIECE))
    edge = memory + own_memory.PIECE - PAGE
    state = case.alloc()
    said = [case.call("dma_iova_link", case.dev, state, virt, 0, 2 * PAGE, BOTH) for virt in (edge, 16 * PAGE)]
    return [*said, case.dev.info().pinned, case.free(state)]


def closed_linked(case):
    state = case.alloc()
    addr = state.addr
    case.link(state, 0, 4 * PAGE)
    case.load(state)
    case.free(state), case.alloc()
    left = case.dev.info().pinned
    case.edu.close()
    case.edu = kernel_device.open_edu("02:00.0")
    case.dev = case.edu.device
    case.edu.set_bus_master(True)
    return [left, case.dev.info().pinned, case.writes(addr, 0)]


def no_bounce_buffers(case):
    case.dev.set_untrusted(True)
    said = untrusted(case, 2 * PAGE, 512), untrusted(case, 2 * PAGE, 0)
    case.dev.set_untrusted(False)
    return said


def untrusted(case, size, at, attrs=0):
    state = case.alloc(size, at)
    case.events()
    said = [case.link(state, 0, size, at, attrs=attrs), *case.events()]
    return [*said, case.destroy(state, size if said[0] == 0 else 0, attrs=attrs)]


def bounce_head_moved(case):
    case.dev.set_untrusted(True)
    return untrusted(case, 2 * PAGE, 512)


def bounce(case):
    case.dev.set_untrusted(True)
    case.dev.set_min_align_mask(PAGE - 1)
    said = {
        "whole": untrusted(case, 2 * PAGE, 0),
        "head and tail": untrusted(case, 2 * PAGE, 512),
        "tail": untrusted(case, PAGE + 100, 0),
        "inside": untrusted(case, 100, 512),
        "mmio": untrusted(case, PAGE, 512, MMIO),
        "coherent": untrusted(case, PAGE, 512, REQUIRE_COHERENT),
        "mmio whole": untrusted(case, PAGE, 0, MMIO),
        "coherent whole": untrusted(case, PAGE, 0, REQUIRE_COHERENT),
    }
    state = case.alloc(2 * PAGE, 512)
    said["coherent after"] = [
        case.link(state, 0, PAGE - 512, 512),
        case.link(state, PAGE - 512, PAGE, PAGE, attrs=REQUIRE_COHERENT),
        case.destroy(state, PAGE - 512),
    ]
    return said


def bounce_protects(case):
    case.dev.set_untrusted(True)
    case.dev.set_min_align_mask(PAGE - 1)
    loader, state = case.alloc(), case.alloc(100, 512)
    case.link(loader, 0)
    case.load(loader)
    addr = state.addr
    own_memory.write(case.mem, bytes(PAGE))
    said = [case.link(state, 0, 100, 512), case.sync(state, 0, 100)]
    said += [case.writes(addr, 512), case.writes(addr + 1024, 512 + 1024)]
    own_memory.write(case.mem + 512, bytes(100))
    said.append(case.destroy(state, 100))
    return [*said, own_memory.read(case.mem + 512, 16) == MARK, own_memory.read(case.mem + 1536, 16) == MARK]


MAIN = (
    *(good, memory_unaligned, size_unaligned, other_offset, overlap, beyond, without_range, part_of_a_page),
    *(part_of_a_link, part_of_a_large_page, hole, free_linked, destroy_shorter, destroy_nothing, destroy_longer),
    *(directions, other_direction, before_sync, sync_anything, unlink_before_sync, sizes, state_again, state_after),
    *(
        given_again,
        masks,
        attributes,
        streaming,
        streaming_undone_otherwise,
        unbound,
        not_a_call,
        untranslated,
        memory_of_the_program,
        closed_linked,
        no_bounce_buffers,
    ),
)
BOUNCE = (bounce_head_moved, bounce, bounce_protects)


def main(which):
    for event in ("map", "unmap"):
        (Path(EVENTS) / f"events/iommu/{event}/enable").write_text("1")
    memory = own_memory.take(HUGE, "huge")
    own_memory.write(memory, bytes(HUGE))
    assert pagemap.runs(memory, HUGE)[0][2] == HUGE, "the memory is not contiguous"
    answers = {}
    for one in BOUNCE if which == "bounce" else MAIN:
        with Case(memory) as case:
            answers[one.__name__] = one(case)
    print(json.dumps(answers))


main(sys.argv[1])
