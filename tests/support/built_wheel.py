"""The package's wheel, made of a copy of the sources: a build leaves folders behind."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("analyzer", "catalog", "pyproject.toml", "README.md", "LICENSE")


def pip(*arguments):
    """Run pip without the network."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def build_wheel(folder, *, alone=False):
    """Return the wheel, built in this folder; `alone` it says that it depends on nothing."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    if alone:
        project = source / "pyproject.toml"
        project.write_text(re.sub(r"(?ms)^dependencies = \[.*?^\]", "dependencies = []", project.read_text("utf-8")))
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", folder)
    (path,) = folder.glob("*.whl")
    return path
