"""What each device model can copy in one DMA."""

from __future__ import annotations

from harness.scenario.args import DmaArgs

QAT_MODELS = ("qat", "qat_vf")
"""The models that a process beside QEMU serves."""

EDU_BYTES = 4096
"""Bytes of edu's own; what goes beyond them can corrupt the memory of some QEMU versions."""

NVME_BYTES = 16 << 20
"""Bytes of an nvme's namespace, which its VFs have too."""

QAT_BYTES = 16 << 20
"""Bytes of a QAT-like device's own, and the most that it copies at once."""

QAT_BUFFERS = 255
"""Buffers that a scatter list of a QAT-like device has at most."""

SECTOR = 512
NVME_LONGEST = 512 << 10


def dma_problem(model: str, args: DmaArgs) -> tuple[str, str, str] | None:
    """What a device cannot do of a DMA: the key of the argument, the message and a hint; None when it can.

    Args:
        model: the device's model.
        args: the DMA.
    """
    if model == "edu":
        return _edu(args)
    if model in QAT_MODELS:
        return _qat(args)
    return _nvme(args) if model in ("nvme", "vf") else None


def _inside(args: DmaArgs, size: int) -> tuple[str, str] | None:
    if args.device_offset + args.size <= size:
        return None
    found = f"{args.device_offset} + {args.size} = {args.device_offset + args.size}"
    return "device_offset", f"expected device_offset + size of at most {size}, found {found}"


def _edu(args: DmaArgs) -> tuple[str, str, str] | None:
    if not 1 <= args.size <= EDU_BYTES:
        hint = f"an edu has {EDU_BYTES} bytes of its own; use several steps, or an nvme"
        return "size", f"expected a DMA size from 1 to {EDU_BYTES}, found {args.size}", hint
    beyond = _inside(args, EDU_BYTES)
    hint = "what goes beyond the device's own bytes can corrupt the memory of QEMU itself"
    return beyond and (*beyond, hint)


def _qat(args: DmaArgs) -> tuple[str, str, str] | None:
    if not 1 <= args.size <= QAT_BYTES:
        hint = "a QAT-like device copies that much at once; use several steps"
        return "size", f"expected a DMA size from 1 to 16M, found {args.size}", hint
    beyond = _inside(args, QAT_BYTES)
    return beyond and (*beyond, f"a QAT-like device has {QAT_BYTES >> 20} MiB of its own")


def _nvme(args: DmaArgs) -> tuple[str, str, str] | None:
    if not SECTOR <= args.size <= NVME_LONGEST or args.size % SECTOR:
        hint = f"an nvme copies whole sectors of {SECTOR} bytes; an edu copies single bytes"
        return "size", f"expected a DMA size from 512 to 512K in whole sectors, found {args.size}", hint
    if args.device_offset % SECTOR:
        message = f"expected a device_offset at a sector, a multiple of {SECTOR}, found {args.device_offset}"
        return "device_offset", message, "an nvme keeps its bytes in sectors"
    if args.iova is not None and args.iova % 4:
        return "iova", f"expected an IOVA that is a multiple of 4, found {args.iova:#x}", "NVMe addresses whole dwords"
    if args.offset % 4:
        return (
            "offset",
            f"expected an offset that is a multiple of 4, found {args.offset}",
            "NVMe addresses whole dwords",
        )
    beyond = _inside(args, NVME_BYTES)
    return beyond and (*beyond, f"the namespace has {NVME_BYTES >> 20} MiB")
