"""A model with a planted super weight, a text and passages for it, and the same model of plain transformers."""

import random

import pytest


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """The model's folder, a file of text in it, one of passages, and the stock model."""
    import torch
    import transformers
    from models import PROMPT_IDS, plant, random_llama, save
    from plainly import said
    from tiny_text import WORDS

    folder = tmp_path_factory.mktemp("experiments") / "planted"
    model = plant(random_llama())
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # else it says all words alike, whatever goes on inside
    save(model, folder)
    plain = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [said(plain, [PROMPT_IDS[0]], 12, generator) for _ in range(8)]
    (folder / "text.txt").write_text(" ".join(WORDS[token - 1] for ids in texts for token in ids) + " pear pear")
    words = random.Random(0)
    lines = [" ".join(words.choices(WORDS, k=number)) for number in (6, 4, 6, 9, 4, 3)]
    (folder / "passages.txt").write_text("\n".join(lines))
    return folder, plain


@pytest.fixture
def run(planted):
    """Run an experiment on it, by default over windows of 12 tokens of its text, on the planted weight."""
    from models import PLANTED

    from analyzer.experiments.lab.asked import Settings
    from analyzer.experiments.lab.conducting import conduct
    from analyzer.source.folder import FolderSource

    def run_it(experiment, *, folder=planted[0], source=None, weights=(PLANTED,), length=12, settings=None, **options):
        data = {"data": str(planted[0] / "text.txt"), "prompts_data": str(planted[0] / "passages.txt")}
        if experiment.needs == "text":
            data["length"] = length
        asked = Settings(weights=tuple(weights), **data | (settings or {}))
        return conduct(source or FolderSource(folder), experiment, asked, **options)

    return run_it
