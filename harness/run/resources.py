"""What cells need beside themselves: QEMU builds, images, the accelerator, the payload. Found once for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import InfrastructureError
from harness.guest.guest import GuestPlan
from harness.guest.payload import Payload, build_payload, usdm_package
from harness.image.build import Image, build_image, find_image
from harness.image.library import Library, fetch_library, find_library
from harness.image.module import Module, fetch_module, find_module, module_kernels, unsupported
from harness.image.recipe import recipe_for_kernel
from harness.machine.accel import Decision, decide
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild, fetch_build, find_build
from harness.machine.probe import Capabilities, capabilities
from harness.machine.spec import MachineSpec
from harness.paths import scenarios_dir
from harness.run.kernels import kernels_beside
from harness.run.options import RunOptions
from harness.scenario import Scenario, find_scenarios, load_scenario

Say = Callable[[str], None]
_UNUSED = Decision("tcg", "no guest is started")


@dataclass(frozen=True, slots=True)
class Emulation:
    """A QEMU build with what was found out about it."""

    build: QemuBuild
    capabilities: Capabilities
    accelerator: Decision


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that the cells of a run share.

    Args:
        emulations: by the name of the QEMU build.
        images: by kernel version.
        payload: what is sent into every guest.
        library: the C library, None without.
        modules: the test module, by kernel version, where steps run on the kernel's own functions.
        no_module: why there is none, by kernel version, where some would.
        others: further C libraries by the name of their recipe.
    """

    emulations: dict[str, Emulation]
    images: dict[str, Image]
    payload: Payload
    library: Library | None = None
    modules: dict[str, Module] = field(default_factory=dict)
    no_module: dict[str, str] = field(default_factory=dict)
    others: dict[str, Library] = field(default_factory=dict)

    def library_of(self, name: str) -> Library | None:
        """The C library of this name where there are several, else the one that there is."""
        return self.others.get(name, self.library)

    def plan(self, spec: MachineSpec, qemu: str, kernel: str, folder: Path) -> GuestPlan:
        """Everything that a guest is started from.

        Args:
            spec: its machine.
            qemu: name of the QEMU build.
            kernel: version of the kernel.
            folder: an existing folder for what it leaves.
        """
        emulation, image = self.emulations[qemu], self.images[kernel]
        return GuestPlan(
            spec=spec,
            boot=Boot(image.kernel, image.initrd, image.key),
            build=emulation.build,
            capabilities=emulation.capabilities,
            accelerator=emulation.accelerator.accelerator,
            payload=self.payload,
            folder=folder,
        )


def prepare(
    options: RunOptions, say: Say, *, guests: bool = True, libraries: tuple[str, ...] | None = None
) -> Resources:
    """Find (with ``--fetch``: get) what a run needs.

    Args:
        options: what was asked for.
        say: told what goes on.
        guests: whether a guest is started at all; without one no image is looked for.
        libraries: the C libraries that steps run on, by name; None takes the options' word.

    Raises:
        ConfigurationError: an unknown build or kernel, or no ``usdm`` package.
        InfrastructureError: something is missing or damaged; the hint says how to get it.
    """
    # What the user wrote is checked before anything is looked for or fetched.
    usdm_package(options.usdm)
    for kernel in options.kernels:
        recipe_for_kernel(kernel)
    if libraries is None:
        libraries = (options.libusdm,) if options.implementation in ("libusdm", "both") else ()
    found = [_library(name, options, say) for name in libraries]
    payload = build_payload(options.usdm)
    builds = {name: _build(name, options, say) for name in dict.fromkeys(options.qemu)}
    images = {kernel: _image(kernel, options, say) for kernel in dict.fromkeys(options.kernels) if guests}
    emulations = {
        # KVM is tried where a guest may need it: that takes seconds.
        name: Emulation(build, capabilities(build), _decide(build, options) if guests else _UNUSED)
        for name, build in builds.items()
    }
    others = {one.name: one for one in found[1:]}
    return Resources(emulations, images, payload, found[0] if found else None, others=others)


def with_images(resources: Resources, kernels: Iterable[str], options: RunOptions, say: Say) -> Resources:
    """The same resources with the images of more kernels.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`prepare`.
    """
    more = {kernel: _image(kernel, options, say) for kernel in dict.fromkeys(kernels) if kernel not in resources.images}
    return replace(resources, images={**resources.images, **more})


def with_modules(resources: Resources, kernels: Iterable[str], options: RunOptions, say: Say) -> Resources:
    """The same resources with the test module for some kernels, whose images they have; or with why there is none.

    Not an error: a machine without a compiler skips what needs the module, and says so.

    Raises:
        ConfigurationError: a recipe is wrong.
    """
    modules, reasons = dict(resources.modules), dict(resources.no_module)
    for kernel in dict.fromkeys(kernels):
        reason = unsupported(recipe_for_kernel(kernel))
        if reason is not None:
            reasons[kernel] = f"there is no test module: {reason}; --kernel {module_kernels()[0]} has one"
            continue
        try:
            modules[kernel] = _module(resources.images[kernel], options, say)
        except InfrastructureError as error:
            # A compiler says more than fits a reason; the rest is in the log that the message names.
            reasons[kernel] = "; ".join(filter(None, (" ".join(error.message.split()), error.hint)))
    return replace(resources, modules=modules, no_module=reasons)


def fetch_all(options: RunOptions, libraries: tuple[str, ...], say: Say) -> None:
    """Build the images and fetch the QEMU builds that the options name, and C libraries.

    Where no kernel was chosen that includes the images that some of the project's scenarios need beside the default.

    Args:
        options: builds, kernels, where from.
        libraries: names of C libraries' recipes.
        say: told what goes on.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`prepare`; a scenario of the project is wrong.
    """
    for name in dict.fromkeys(options.qemu):
        build = fetch_build(name, mirror=options.mirror, offline=options.offline, say=say)
        say(f"QEMU {name}: {build.version}")
    getting = replace(options, fetch=True)
    images = {kernel: _image(kernel, getting, say) for kernel in dict.fromkeys(options.kernels)}
    if options.auto_kernel:
        loaded = [load_scenario(file) for file in find_scenarios([scenarios_dir()])]
        scenarios = [one for one in loaded if isinstance(one, Scenario)]
        for kernel in kernels_beside(scenarios, images[options.kernels[0]]):
            say(f"some scenarios need kernel {kernel}")
            images[kernel] = _image(kernel, getting, say)
    for image in images.values():
        say(f"image {image.name}: kernel {image.kernel_release}")
    for name in dict.fromkeys(libraries):
        library = fetch_library(name, mirror=options.mirror, offline=options.offline, say=say)
        say(f"libusdm {library.name}: {library.version}")


def _library(name: str, options: RunOptions, say: Say) -> Library:
    if options.fetch:
        return fetch_library(name, mirror=options.mirror, offline=options.offline, say=say)
    return find_library(name)


def _module(image: Image, options: RunOptions, say: Say) -> Module:
    if options.fetch:
        return fetch_module(image, mirror=options.mirror, offline=options.offline, say=say)
    return find_module(image)


def _decide(build: QemuBuild, options: RunOptions) -> Decision:
    if options.elsewhere and options.accel == "kvm":
        return Decision("kvm", "chosen by --accel kvm, and tried on the machine that the guest runs on")
    return decide(build, options.accel)


def _build(name: str, options: RunOptions, say: Say) -> QemuBuild:
    if options.fetch:
        return fetch_build(name, mirror=options.mirror, offline=options.offline, say=say)
    return find_build(name)


def _image(kernel: str, options: RunOptions, say: Say) -> Image:
    name = recipe_for_kernel(kernel).name
    if options.fetch:
        return build_image(name, mirror=options.mirror, offline=options.offline, say=say)
    return find_image(name)
