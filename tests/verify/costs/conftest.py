"""A model of which it is known what its weights cost, for several tests."""

import pytest
from cued import cued_model
from models import hooked, save


@pytest.fixture(scope="package")
def cued(tmp_path_factory):
    model = cued_model()
    return model, hooked(save(model, tmp_path_factory.mktemp("models") / "cued"))
