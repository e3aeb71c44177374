"""Reads pickles of tensors and plain containers without executing anything.

The opcodes are taken one by one from `pickletools.genops`, which only decodes them, and interpreted
here on a stack of plain values. No name in a pickle is ever imported: a global is a pair of strings,
and calling one is an entry in the table `_CALLS` or a refusal.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

#: More opcodes than any list of tensors needs; each takes a few hundred bytes at most.
LIMIT = 2_000_000
#: More values than calls have to copy.
COPIES = 200_000


class RefusedError(Exception):
    """A pickle asks for what is no tensor and no plain container: its name."""


class DamagedError(Exception):
    """A pickle can't be read."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A piece of memory that tensors lie in: its type's name, its key in the file, its length."""

    kind: str
    key: str
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """How many values from `offset` on it touches."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclass
class Scripted:
    """An object of a class that TorchScript compiled: a module, by its attributes."""

    state: dict[Any, Any] = field(default_factory=dict)


class Mark:
    """Where the arguments of an opcode begin on the stack."""


def load(
    file: IO[bytes], scripted: bool = False, storages: dict[str, Storage] | None = None
) -> Any:
    """The value of a pickle that begins where the file stands.

    Parameters
    ----------
    file : binary file
        Left behind the pickle's end.
    scripted : bool
        Whether modules of TorchScript are let pass.
    storages : dict, optional
        Given the storages that the pickle refers to, by their keys.

    Returns
    -------
    Any
        Numbers, strings, lists, tuples, dicts, `StoredTensor`, `Storage`, `Scripted`, `Global`.

    Raises
    ------
    RefusedError
        It asks for anything else.
    DamagedError
        It is cut short, not a pickle, or too long.
    """
    machine = _Machine(scripted, {} if storages is None else storages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escape sequences in damaged names
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count >= LIMIT:
                    raise DamagedError(f"it has over {LIMIT} opcodes")
                machine.run(opcode.name, argument)
        return machine.result
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}"[:200]) from error


class _Machine:
    """The stack, the memo, and one branch for each opcode."""

    def __init__(self, scripted: bool, storages: dict[str, Storage]) -> None:
        self.scripted = scripted
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self.copied = 0

    def run(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _VALUES:
            stack.append(argument)
            return
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
            return
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(Mark)
            case "STOP":
                self.result = self.pop()
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.marked()
            case "DUP":
                stack.append(self.top())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(values)))
            case "LIST" | "FROZENSET":
                stack.append(self.marked())
            case "APPEND":
                value = self.pop()
                _as(list, self.top()).append(value)
            case "APPENDS" | "ADDITEMS":
                values = self.marked()
                _as(list, self.top()).extend(values)
            case "DICT":
                stack.append(_pairs(self.marked()))
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _as(dict, self.top()).update(_pairs([key, value]))
            case "SETITEMS":
                values = self.marked()
                _as(dict, self.top()).update(_pairs(values))
            case "GLOBAL":
                stack.append(self.named(".".join(argument.split(" ", 1))))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                stack.append(self.named(f"{_as(str, module)}.{_as(str, name)}"))
            case "BINPERSID":
                storage = _storage(self.pop())
                self.storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE":
                arguments, called = self.pop(), self.pop()
                stack.append(self.call(called, _as(tuple, arguments)))
            case "NEWOBJ":
                arguments, called = self.pop(), self.pop()
                if not (_is_scripted(called) and arguments == ()):
                    _refuse(called)
                stack.append(Scripted())
            case "BUILD":
                self.build()
            case _:
                raise RefusedError(f"the opcode {opcode}")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is Mark:
            raise ValueError("a mark stands where a value must")
        return value

    def top(self) -> Any:
        if self.stack[-1] is Mark:
            raise ValueError("a mark stands where a value must")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """What lies above the last mark; both are taken off the stack."""
        values = []
        while (value := self.stack.pop()) is not Mark:
            values.append(value)
        return values[::-1]

    def spend(self, values: int) -> None:
        """Count values that are copied: one opcode may copy a long list, again and again."""
        self.copied += values
        if self.copied > COPIES:
            raise DamagedError(f"it copies over {COPIES} values")

    def named(self, name: str) -> Global:
        known = name in _CALLS or name in _NAMES or _STORAGE.fullmatch(name)
        if not known and not (self.scripted and name.startswith("__torch__.")):
            raise RefusedError(name[:100])
        return Global(name)

    def call(self, called: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(called, Global) or called.name not in _CALLS:
            _refuse(called)
        self.spend(sum(len(a) for a in arguments if isinstance(a, list | tuple)))
        return _CALLS[called.name](*arguments)

    def build(self) -> None:
        """Give an object its state; only a module's matters."""
        state, value = self.pop(), self.top()
        if isinstance(value, Scripted):
            self.spend(len(_as(dict, state)))
            value.state.update(state)
        elif not isinstance(value, dict | StoredTensor):
            _refuse(value)


def _refuse(value: Any) -> NoReturn:
    raise RefusedError(value.name[:100] if isinstance(value, Global) else type(value).__name__)


def _is_scripted(value: Any) -> bool:
    return isinstance(value, Global) and value.name.startswith("__torch__.")


def _as(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} stands where {kind} must")
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """A dict of key, value, key, value ...; keys are plain, or tuples of plain values.

    Tuples of tuples could take exponential time to hash.
    """
    out = {}
    for key, value in zip(values[::2], values[1::2], strict=True):
        for part in key if isinstance(key, tuple) else (key,):
            if not isinstance(part, str | bytes | int | float | None):
                raise TypeError(f"{type(part).__name__} is the key of a dict")
        out[key] = value
    return out


def _count(value: Any) -> int:
    """A length, an offset or a stride."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise TypeError("a tensor's size or stride is no natural number")
    return value


def _storage(identity: Any) -> Storage:
    """The storage that a persistent identity names."""
    tag, kind, key, _, length = _as(tuple, identity)[:5]
    name = kind.name if isinstance(kind, Global) else ""
    if tag != "storage" or not _STORAGE.fullmatch(name):
        raise TypeError("a persistent identity is no storage")
    if len(identity) > 5 and identity[5] is not None:
        raise RefusedError("a view of a storage, of PyTorch before 0.4")
    return Storage(name.rpartition(".")[2].removesuffix("Storage"), _as(str, key), _count(length))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    sizes = tuple(_count(n) for n in _as(tuple, shape)[:9])
    steps = tuple(_count(n) for n in _as(tuple, strides)[:9])
    if len(sizes) != len(steps) or len(sizes) > 8 or math.prod(sizes) >= 1 << 62:
        raise TypeError("a tensor's sizes and strides do not agree")
    return StoredTensor(_as(Storage, storage), _count(offset), sizes, steps)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    out = {}
    for key, value in _as((list, tuple), pairs):
        out.update(_pairs([key, value]))
    return out


def _first(value: Any, *_: Any) -> Any:
    return value


def _default(_: Any = None) -> dict[Any, Any]:
    return {}


def _nothing(*_: Any) -> None:
    return None


_STORAGE = re.compile(r"torch\.(storage\.)?\w+Storage")
#: What may be called, and what stands in for it.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    "torch.device": _nothing,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "builtins.set": _first,
    "__builtin__.set": _first,
    "builtins.list": _first,
    "__builtin__.list": _first,
}
#: What may stand in a pickle without being called.
_NAMES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("dict", "int", "float", "str", "bool")),
    *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "int8", "uint8",
                                   "int16", "int32", "int64", "bool", "strided", "half", "float",
                                   "double", "long")),
}  # fmt: skip
#: Opcodes whose argument is the value itself.
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
