"""A Dask worker that says what it has: ``harness worker``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Final

from distributed import Worker
from distributed.comm.addressing import get_address_host_port
from distributed.comm.registry import get_backend

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.cache import Say
from harness.paths import state_dir
from harness.qualify.remote.measure import measure_kvm
from harness.qualify.remote.orders import KVM, MEMORY
from harness.run.jobs import available_cores, available_memory, default_jobs

CONNECT_SECONDS: Final = 10


def serve(address: str, jobs: int | None, name: str | None, say: Say, host: str | None = None) -> bool:
    """Work for a scheduler until Ctrl-C or SIGTERM.

    Args:
        address: the scheduler's, with or without ``tcp://``.
        jobs: cells at once, >= 1; None chooses from cores and memory.
        name: what the worker is called; None for host and process id.
        say: told what it has.
        host: name or IP address of the interface to listen on; None for the one that reaches the scheduler.

    Returns:
        Whether it was asked to end; if not, the scheduler went away.

    Raises:
        ConfigurationError: the address begins with what Dask does not know.
        InfrastructureError: the scheduler cannot be reached, or has such a worker.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # What ends the start, it logs with a traceback, and raises it too.
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    _check_scheme(address)
    return asyncio.run(_serve(address, jobs or default_jobs("clone"), name, say, host))


def towards(scheduler: str) -> str:
    """The IP address of this machine that packets to a scheduler have as their source; sends none.

    Args:
        scheduler: with its protocol, ``tcp://10.0.0.1:8786``.

    Raises:
        OSError: there is no way to it.
        ValueError: it is no address.
    """
    host, port = get_address_host_port(scheduler)
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _check_scheme(address: str) -> None:
    scheme, separator, _ = address.partition("://")
    if not separator:
        return
    try:
        get_backend(scheme)
    except ValueError as error:
        raise ConfigurationError(
            f"{address}: Dask does not know '{scheme}://'",
            hint="'dask scheduler' says its address when it starts, such as tcp://10.0.0.1:8786",
        ) from error


def _reason(error: Exception) -> str:
    """Why a worker did not start, as one line: Dask wraps the reason."""
    return " ".join(str(error.__cause__ or error).split()) or "no answer"


async def _serve(address: str, jobs: int, name: str | None, say: Say, host: str | None) -> bool:
    memory = available_memory()
    works, reason = measure_kvm()
    # Without a QEMU build here that cannot be said yet; it is asked again when one has been sent.
    kvm = {} if works is None else {KVM: float(works)}
    folder = state_dir() / "worker"
    scheduler = address if "://" in address else f"tcp://{address}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        worker = Worker(
            scheduler,
            # By itself Dask listens on every interface, and runs what anybody sends there.
            host=host or towards(scheduler),
            nthreads=jobs,
            name=name or f"{socket.gethostname()}-{os.getpid()}",
            # What takes memory here is QEMU, which Dask does not see.
            memory_limit=0,
            resources={MEMORY: float(memory), **kvm},
            local_directory=str(folder),
            dashboard=False,
            # What is left of its web server is for this machine alone.
            dashboard_address="127.0.0.1:0",
            death_timeout=CONNECT_SECONDS,
        )
        await worker
    except (OSError, ValueError, RuntimeError) as error:
        raise InfrastructureError(
            f"the scheduler {address} cannot be reached, or does not take this worker: {_reason(error)}",
            hint="start one with 'dask scheduler'; --name gives the worker another name",
        ) from error
    say(
        f"worker {worker.name} at {worker.address} for {address}: {jobs} at once, {available_cores():g} cores, "
        f"memory {memory >> 20} MiB, kvm {int(bool(works))} ({reason})"
    )
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    waits = {asyncio.ensure_future(asked.wait()), asyncio.ensure_future(worker.finished())}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if asked.is_set():
        say(f"worker {worker.name} ends")
        # Its guests are ended by the plugins of its sessions; their threads are not waited for.
        await worker.close(executor_wait=False, reason="asked to end")
    for wait in waits:
        wait.cancel()
    return asked.is_set()
