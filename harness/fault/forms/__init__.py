"""The forms in which systems print a fault, one file for each; ``reader`` brings the lines to them."""

from harness.fault.forms.amd import AmdForm
from harness.fault.forms.arm import ArmForm
from harness.fault.forms.common import ESCAPES, PATIENCE, Form, Found, Line
from harness.fault.forms.freebsd import FreebsdForm
from harness.fault.forms.virtio import VirtioForm
from harness.fault.forms.vtd import VtdForm

__all__ = ["ESCAPES", "PATIENCE", "Form", "Found", "Line", "all_forms"]


def all_forms() -> tuple[Form, ...]:
    """One reader of each form, for one log."""
    return (VtdForm(), AmdForm(), VirtioForm(), ArmForm(), FreebsdForm())
