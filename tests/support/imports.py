"""What Python files import, read without running them: at the top, inside functions, for types alone."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`import module`, or `from module import name`, and the line where it stands."""

    module: str
    name: str | None
    line: int

    @property
    def top(self):
        return self.module.partition(".")[0]


@cache
def parsed(path):
    return ast.parse(path.read_text("utf-8"), str(path))


def imports_of(path):
    """Return every import of a file in its order; a relative one is refused: it says less than one in full."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}:{node.lineno}: write a relative import in full")
            found += [Import(node.module, alias.name, node.lineno) for alias in node.names]
    return sorted(found, key=lambda each: (each.line, each.module, each.name or ""))


def files_of(package):
    """Return the files of a package's folder by the name under which each is imported."""
    files = {}
    for path in sorted(Path(package).rglob("*.py")):
        parts = path.relative_to(Path(package).parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_files(files, path):
    """Return which of these files another one imports, each with the imports of it.

    `from package import name` is the file of that name where there is one, else the package's own.
    """
    found = {}
    for each in imports_of(path):
        module = f"{each.module}.{each.name}" if f"{each.module}.{each.name}" in files else each.module
        if module in files:
            found.setdefault(module, []).append(each)
    return found
