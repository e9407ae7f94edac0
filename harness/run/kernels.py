"""Which kernel has the options that scenarios need."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from harness.image.build import known_options
from harness.image.recipe import load_recipe, recipe_names
from harness.scenario import Needs, Scenario


def kernel_with(needs: Needs) -> str | None:
    """The first recipe's kernel with the options that a scenario needs, by what the recipe calls it; None without any.

    A kernel whose image is not here counts only where its options are known all the same.

    Raises:
        ConfigurationError: a recipe is wrong.
    """
    for recipe in map(load_recipe, recipe_names()):
        options = known_options(recipe)
        if options is not None and not needs.unmet_options(options):
            return recipe.kernel
    return None


def kernels_beside(scenarios: Iterable[Scenario], options: Collection[str]) -> list[str]:
    """The kernels of those scenarios that need options which a kernel lacks, each once.

    Args:
        scenarios: the scenarios.
        options: that kernel's options, without ``CONFIG_``.

    Raises:
        ConfigurationError: a recipe is wrong.
    """
    lacking = [scenario.needs for scenario in scenarios if scenario.needs.unmet_options(options)]
    return list(dict.fromkeys(kernel for needs in lacking if (kernel := kernel_with(needs)) is not None))
