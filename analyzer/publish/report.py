"""A publication -> what a person reads, in 100 columns."""

from __future__ import annotations

import tabulate

from analyzer.base.errors import shown
from analyzer.base.text import byte_size, count_of
from analyzer.publish.publication import Change, Publication

SHOWN_FILES = 12
_WORDS = {"added": "new", "changed": "changed", "deleted": "deleted"}


def render_publication(publication: Publication, *, private: bool = False) -> str:
    """Return what was uploaded, or would be, and where it is."""
    rows = count_of(publication.rows, "row")
    said = [f"{publication.repo_id}: {publication.message.partition(': ')[2]}; {rows} in the table"]
    if not publication.changes:
        return "\n\n".join([*said, f"Nothing has changed: nothing uploaded. {publication.url}"])
    changes = sorted(publication.changes, key=_importance)
    cells = [[_WORDS[change.change], shown(change.path, 60), _sizes(change)] for change in changes[:SHOWN_FILES]]
    table = tabulate.tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=("left", "left", "right"))
    said.append(table)
    if changes[SHOWN_FILES:]:
        said.append(f"… and {len(changes) - SHOWN_FILES} more (--json lists all)")
    total = byte_size(sum(change.size or 0 for change in changes))
    files = f"{count_of(len(changes), 'file')}, {total}"
    if publication.unchanged:
        files += f", {publication.unchanged} unchanged"
    if publication.dry_run:
        if publication.creates:
            kind = "private repository" if private else "repository"
            said.append(f"There is no such dataset, or none that you may see: this would create the {kind}.")
        said.append(f"It would be one commit of {files}. Nothing was uploaded: this was a dry run.")
    else:
        made = "Created the repository, and uploaded" if publication.creates else "Uploaded"
        said.append(f"{made} {files}, in one commit:\n{shown(publication.commit_url)}")
    return "\n\n".join(said)


def _importance(change: Change) -> tuple[bool, bool, str]:
    """Put what somebody may miss before what is new, and the single files before those of the families."""
    return change.change == "added", change.path.startswith("catalog/"), change.path


def _sizes(change: Change) -> str:
    if change.size is None:
        return f"had {byte_size(change.old_size or 0)}"
    size, old_size = byte_size(change.size), byte_size(change.old_size or 0)
    return size if change.old_size is None or size == old_size else f"{size}, was {old_size}"
