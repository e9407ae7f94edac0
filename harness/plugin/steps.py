"""Steps as methods: ``usdm.map(buffer="a", size="64K")`` is ``map: {buffer: a, size: 64K}`` of a scenario file.

The methods are made from the models of the files, so every kind of step is one, with the same arguments and the same
checks. A name that is a word of Python has an underscore behind it: ``as_``, ``with_``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from harness.errors import ConfigurationError
from harness.results import FaultRecord, StepError, StepEvidence
from harness.scenario import KINDS
from harness.scenario.problems import suggest
from harness.scenario.steps import Step

BESIDE: Final = Step.BESIDE


class StepFailed(AssertionError):
    """A step did not do what is expected of it. The test may catch it; the judge does not forget it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Args:
        kind: its kind.
        name: the name that it gave to a buffer, range or recording; empty for none. Where a name is asked for, the
            result itself can be given.
        returns: the C return value; None for C's NULL and for steps without one.
        error: the error that it met, which was expected, or None.
        values: what it observed, by name: ``iova``, ``equal``, ...
        faults: the DMAs that QEMU's trace says were refused meanwhile.
        evidence: all of it.
        reference: the same of the oracle, on ``both``.
    """

    kind: str
    name: str
    returns: int | None
    error: StepError | None
    values: Mapping[str, Any]
    faults: tuple[FaultRecord, ...] = ()
    evidence: StepEvidence | None = field(default=None, repr=False)
    reference: StepEvidence | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class Doer(Protocol):
    """Does steps."""

    def do(self, raw: Mapping[str, Any]) -> StepResult:
        """Do the step that stands so in a file."""

    def new_name(self, kind: str) -> str:
        """A name that no step has given yet."""


class Steps:
    """Every kind of step as a method. The fixture ``usdm``.

    Positional arguments are those of the kind in the order of its description (``help(usdm.map)``). Beside them each
    takes ``expect``, ``id``, ``libusdm`` and ``kernel`` as in a scenario file.

    Args:
        doer: does them.
        fixed: arguments that each of them gets.
    """

    def __init__(self, doer: Doer, fixed: Mapping[str, Any] | None = None) -> None:
        self._doer = doer
        self._fixed = dict(fixed or {})

    def __getattr__(self, kind: str) -> Callable[..., StepResult]:
        __tracebackhide__ = True
        if kind.startswith("_") or kind not in self._kinds():
            raise AttributeError(f"there is no step '{kind}' ({suggest(kind, list(self._kinds()), 'the steps are')})")

        def step(*args: Any, **more: Any) -> StepResult:
            __tracebackhide__ = True
            return self._doer.do(raw_step(self._doer, kind, args, more, self._fixed))

        step.__name__ = kind
        step.__doc__ = _described(kind)
        step.__signature__ = inspect.Signature(list(_parameters(kind, self._fixed)))  # type: ignore[attr-defined]
        return step

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self._kinds()]

    def _kinds(self) -> Iterator[str]:
        return (kind for kind, model in KINDS.items() if all(name in model.model_fields for name in self._fixed))


class Device(Steps):
    """A device under test. The fixture ``device``, and the values of ``devices``.

    Args:
        doer: does the steps.
        name: its name in the machine.
        address: where the guest sees it, e.g. ``02:00.0``.
    """

    def __init__(self, doer: Doer, name: str, address: str) -> None:
        super().__init__(doer, {"device": name})
        self.name = name
        self.address = address

    def __repr__(self) -> str:
        return f"<Device {self.name} at {self.address}>"


def raw_step(
    doer: Doer, kind: str, args: tuple[Any, ...], more: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """A step as it would stand in a file.

    Args:
        doer: gives new names.
        kind: its kind.
        args: arguments by position.
        more: arguments by name, and what stands beside them.
        fixed: arguments that are not asked for.

    Raises:
        ConfigurationError: too many arguments, or one twice.
    """
    __tracebackhide__ = True
    keys = [key for key in _keys(kind) if key not in fixed]
    if len(args) > len(keys):
        raise ConfigurationError(
            f"{kind}: expected at most {len(keys)} arguments ({', '.join(keys)}), found {len(args)}"
        )
    given = dict(fixed) | {key: plain(value) for key, value in zip(keys, args, strict=False)}
    beside = {}
    for word, value in more.items():
        key = word.removesuffix("_")
        if key in BESIDE and key not in _keys(kind):
            beside[key] = plain(value)
        elif key in given:
            raise ConfigurationError(f"{kind}: expected {key} once, found it twice")
        else:
            given[key] = plain(value)
    if "as" in _keys(kind) and "as" not in given:
        given["as"] = doer.new_name(kind)
    # What is None was left out; but C's NULL is something that can be expected.
    return {kind: {key: value for key, value in given.items() if value is not None}, **beside}


def plain(value: Any) -> Any:
    """An argument as it would stand in a file: a result is the name that it gave, a device its name."""
    if isinstance(value, StepResult):
        if not value.name:
            raise ConfigurationError(f"expected something with a name, found the result of {value.kind}")
        return value.name
    if isinstance(value, Device):
        return value.name
    if isinstance(value, Mapping):
        return {str(key).removesuffix("_"): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value


def _keys(kind: str) -> list[str]:
    return [field.alias or name for name, field in KINDS[kind].model_fields.items()]


def _parameters(kind: str, fixed: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    empty = inspect.Parameter.empty
    for name, one in KINDS[kind].model_fields.items():
        if (one.alias or name) not in fixed:
            default = empty if one.is_required() and one.alias != "as" else one.get_default(call_default_factory=True)
            default = None if one.alias == "as" else default
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=one.annotation)
    for name in BESIDE:
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)


def _described(kind: str) -> str:
    model = KINDS[kind]
    lines = [f"    {field.alias or name}: {field.description or ''}" for name, field in model.model_fields.items()]
    return "\n".join([inspect.getdoc(model) or kind, "", "Args:", *lines])
