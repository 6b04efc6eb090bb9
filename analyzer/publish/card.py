"""Pure: the catalog's documents -> the card of its dataset on the Hub, in Markdown; names in it are not trusted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from analyzer.base.errors import shown
from analyzer.catalog.documents import Document
from analyzer.catalog.lookup import entries_in, reported_in

STANDINGS = ("reported", "disputed", "none_reported")
_MARKER = re.compile(rb"<!-- Made by `superweight catalog publish`, sha256 of the rest: ([0-9a-f]{64}) -->\n")

_HEAD = """\
---
license: apache-2.0
pretty_name: Super weight catalog
size_categories:
- {size}
tags:
- super-weights
- massive-activations
- quantization
- pruning
- interpretability
configs:
- config_name: default
  data_files:
  - split: train
    path: data/coordinates.parquet
---
"""

_ABOUT = """\

# Super weight catalog

A handful of single weights in a large language model carry its ability to write text: set one of them to zero and
perplexity rises by orders of magnitude ([Yu et al., 2024](https://arxiv.org/abs/2411.07191)). This is where they are:
(layer, row, col) in the down projection of an MLP, `row` being the output channel and `col` the input channel.

{counts}

## Load it

```python
from datasets import load_dataset

coordinates = load_dataset("{repo_id}", split="train")
critical = coordinates.filter(lambda c: c["effect"] == "critical")
```

The table is made from the JSON files in [`catalog/`](catalog), which say more: the super activations, the static
outliers, and how each analysis was made. [`catalog/schema.json`](catalog/schema.json) is their JSON Schema.

```
hf download {repo_id} --repo-type dataset --include "catalog/*" --local-dir .
superweight catalog list --catalog catalog
```

## The columns

- `model`, `revision`, `family`: what was looked at; the revision is the Hub's commit, of local weights their hash, or
  what the source names.
- `standing`: `verified` (this tool has zeroed it, see `status`), `reported` (by the `sources`, not verified here),
  `disputed` (the sources contradict each other, see `reason`), or `none_reported` (a source found none, or published no
  coordinate).
- `layer`, `expert`, `row`, `col`, `value`: the weight. `col` is null where a whole row is reported, all of them where
  there is no coordinate, `expert` outside of mixtures of experts.
- `status`: `confirmed` if zeroing it takes the super activation away, `coincident` if it does not, `late` if
  what it writes is not followed by enough blocks, `rejected` if it writes none (and is here because it is critical).
- `effect`: `critical` if zeroing it costs the model clearly more than zeroing its control weights, else `inert`.
- `share`: the part of the MLP's output at that place that this one weight makes.
- `activation_collapse`: the part of the super activation that vanishes with it.
- `loss`, `loss_zeroed`, `loss_increase`: before and after zeroing it, over `loss_tokens` tokens; `control_loss_max`:
  with the worst of its control weights zeroed in its place.
- `kl_divergence`, `top1_agreement`, `destroyed`: over the whole text, the KL divergence of the untouched model from the
  one with it zeroed, in nats a token; at which part of the tokens both find the same one likeliest; and whether the
  zeroed one's loss is above that of the text's own unigrams. null where the whole text was not needed, and the last
  also where the untouched model's loss is above that.
- `static_rank`: its rank by magnitude in all down projections; `row_rank`, `rank_in_128`, `rank_in_32` those in its row
  and in its runs of so many there, `row_others_max` the largest magnitude beside it in the row.
- `round`: more than 1 where it showed only when others had been zeroed.
- `expert_share`, `expert_weight`: of a weight in an expert, which part of the prompts' tokens chose that expert, and
  with what mean weight of the router.
- `largest_magnitude`, `float16_overflows_from`: of the analysis: the largest magnitude of the residual stream and of
  what MLPs take and give, over its prompts, and the first layer where one is past float16's limit, if one is.
- `verdict`, `note`, `tool`, `dtype`: of the analysis: whether it confirmed any, where the weights came from, what it
  was made by, and in which precision.
- `change`: how much its block changes the super activation that it is behind.
- `reason`: why it is not confirmed (`survives`, `grows`, `late`, `share`, `channel`), why it is or was disputed, or
  what is reported in place of a coordinate.
- `module`, `model_type`: what transformers calls the module that holds the weight, and the model's architecture.
- `sources`, `source_kinds`, `source_urls`, `source_notes`: who reports it, an item for each source.
"""

_RIGHTS = """\

## Licence

Apache-2.0 for what this tool found, the files and this card. What others report are facts quoted from them, each with
its source; their own texts and code have their own licences.

## Citation

Super weights were first described by Yu et al.; please cite them, and the sources of the rows that you use.

```bibtex
@misc{yu2024superweight,
  title         = {The Super Weight in Large Language Models},
  author        = {Mengxia Yu and De Wang and Qi Shan and Colorado J. Reed and Alvin Wan},
  year          = {2024},
  eprint        = {2411.07191},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/2411.07191}
}
```
"""


def counts_of(documents: Mapping[str, Document]) -> dict[str, int]:
    """Return how many families, models, entries, weights and reported coordinates of each standing there are."""
    entries, reported = entries_in(documents), reported_in(documents)
    weights = [weight for _, entry in entries for weight in entry["super_weights"]]
    standings = Counter(item["standing"] for _, item in reported)
    return {
        "families": len(documents),
        "models": len({record["model"].lower() for _, record in (*entries, *reported)}),
        "entries": len(entries),
        "confirmed": sum(weight["status"] == "confirmed" for weight in weights),
        "critical": sum(weight["effect"] == "critical" for weight in weights),
        **{standing: standings[standing] for standing in STANDINGS},
    }


def summary_of(documents: Mapping[str, Document]) -> str:
    """Return the catalog in a line, which is also the message of the commit that publishes it."""
    counts = counts_of(documents)
    entries = _count(counts["entries"], "verified entry", "verified entries")
    families = _count(counts["families"], "family", "families")
    return f"{families}, {entries}, {sum(counts[standing] for standing in STANDINGS)} reported"


def card_of(documents: Mapping[str, Document], repo_id: str) -> bytes:
    """Return the dataset's card. It names its own hash, so that a card that somebody edited can be told."""
    rows = sum(len(entry["super_weights"]) or 1 for _, entry in entries_in(documents)) + len(reported_in(documents))
    about = _ABOUT.format(counts=_counts(documents), repo_id=repo_id)
    head = _HEAD.format(size=_size(rows)).encode("ascii")
    rest = (about + _entries(documents) + _families(documents) + _sources(documents) + _RIGHTS).encode("utf-8")
    digest = hashlib.sha256(head + rest).hexdigest()
    return head + f"<!-- Made by `superweight catalog publish`, sha256 of the rest: {digest} -->\n".encode() + rest


def is_own_card(card: bytes) -> bool:
    """Tell whether a card is one of card_of's, of any catalog, and nobody has changed it since."""
    marker = _MARKER.search(card)
    return marker is not None and hashlib.sha256(_MARKER.sub(b"", card, count=1)).hexdigest().encode() == marker[1]


def _counts(documents: Mapping[str, Document]) -> str:
    counts = counts_of(documents)
    models = f"{_count(counts['models'], 'model', 'models')} of {_count(counts['families'], 'family', 'families')}"
    verified = _count(counts["entries"], "analysis", "analyses")
    return "\n".join(
        [
            f"It knows {models}:",
            "",
            "| standing | what | how many |",
            "|---|---|---|",
            f"| `verified` | confirmed super weights in {verified} by this tool | {counts['confirmed']:,} |",
            f"| | critical ones, confirmed or not | {counts['critical']:,} |",
            f"| `reported` | weights and rows that others have published, not verified here | {counts['reported']:,} |",
            f"| `disputed` | the same, where sources contradict each other | {counts['disputed']:,} |",
            f"| `none_reported` | models of which a source says that it has none, or names no coordinate "
            f"| {counts['none_reported']:,} |",
        ]
    )


def _entries(documents: Mapping[str, Document]) -> str:
    rows = [
        [
            _escaped(entry["model"]),
            f"`{entry['commit'].removeprefix('sha256:')[:12]}`",
            entry["verdict"],
            str(sum(weight["status"] == "confirmed" for weight in entry["super_weights"])),
            str(sum(weight["effect"] == "critical" for weight in entry["super_weights"])),
            _escaped(entry["note"] or ""),
        ]
        for _, entry in entries_in(documents)
    ]
    return _table("Verified by this tool", ["model", "revision", "verdict", "confirmed", "critical", "note"], rows)


def _families(documents: Mapping[str, Document]) -> str:
    rows = []
    for family, document in documents.items():
        standings = Counter(item["standing"] for item in document["reported"])
        models = {record["model"].lower() for record in (*document["entries"], *document["reported"])}
        numbers = [len(models), len(document["entries"]), *(standings[standing] for standing in STANDINGS)]
        rows.append([f"[`{family}`](catalog/{family}.json)", *(str(number) if number else "" for number in numbers)])
    return _table("Families", ["family", "models", "analyses", *(f"`{standing}`" for standing in STANDINGS)], rows)


def _sources(documents: Mapping[str, Document]) -> str:
    sources = Counter(
        (source["name"], source["kind"], source["url"])
        for _, item in reported_in(documents)
        for source in item["sources"]
    )
    rows = [
        [f"[{_escaped(name)}]({_target(url)})", kind, str(number)]
        for (name, kind, url), number in sorted(sources.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    return _table("Who reports them", ["source", "kind", "rows"], rows)


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join(["", f"## {title}", "", lines[0], "|---" * len(header) + "|", *lines[1:], ""]) if lines[1:] else ""


def _size(rows: int) -> str:
    """Return the Hub's word for a number of rows."""
    for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if rows < limit:
            return name
    return "1M<n<10M"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _escaped(text: str) -> str:
    """Return one line of text so that Markdown shows it and does nothing else: no markup, links, HTML or cells."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~&!$@:^=\"])", r"\\\1", shown(text, 160)).replace("www.", "www\\.")


def _target(url: str) -> str:
    """Return a URL as the target of a link, which it cannot leave."""
    return quote(url, safe=":/?#@!$&*+,;=%~")
