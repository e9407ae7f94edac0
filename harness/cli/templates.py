"""The commands for templates: the frozen guests in the cache that every guest is cloned from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.handler import guarded, note, tell
from harness.cli.options import (
    Accel,
    AccelOption,
    AsJson,
    BootTimeout,
    Fetch,
    Kernel,
    Mirror,
    Offline,
    Paths,
    Qemu,
    Usdm,
    examples,
    kernel_is_default,
)

if TYPE_CHECKING:
    from harness.run.templates import Built, Listed

template_app = typer.Typer(
    help="Templates, booted once, that guests are cloned from.\n\nEach is a guest that was booted and frozen. They are "
    "kept in the cache, and a run makes those that it needs.",
    no_args_is_help=True,
)
_DIGITS = 12
_CONSOLE_LINES = 8


def _say(text: str) -> None:
    print(text, flush=True)


@template_app.command("list", epilog=examples("harness template list", "harness template list --json"))
def template_list(as_json: AsJson = False) -> None:
    """List the templates in the cache.

    The newest comes first. One is current when scenarios that come along, or a shell, would be cloned from it now: with
    the usdm of the working tree, and a QEMU build and an image that are here.
    """

    def body() -> int:
        from harness.run.templates import kernel_of, list_known

        known = list_known()
        if as_json:
            _say(json.dumps([one.as_dict() for one in known]))
            return 0
        if not known:
            _say("no templates: a run makes those that it needs, 'harness template build' makes them ahead of it")
            return 0
        rows = [("key", "QEMU", "kernel", "accel", "machine", "RAM", "size", "created", "")]
        for one in known:
            facts = one.template.facts
            rows.append(
                (
                    one.template.key[:_DIGITS],
                    str(facts["qemu"]),
                    kernel_of(one.template),
                    str(facts["accelerator"]),
                    str(facts["machine"]),
                    str(one.template.method),
                    _size(one.disk_bytes),
                    one.template.created,
                    "current" if one.current else "",
                )
            )
        _table(rows)
        others = sum(not one.current for one in known)
        _say(
            f"{_templates(len(known))}, {_size(sum(one.disk_bytes for one in known))}"
            + (f"; 'harness template prune' removes the {others} that are not current" if others else "")
        )
        return 0

    raise typer.Exit(guarded(body))


@template_app.command(
    "build",
    epilog=examples(
        "harness template build",
        "harness template build scenarios/dma --usdm my/usdm",
        "harness template build --fetch --qemu 7.2 --qemu 11.1 --kernel 6.12 --kernel 7.2",
        "harness template build --json",
    ),
)
def template_build(
    context: typer.Context,
    paths: Paths = None,
    qemu: Qemu = ["11.1"],  # noqa: B006 - typer copies it
    kernel: Kernel = ["6.12"],  # noqa: B006
    accel: AccelOption = Accel.AUTO,
    usdm: Usdm = None,
    boot_timeout: BootTimeout = 120.0,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
    as_json: AsJson = False,
) -> None:
    """Make the templates that scenarios need.

    'harness run' makes them too, on its way. Each is said to be here already, made, or failed. The exit code is that of
    the worst failure.
    """

    def body() -> int:
        from harness.errors import worst_exit_code
        from harness.run.options import RunOptions
        from harness.run.templates import build_template, find_needs

        options = RunOptions(
            paths=tuple(paths or ()),
            qemu=tuple(qemu),
            kernels=tuple(kernel),
            auto_kernel=kernel_is_default(context),
            accel=accel.value,
            usdm=usdm,
            boot_timeout=boot_timeout,
            fetch=fetch,
            offline=offline,
            mirror=mirror,
        )
        needs = find_needs(options, note)
        built = [build_template(wanted, options, note) for wanted in needs.templates]
        if as_json:
            document = {"templates": [one.as_dict() for one in built], "skipped": needs.skipped}
            _say(json.dumps(document))
        else:
            _table([_row(one) for one in built])
            for name, reason in needs.skipped.items():
                _say(f"skipped, so without a template: {name} ({reason})")
        for one in built:
            _tell_failure(one)
        return worst_exit_code([one.error.failure_class for one in built if one.error])

    raise typer.Exit(guarded(body))


@template_app.command(
    "prune", epilog=examples("harness template prune", "harness template prune --all", "harness template prune --json")
)
def template_prune(
    everything: Annotated[bool, typer.Option("--all", help="Remove the current ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the templates that are not current.

    'harness template list' says which are. A guest that runs from a removed one goes on. What is needed again is made
    again.
    """

    def body() -> int:
        from harness.run.templates import prune

        removed, left = prune(note if as_json else _say, everything=everything)
        size = sum(one.disk_bytes for one in removed)
        if as_json:
            _say(json.dumps({"removed": [_removed(one) for one in removed], "disk_bytes": size, "left": left}))
        else:
            _say(f"{len(removed)} removed, {_size(size)}; {left} left")
        return 0

    raise typer.Exit(guarded(body))


def _removed(one: Listed) -> dict[str, object]:
    return {name: value for name, value in one.as_dict().items() if name != "folder"}


def _row(one: Built) -> tuple[str, ...]:
    facts = one.wanted.facts
    number = len(one.wanted.scenarios)
    return (
        one.state,
        one.wanted.key[:_DIGITS],
        str(facts["name"]),
        one.wanted.kernel,
        str(facts["accelerator"]),
        str(facts["machine"]),
        _size(one.disk_bytes) if one.disk_bytes else "",
        f"{one.seconds:.1f} s" if one.state != "here" else "",
        f"for {number} scenario{'s' * (number != 1)}",
    )


def _tell_failure(one: Built) -> None:
    if one.error is None:
        return
    from harness.report.text import one_line

    note(f"{one.wanted.key[:_DIGITS]} failed:")
    tell(one.error)
    for line in one.error.context.get("console", "").splitlines()[-_CONSOLE_LINES:]:
        note(f"console: {one_line(line)}")


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _templates(number: int) -> str:
    return f"{number} template{'s' * (number != 1)}"


def _size(number: int) -> str:
    return f"{number >> 20} MiB"
