"""A model's name -> the source of its bytes."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from analyzer.base.errors import GoneError, SourceError, shown
from analyzer.source.folder import FolderSource
from analyzer.source.hub.cache import cached_model, open_cached
from analyzer.source.single_file import GGUF_SUFFIX, FileSource, only_gguf
from analyzer.source.source import HUB_ID, Source


def open_model(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    model_id: str | None = None,
) -> Source:
    """Return the source for a local folder, a GGUF file or a Hub id (`owner/name` or `owner/name@revision`).

    A folder and a Hub id may be followed by `:file.gguf`; where that is the only model in it, it need not be named.
    A folder that exists goes before a Hub id of the same name; a model's folder in the Hub's cache stands for the
    model. `model_id` renames a local folder in results.
    Raises SourceError where there is no such model or it cannot be reached.

    >>> open_model("./my-model").sizes["config.json"] > 100
    True
    """
    model = fspath(model)
    if not model.strip():
        raise SourceError("the model's name is empty: give a folder or a Hub id of the form owner/name")
    whole, file = _split_name(model)
    above, _, filename = file.rpartition("/")
    folder = "/".join(part for part in (subfolder, above) if part)
    source = _open_whole(whole, revision=revision, subfolder=folder or None, token=token, model_id=model_id)
    within = f"{folder.strip('/')}/" if folder.strip("/") else ""
    return FileSource(source, filename, folder=within) if filename else only_gguf(source, folder=within)


def _split_name(model: str) -> tuple[str, str]:
    """Return the name of a folder or repository, and that of a GGUF file in it: empty where none is named."""
    if not model.endswith(GGUF_SUFFIX):
        return model, ""
    path = existing_file(model)
    if path is not None:
        return str(path.parent), path.name
    whole, _, file = model.rpartition(":")
    return (whole, file) if whole else (model, "")


def existing_file(model: str) -> Path | None:
    """Return the path of a local file, or pipe, of this name; null where there is none."""
    try:
        path = Path(model).expanduser()
        return path if path.is_file() or path.is_fifo() else None
    except (OSError, RuntimeError):  # no name that a file can have
        return None


def _open_whole(
    model: str, *, revision: str | None, subfolder: str | None, token: str | None, model_id: str | None
) -> Source:
    """Return the source for a folder or a repository, whatever is in it."""
    try:
        path = Path(model).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name longer than paths may be, the home of nobody
        raise SourceError(f"cannot look for a folder {shown(model)}: {shown(error)}") from error
    if is_folder and (cached := cached_model(path.resolve())):
        source = open_cached(path, model_id or cached, revision=revision, subfolder=subfolder)
        if source is None:
            raise SourceError(f"{shown(model)}, a folder of the Hub's cache, has no snapshot: download the model again")
        return source
    if is_folder:
        if revision is not None:
            raise SourceError(f"{shown(model)} is a local folder and has no revisions: leave --revision out")
        return FolderSource(path, subfolder=subfolder, model_id=model_id)
    name, _, at_revision = model.partition("@")
    if exists:
        raise SourceError(f"{shown(model)} is a file: give the folder that holds the checkpoint, or a .gguf file")
    if not HUB_ID.fullmatch(name):
        raise GoneError(f"there is no folder or file {shown(model)}, and it is not a Hub id of the form owner/name")
    if at_revision and revision is not None and revision != at_revision:
        raise SourceError(f"{shown(model)} and --revision {shown(revision)} name two revisions: give one")
    if model_id is not None and model_id != name:
        raise SourceError(f"--model-id names a local folder; {name} already has its name on the Hub")
    from analyzer.source.hub.hub import open_hub

    return open_hub(name, revision=revision or at_revision or None, subfolder=subfolder, token=token)
