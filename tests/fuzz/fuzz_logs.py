"""Any bytes, and the golden corpus taken apart and put together again, through the reader of logs.

Of each case it is asked that nothing is raised, that the ends of chunks change nothing, and that what was found can be
explained. Run it with ``nox -s fuzz_logs -- --cases 100000 --seed 1``. A case that fails is left as a file.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "property"))
from log_cases import CORPUS, cut_up, read, read_chunks, same_or_less

from harness.fault.decode import Context
from harness.fault.explain import explain_record
from harness.fault.pci import Pf, Requester
from harness.report.explain import explanation_text
from harness.results import LogExplanation

PF = Requester.parse("02:00.0")
assert PF is not None
CONTEXT = Context(pfs=(Pf(PF, 1, 1, 64),), aw_bits=39, ranges=())
NUMBERS = (b"0", b"ffffffffffffffff", b"0x", b"g", b"7fffffff", b"99999999999999999999", b"-1")
LONGEST = 100_000


def random_bytes(rng: random.Random) -> bytes:
    """Bytes of any value, often of those that logs are made of."""
    alphabet = rng.choice([bytes(range(256)), b"\n\r\0\x1b[", b" []:.0123456789abcdefx\n", b"DMAR faultreq\n[]"])
    return bytes(rng.choices(alphabet, k=rng.randrange(400)))


def mutated(rng: random.Random) -> bytes:
    """A log of the corpus with bytes changed, taken out, doubled, or numbers put in."""
    log = bytearray(rng.choice(CORPUS))
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(log) + 1)
        match rng.randrange(5):
            case 0:
                log[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del log[at : at + rng.randrange(1, 30)]
            case 2:
                log[at:at] = log[at : at + rng.randrange(1, 200)]
            case 3:
                log[at:at] = rng.choice(NUMBERS)
            case _:
                log[at:at] = rng.choice([b"\n", b"\r", b"\0", b" ", b"\x1b[1m", b"\xff"])
    return bytes(log)


def spliced(rng: random.Random) -> bytes:
    """Pieces of several logs one behind the other, as when CPUs print at once."""
    pieces = []
    for _ in range(rng.randrange(1, 8)):
        log = rng.choice(CORPUS)
        start = rng.randrange(len(log) + 1)
        pieces.append(log[start : start + rng.randrange(1, 200)])
    return rng.choice([b"", b"\n", b" "]).join(pieces)


def long_line(rng: random.Random) -> bytes:
    """One line longer than the pieces in which long lines are read."""
    unit = spliced(rng).replace(b"\n", b" ") or b" "
    return (unit * (LONGEST // len(unit) + 1))[:LONGEST]


def one_case(rng: random.Random) -> bytes:
    """Bytes for the reader."""
    makers: list[Callable[[random.Random], bytes]] = [random_bytes, mutated, spliced]
    return long_line(rng) if rng.randrange(200) == 0 else rng.choice(makers)(rng)


def check(log: bytes, rng: random.Random) -> int:
    """Ask of a case what must hold; gives the number of faults in it."""
    whole = read_chunks([log])
    sizes = [rng.randrange(1, max(2, len(log))) for _ in range(rng.randrange(4))]
    assert read_chunks(cut_up(log, sizes)) == whole, "the ends of chunks change what is found"
    found = LogExplanation(explanations=tuple(explain_record(record, CONTEXT) for record in whole[0]))
    assert explanation_text(found)
    for record in whole[0]:
        assert 1 <= record.line <= log.count(b"\n") + 1
        assert Requester.parse(record.requester) is not None, record.requester
    return len(whole[0])


def session(cases: int, seed: int, failed: Callable[[bytes], None]) -> int:
    """Run so many cases; gives the number of faults that were found in them."""
    rng = random.Random(seed)
    faults = 0
    for _ in range(cases):
        log = one_case(rng)
        try:
            faults += check(log, rng)
            if rng.randrange(10) == 0:
                original = rng.choice(CORPUS)
                log = original[: rng.randrange(len(original) + 1)]
                same_or_less(log, original)
        except Exception:
            failed(log)
            raise
    return faults


def main() -> int:
    """Run a session and give the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="how many cases (default: 100,000)")
    parser.add_argument("--seed", type=int, help="the same seed draws the same cases (default: a new one)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failure.log"), help="the bytes of a failure")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    print(f"{args.cases} cases, seed {seed}", flush=True)

    def failed(log: bytes) -> None:
        args.out.write_bytes(log)
        print(f"FAILED: {len(log)} bytes in {args.out}, {len(read(log))} faults, seed {seed}", file=sys.stderr)

    faults = session(args.cases, seed, failed)
    print(f"nothing was raised; {faults} faults in {args.cases} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
