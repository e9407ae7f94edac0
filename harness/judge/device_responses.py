"""What the driver says of a device's DMAs against the device's own log of them."""

from __future__ import annotations

from collections.abc import Iterator

from harness.results import Evidence, StepEvidence, Transfer

_DMA = ("dma_read", "dma_write")
_ENDS = ("reset", "close", "unbind", "unplug", "vanish", "surprise_removal")
_TIMEOUT = "DmaTimeout"
_OF_THE_RINGS = ("operate", "collect", *_DMA)
_REFUSED = {"read_refused": "read", "write_refused": "write"}


def response_problems(name: str, evidence: Evidence) -> Iterator[str]:
    """Where the driver's word on a request is not what the device did, in words.

    Args:
        name: the device.
        evidence: what ran.
    """
    handed = _Handed()
    for seen in evidence.steps:
        made = list(_made(seen, name))
        for one in (seen, *seen.children):
            if one.args.get("device") != name:
                continue
            where = f"step {seen.index} ({one.kind}): "
            if one.error is not None and one.error.type == _TIMEOUT:
                handed = _Handed(lost=True)  # the driver has disabled its rings
            elif one.kind == "operate" and one.args.get("wait") is False:
                handed.count += one.error is None
            elif one.kind == "collect":
                handed.transfers += made
                yield from (where + problem for problem in handed.collected(one))
            elif one.kind in _ENDS:
                handed = _Handed()
            elif one.error is None and not handed.count and _compared(seen, name):
                problem = _dma(one, made) if one.kind in _DMA else _operation(one, handed.not_late(made))
                if problem:
                    yield where + problem
        if handed.count and not any(one.kind == "collect" for one in (seen, *seen.children)):
            handed.transfers += made
        if any(one.kind in _OF_THE_RINGS and one.args.get("device") == name for one in seen.children):
            handed = _Handed(lost=True)  # each process sets up rings of its own


class _Handed:
    """Requests whose responses nobody has taken yet.

    Args:
        lost: there were some before whose responses nobody will take; they may still be done.
    """

    def __init__(self, *, lost: bool = False) -> None:
        self.count = 0
        self.transfers: list[Transfer] = []
        self._lost = lost

    def not_late(self, made: list[Transfer]) -> list[Transfer]:
        """The transfers of a step without those that a lost request may have made, which come late on purpose."""
        return [transfer for transfer in made if not (self._lost and transfer.note)]

    def collected(self, one: StepEvidence) -> Iterator[str]:
        """What is wrong with the responses that a step has taken."""
        statuses = one.values.get("statuses")
        if one.error is not None or not isinstance(statuses, list | tuple):
            return
        self.count = max(0, self.count - len(statuses))
        refused = {transfer.access for transfer in self.transfers if transfer.refused}
        for status in dict.fromkeys(statuses):
            if status in _REFUSED and _REFUSED[status] not in refused:
                yield f"the driver says {status}, the device made no {_REFUSED[status]} that was refused"
        if not self.count:
            if refused and not set(statuses) - {"done"}:
                yield f"the driver says done, the device tells of a refused {' and '.join(sorted(refused))}"
            self.transfers = []


def _compared(seen: StepEvidence, name: str) -> bool:
    news = seen.devices.get(name)
    return news is not None and news.connected


def _said_refused(status: object, made: list[Transfer], address: object) -> str:
    """What is wrong with the word that a DMA was refused; empty when nothing is."""
    access = _REFUSED[str(status)]
    pieces = [first for transfer in made if transfer.access == access for first, _ in transfer.refused]
    if not pieces:
        return f"the driver says {status}, the device made no {access} that was refused"
    if isinstance(address, int) and address not in pieces:
        return f"the driver says {status} at {address:#x}, the device made no {access} that was refused there"
    return ""


def _operation(one: StepEvidence, made: list[Transfer]) -> str:
    status = one.values.get("status")
    if one.kind != "operate":
        return ""
    if status in _REFUSED:
        return _said_refused(status, made, one.values.get("refused"))
    refused = next((transfer for transfer in made if transfer.refused), None)
    if status == "done" and refused is not None:
        return f"the driver says done, the device tells of a refused {refused.access} at {refused.refused[0][0]:#x}"
    return ""


def _dma(one: StepEvidence, made: list[Transfer]) -> str:
    status, iova, size = one.values.get("status"), one.values.get("iova"), one.args.get("size")
    if not isinstance(iova, int) or not isinstance(size, int):
        return ""
    if status in _REFUSED:
        return _said_refused(status, made, one.values.get("refused"))
    if status != "done" or any(transfer.note for transfer in made):
        return ""
    access = one.kind.removeprefix("dma_")
    there = [t for t in made if t.access == access and t.iova < iova + size and iova < t.iova + t.size]
    if any(transfer.refused for transfer in there):
        return f"the driver says done, the device tells of a refused {access} at {iova:#x}"
    return f"the driver says done, the device made no {access} at {iova:#x}" if size and not there else ""


def _made(seen: StepEvidence, name: str) -> Iterator[Transfer]:
    """The transfers of a device in a step, also those that it made as another function."""
    for other, news in seen.devices.items():
        for transfer in news.transfers:
            if other == name or transfer.note == "wrong_requester":
                yield transfer
