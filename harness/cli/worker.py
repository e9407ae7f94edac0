"""``harness worker``: this machine runs cells of qualifications that are started elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.handler import guarded, note
from harness.cli.options import examples, jobs_of
from harness.errors import FailureClass

EXAMPLES = examples(
    "dask scheduler --host 10.0.0.1", "harness worker tcp://10.0.0.1:8786", "harness worker 10.0.0.1:8786 -j 4"
)


def worker(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The scheduler, e.g. tcp://10.0.0.1:8786.")],
    jobs: Annotated[
        str, typer.Option("-j", "--jobs", metavar="auto|N", help="Cells at once; auto: by cores and memory.")
    ] = "auto",
    name: Annotated[str | None, typer.Option("--name", help="The worker's name in reports; else host and pid.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="IP", help="Listen on this address; else on the one that reaches the scheduler."
        ),
    ] = None,
) -> None:
    """Run cells for 'harness qualify --executor dask', as a worker of a Dask scheduler.

    It says what it has, and gets what it lacks (images, QEMU builds) from whoever qualifies. Anybody who reaches the
    scheduler or this worker can run code here: use a network that you trust, or TLS. It listens on the one address that
    reaches the scheduler, for a scheduler on 127.0.0.1 there alone; --host names another. Ctrl-C ends it and its
    guests.
    """

    def body() -> int:
        from harness.qualify.executor import no_extra

        try:
            from harness.qualify.remote.serve import serve
        except ModuleNotFoundError as error:
            raise no_extra("harness worker", error) from error
        if serve(address, jobs_of(jobs), name, note, host):
            return 0
        note(f"the scheduler {address} is gone; this worker ends")
        return FailureClass.INFRASTRUCTURE.exit_code

    raise typer.Exit(guarded(body))
