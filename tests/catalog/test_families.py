"""The family of a model by its name."""

import pytest

from analyzer.catalog.families import family_of


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("meta-llama/Llama-2-7b-hf", "llama-2"),
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1"),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
        ("google/gemma-2-9b-it", "gemma-2"),
        ("allenai/OLMo-1B-0724-hf", "olmo"),
        ("openai-community/gpt2-medium", "gpt2"),
        ("bigscience/bloom-7b1", "bloom"),
        ("google-bert/bert-base-uncased", "bert"),
        ("EleutherAI/pythia-410m-deduped", "pythia"),
        ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2"),
        ("stories260K", "stories"),
        ("SmolLM2-135M-Instruct-Q4_1", "smollm2"),
        ("owner/Foo-7B-GGUF:Q4/Foo-7B-Q4_K_M.gguf", "foo"),
        ("owner/foo-GGUF:x.gguf", "foo"),
        ("me/schema", "schema-model"),
        ("7b-chat", "7b-chat"),
        ("../../etc/passwd", "passwd"),
        ("me/...", "model"),
        ("Größe 1", "gr--e-1"),
    ],
)
def test_family_of_a_model(model, family):
    assert family_of(model) == family
