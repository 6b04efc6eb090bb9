"""Print what tools/gpu_check.sh needs of Python's packages, a requirement a line, as pyproject.toml has them.

python tools/gpu_needs.py             # all of them, for pip
python tools/gpu_needs.py --lacking   # those that are not here, or too old, in one line
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NEEDED = frozenset({
    "accelerate", "filelock", "gguf", "httpx2", "huggingface_hub", "hypothesis", "ml_dtypes", "numpy", "platformdirs",
    "psutil", "pytest", "safetensors", "tabulate", "tokenizers", "torch", "tqdm", "transformers",
})  # fmt: skip


def main() -> None:
    """Print the requirements, or what is lacking of them."""
    lacking = sys.argv[1:] == ["--lacking"]
    print(", ".join(filter(is_lacking, needed())) if lacking else "\n".join(needed()))


def needed() -> Iterator[str]:
    """Yield the requirements of the packages that are needed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        if re.split("[<>=]", requirement)[0] in NEEDED:
            yield requirement


def is_lacking(requirement: str) -> bool:
    """Tell whether no package is here that meets a requirement, NAME>=VERSION."""
    name, _, least = requirement.partition(">=")
    try:
        return _numbers(version(name)) < _numbers(least)
    except PackageNotFoundError:
        return True


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


if __name__ == "__main__":
    main()
