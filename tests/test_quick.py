"""What `pytest --quick` leaves out, told from imports and fixtures, on a made-up tree."""

import pytest
from quick import slow_files

TREE = {
    "analyzer/__init__.py": "",
    "analyzer/heavy.py": "import torch\n",
    "analyzer/light.py": "def run():\n    from analyzer import heavy\n",
    "analyzer/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
    "tests/conftest.py": (
        "import pytest\n"
        "@pytest.fixture\ndef hub():\n    from server import Server\n"
        "@pytest.fixture\ndef sharded(hub, tmp_path):\n    pass\n"
        "@pytest.fixture\ndef folder(tmp_path):\n    from numbers_of_files import write\n"
    ),
    "tests/room/conftest.py": (
        "import pytest\n"
        "@pytest.fixture\ndef published(hub):\n    pass\n"
        "@pytest.fixture\ndef model():\n    from more_models import build\n"
    ),
    "tests/support/server.py": "from http.server import HTTPServer\n",
    "tests/support/numbers_of_files.py": "import numpy\n",
    "tests/support/models.py": "def build():\n    import torch.nn\n",
    "tests/support/more_models.py": "import models\n",
}
QUICK = {
    "nothing": "import json\nimport numpy as np\n",
    "what imports torch only when it runs": "from analyzer.light import run\n",
    "what names torch's types": "import analyzer.typed\n",
    "a quick fixture": "def test(folder):\n    pass\n",
    "a name that is no fixture": "def test(server):\n    pass\n",
}
SLOW = {
    "torch": "import torch\n",
    "a part of torch": "from torch.nn import Linear\n",
    "torch in a function": "def test():\n    import torch\n",
    "the analyzer's use of it": "from analyzer.heavy import run\n",
    "a module of the analyzer": "from analyzer import heavy\n",
    "the analyzer's use of it, in a function": "def test():\n    import analyzer.heavy\n",
    "what the tests share": "from more_models import build\n",
    "a server": "def test():\n    from server import Server\n",
    "a socket": "import socket\n",
    "a fixture": "def test(hub):\n    pass\n",
    "a fixture of a fixture": "def test(sharded):\n    pass\n",
    "a fixture of its room": "def test(model):\n    pass\n",
    "a fixture of its room that asks for another": "def test(published):\n    pass\n",
    "a fixture of its own fixture": "import pytest\n@pytest.fixture\ndef mine(hub):\n    pass\n",
    "a method's fixture": "class TestIt:\n    def test(self, hub):\n        pass\n",
}


@pytest.mark.parametrize(
    ("text", "slow"),
    [*((text, False) for text in QUICK.values()), *((text, True) for text in SLOW.values())],
    ids=[*QUICK, *SLOW],
)
def test_what_needs_torch_or_the_network(tmp_path, text, slow):
    for name, content in {**TREE, "tests/room/test_it.py": text}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert slow_files(tmp_path / "tests") == [tmp_path / "tests" / "room" / "test_it.py"] * slow
