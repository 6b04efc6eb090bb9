"""The Hub's cache on this machine: which snapshots of a model it has."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from analyzer.base.errors import GoneError, shown
from analyzer.source.folder import FolderSource
from analyzer.source.source import is_plain_path

MAX_SHOWN_SNAPSHOTS = 5


def cache_folder(model: str) -> Path:
    """Return where the Hub's cache keeps a model, whether it is there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")


def room() -> tuple[Path, int]:
    """Return the folder of the Hub's cache, and how many bytes its disk has free."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE).absolute()
    return root, shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def cached_model(folder: Path) -> str | None:
    """Return the model that a folder of the Hub's cache, such as `models--owner--name`, is of; null for any other."""
    kind, *name = folder.name.split("--")
    return "/".join(name) if kind == "models" and len(name) in (1, 2) and (folder / "snapshots").is_dir() else None


def open_cached(folder: Path, model: str, *, revision: str | None, subfolder: str | None) -> FolderSource | None:
    """Return the source for a revision of the model that a folder of the Hub's cache holds; null where it holds none.

    The revision is a branch, a tag, a commit or its first characters; without one it is the main branch or else the
    only snapshot. Raises GoneError where the folder holds other revisions.
    """
    snapshots = _snapshots(folder)
    if not snapshots:
        return None
    commit = _find(folder, snapshots, revision or "main")
    notes: tuple[str, ...] = ()
    if commit is None and revision is None and len(snapshots) == 1:
        commit = snapshots[0]
        notes = (f"commit {shown(commit, 40)} is read: the Hub's cache of the model has no other",)
    if commit is None:
        names = ", ".join(shown(name, 40) for name in snapshots[:MAX_SHOWN_SNAPSHOTS])
        more = f" and {len(snapshots) - MAX_SHOWN_SNAPSHOTS} more" if len(snapshots) > MAX_SHOWN_SNAPSHOTS else ""
        raise GoneError(
            f"the Hub's cache of {model} has no {f'revision {shown(revision)}' if revision else 'main branch'}, only "
            f"{names}{more}: give one of them as --revision"
        )
    path = folder / "snapshots" / commit
    return FolderSource(path, subfolder=subfolder, model_id=model, revision=revision, commit=commit, notes=notes)


def _snapshots(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(path.name for path in (folder / "snapshots").iterdir() if path.is_dir())
    return []


def _find(folder: Path, snapshots: list[str], revision: str) -> str | None:
    """Return the snapshot that a revision names, or the only one whose name begins with it."""
    with suppress(OSError, UnicodeDecodeError):
        if is_plain_path(revision) and (commit := (folder / "refs" / revision).read_text().strip()) in snapshots:
            return commit
    begun = [name for name in snapshots if re.fullmatch(r"[0-9a-f]{4,40}", revision) and name.startswith(revision)]
    return begun[0] if len(begun) == 1 else None
