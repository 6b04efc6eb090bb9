"""Known coordinates -> what quantizers take: module names to leave alone, and full lists."""

from __future__ import annotations

import csv
import io
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from analyzer.base.errors import CatalogError, shown
from analyzer.catalog.families import family_of
from analyzer.catalog.lookup import KnownCoordinate

_LLAMA = "model.layers.{layer}.mlp.down_proj"
_TOWER = "model.language_model.layers.{layer}.mlp.down_proj"
# What transformers calls the module of a down projection, by model_type.
MODULES = {
    **dict.fromkeys(
        ("cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2"),
        _LLAMA,
    ),
    **dict.fromkeys(("qwen3", "stablelm"), _LLAMA),
    **dict.fromkeys(("gemma3", "llava"), _TOWER),
    "bert": "bert.encoder.layer.{layer}.output.dense",
    "bloom": "transformer.h.{layer}.mlp.dense_4h_to_h",
    "falcon": "transformer.h.{layer}.mlp.dense_4h_to_h",
    "gpt_neox": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    "gptj": "transformer.h.{layer}.mlp.fc_out",
    "modernbert": "model.layers.{layer}.mlp.Wo",
    "mpt": "transformer.blocks.{layer}.ffn.down_proj",
    "opt": "model.decoder.layers.{layer}.fc2",
    "phi": "model.layers.{layer}.mlp.fc2",
    "starcoder2": "model.layers.{layer}.mlp.c_proj",
}
# llm-compressor takes fused experts apart into modules of these names before it quantizes.
EXPERTS = {
    "qwen2_moe": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    "qwen3_moe": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
}
# The model_type of families of which others report coordinates, for models that nobody has analysed here.
FAMILY_TYPES = {
    "aya-expanse": "cohere",
    "bloom": "bloom",
    "deepseek-llm": "llama",
    "eurollm": "llama",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma-3": "gemma3",
    "llama": "llama",
    "llama-2": "llama",
    "llama-3": "llama",
    "llama-3.1": "llama",
    "llama-3.2": "llama",
    "llava-1.5": "llava",
    "mistral": "mistral",
    "modernbert": "modernbert",
    "olmo": "olmo",
    "phi-3": "phi3",
    "qwen2": "qwen2",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "smollm2": "llama",
    "towerbase": "llama",
    "towerinstruct": "llama",
}
# What a recipe says of a weight, in its order; all of the first are named, of the others so many.
SAID = ("verified, critical", "verified, not measured", "verified, inert", "reported", "disputed")
SHOWN_PLACES = 4
WIDTH = 100  # of a recipe's comments
OTHER_CODE = frozenset({"allenai/OLMo-1B"})  # not transformers' own modules, whatever their family
COLUMNS = (
    "model", "commit", "layer", "expert", "row", "col", "value", "standing", "effect", "module", "sources",
)  # fmt: skip


def module_of(coordinate: KnownCoordinate) -> str | None:
    """Return the name of the module that holds a weight in transformers' model; null where it is not known."""
    model_type = coordinate.model_type or FAMILY_TYPES.get(family_of(coordinate.model))
    if model_type is None or coordinate.model in OTHER_CODE:
        return None
    if coordinate.expert is not None:
        name = EXPERTS.get(model_type) or EXPERTS.get(f"{model_type}_moe")
    else:
        name = MODULES.get(model_type)
    return name.format(layer=coordinate.layer, expert=coordinate.expert) if name else None


def selected(
    coordinates: Iterable[KnownCoordinate], *, standings: Collection[str], critical: bool
) -> list[KnownCoordinate]:
    """Return the coordinates of these standings, all if none is given; `critical` leaves out inert verified ones."""
    return [
        each
        for each in coordinates
        if (not standings or each.standing in standings)
        and (not critical or each.standing != "verified" or each.effect == "critical")
    ]


def said_of_none(coordinates: Sequence[KnownCoordinate]) -> str:
    """Return in words why nothing of these known coordinates was selected."""
    if not coordinates:
        return "no coordinate is known"
    count = Counter(each.standing for each in coordinates)
    critical = sum(each.effect == "critical" for each in coordinates)
    verified = f"{count['verified']} verified, {critical} of them critical, " if count["verified"] else ""
    return f"no coordinate of that standing: {verified}{count['reported']} reported, {count['disputed']} disputed"


def export_rows(coordinates: Sequence[KnownCoordinate]) -> list[dict[str, Any]]:
    """Return the coordinates with the names of their modules, as JSON has them."""
    rows = ({**asdict(each), "sources": list(each.sources), "module": module_of(each)} for each in coordinates)
    return [{column: row[column] for column in COLUMNS} for row in rows]


def export_csv(coordinates: Sequence[KnownCoordinate]) -> str:
    """Return the coordinates as CSV, with sources joined by semicolons and nothing for what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in export_rows(coordinates):
        writer.writerow({**row, "sources": "; ".join(row["sources"])})
    return text.getvalue()


def export_recipe(model: str, coordinates: Sequence[KnownCoordinate]) -> str:
    """Return a recipe of llm-compressor (0.14) that quantizes all Linear modules but those of the coordinates.

    Raises CatalogError where there is no coordinate, or a module's name is not known.
    """
    if not coordinates:
        raise CatalogError(f"the catalog knows no such coordinate of {shown(model)} to protect")
    modules: dict[str, list[KnownCoordinate]] = {}
    for each in coordinates:
        module = module_of(each)
        if module is None:
            raise CatalogError(
                f"the module of layer {each.layer} in {shown(each.model)} has a name that this tool does not know: "
                "use --format json"
            )
        modules.setdefault(module, []).append(each)
    places = {module: _places_of(them) for module, them in modules.items()}
    known = [said for module in places.values() for said in module.values()]
    inert = known.count("verified, inert")
    lines = [
        *_comment(f"Super weights of {shown(model)}, for llm-compressor: what `oneshot` takes as its recipe."),
        *_comment(
            "A recipe can only leave out whole modules. It cannot express single weights (--format json has those), "
            "so each module below stays in full precision for the few weights that are named above it."
        ),
        *(
            _comment(
                f"Of these {len(known)}, {inert} are inert: zeroing them is harmless, and --critical leaves them out."
            )
            if inert
            else []
        ),
        *_comment("The scheme is an example: set your own. `ignore` is the same for GPTQModifier, SparseGPTModifier …"),
        "quantization_stage:",
        "  quantization_modifiers:",
        "    QuantizationModifier:",
        "      targets: [Linear]",
        "      scheme: W4A16",
        "      ignore:",
        "        - lm_head",
    ]
    for module in sorted(modules, key=lambda module: (modules[module][0].layer, module)):
        for said in dict.fromkeys(places[module].values()):
            them = [place for place, other in places[module].items() if other == said]
            kept = them if said == SAID[0] else them[:SHOWN_PLACES]
            more = [f"{len(them) - len(kept)} more"] if them[len(kept) :] else []
            lines += _comment(f"{said}: {', '.join([*kept, *more])}", " " * 8)
        lines.append(f"        - {module}")
    return "\n".join(lines) + "\n"


def _places_of(coordinates: Sequence[KnownCoordinate]) -> dict[str, str]:
    """Return what is known of each place in a module, the surest and worst of it, and those first."""
    places: dict[str, str] = {}
    for each in sorted(coordinates, key=lambda each: SAID.index(_said_of(each))):
        places.setdefault(f"row {each.row}" if each.col is None else f"({each.row}, {each.col})", _said_of(each))
    return places


def _said_of(each: KnownCoordinate) -> str:
    return f"{each.standing}, {each.effect or 'not measured'}" if each.standing == "verified" else each.standing


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )
