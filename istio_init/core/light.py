"""Light substitutes for parts of the standard library, for programs that run for a few milliseconds.

Each pod start waits for this program's imports, and `typing`, `enum`, `contextlib`, `signal` and `socket` together take
longer to import than all else that an apply needs. So the modules of an apply take these names from here. Type checkers
see the standard library's own, and `tests/unit/test_light.py` holds each stand-in to them.
"""

TYPE_CHECKING = False  # the name is what type checkers go by (PEP 484)

if TYPE_CHECKING:
    import signal as signal
    import socket as socket
    from contextlib import contextmanager as contextmanager
    from enum import IntEnum as IntEnum
    from enum import StrEnum as StrEnum
    from typing import Any as Any
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
else:
    import _signal as signal  # noqa: F401 - what `signal` is made of, without its enumerations
    import _socket as socket  # noqa: F401 - what `socket` is made of, likewise
    from _collections import _tuplegetter

    Any = Protocol = object  # at run time nobody asks them anything

    class _Fields(type):
        """Makes a class of its annotations, as `typing.NamedTuple` does, but compiles no code for it."""

        def __new__(cls, name, bases, namespace):
            made = super().__new__(cls, name, bases, {"__slots__": (), **namespace})
            fields = tuple(made.__annotations__) if bases != (tuple,) else ()
            defaults = {field: namespace[field] for field in fields if field in namespace}
            if fields[len(fields) - len(defaults) :] != tuple(defaults):
                raise TypeError(f"{name}: a field without a default value follows one that has it")
            made._fields = made.__match_args__ = fields
            made._field_defaults = defaults
            for number, field in enumerate(fields):
                setattr(made, field, _tuplegetter(number, None))
            return made

    class NamedTuple(tuple, metaclass=_Fields):
        """Stands for `typing.NamedTuple`."""

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = _fill(cls, values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changes):
            named = self._asdict()
            if not named.keys() >= changes.keys():
                raise ValueError(f"Got unexpected field names: {[name for name in changes if name not in named]!r}")
            return type(self)(**{**named, **changes})

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def __getnewargs__(self):
            return tuple(self)

    def _fill(cls, values, named):
        """Fill in keyword arguments and defaults."""
        given = dict(zip(cls._fields, values, strict=False))
        if len(values) > len(cls._fields) or not given.keys().isdisjoint(named):
            raise TypeError(f"{cls.__name__} takes each of {', '.join(cls._fields)} once at most")
        found = {**cls._field_defaults, **given, **named}
        if found.keys() != set(cls._fields):
            wrong = ", ".join(sorted(found.keys() ^ set(cls._fields)))
            raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}; missing or unexpected: {wrong}")
        return [found[field] for field in cls._fields]

    class _Members(type):
        """Makes a class of its members, as `enum.EnumType` does for members that are text or numbers."""

        def __new__(cls, name, bases, namespace):
            made = super().__new__(cls, name, bases, namespace)
            made.__members__ = {}
            made._by_value = {}
            for key, value in namespace.items():
                if not key.startswith("_") and isinstance(value, (str, int)):
                    member = made._by_value.get(value)
                    if member is None:
                        member = bases[0].__base__.__new__(made, value)
                        member.name, member.value = key, value
                    made.__members__[key] = made._by_value[value] = member
                    setattr(made, key, member)
            return made

        def __call__(cls, value):
            try:
                return cls._by_value[value]
            except (KeyError, TypeError):
                raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __iter__(cls):
            return iter(cls._by_value.values())

        def __len__(cls):
            return len(cls._by_value)

        def __contains__(cls, value):
            return value in cls._by_value

    class _Member:
        """What members of both kinds can do besides being text or numbers."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __copy__(self):
            return self

        def __deepcopy__(self, memo):
            return self

        def __reduce_ex__(self, protocol):
            return type(self), (self.value,)

    class StrEnum(str, _Member, metaclass=_Members):
        """Stands for `enum.StrEnum`."""

        __repr__ = _Member.__repr__
        __str__ = str.__str__

    class IntEnum(int, _Member, metaclass=_Members):
        """Stands for `enum.IntEnum`."""

        __repr__ = _Member.__repr__
        __str__ = int.__repr__

    def contextmanager(function):
        """Stand for `contextlib.contextmanager`, of `with` statements only."""
        return lambda *values, **named: _Context(function(*values, **named))

    class _Context:
        """The two halves of a generator around a block."""

        def __init__(self, steps):
            self._steps = steps

        def __enter__(self):
            return next(self._steps)

        def __exit__(self, kind, error, trace):
            try:
                next(self._steps) if error is None else self._steps.throw(error)
            except StopIteration:
                return error is not None
            except BaseException as raised:
                if raised is error:
                    return False
                raise
            raise RuntimeError("the generator of a context goes on after its block")
