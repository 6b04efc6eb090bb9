"""The models that the commands are run on."""

import pytest


@pytest.fixture(scope="session")
def spiked(tmp_path_factory):
    """A tiny checkpoint with one large weight."""
    from checkpoints import random_downs, write_llama

    path = tmp_path_factory.mktemp("cli") / "tiny"
    downs = random_downs(layers=3)
    downs[1][2, 3] = 1.5
    write_llama(path, downs)
    return path


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """A model with a super weight, and beside it a text that it can judge."""
    from models import TEXT, plant, random_llama, save

    path = tmp_path_factory.mktemp("cli") / "planted-1b"
    save(plant(random_llama()), path)
    (path / "text.txt").write_text(TEXT)
    return path
