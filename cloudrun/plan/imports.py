"""What a script imports, found by reading it: third-party modules, local modules, and its PEP 723 block."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from cloudrun.core.errors import UsageError
from cloudrun.plan.typed import path_typed

Reader = Callable[[str], bytes | None]
"""Bytes of a file by its path relative to the project root (forward slashes); None where there is no such file."""

# Where a project keeps modules that are not beside the script. PYTHONPATH on the unit has those that are used.
_PROJECT_FOLDERS = ("", "src")


@dataclass(frozen=True, order=True)
class ImportedModule:
    """A third-party module. `guarded`: the script can go on without it, since the import is inside `try: ... except
    ImportError`, or inside a function that may never be called."""

    name: str  # dotted, as in `google.cloud.storage`
    guarded: bool
    path: str  # the file that imports it
    line: int


@dataclass(frozen=True)
class ImportScan:
    third_party: tuple[ImportedModule, ...]  # one for each dotted name, sorted
    local_files: tuple[str, ...]  # the script and all local modules it can reach, relative to the root, sorted
    search_path: tuple[str, ...]  # folders below the root, beside the script's own, in which local modules were found


@dataclass(frozen=True)
class ScriptBlock:
    """A `# /// script` block (PEP 723)."""

    dependencies: tuple[str, ...]
    requires_python: str | None
    content: str  # its TOML


def scan_imports(script: str, read: Reader) -> ImportScan:
    """Follow the imports of `script` (relative to the project root) through every local module it can reach.

    A module is local where Python would find it in the script's folder, or else, unless it is in the standard library,
    in the root or its `src`. Raises UsageError, with the line, where a file on the way is not Python.
    """
    home = _parent(script)
    folders = tuple(dict.fromkeys((home, *_PROJECT_FOLDERS)))
    found: dict[str, ImportedModule] = {}
    used_folders: set[str] = set()
    seen: dict[str, bool] = {}  # file -> whether only guarded imports lead to it
    waiting: list[tuple[str, str, bool]] = [(script, "", False)]  # file, its dotted name, guarded
    while waiting:
        path, dotted, guarded = waiting.pop()
        if path in seen and (guarded or not seen[path]):
            continue
        seen[path] = guarded
        source = read(path)
        if source is None:
            raise UsageError(f"{path} does not exist")
        package = dotted if PurePosixPath(path).name == "__init__.py" else dotted.rpartition(".")[0]
        for statement in _imports(parse(source, path)):
            optional = guarded or statement.guarded
            name = _absolute(statement, package)
            if name is None:
                continue
            hit = _locate(name, statement.names, folders, home, read)
            if hit is not None:
                folder, files = hit
                used_folders.add(folder)
                waiting += [(file, module, optional) for file, module in files]
            elif name.partition(".")[0] not in sys.stdlib_module_names:
                for target in _submodules(name, statement.names):
                    known = found.get(target)
                    if known is None or (known.guarded and not optional):
                        found[target] = ImportedModule(target, optional, path, statement.line)
    return ImportScan(tuple(sorted(found.values())), tuple(sorted(seen)), tuple(sorted(used_folders - {home})))


def parse(source: bytes, path: str) -> ast.Module:
    """The syntax tree of a file. Raises UsageError with the line where it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray "\d" in someone's string is no business of ours
            return ast.parse(source, path)
    except SyntaxError as error:  # wrong encodings and NUL bytes arrive as SyntaxError too
        where = f"{path}:{error.lineno}" if error.lineno else path
        raise UsageError(
            f"{where}: not valid Python: {error.msg}", next_step=f"python -m py_compile {path_typed(path)}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: not readable as Python: {error or 'nested too deeply'}") from error


# -- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Statement:
    module: str  # "" in `from . import x`
    names: tuple[str, ...]  # what `from module import ...` asks for
    level: int  # leading dots
    guarded: bool
    line: int


def _imports(tree: ast.Module) -> Iterator[_Statement]:
    """Every import statement, and calls of `import_module` with a literal. A stack, since trees may be very deep."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, guarded = waiting.pop()
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        match node:
            case ast.Import():
                for alias in node.names:
                    yield _Statement(alias.name, (), 0, guarded, node.lineno)
            case ast.ImportFrom():
                names = tuple(alias.name for alias in node.names)
                yield _Statement(node.module or "", names, node.level, guarded, node.lineno)
            case ast.Call(args=[ast.Constant(value=str() as module), *_]) if _is_import_call(node.func):
                if not module.startswith("."):
                    yield _Statement(module, (), 0, guarded, node.lineno)
            case ast.If() if _is_type_checking(node.test):
                children = node.orelse  # the body is never run
            case ast.Try() | ast.TryStar():
                guarded = guarded or any(_catches_import_error(handler) for handler in node.handlers)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                guarded = True
        waiting += [(child, guarded) for child in children]


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        ast.unparse(kind) in ("ImportError", "ModuleNotFoundError", "Exception", "BaseException") for kind in caught
    )


def _is_import_call(function: ast.expr) -> bool:
    return isinstance(function, ast.Name | ast.Attribute) and ast.unparse(function) in (
        "__import__",
        "import_module",
        "importlib.import_module",
    )


def _absolute(statement: _Statement, package: str) -> str | None:
    """The dotted name that a statement in `package` means; None where its dots lead above the top."""
    if statement.level == 0:
        return statement.module
    parts = package.split(".") if package else []
    if statement.level > len(parts):
        return None
    base = parts[: len(parts) - (statement.level - 1)]
    return ".".join([*base, statement.module] if statement.module else base)


def _submodules(name: str, names: tuple[str, ...]) -> list[str]:
    """`from google.cloud import storage` may mean the module google.cloud.storage: keep the longer name."""
    return [f"{name}.{item}" for item in names if item != "*"] or [name]


# -- local modules ---------------------------------------------------------------------------------------------------


def _locate(
    name: str, names: tuple[str, ...], folders: tuple[str, ...], home: str, read: Reader
) -> tuple[str, list[tuple[str, str]]] | None:
    """The first folder that has the module, and every file that importing it runs, with their dotted names."""
    parts = name.split(".")
    in_library = parts[0] in sys.stdlib_module_names
    for folder in folders:
        if in_library and (folder != home or parts[0] in sys.builtin_module_names):
            continue
        files: list[tuple[str, str]] = []
        for length in range(1, len(parts) + 1):
            files += _module_file(folder, parts[:length], read)
        for item in names:
            files += _module_file(folder, [*parts, item], read)
        if files:
            return folder, files
    return None


def _module_file(folder: str, parts: list[str], read: Reader) -> list[tuple[str, str]]:
    base = "/".join([folder, *parts]) if folder else "/".join(parts)
    for path in (f"{base}/__init__.py", f"{base}.py"):
        if read(path) is not None:
            return [(path, ".".join(parts))]
    return []


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


# -- PEP 723 ---------------------------------------------------------------------------------------------------------

# The reference implementation's expression: https://packaging.python.org/en/latest/specifications/inline-script-metadata/
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def script_block(source: bytes, path: str) -> ScriptBlock | None:
    """The script's PEP 723 block, or None. Raises UsageError, with the line, where it is malformed or there are two."""
    text = source.decode("utf-8", errors="replace").replace("\r\n", "\n").removeprefix("\ufeff")
    blocks = [match for match in _BLOCK.finditer(text) if match["type"] == "script"]
    if not blocks:
        return None
    line = text.count("\n", 0, blocks[-1].start()) + 1
    if len(blocks) > 1:
        raise UsageError(f"{path}:{line}: a second `# /// script` block; there may be one")
    content = "".join(
        row[2:] if row.startswith("# ") else row[1:] for row in blocks[0]["content"].splitlines(keepends=True)
    )
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}:{line}: its `# /// script` block is not TOML: {error}") from error
    dependencies = table.get("dependencies", [])
    requires_python = table.get("requires-python")
    if not isinstance(dependencies, list) or not all(isinstance(item, str) for item in dependencies):
        raise UsageError(f"{path}:{line}: `dependencies` in its `# /// script` block must be a list of strings")
    if requires_python is not None and not isinstance(requires_python, str):
        raise UsageError(f"{path}:{line}: `requires-python` in its `# /// script` block must be a string")
    return ScriptBlock(tuple(dependencies), requires_python, content)
