"""Records: dataclasses with slots that are made when the first one is needed.

The standard decorator looks at every field and compiles `__init__`: 0.9 million instructions a class, and a command
loads a hundred classes of which it uses half. Here only the slots are made at once, in a sixth of that, and the
methods that compare and show are shared. The rest is the standard decorator's work, done to the class as it was
written when `__init__` is called or the fields are asked for, so `replace`, `asdict` and `fields` work as ever.
That nobody assigns to a field of a `record` is for the type checker to see (PEP 681, `frozen_default`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from inspect import get_annotations
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")
_FIELDS = "__dataclass_fields__"
_making = threading.RLock()


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Like `dataclass(frozen=True, slots=True)`: equal if all compared fields are, and hashable."""
    return _made(cls, ("__eq__", "__hash__", "__repr__"))


@dataclass_transform(field_specifiers=(field,))
def mutable(cls: type[T]) -> type[T]:
    """Like `dataclass(slots=True)`: the same, to be changed, and so not hashable."""
    made = _made(cls, ("__eq__", "__repr__"))
    made.__hash__ = None  # type: ignore[assignment]
    return made


def _made(cls: type[T], shared: tuple[str, ...]) -> type[T]:
    """The class with slots for its own fields."""
    names = [name for name, kind in get_annotations(cls).items() if not str(kind).startswith("ClassVar")]
    taken = {"__dict__", "__weakref__", *names}
    body = {name: value for name, value in cls.__dict__.items() if name not in taken}
    kind_of_class: Any = type(cls)
    made = kind_of_class(cls.__name__, cls.__bases__, body | {"__slots__": tuple(names)})
    made.__qualname__ = cls.__qualname__
    lazy = _Lazy(cls, made)
    setattr(made, _FIELDS, lazy)
    made.__init__ = lambda self, *args, **values: lazy.complete().__init__(self, *args, **values)
    for name in shared:
        setattr(made, name, getattr(_Shared, name))
    return made  # type: ignore[no-any-return]


class _Lazy:
    """Stands for the fields of a class until they are asked for."""

    def __init__(self, written: Any, made: Any) -> None:
        self.written, self.made = written, made

    def __get__(self, instance: object, owner: Any) -> Any:
        return getattr(self.complete(), _FIELDS)

    def complete(self) -> Any:
        with _making:
            if self.made.__dict__[_FIELDS] is self:
                self.written.__doc__ = self.written.__doc__ or self.written.__name__  # else one is made of a signature
                whole: Any = dataclass(slots=True, eq=False, repr=False)(self.written)
                self.made.__init__ = whole.__init__
                for name in ("__dataclass_params__", "__match_args__", _FIELDS):
                    setattr(self.made, name, getattr(whole, name))
                compared = [found.name for found in fields(self.made) if found.compare]
                self.made._compared = staticmethod(attrgetter(*compared) if compared else _nothing)
        return self.made


def _nothing(instance: object) -> None:
    """What is compared of a class without fields."""


class _Shared:
    _compared: Callable[[object], Any]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self._compared(self) == self._compared(other))

    def __hash__(self) -> int:
        return hash(self._compared(self))

    def __repr__(self) -> str:
        shown = (found.name for found in fields(self) if found.repr)  # type: ignore[arg-type]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"
