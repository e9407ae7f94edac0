"""Which kernel has the release and the options that scenarios need."""

from __future__ import annotations

from collections.abc import Iterable

from harness.image.build import Image, known_options
from harness.image.recipe import Recipe, load_recipe, recipe_names
from harness.run.options import DEFAULT_KERNEL
from harness.scenario import Needs, Scenario
from harness.scenario.values import version_tuple


def kernel_with(needs: Needs) -> str | None:
    """The kernel that a scenario needs, by what its recipe calls it; None without any.

    Debian's kernels come first, from the default on the lowest release of those that will do, then older ones, and
    those that are compiled last: who needs only a release waits for no compiler. A kernel whose image is not here
    counts where its options are known all the same; where they are not, it is taken for its release, when the scenario
    asks for one and no other is known to do.

    Raises:
        ConfigurationError: a recipe is wrong.
    """
    unknown: list[str] = []
    for recipe in sorted(map(load_recipe, recipe_names()), key=_order):
        if needs.unmet_release(recipe.release):
            continue
        options = known_options(recipe)
        if options is None and needs.kernel_options:
            unknown += [recipe.kernel] if needs.kernel else []
        elif options is None or not needs.unmet_options(options):
            return recipe.kernel
    return unknown[0] if unknown else None


class KernelFinder:
    """:func:`kernel_with` for many scenarios: recipes and caches are read once for those that need the same."""

    def __init__(self) -> None:
        self._found: dict[tuple[str | None, frozenset[tuple[str, bool]]], str | None] = {}

    def kernel_with(self, needs: Needs) -> str | None:
        """As the function."""
        asked = needs.kernel, frozenset(needs.kernel_options.items())
        if asked not in self._found:
            self._found[asked] = kernel_with(needs)
        return self._found[asked]


def _order(recipe: Recipe) -> tuple[bool, bool, tuple[int, ...]]:
    release = version_tuple(recipe.release)
    # One that is older than the default is had by those who ask for it.
    return recipe.source is not None, release < version_tuple(DEFAULT_KERNEL), release


def lacking(needs: Needs, image: Image) -> list[str]:
    """What of a scenario's needs an image's kernel does not meet, each as words."""
    return [*needs.unmet_release(image.kernel_release), *needs.unmet_options(image.options)]


def kernels_beside(scenarios: Iterable[Scenario], image: Image) -> list[str]:
    """The kernels of those scenarios that need what an image's kernel lacks, each once.

    Args:
        scenarios: the scenarios.
        image: the image that the others run on.

    Raises:
        ConfigurationError: a recipe is wrong.
    """
    asking = [scenario.needs for scenario in scenarios if lacking(scenario.needs, image)]
    return list(dict.fromkeys(kernel for needs in asking if (kernel := kernel_with(needs)) is not None))
