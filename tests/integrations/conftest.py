"""Scripts that uv runs: with a wheel of this tree in the place of the address that they name."""

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from built_wheel import build_wheel

ADDRESS = r"superweight-analyzer @ git\+https://github\.com/-owner-/superweight@v[\d.]+"


class Uv:
    """A uv that asks nobody: what the wheel needs is found among this Python's own packages."""

    def __init__(self, program, wheel, cache):
        self.program, self._wheel = program, wheel
        self.environment = {
            "PATH": f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": sysconfig.get_paths()["purelib"],
            "UV_CACHE_DIR": str(cache),
            "UV_OFFLINE": "1",
            "UV_NO_INDEX": "1",
            "UV_PYTHON": sys.executable,
        }

    def script(self, path, copy):
        """Copy a script, with the wheel in it; returns the copy."""
        text, count = re.subn(ADDRESS, f"superweight-analyzer @ {self._wheel.as_uri()}", path.read_text("utf-8"))
        assert count == 1
        copy.write_text(text)
        copy.chmod(0o755)
        return copy


@pytest.fixture(scope="session")
def uv(tmp_path_factory):
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("uv is not installed: `pip install uv`")
    folder = tmp_path_factory.mktemp("uv")
    return Uv(program, build_wheel(folder, alone=True), folder / "cache")
