"""What the log of a function's transfers counts and says."""

from __future__ import annotations

import errno

import pytest
from client import Client, within
from telling import tell

from harness.device.dma import DmaError, Transfer, TransferLog
from harness.device.server import FunctionServer
from harness.device.wire import Access


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_bytes_of_a_transfer_that_was_cancelled_do_not_count(access: Access) -> None:
    log = TransferLog()
    log.add(Transfer(access, 0x1000, 16, True, error=errno.ECANCELED, cut=True))
    assert (log.bytes_read, log.bytes_written, log.errors) == (0, 0, 0)
    (kept,), more = log.news()
    assert (kept["error"], kept["cut"], more) == ("ECANCELED", True, 0)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_it_says_whether_the_function_was_a_bus_master(access: Access, on: bool) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.bus_master(on)
        dma = server.model.dma
        with pytest.raises(DmaError):
            await within(dma.read(0x1000, 8) if access is Access.READ else dma.write(0x1000, bytes(8)))
        (transfer,), _ = dma.log.news()
        assert (transfer["access"], transfer["bus_master"]) == (access.name.lower(), on)

    tell(story)
