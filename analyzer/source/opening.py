"""A model's name -> the source of its bytes."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

from analyzer.base.errors import SourceError, shown
from analyzer.source.folder import FolderSource
from analyzer.source.source import Source

# One word or owner/name, of the characters that the Hub allows.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


def open_model(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    model_id: str | None = None,
) -> Source:
    """Return the source for a local folder or a Hub id (`owner/name` or `owner/name@revision`).

    A folder that exists goes before a Hub id of the same name. `model_id` renames a local folder in results.
    Raises SourceError where there is no such model or it cannot be reached.

    >>> open_model("./my-model").sizes["config.json"] > 100
    True
    """
    model = fspath(model)
    if not model.strip():
        raise SourceError("the model's name is empty: give a folder or a Hub id of the form owner/name")
    try:
        path = Path(model).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name longer than paths may be, the home of nobody
        raise SourceError(f"cannot look for a folder {shown(model)}: {shown(error)}") from error
    if is_folder:
        if revision is not None:
            raise SourceError(f"{shown(model)} is a local folder and has no revisions: leave --revision out")
        return FolderSource(path, subfolder=subfolder, model_id=model_id)
    name, _, at_revision = model.partition("@")
    if exists:
        raise SourceError(f"{shown(model)} is a file: give the folder that holds the checkpoint")
    if not HUB_ID.fullmatch(name):
        raise SourceError(f"there is no folder {shown(model)}, and it is not a Hub id of the form owner/name")
    if at_revision and revision is not None and revision != at_revision:
        raise SourceError(f"{shown(model)} and --revision {shown(revision)} name two revisions: give one")
    if model_id is not None and model_id != name:
        raise SourceError(f"--model-id names a local folder; {name} already has its name on the Hub")
    from analyzer.source.hub import open_hub

    return open_hub(name, revision=revision or at_revision or None, subfolder=subfolder, token=token)
