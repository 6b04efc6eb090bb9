"""Models that several files run, each built once."""

import pytest


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Return a family's model twice: plain, and the analyzer's.

    Every down projection of it has a weight at (5, 19) that matters.
    """
    from models import hooked, load_plain, save_random

    pairs = {}

    def get(name):
        if name not in pairs:
            folder = save_random(name, tmp_path_factory.mktemp("models") / name)
            pairs[name] = load_plain(name, folder), hooked(folder)
        return pairs[name]

    return get


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Return a model with a super weight planted in it: plain, and the analyzer's."""
    from models import hooked, plant, random_llama, save

    model = plant(random_llama())
    return model, hooked(save(model, tmp_path_factory.mktemp("models") / "planted"))
