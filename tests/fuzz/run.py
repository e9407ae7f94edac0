"""Generated sequences of USDM calls on the real kernel and a device, in guests.

The sequences, and what must come of each call, are those of ``tests/property/sequences.py``. Run it with
``nox -s fuzz -- --steps 2000 --seed 1``. A failure is made as small as it gets and left as a scenario file, which fails
the same way under ``harness run``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from fuzz_guests import Guests
from fuzz_session import Fuzz

from harness.cli.handler import guarded
from harness.run.options import RunOptions


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="how many steps at least (default: 2000)")
    parser.add_argument("--seed", type=int, help="the same seed draws the same sequences (default: a new one)")
    parser.add_argument("--usdm", type=Path, help="folder of another usdm package that is under test")
    parser.add_argument("--implementation", choices=("usdm", "libusdm"), default="usdm", help="what the steps run on")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failure.yaml"), help="the scenario file of a failure")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for the steps of a sequence")
    parser.add_argument("--shrink", type=float, default=120.0, help="seconds for making a failure small")
    parser.add_argument("--fetch", action="store_true", help="build or fetch what the cache lacks")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 32)
    return args


def main() -> int:
    """Run a session and give the exit code: 0, 1 for a failure, or that of a guest that did not work."""
    args = arguments()
    options = RunOptions(usdm=args.usdm, implementation=args.implementation, fetch=args.fetch, timeout=args.timeout)
    with tempfile.TemporaryDirectory(prefix="harness-fuzz-") as folder:
        scratch = Path(folder)
        guests = Guests(options, scratch, lambda text: print(f"  {text}", flush=True))
        has_statistics = args.implementation == "usdm"
        return Fuzz(guests, scratch, args.out, args.seed, args.shrink, has_statistics).run(args.steps)


if __name__ == "__main__":
    sys.exit(guarded(main))
