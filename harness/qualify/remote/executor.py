"""The executor that has cells run by Dask's workers."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Final

from harness.errors import ConfigurationError
from harness.qualify.executor import Ended, Work
from harness.qualify.remote.dispatch import Dispatch
from harness.results import Progress
from harness.run.crew import on_sigint

WAIT_SECONDS: Final = 30.0
"""How long a worker is waited for when there is none."""
# Dask gives each a level of its own.
_LOGGERS: Final = ("distributed", "distributed.client")
_SCHEMES: Final = ("tcp", "tls", "ucx", "ws", "wss", "inproc")


class DaskExecutor:
    """Runs cells on the workers of a Dask scheduler.

    Args:
        address: the scheduler's, e.g. ``tcp://10.0.0.1:8786``.
        wait: seconds to wait for a worker when there is none.

    Raises:
        ConfigurationError: it is no address.
    """

    def __init__(self, address: str, *, wait: float = WAIT_SECONDS) -> None:
        scheme, separator, rest = address.partition("://")
        if (separator and scheme not in _SCHEMES) or not (rest or scheme):
            raise ConfigurationError(
                f"--scheduler {address} is no address of a Dask scheduler",
                hint="it is what the scheduler says that it listens at, e.g. tcp://10.0.0.1:8786",
            )
        self._address = address if separator else f"tcp://{address}"
        self._wait = wait

    @property
    def name(self) -> str:
        """``dask`` and the scheduler's address."""
        return f"dask {self._address}"

    def run(self, work: Work, progress: Progress) -> Ended:
        """As ``Executor.run``; results are handed over in the thread that calls this.

        Raises:
            InfrastructureError: the scheduler cannot be reached or was lost, no worker has what a cell needs, or there
                is no worker.
        """
        # What Dask's log says of a lost connection is told in our words.
        for logger in _LOGGERS:
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        return asyncio.run(self._run(work, progress))

    async def _run(self, work: Work, progress: Progress) -> Ended:
        loop = asyncio.get_running_loop()
        dispatch = Dispatch(self._address, uuid.uuid4().hex[:12], work, progress, self._wait)
        with on_sigint(lambda: loop.call_soon_threadsafe(dispatch.interrupt)):
            return await dispatch.run()
