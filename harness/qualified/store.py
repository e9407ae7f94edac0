"""A qualification read from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from harness.qualified.database import Session, Store
from harness.qualified.known import excused, stale
from harness.qualified.records import Comparison, KnownFailure, NotRun, Qualification, QualifiedCell, counting
from harness.results import CellResult, Outcome


def load_qualification(folder: Path) -> Qualification:
    """Read a qualification, finished or not.

    Args:
        folder: its folder.

    Raises:
        ConfigurationError: the folder has none, or one of another version of harness.
        InfrastructureError: the file is damaged, or cannot be read.
    """
    store = Store.open(folder)
    try:
        return read(store)
    finally:
        store.close()


def read(store: Store) -> Qualification:
    """What an open file holds; errors as :func:`load_qualification`."""
    facts, sessions, planned = store.facts, store.sessions, store.planned
    attempts: dict[tuple[str, str], list[CellResult]] = {}
    for name, fingerprint, result in store.results():
        attempts.setdefault((name, fingerprint), []).append(result)
    known = tuple(KnownFailure.model_validate(one) for one in facts.get("known", ()))
    day = date.fromisoformat(facts["day"]) if "day" in facts else date.max
    cells, seen = [], []
    not_run = [NotRun.model_validate(one) for one in facts.get("not_run", ())]
    skipped = 0
    for one in planned:
        # Results of what has changed since are no results of this cell.
        results = attempts.get((one.name, one.fingerprint))
        if not results:
            continue
        counts = counting(results)
        if counts.outcome is Outcome.SKIP:
            # What was not there is found out before, but for what only a worker can say.
            not_run.append(NotRun(scenario=one.scenario, point=dict(one.point), reason=counts.message))
            skipped += 1
            continue
        entry, note = excused(known, one.scenario, one.labels, counts, day)
        seen.append((one.scenario, one.labels, counts))
        cells.append(
            QualifiedCell(
                name=one.name,
                scenario=one.scenario,
                point=dict(one.point),
                attempts=tuple(results),
                fingerprint=one.fingerprint,
                known=entry,
                note="; ".join(filter(None, (one.note, note, _later(results, counts)))),
            )
        )
    return Qualification(
        title=facts.get("title", ""),
        matrix=facts.get("matrix", ""),
        axes={axis: tuple(values) for axis, values in facts.get("axes", {}).items()},
        started=sessions[0].started if sessions else "",
        argv=sessions[-1].argv if sessions else (),
        host=sessions[-1].host if sessions else {},
        cells=tuple(cells),
        not_run=tuple(not_run),
        planned=len(planned) - skipped,
        seconds=round(sum(one.seconds for one in sessions), 3),
        jobs=sessions[-1].jobs if sessions else 1,
        executor=sessions[-1].executor if sessions else "local",
        stale=stale(known, seen),
        comparison=None if not facts.get("comparison") else Comparison.model_validate(facts["comparison"]),
        slower=facts.get("slower", 1.5),
        notes=tuple(dict.fromkeys((*_notes(sessions), *facts.get("notes", ())))),
    )


def _later(attempts: Sequence[CellResult], counts: CellResult) -> str:
    """What became of a failed expectation when it was tried again all the same."""
    if counts is attempts[-1]:
        return ""
    last = attempts[-1].outcome
    return "passed when it was run again" if last is Outcome.PASS else f"ended with {last} when it was run again"


def _notes(sessions: Sequence[Session]) -> Iterator[str]:
    """What happened beside in the sessions. Of the last one without an end nobody knows whether it still runs."""
    for one in sessions:
        which = f"session {one.number}" if len(sessions) > 1 else "it"
        if one.ended == "interrupted":
            yield f"{which} was interrupted by Ctrl-C"
        elif one.ended == "failed" or (not one.ended and one is not sessions[-1]):
            yield f"{which} ended before it was done"
        yield from one.notes
