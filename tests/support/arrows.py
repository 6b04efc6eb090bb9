"""Checks the arrows of a package: which rooms import which, in what order, and that no files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter

from imports import files_of, imported_files, parsed

LAST = "cli"
CALLS = ("import_module", "__import__")
VERSION = "__version__"


def rooms_of(package):
    return sorted(path.parent.name for path in package.glob("*/__init__.py"))


def faults(package, order):
    """Return what is wrong with the imports of a package's folder, a line each.

    `order` has each room, later ones after earlier ones, with the rooms that it imports: all of them, and no other.
    The package's own `__init__` and `__main__` stand above the rooms.
    """
    files, rooms = files_of(package), rooms_of(package)
    inside = {name: path for name, path in files.items() if room_of(name) in rooms}
    graph = {name: imported_files(files, path) for name, path in inside.items()}
    lines = [f"{room} is a room, or has a place in the order, but not both" for room in order.keys() ^ rooms]
    lines += _faults_of_order(order, {(room_of(name), room_of(to)) for name, found in graph.items() for to in found})
    for name, found in graph.items():
        file = inside[name].relative_to(package)
        lines += [f"{file}:{line}" for line in _hidden(inside[name], package.name)]
        for to, imports in found.items():
            where = f"{file}:{imports[0].line} imports {to}"
            if to not in inside and not (to == package.name and all(each.name == VERSION for each in imports)):
                lines.append(f"{where}: it stands above the rooms")
            elif to in inside and room_of(to) != room_of(name) and room_of(to) not in order.get(room_of(name), ()):
                lines.append(f"{where}: {room_of(name)} may not import {room_of(to)}")
    above = imported_files(files, package / "__init__.py")
    lines += [f"__init__.py imports {to}: only __main__.py may" for to in above if room_of(to) == LAST]
    try:
        TopologicalSorter({name: [to for to in found if to in inside] for name, found in graph.items()}).prepare()
    except CycleError as error:
        lines.append("a cycle of files: " + " <- ".join(error.args[1]))
    return lines


def _hidden(path, package):
    """Yield what imports without saying what: by a call, or as `import package.file`, which binds the package."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            whole = [each.name for each in node.names if each.name.startswith(f"{package}.") and not each.asname]
            yield from (f"{node.lineno} imports the package with {name}: write `from … import`" for name in whole)
        for name in (getattr(node, field, None) for field in ("id", "attr", "name")):
            if name in CALLS:
                yield f"{node.lineno} calls {name}: write the import"


def _faults_of_order(order, arrows):
    rooms = list(order)
    for place, (room, others) in enumerate(order.items()):
        for other in others:
            if other not in rooms[:place]:
                yield f"the order has {room} import {other}: that arrow goes back"
            elif (room, other) not in arrows:
                yield f"the order has {room} import {other}, which it does not"


def room_of(name):
    """Return the first part of a file's name within the package, empty for the package itself."""
    return name.partition(".")[2].partition(".")[0]
