"""What a qualification calls on a worker. It runs in the worker's event loop; what takes long, in a thread."""

from __future__ import annotations

import asyncio
import contextlib

from distributed import Worker, get_worker

from harness import __version__
from harness.guest.payload import Payload
from harness.image import cache, parcel
from harness.image.cache import DamagedEntryError
from harness.qualify.remote.measure import cache_identity, measure_kvm, system_version
from harness.qualify.remote.orders import KVM, MEMORY, Answer, CellOrder, Entry, WorkerFacts, source_key
from harness.qualify.remote.session import Session, plugin_name
from harness.run.jobs import available_cores, available_memory


async def join(session: str, source: str, dask_worker: Worker | None = None) -> WorkerFacts:
    """Say what this worker is and has; when it has the right sources, take part in a session.

    What it was not given as resources of Dask is measured, and made such.
    """
    worker = _here(dask_worker)
    kvm, reason = await asyncio.to_thread(measure_kvm)
    declared = worker.state.total_resources
    facts = WorkerFacts(
        name=str(worker.name),
        address=worker.address,
        source=await asyncio.to_thread(source_key),
        version=__version__,
        cores=available_cores(),
        threads=worker.state.nthreads,
        memory=int(declared.get(MEMORY, available_memory())),
        kvm=bool(declared.get(KVM, kvm)),
        kvm_reason=reason if declared.get(KVM, kvm) == kvm else "so the worker was started",
        system=await asyncio.to_thread(system_version),
        cache=cache_identity(),
    )
    if facts.source == source:
        # What cannot be said yet (KVM without a QEMU build) is left open: after one was sent it is asked again.
        known = {MEMORY: facts.memory} | ({} if kvm is None and KVM not in declared else {KVM: int(facts.kvm)})
        await worker.set_resources(**known)
        if plugin_name(session) not in worker.plugins:
            await worker.plugin_add(Session(session), name=plugin_name(session), catch_errors=False)
    return facts


async def leave(session: str, dask_worker: Worker | None = None) -> None:
    """Take no part in a session any more; what still runs of it is ended."""
    worker = _here(dask_worker)
    if plugin_name(session) in worker.plugins:
        await worker.plugin_remove(name=plugin_name(session))


async def running(session: str, dask_worker: Worker | None = None) -> tuple[str, ...]:
    """Keys of the session's cells that have not ended."""
    worker = _here(dask_worker)
    found = worker.plugins.get(plugin_name(session))
    return found.running if isinstance(found, Session) else ()


async def take_payload(session: str, payload: Payload, dask_worker: Worker | None = None) -> None:
    """Keep what is sent into guests."""
    _session(session, dask_worker).payloads[payload.key] = payload


async def is_there(entry: Entry) -> bool:
    """Whether an entry is in this worker's cache, undamaged."""
    return await asyncio.to_thread(_found, entry)


async def take_chunk(session: str, entry: Entry, offset: int, data: bytes, dask_worker: Worker | None = None) -> None:
    """Keep a piece of a parcel; the piece at 0 begins it anew.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    incoming = _session(session, dask_worker).incoming
    if offset == 0:
        if entry in incoming:
            incoming.pop(entry).close()
        incoming[entry] = parcel.room()
    file = incoming[entry]
    try:
        file.seek(offset)
        await asyncio.to_thread(file.write, data)
    except OSError as error:
        raise cache.disk_error(error) from error


async def take_parcel(session: str, label: parcel.Label, dask_worker: Worker | None = None) -> None:
    """Put a parcel whose pieces have come into this worker's cache.

    Raises:
        DamagedParcelError: it is not what was sent.
        InfrastructureError: the cache cannot be written.
    """
    file = _session(session, dask_worker).incoming.pop(Entry(label.kind, label.key))
    with file:
        await asyncio.to_thread(parcel.unpack, label, file)


def run_cell_here(order: CellOrder) -> Answer:
    """Run a cell: the task that Dask runs, in a thread of the worker's."""
    worker = get_worker()
    found = worker.plugins[plugin_name(order.session)]
    if not isinstance(found, Session):
        raise TypeError(f"the worker's plugin {plugin_name(order.session)} is {type(found).__name__}")
    return found.run(order, worker)


def _found(entry: Entry) -> bool:
    with contextlib.suppress(DamagedEntryError):
        return cache.find(entry.kind, entry.key, trust_stamps=True) is not None
    return False


def _here(dask_worker: Worker | None) -> Worker:
    return get_worker() if dask_worker is None else dask_worker


def _session(session: str, dask_worker: Worker | None) -> Session:
    found = _here(dask_worker).plugins.get(plugin_name(session))
    if not isinstance(found, Session):
        raise LookupError(f"the worker takes no part in {session}")
    return found
