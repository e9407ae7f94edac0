"""Every public name that users import has a docstring, with its arguments where it takes any."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from docs_text import DOCS, ROOT
from pydantic import BaseModel

_NOX = (ROOT / "noxfile.py").read_text()
PUBLIC = re.findall(r'"([\w.]+)"', _NOX.split("PUBLIC = (")[1].split("\n)\n")[0])

INTERFACES = ("usdm.qae_mem", "usdm.icp_sal_iommu", "usdm.dma_iova", "usdm.driver", "usdm.dma_device")
"""Modules of usdm that are for users; of the harness's packages it is what ``__all__`` names."""


def modules() -> Iterator[ModuleType]:
    """The public modules and what lies below them, without names that begin with an underscore."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        yield module
        for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
            if not info.name.rpartition(".")[2].startswith("_"):
                yield importlib.import_module(info.name)


def names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that a module defines for others."""
    for name, value in vars(module).items():
        own = not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if own and (isinstance(value, FunctionType) or inspect.isclass(value)):
            yield f"{module.__name__}.{name}", value


EVERY = sorted({name: value for module in modules() for name, value in names(module)}.items())


def said(value: Any) -> str:
    """The docstring that is its own, not one that it inherits."""
    return inspect.cleandoc(value.__dict__.get("__doc__") or "" if inspect.isclass(value) else value.__doc__ or "")


def test_there_are_many_names() -> None:
    assert len(EVERY) > 200


@pytest.mark.parametrize(("name", "value"), EVERY, ids=[name for name, _ in EVERY])
def test_a_public_name_has_a_docstring(name: str, value: Any) -> None:
    assert len(said(value).split()) >= 1, name


def stable() -> Iterator[tuple[str, FunctionType]]:
    """Functions that docs/api.md calls stable, and the methods of such classes."""
    packages = [importlib.import_module(name) for name in PUBLIC]
    found = [(f"{one.__name__}.{name}", getattr(one, name)) for one in packages for name in getattr(one, "__all__", ())]
    found += [pair for name in INTERFACES for pair in names(importlib.import_module(name))]
    for name, value in found:
        if isinstance(value, FunctionType):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseModel):
            for key, method in vars(value).items():
                if isinstance(method, FunctionType) and not key.startswith("_"):
                    yield f"{name}.{key}", method


FUNCTIONS = sorted(dict(stable()).items())


@pytest.mark.parametrize(("name", "value"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_arguments_are_explained(name: str, value: FunctionType) -> None:
    """By name, in the docstring; that of a method may be what it overrides."""
    arguments = [one for one in inspect.signature(value).parameters if not one.startswith("_") and one != "self"]
    text = inspect.getdoc(value) or ""
    assert text, name
    missing = [one for one in arguments if not re.search(rf"\b{one}\b", text)]
    assert not missing


MODELS = [(name, value) for name, value in EVERY if inspect.isclass(value) and issubclass(value, BaseModel)]


@pytest.mark.parametrize(("name", "value"), MODELS, ids=[name for name, _ in MODELS])
def test_keys_of_models_are_explained(name: str, value: type[BaseModel]) -> None:
    text = " ".join(said(base) for base in value.__mro__ if base is not BaseModel and issubclass(base, BaseModel))
    for key in set(value.model_fields) & set(inspect.get_annotations(value)):
        assert value.model_fields[key].description or re.search(rf"\b{key}\b", text), (name, key)


def test_the_document_names_the_same_packages() -> None:
    table = re.findall(r"^\| `([\w.]+)` \|", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(PUBLIC)
