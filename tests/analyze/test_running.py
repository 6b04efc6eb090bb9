"""A model's name to a model that runs."""

import pytest

from analyzer.analyze.running import load_model
from analyzer.base.errors import SettingsError


@pytest.mark.parametrize("setting", [{"device": "zap"}, {"dtype": "zap"}, {"dtype": "float64"}])
def test_a_setting_that_is_none_is_refused_before_anything_is_read(setting):
    with pytest.raises(SettingsError, match="give auto, "):
        load_model(None, **setting)
