"""``harness worker`` where it cannot work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from harness.cli.app import app


def invoked(*words: str):
    return CliRunner().invoke(app, ["worker", *words])


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    for name in [one for one in sys.modules if one.startswith("harness.qualify.remote")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = invoked("tcp://127.0.0.1:1")
    assert done.exit_code == 2
    assert "harness worker needs Dask, which is not installed here" in done.stderr
    assert "pip install -e '.[dask]'" in done.stderr


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_a_wrong_number_of_cells_is_refused(jobs: str):
    done = invoked("tcp://127.0.0.1:1", "-j", jobs)
    assert done.exit_code == 2
    assert "--jobs takes a number" in done.stderr


def test_a_scheduler_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path):
    from harness.qualify.remote import serve

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(serve, "CONNECT_SECONDS", 0.3)
    done = invoked("127.0.0.1:1")
    assert done.exit_code == 8
    assert "the scheduler 127.0.0.1:1 cannot be reached" in done.stderr
    assert "dask scheduler" in done.stderr


def test_it_listens_where_the_scheduler_is_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path):
    import asyncio

    import psutil
    from distributed import Scheduler

    from harness.qualify.remote import serve

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def listening() -> set[tuple[str, int]]:
        found = psutil.Process().net_connections("tcp")
        return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}

    async def listened(host: str | None) -> list[str]:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            before, ready = listening(), asyncio.Event()
            work = asyncio.create_task(serve._serve(scheduler.address, 1, "w", lambda _: ready.set(), host))
            await asyncio.wait({work, waits := asyncio.create_task(ready.wait())}, return_when="FIRST_COMPLETED")
            assert waits.done(), work.exception()
            found = [ip for ip, _ in listening() - before]
            await scheduler.close()
            assert await work is False
        return found

    # Two ports: Dask's own, and what is left of its web server.
    assert asyncio.run(listened(None)) == ["127.0.0.1", "127.0.0.1"]
    assert sorted(asyncio.run(listened("127.0.0.2"))) == ["127.0.0.1", "127.0.0.2"]


@pytest.fixture
def dask_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Dask's worker logs, which goes past the root logger."""
    logger = logging.getLogger("distributed.worker")
    level = logger.level
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_an_address_that_dask_does_not_know_is_a_mistake_of_the_user(dask_log: pytest.LogCaptureFixture):
    done = invoked("foo://bar")
    assert done.exit_code == 2
    assert "error: foo://bar: Dask does not know 'foo://'" in done.stderr
    assert not dask_log.records


@pytest.mark.parametrize(
    ("address", "said"), [("tls://127.0.0.1:1", "TLS"), ("tcp://127.0.0.1:x", "invalid"), ("127.0.0.1", "missing port")]
)
def test_a_start_that_fails_is_told_in_a_line(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path, dask_log: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = invoked(address)
    assert done.exit_code == 8
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "does not take this worker: " in line
    assert said in line
    assert not dask_log.records
