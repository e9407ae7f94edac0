"""Steps about PCI functions: VFIO without an IOMMU, VFs switched on and off, functions taken away while in use."""

from __future__ import annotations

import os

from harness.agent import pci
from harness.agent.outcome import NoSriov, NotSet, Outcome
from usdm import vfio_uapi as uapi
from usdm.vfio import full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


NOIOMMU_PARAMETER = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def noiommu(_context: Context, args: dict[str, Any]) -> Outcome:
    """Allow VFIO without an IOMMU, or forbid it. A device that is bound to vfio-pci already stays as it is.

    Raises:
        NotSet: The kernel was built without CONFIG_VFIO_NOIOMMU, has no VFIO, or refused.
    """
    try:
        pci.write(NOIOMMU_PARAMETER, "Y" if args["enabled"] else "N")
    except FileNotFoundError:
        raise NotSet("this kernel has no no-IOMMU mode (CONFIG_VFIO_NOIOMMU)") from None
    except OSError as error:
        raise NotSet(f"enable_unsafe_noiommu_mode: {os.strerror(error.errno or 0)}") from error
    return Outcome()


def enable_vfs(context: Context, args: dict[str, Any]) -> Outcome:
    """Switch SR-IOV of an open PF on, and set the VFs online that have names; values: counts (vfs, groups), vfs.

    The PF must be a bus master: it manages its VFs' controllers by commands.

    Raises:
        NoSriov, TooManyVfs, VfsEnabled: See `harness.agent.sriov`.
        StepError: The PF's controller refused, or the kernel did for another reason.
    """
    from harness.agent import nvme_virtual, sriov
    from harness.agent.nvme import Nvme

    name, address = args["device"], context.address(args["device"])
    pf = context.device(name)
    enabled, _ = sriov.count(address)
    if not isinstance(pf, Nvme):
        raise NoSriov(f"{address} is no NVMe controller")
    if not enabled:
        nvme_virtual.release_flexible(pf)
    token = os.urandom(uapi.VF_TOKEN_SIZE)
    pf.device.set_vf_token(token)
    context.vf_tokens[name] = token
    sriov.enable(address, args["count"])
    vfs = sriov.functions(address)
    wanted = [full_bdf(context.address(vf)) for vf, of in context.pf_of.items() if of == name]
    nvme_virtual.set_online(pf, [number for number, vf in enumerate(vfs, 1) if vf in wanted])
    counts = {"vfs": sriov.count(address)[0], "groups": len(sriov.groups([address, *vfs]))}
    return Outcome(values={"counts": counts, "vfs": vfs})


def _take_away(context: Context, names: list[str], path: str, text: str) -> Outcome:
    """Have the kernel take functions away; values: counts (closed), asked (names of the devices that it asked for)."""
    from harness.agent import sriov

    devices = {name: context.devices[name].device for name in names if name in context.devices}
    asked = sriov.take_away(path, text, devices, context.give_back)
    return Outcome(values={"counts": {"closed": len(asked)}, "asked": asked})


def _vfs_of(context: Context, pf: str) -> list[str]:
    return [vf for vf, of in context.pf_of.items() if of == pf]


def disable_vfs(context: Context, args: dict[str, Any]) -> Outcome:
    """Switch SR-IOV of a PF off; open VFs are closed when the kernel asks. Values: counts (vfs, closed), asked."""
    from harness.agent import sriov

    name = args["device"]
    address = context.address(name)
    sriov.count(address)
    outcome = _take_away(context, _vfs_of(context, name), f"{pci.folder(address)}/sriov_numvfs", "0")
    context.vf_tokens.pop(name, None)
    outcome.values["counts"]["vfs"] = sriov.count(address)[0]
    return outcome


def unbind(context: Context, args: dict[str, Any]) -> Outcome:
    """Take a function away from vfio-pci; it is closed when the kernel asks. Values: counts (closed), asked."""
    name = args["device"]
    address = context.address(name)
    path = f"{pci.folder(address)}/driver/unbind"
    return _take_away(context, [name, *_vfs_of(context, name)], path, full_bdf(address))


def unplug(context: Context, args: dict[str, Any]) -> Outcome:
    """Have the kernel remove a function; it is closed when the kernel asks. Values: counts (closed), asked.

    Raises:
        NotTaken: The function is not there, or it is a VF, which the kernel removes with its PF's SR-IOV only.
    """
    name = args["device"]
    path = f"{pci.folder(context.address(name))}/remove"
    return _take_away(context, [name, *_vfs_of(context, name)], path, "1")


STEPS: dict[str, Step] = {
    "noiommu": noiommu,
    "enable_vfs": enable_vfs,
    "disable_vfs": disable_vfs,
    "unbind": unbind,
    "unplug": unplug,
}
