"""What is known of each file on the Hub: where the cache has it, and a signed URL until it expires."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


class SignedUrlRefused(Exception):  # noqa: N818 - never leaves hub.py
    """A signed URL that served before does not serve now."""


@dataclass
class HubFile:
    """What is known of one file; several threads may look and change, and the worst of it is one request more."""

    path: str
    size: int | None
    """Its size in bytes; null until it was asked for, where the listing lacks it."""
    sha256: str | None
    cached: Path | None = None
    """Where the Hub's local cache has it."""
    signed_url: str | None = None
    """A URL that the Hub redirected to: until it expires, it saves asking the Hub for each range."""
    tags: dict[str, str | None] = field(default_factory=dict)
    reused: bool = False
    """A signed URL served more than once."""
    one_range_only: bool = False
    ranges_ignored: bool = False
    """The server answers with all of the file, whatever range it is asked for."""

    def distrust(self, url: str | None) -> None:
        """Forget a signed URL that was refused; one that never served twice is bound to a single range."""
        if self.signed_url == url:
            self.signed_url = None
        if not self.reused:
            self.one_range_only = True
