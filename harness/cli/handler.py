"""From errors to messages and exit codes, in one place."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from harness.errors import HarnessError

INTERRUPTED = 130
DEFECT = 70

EXIT_CODES = """Exit codes; of several the largest wins:

0 all passed · 1 an expectation failed · 2 configuration (a file or option is wrong, or there was nothing to run) ·
3 boot · 4 panic · 5 hang · 6 lost guest · 7 emulator crash · 8 infrastructure · 70 a defect of harness · 130 Ctrl-C
"""


def guarded(body: Callable[[], int]) -> int:
    """Run a command and give the exit code; a mistake of the user never shows a traceback."""
    try:
        return body()
    except HarnessError as error:
        tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (``harness list | head``). Nothing more can be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"error: this is a defect of harness: {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("HARNESS_DEBUG"):
            traceback.print_exc()
        else:
            print("hint: HARNESS_DEBUG=1 shows where it happened", file=sys.stderr)
        return DEFECT


def tell(error: HarnessError) -> None:
    """Print an error and its hint; of a scenario error every problem."""
    problems = getattr(error, "problems", ())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
