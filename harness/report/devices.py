"""What a device whose model runs beside QEMU saw in a step, in a few words."""

from __future__ import annotations

from harness.results import DeviceNews


def devices_text(name: str, news: DeviceNews) -> str:
    """``qat0: 3 DMAs, 1 refused; reaches 2 ranges``; empty when nothing happened and nothing changed."""
    parts = []
    count = len(news.transfers) + news.more
    if count:
        refused = sum(bool(transfer.refused) for transfer in news.transfers)
        parts.append(f"{count} DMA{'s' * (count != 1)}" + (f", {refused} refused" if refused else ""))
    if not news.connected:
        parts.append("gone")
    elif news.ranges is not None:
        reach = sum(run[3] for run in news.ranges)
        parts.append(f"reaches {reach} range{'s' * (reach != 1)}" if reach else "reaches nothing")
    return f"{name}: {'; '.join(parts)}" if parts else ""
