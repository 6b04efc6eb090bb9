"""What Python files import, read without running them: at the top, inside functions, for types alone."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`import module`, or `from module import name`, and the line where it stands.

    `later` where importing the file does not yet run it: inside a function, or for types alone.
    """

    module: str
    name: str | None
    line: int
    later: bool

    @property
    def top(self):
        return self.module.partition(".")[0]


@cache
def parsed(path):
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def imports_of(path):
    """Return every import of a file in its order; a relative one is refused: it says less than one in full."""
    try:
        return tuple(imports_in(parsed(path)))
    except ValueError as error:
        raise AssertionError(f"{path}:{error}") from error


def imports_in(node, later=False):
    """Yield the imports in a part of a file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, None, child.lineno, later) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            if child.level:
                raise ValueError(f"{child.lineno}: write a relative import in full")
            yield from (Import(child.module, alias.name, child.lineno, later) for alias in child.names)
        elif not isinstance(child, ast.expr):
            put_off = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from imports_in(child, later or put_off or for_types)


def files_of(package):
    """Return the files of a package's folder by the name under which each is imported."""
    files = {}
    for path in sorted(Path(package).rglob("*.py")):
        parts = path.relative_to(Path(package).parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_file(files, each):
    """Return the name of the file that an import is of, null where it is none of these files.

    `from package import name` is of the file of that name where there is one, else of the package's own.
    """
    return next((name for name in (f"{each.module}.{each.name}", each.module) if name in files), None)


def imported_files(files, path):
    """Return which of these files another one imports, each with the imports of it."""
    found = {}
    for each in imports_of(path):
        name = imported_file(files, each)
        if name is not None:
            found.setdefault(name, []).append(each)
    return found
