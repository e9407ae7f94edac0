"""A machine without a guest system at work: its parts, and what a step does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.agent.patterns import chunks, first_difference
from harness.bare.devices import Edu, IommuTestdev
from harness.bare.nvme import Nvme
from harness.bare.pci import Pci
from harness.bare.qtest import Qtest
from harness.bare.spec import BareDeviceSpec, BareSpec
from harness.bare.tables import TablesInMemory
from harness.bare.unit import RemappingUnit
from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.vtd import invalidation
from harness.machine.vtd.bits import PAGE, put_address
from harness.machine.vtd.faults import IP, PFO, PPF
from harness.machine.vtd.interrupts import WINDOW, remappable_message, table_address
from harness.machine.vtd.invalidation import Scope
from harness.scenario.args import Args
from harness.scenario.bare_args import (
    BareBusMaster,
    BareCheck,
    BareDmaRead,
    BareDmaWrite,
    BareFill,
    BareMap,
    BareUnmap,
    ClearFault,
    Context,
    Enable,
    Entry,
    FaultEvent,
    Interrupt,
    InvalidateContext,
    InvalidateIotlb,
    IrteArgs,
    Root,
)
from harness.scenario.bare_tables import Pages, Tables

_RESET_PORT, _FULL_RESET = 0xCF9, 0x0E
_MODES = {"legacy": 0, "scalable": 1, "reserved": 2, "abort": 3}
_MODE_SHIFT = 10
_SCOPES = {"global": Scope.GLOBAL, "domain": Scope.DOMAIN, "device": Scope.SELECTIVE, "page": Scope.SELECTIVE}

Values = dict[str, Any]


class BareMachine:
    """IOMMU, tables and devices, set up; translation is off.

    Args:
        qtest: the connection.
        spec: the machine.
        tables: what is in memory at the beginning.

    Raises:
        InfrastructureError, EmulatorCrash, GuestHang: as the connection.
    """

    def __init__(self, qtest: Qtest, spec: BareSpec, tables: Tables) -> None:
        self._qtest = qtest
        self._spec = spec
        self._tables = tables
        self._devices = {device.name: device for device in spec.devices}
        self._pci = Pci(qtest, spec)
        self._nvmes = {
            device.name: Nvme(qtest, self._pci, device, number)
            for number, device in enumerate(spec.devices)
            if device.model in ("nvme", "vf")
        }
        self._set_up_devices()
        self._unit = RemappingUnit(qtest)
        self._memory = TablesInMemory(qtest, spec, tables)
        try:
            self._memory.write(tables)
            self._map_queues()
        except MemoryError as error:
            raise ConfigurationError(str(error), hint="map fewer pages, or larger ones") from error

    def _set_up_devices(self) -> None:
        self._pci.set_up()
        for name, nvme in self._nvmes.items():
            numbers = [device.number for device in self._spec.devices if device.of == name]
            # While nothing is translated yet, and so without an entry in any table.
            if numbers and not (nvme.enable() and all(map(nvme.set_online, numbers))):
                raise InfrastructureError(f"{name} did not set its VFs online")

    def _map_queues(self) -> None:
        """An nvme's queues are mapped at their physical addresses in its domain, where it has one."""
        for name, nvme in self._nvmes.items():
            context = self._tables.contexts.get(name)
            if context is not None and context.domain is not None:
                pages = Pages(iova=nvme.queues, to=nvme.queues, size=2 * PAGE)
                self._memory.map(context.domain, pages)

    def run(self, kind: str, args: Args) -> Values:
        """Do one step.

        Args:
            kind: its kind.
            args: its arguments, of ``BARE_KINDS[kind]``.

        Returns:
            What was observed, by name.

        Raises:
            InfrastructureError: the emulated hardware did not do what was asked for, or QEMU ended.
            GuestHang: not before the connection's deadline.
        """
        step: Callable[[Any], Values | None] = getattr(self, f"_{kind}")
        return step(args) or {}

    def fault_values(self) -> Values:
        """What the fault registers say, as JSON values: read after every step, as the second witness."""
        state = self._unit.faults()
        record = state.record
        return {
            "recorded": record.fault,
            "overflow": bool(state.status & PFO),
            "pending": bool(state.status & PPF),
            "interrupt_pending": bool(state.control & IP),
            "source_id": record.source_id,
            "reason": record.reason,
            "read": record.read,
            "info": record.info,
        }

    # ---- the IOMMU

    def _enable(self, args: Enable) -> None:
        scalable = self._tables.mode == "scalable"
        queue = args.queue if args.queue is not None else scalable or args.interrupts
        if queue and not self._unit.queued:
            self._unit.enable_queue()
        table = self._memory.root if self._tables.root_table is None else self._tables.root_table
        self._unit.set_root_table(put_address(table) | _MODES[self._tables.mode] << _MODE_SHIFT)
        self._unit.invalidate_context(Scope.GLOBAL)
        if scalable and queue:
            self._unit.submit(invalidation.pasid_cache())
        self._unit.invalidate_iotlb(Scope.GLOBAL)
        if args.interrupts:
            wanted = self._tables.interrupts
            base = self._memory.interrupts if wanted.table is None else wanted.table
            self._unit.enable_interrupts(table_address(base, wanted.entries))
            self._unit.submit(invalidation.interrupt_entry_cache())
        if args.translation:
            self._unit.enable_translation()

    def _disable(self, args: Args) -> None:
        self._unit.disable()

    def _reset(self, args: Args) -> None:
        # QEMU resets the machine when it has answered, before it takes the next command.
        self._qtest.out8(_RESET_PORT, _FULL_RESET)
        for nvme in self._nvmes.values():
            nvme.enabled = False
        self._set_up_devices()
        self._unit.begin()

    def _invalidate_context(self, args: InvalidateContext) -> None:
        domain = self._memory.domains[args.domain].id if args.domain else 0
        source = self._devices[args.device].requester if args.device else 0
        self._unit.invalidate_context(_SCOPES[args.scope], domain, source)

    def _invalidate_iotlb(self, args: InvalidateIotlb) -> None:
        domain = self._memory.domains[args.domain].id if args.domain else 0
        order = (args.size // PAGE).bit_length() - 1
        self._unit.invalidate_iotlb(_SCOPES[args.scope], domain, args.iova or 0, order)

    def _invalidate_pasids(self, args: Args) -> None:
        self._unit.submit(invalidation.pasid_cache())

    def _invalidate_interrupts(self, args: Args) -> None:
        self._unit.submit(invalidation.interrupt_entry_cache())

    def _fault_event(self, args: FaultEvent) -> None:
        self._unit.fault_event(WINDOW, args.vector, masked=args.masked)

    def _clear_fault(self, args: ClearFault) -> None:
        if args.what in ("record", "all"):
            self._unit.clear_record()
        if args.what in ("overflow", "all"):
            self._unit.clear_overflow()

    def _registers(self, args: Args) -> None:
        """What they say is read after every step anyway."""

    # ---- tables

    def _map(self, args: BareMap) -> None:
        self._memory.map(args.domain, args)

    def _unmap(self, args: BareUnmap) -> None:
        self._memory.unmap(args.domain, args.iova, args.size)

    def _entry(self, args: Entry) -> None:
        self._memory.change_entry(
            args.domain,
            args.iova,
            args.level,
            clear=args.clear,
            table=args.table,
            access=args.access,
            bits=args.bits,
        )

    def _root(self, args: Root) -> None:
        self._memory.write_root(args.device, args)

    def _context(self, args: Context) -> None:
        self._memory.context(args.device, args)

    def _irte(self, args: IrteArgs) -> None:
        self._memory.irte(args.index, args)

    # ---- devices

    def _device(self, name: str) -> BareDeviceSpec:
        return self._devices[name]

    def _bus_master(self, args: BareBusMaster) -> None:
        self._pci.bus_master(self._device(args.device), enabled=args.enabled)

    def _dma_read(self, args: BareDmaRead) -> Values:
        edu = Edu(self._qtest, self._pci, self._device(args.device))
        return edu.dma(args.iova, args.size, args.device_offset, write=False)

    def _dma_write(self, args: BareDmaWrite) -> Values:
        device = self._device(args.device)
        if device.model == "edu":
            return Edu(self._qtest, self._pci, device).dma(args.iova, args.size, args.device_offset, write=True)
        if device.model == "iommu_testdev":
            back = args.iova if args.to is None else args.to
            return IommuTestdev(self._qtest, self._pci, device).dma(args.iova, args.size, back)
        nvme = self._nvmes[args.device]
        if not nvme.enabled and not nvme.enable():
            return {"completed": False}
        return nvme.identify(args.iova)

    def _interrupt(self, args: Interrupt) -> None:
        address = remappable_message(args.index) if args.index is not None else args.address
        Edu(self._qtest, self._pci, self._device(args.device)).interrupt(address or 0, args.data)

    # ---- memory

    def _fill(self, args: BareFill) -> None:
        for place, data in chunks(args.pattern, args.seed, 0, args.size):
            self._qtest.write(args.address + place, data)

    def _check(self, args: BareCheck) -> Values:
        for place, data in chunks(args.pattern, args.seed, 0, args.size):
            different = first_difference(self._qtest.read(args.address + place, len(data)), data)
            if different is not None:
                return {"equal": False, "first_difference": place + different}
        return {"equal": True}
