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


@pytest.fixture
def partly_known(tmp_path):
    """A checkpoint one layer of which has a second MLP, by names that are not known."""
    import numpy as np
    from checkpoints import random_downs, write_llama, write_tensors
    from safetensors.numpy import load_file

    downs = random_downs(layers=3)
    write_llama(tmp_path / "part", downs)
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    for name, shape in {"fwd": (20, 8), "bwd": (8, 20)}.items():
        tensors[f"model.layers.1.extra.{name}.weight"] = np.zeros(shape, downs[0].dtype)
    write_tensors(tmp_path / "part", tensors)
    return tmp_path / "part"
