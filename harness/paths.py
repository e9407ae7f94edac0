"""Where the project's own data and the user's folders are."""

from __future__ import annotations

from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parent
_APP = "usdm-harness"


def _data(name: str) -> Path:
    """A data folder: beside the package in a working tree, inside it when installed from a wheel."""
    beside = _PACKAGE.parent / name
    return beside if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "_data" / name


def images_dir() -> Path:
    """The folder with the image recipes and the guest's init."""
    return _data("images")


def scenarios_dir() -> Path:
    """The folder with the scenarios that come with the project."""
    return _data("scenarios")


def agent_dir() -> Path:
    """The folder with the guest side of the harness."""
    return _PACKAGE / "agent"


def usdm_dir() -> Path:
    """The folder of the ``usdm`` package that is under test: the working tree's, or the installed one."""
    return _PACKAGE.parent / "usdm"


def cache_dir() -> Path:
    """The user's cache (``XDG_CACHE_HOME``); may not exist yet."""
    return Path(platformdirs.user_cache_dir(_APP))


def state_dir() -> Path:
    """What is kept from run to run and may be deleted (``XDG_STATE_HOME``); may not exist yet."""
    return Path(platformdirs.user_state_dir(_APP))


def runs_dir() -> Path:
    """Where run folders go without ``--out``; may not exist yet."""
    return state_dir() / "runs"
