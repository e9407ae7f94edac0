"""The commands in groups, in the order in which they are needed; and the main job in a dozen lines."""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperGroup

from harness.cli.handler import EXIT_CODES

GROUPS: Final = {
    "Run and look": ("run", "report", "shell"),
    "Write scenarios": ("list", "lint"),
    "A fault that somebody saw": ("explain", "repro"),
    "Say where a release works": ("qualify", "worker"),
    "This host": ("doctor", "fetch", "image", "qemu", "template"),
}
"""Every command, by the heading under which ``harness --help`` has it."""

# The whole sentence that a command's help begins with is shown, however long.
_WHOLE: Final = 200

HELP: Final = """Boot QEMU guests with a vIOMMU, run USDM in them, and judge DMA and DMA faults.

\b
The main job:
  harness doctor                                  what this host can do
  harness run --fetch scenarios/dma               get what is needed, run a folder
  harness run scenarios/dma/unmapped_read.yaml    one scenario
  harness run --qemu 7.2 --qemu 11.1 --kernel 6.12 --kernel 7.2    on each of them
  harness report FOLDER --evidence                why it failed; the run names FOLDER
  harness shell SCENARIO                          a root shell in such a guest
  dmesg | harness explain                         what a customer's line means
  dmesg | harness repro                           the same fault here
  harness qualify scenarios/smoke.yaml --fetch    a matrix, kept and resumed

What is fetched goes to the cache folder, what runs leave to the state folder; nothing is installed, and no root is
needed. 'harness COMMAND --help' has examples. The documents are in docs/, scenarios in scenarios/."""

EPILOG: Final = EXIT_CODES


class GroupedCommands(TyperGroup):
    """A group whose help shows its commands below the headings of ``GROUPS``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, each with the whole first sentence of its help."""
        for title, names in GROUPS.items():
            commands = ((name, self.get_command(ctx, name)) for name in names)
            rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in commands if command is not None]
            with formatter.section(title):
                formatter.write_dl(rows)
