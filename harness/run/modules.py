"""The test module as runs need it: for which kernels, and how it is got."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import ConfigurationError
from harness.image.build import build_image
from harness.image.cache import Say
from harness.image.module import fetch_module, module_kernels, unsupported
from harness.image.recipe import recipe_for_kernel
from harness.run.options import RunOptions


def check_modules(kernels: Iterable[str]) -> None:
    """Check that there is a test module for some kernels, as ``--kernel`` names them.

    Raises:
        ConfigurationError: there is no such kernel, or no module for it.
    """
    for recipe in map(recipe_for_kernel, kernels):
        reason = unsupported(recipe)
        if reason is not None:
            raise ConfigurationError(
                f"there is no test module for {recipe.kernel}: {reason}",
                hint=f"--module takes: {', '.join(module_kernels())}",
            )


def fetch_modules(kernels: Iterable[str], options: RunOptions, say: Say) -> None:
    """Build the test module for some kernels, and the images that it is for.

    Args:
        kernels: as ``--kernel`` names them.
        options: where from.
        say: told what goes on.

    Raises:
        ConfigurationError: as :func:`check_modules`; nothing was fetched then.
        InfrastructureError: a download, the disk, or the compiler failed.
    """
    wanted = list(dict.fromkeys(kernels))
    # What the user wrote is checked before anything is fetched.
    check_modules(wanted)
    for recipe in map(recipe_for_kernel, wanted):
        image = build_image(recipe.name, mirror=options.mirror, offline=options.offline, say=say)
        module = fetch_module(image, mirror=options.mirror, offline=options.offline, say=say)
        say(f"test module: for kernel {module.release}")
