"""Which family, and so which file, a model belongs to."""

from __future__ import annotations

import re

from analyzer.catalog.documents import Entry as Entry

FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# 7b, 1.5B, 135M, 8x7B, 7b1, stories260K: the size ends the family's name, with what stands before it in the same word.
_SIZE = re.compile(r"(.*?)(?:\d+x)?\d+(?:\.\d+)?[kmbt]\d?", re.IGNORECASE)
_VARIANT = re.compile(
    "base|chat|instruct|it|hf|pt|sft|dpo|preview|deduped|random|uncased|cased|multilingual"
    "|nano|tiny|mini|small|medium|large|xl|xxl|lite|plus|pro|max"
    "|int4|int8|fp8|fp16|bf16|gptq|awq|gguf"
)


def family_of(model: str) -> str:
    """Return a model's family: its name without owner, size and variant, in lower case.

    `owner/SmolLM2-135M-Instruct` gives `smollm2`, `Llama-2-7b-hf` gives `llama-2`, and so does a file in either.
    """
    words = re.sub(r"[^a-z0-9._-]", "-", model.partition(":")[0].rsplit("/", 1)[-1].lower()).strip("-._").split("-")
    if words[0] == "meta" and len(words) > 1:  # Meta-Llama-3-8B and Llama-3.1-8B are one family
        del words[0]
    kept: list[str] = []
    for word in words:
        if size := _SIZE.fullmatch(word):
            kept += [size[1]] if size[1] else []
            break
        if kept and _VARIANT.fullmatch(word):
            break
        kept.append(word)
    family = "-".join(kept).strip("-._")[:64] or "-".join(words)[:64] or "model"
    return "schema-model" if family == "schema" else family
