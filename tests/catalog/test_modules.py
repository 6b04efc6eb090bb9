"""The names of modules in exports, by the stock models that have them."""

import pytest
import torch
import transformers

from analyzer.catalog.exports.modules import MODULES


@pytest.mark.parametrize("model_type", MODULES)
def test_the_modules_are_called_so_in_transformers(model_type):
    config = transformers.AutoConfig.for_model(model_type)
    loader = transformers.AutoModelForCausalLM
    if model_type in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        loader = transformers.AutoModelForImageTextToText
    elif "bert" in model_type:
        loader = transformers.AutoModelForMaskedLM
    with torch.device("meta"):
        modules = dict(loader.from_config(config).named_modules())
    assert isinstance(modules[MODULES[model_type].format(layer=1)], torch.nn.Linear)
