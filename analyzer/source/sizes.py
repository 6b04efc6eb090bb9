"""Sizes of a model's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping


class Sizes(Mapping[str, int]):
    """Size in bytes of each file, by name; what was listed without one is looked up when it is asked for."""

    def __init__(self, listed: Mapping[str, int | None], look_up: Callable[[str], int | None]) -> None:
        """Hold what was listed, null where it has no size; `look_up` returns null where there is no such file."""
        self._listed = listed
        self._look_up = look_up
        self._found: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        size = self._listed.get(name)
        if size is None:
            size = self._found.get(name)
        if size is None:
            size = self._look_up(name)
            if size is None:
                raise KeyError(name)
            self._found[name] = size
        return size

    def __contains__(self, name: object) -> bool:
        return name in self._listed or super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)
