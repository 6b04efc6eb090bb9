"""Texts for tiny models, and a tokenizer that makes one token of each of their words."""

from __future__ import annotations

from pathlib import Path

PROMPT = "apple banana cherry date elder fig grape hazel"
WORDS = [*PROMPT.split(), "iris", "juniper", "kiwi", "lemon", "mango", "nutmeg", "olive", "pear"]
TEXT = " ".join(WORDS * 4)
PROMPT_IDS = list(range(1, 9))
TEXT_IDS = list(range(1, 17)) * 4
MASK_ID, BOS_ID = 17, 18


def save_tokenizer(folder: Path, *, bos: bool = False) -> None:
    """Save a tokenizer that makes one token of each of WORDS; 0 is unknown, 17 the mask, and with `bos` 18 begins."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS, "<mask>", "<s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(WORDS)  # whatever else a family's own class of tokenizers makes of the file, it keeps these
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    special = {"unk_token": "<unk>", "mask_token": "<mask>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
