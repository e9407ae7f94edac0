"""From errors to messages and exit codes, in one place."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Final

from harness.errors import INTERRUPTED, HarnessError

DEFECT: Final = 70
# ``explain`` has read everything, and there was no fault in it.
NO_FAULT: Final = 9
# What a shell reports for a program that SIGPIPE ended. Not 0: a run whose reader went away has not passed.
READER_GONE: Final = 141

EXIT_CODES: Final = """\b
Exit codes; of several the largest of 1 to 8 wins:
    0  all passed
    1  an expectation failed
    2  configuration: a file or an option is wrong, or nothing was run
    3  boot: a guest did not become ready
    4  panic
    5  hang
    6  lost guest
    7  emulator crash
    8  infrastructure: a download, the disk, a missing program
    9  explain: no fault in the log
   70  a defect of harness
  130  Ctrl-C: interrupted
  141  the reader of the output went away"""


class _Settings:
    debug = False


def set_debug(debug: bool) -> None:
    """Choose whether a defect shows its traceback."""
    _Settings.debug = debug


def guarded(body: Callable[[], int]) -> int:
    """Run a command and give the exit code; a mistake of the user never shows a traceback."""
    try:
        status = body()
        # What is still buffered is written here, where a reader that has gone is dealt with.
        sys.stdout.flush()
    except HarnessError as error:
        tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (``harness list | head``). Nothing more can be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:
        print(f"error: this is a defect of harness: {type(error).__name__}: {error}", file=sys.stderr)
        if _Settings.debug:
            traceback.print_exc()
        else:
            print("hint: 'harness --debug ...' or HARNESS_DEBUG=1 shows where it happened", file=sys.stderr)
        return DEFECT
    return status


def tell(error: HarnessError) -> None:
    """Print an error and its hint; of a scenario error every problem, each with its own hint."""
    problems = getattr(error, "problems", ())
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def note(text: str) -> None:
    """Say something beside the output."""
    print(text, file=sys.stderr, flush=True)
