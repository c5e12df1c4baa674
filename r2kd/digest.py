"""What a function computes, as a short text: an edited body, helper, closure or constant is another one; a comment is not.

A function is its syntax tree without comments, docstrings and annotations, the values of its defaults and closure, and what
it reaches by name: own functions and classes in the same way, other libraries' by their name alone.
"""

import ast
import enum
import hashlib
import importlib
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis))
_SILENT = {"ctx", "type_comment", "type_params", "kind", "decorator_list", "returns", "annotation"}
_LIBRARIES = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if "lib" in name}


def digest(value: Any) -> str:
    """16 hexadecimal digits. Raises ValueError where `value`, or what it closes over, cannot be told from another."""
    return _short(_describe(value, {}))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe(value: Any, seen: dict[int, tuple[Any, str]]) -> str:
    """`seen`: by identity, what was met before (kept alive, so that nothing else takes its identity) and its digest."""
    if isinstance(value, _PLAIN) or f"{type(value).__module__}.{type(value).__name__}" in (
        "torch.dtype",
        "torch.device",
    ):
        return repr(value)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, enum.Enum):
        return f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    if id(value) not in seen:
        seen[id(value)] = (value, "itself")
        seen[id(value)] = (value, _short(_compound(value, seen)))
    return seen[id(value)][1]


def _compound(value: Any, seen: dict) -> str:
    if isinstance(value, types.FunctionType):
        return _function(value, seen) if _own(value) else _name(value)
    if isinstance(value, type):
        return _class(value, seen) if _own(value) else _name(value)
    torch = sys.modules.get("torch")  # who has a tensor has imported it; settings and --help do without
    if torch is not None and isinstance(value, torch.Tensor):
        return _array(value.detach().cpu().contiguous().view(torch.uint8).numpy(), value.dtype, value.shape)
    if isinstance(value, np.ndarray):
        return _array(np.ascontiguousarray(value), value.dtype, value.shape)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[{', '.join(_describe(item, seen) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"set[{', '.join(sorted(_describe(item, seen) for item in value))}]"
    if isinstance(value, dict | types.MappingProxyType):
        return f"{{{', '.join(f'{_describe(k, seen)}: {_describe(v, seen)}' for k, v in value.items())}}}"
    if isinstance(value, partial):
        return f"partial{_describe((value.func, value.args, value.keywords), seen)}"
    if isinstance(value, types.MethodType):
        return f"method{_describe((value.__func__, value.__self__), seen)}"
    if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
        return _name(value)
    if isinstance(value, staticmethod | classmethod):
        return _describe(value.__func__, seen)
    if isinstance(value, property):
        return f"property{_describe((value.fget, value.fset), seen)}"
    return _object(value, seen)


def _object(value: Any, seen: dict) -> str:
    """Any other object: what it wraps, else what pickle would take of it."""
    if hasattr(value, "__wrapped__"):
        return f"{_name(type(value))}{_describe(value.__wrapped__, seen)}"
    try:
        taken = value.__reduce_ex__(4)
    except TypeError:
        raise ValueError(
            f"a {type(value).__name__} is used, whose value cannot be told from another's: hand it over as an option"
        ) from None
    if isinstance(taken, str):
        return taken
    state, items = taken[:3], [list(part) for part in taken[3:5] if part is not None]
    return _describe((*state, *items), seen)


def _array(values: np.ndarray, dtype: Any, shape: Any) -> str:
    return f"{dtype}{tuple(shape)}{hashlib.sha256(values.tobytes()).hexdigest()}"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _own(value: Any) -> bool:
    """Whether a function, class or module is the package's or the user's, and not of an installed library."""
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__ or ""
    if module.split(".")[0] == __package__:
        return True
    if isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
    else:
        file = getattr(sys.modules.get(module), "__file__", None) or ("" if module == "__main__" else "<frozen")
    return not (file.startswith("<frozen") or _installed(file))


@lru_cache(maxsize=4096)
def _installed(file: str) -> bool:
    path = Path(file).resolve()
    packages = "site-packages" in path.parts or "dist-packages" in path.parts
    return packages or any(folder in _LIBRARIES for folder in path.parents)


def _class(value: type, seen: dict) -> str:
    kept = {
        name: member
        for name, member in vars(value).items()
        if isinstance(member, (types.FunctionType, staticmethod, classmethod, property, *_PLAIN))
        and name not in ("__module__", "__doc__", "__qualname__", "__firstlineno__")
    }
    return f"class{_describe((value.__bases__, kept), seen)}"


def _function(function: types.FunctionType, seen: dict) -> str:
    code = function.__code__
    read = _read(code, "".join(linecache.getlines(code.co_filename)))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    known = {**function.__globals__, **closure, **_imported(read.imports, function.__globals__)}
    reached = {}
    for chain in read.chains:
        first, *rest = chain
        if first in known and (first in closure or first not in code.co_varnames):
            value = known[first]
            while isinstance(value, types.ModuleType) and rest and _own(value):
                value = getattr(value, rest.pop(0), None)
            reached[chain] = (
                value  # a library's module stands for all of it: its name, and what is read of it, are in the chain
            )
    parts = (function.__defaults__, function.__kwdefaults__, closure, reached)
    return f"function({read.syntax}){_describe(parts, seen)}"


class _Read(NamedTuple):
    """What a function's own text says: its tree as a text, the names it reads, in order, and the imports inside of it."""

    syntax: str
    chains: tuple[tuple[str, ...], ...]
    imports: tuple[ast.Import | ast.ImportFrom, ...]


@lru_cache(maxsize=4096)  # a study asks for the same functions once for each of its students
def _read(code: types.CodeType, source: str) -> _Read:
    """Of the tree in this source, if it is what was loaded; else of the code."""
    node = _nodes(code.co_filename, source).get(_shape(code)) if source else None
    if node is None:
        return _Read(_bytecode(code), tuple(sorted(set(_names(code)))), ())
    imports = tuple(part for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom))
    return _Read(_canonical(node, top=True), tuple(sorted(set(_chains(node)))), imports)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a function that names itself, before it is there
        return False
    return True


def _canonical(node: Any, top: bool = False) -> str:
    """The tree without positions, docstrings, annotations and empty fields, the same in each version of Python."""
    if isinstance(node, list):
        return f"[{', '.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _SILENT}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if top:
        fields.pop("name", None)
        arguments = {name: value for name, value in ast.iter_fields(node.args) if "defaults" not in name}
        fields["args"] = ast.arguments(**arguments, defaults=[], kw_defaults=[])  # the values count, not their spelling
    if isinstance(node, ast.JoinedStr):  # of one f-string some versions have an empty constant more
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    shown = (f"{name}={_canonical(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({', '.join(shown)})"


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Each name that is read, with the attributes read of it: losses.kd_loss is ("losses", "kd_loss")."""
    names, part = [], node
    while isinstance(part, ast.Attribute):
        names.append(part.attr)
        part = part.value
    if isinstance(part, ast.Name):
        yield (part.id, *reversed(names))
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in _SILENT:
                yield from _chains(child)


def _imported(imports: Iterable[ast.Import | ast.ImportFrom], globals_: dict[str, Any]) -> dict[str, Any]:
    """What the imports inside of a function bind."""
    bound = {}
    for part in imports:
        if isinstance(part, ast.Import):
            for name in part.names:
                module = importlib.import_module(name.name if name.asname else name.name.split(".")[0])
                bound[name.asname or name.name.split(".")[0]] = module
        else:
            module = importlib.import_module("." * part.level + (part.module or ""), globals_.get("__package__"))
            for name in part.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{module.__name__}.{name.name}")
                bound[name.asname or name.name] = getattr(module, name.name)
    return bound


@lru_cache(maxsize=256)
def _nodes(filename: str, source: str) -> dict[str, ast.AST]:
    """The functions of a source by the `_shape` of their code. Two of one shape compute the same."""
    try:
        tree = ast.parse(source)
        module = compile(source, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError):
        return {}
    written = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    found = {}
    for code in _nested(module):
        inside = [
            node for node in written if _name_of(node) == code.co_name and _first_line(node) == code.co_firstlineno
        ]
        if len(inside) > 1:  # lambdas of one line: the innermost around all instructions
            around = [node for node in inside if all(_contains(node, place) for place in code.co_positions())]
            inside = sorted(around, key=lambda node: node.end_col_offset - node.col_offset)
        if inside:
            found[_shape(code)] = inside[0]
    return found


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _nested(constant)


def _name_of(node: ast.AST) -> str:
    return getattr(node, "name", "<lambda>")


def _first_line(node: ast.AST) -> int:
    return min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])


def _contains(node: ast.AST, place: tuple) -> bool:
    line, end_line, column, end_column = place
    if None in place or (column, end_column) == (0, 0):
        return True
    return (node.lineno, node.col_offset) <= (line, column) and (end_line, end_column) <= (
        node.end_lineno,
        node.end_col_offset,
    )


def _shape(code: types.CodeType) -> str:
    """What tells a code object from others of its file: where it starts, its name and its instructions."""
    return f"{code.co_firstlineno} {code.co_name} {_bytecode(code)}"


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames} {code.co_freevars}"


def _names(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """Without a source: each name by itself, and before each other one, in case that it is a module's."""
    names = [*code.co_names, *code.co_freevars]
    for name in names:
        yield (name,)
        yield from ((name, other) for other in names)
    for nested in _nested(code):
        yield from _names(nested)
