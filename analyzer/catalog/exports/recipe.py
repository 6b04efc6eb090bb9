"""Known coordinates -> a recipe of llm-compressor, which can leave whole modules alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from analyzer.base.errors import shown
from analyzer.catalog.exports.modules import by_module
from analyzer.catalog.exports.pointless import pointless
from analyzer.catalog.lookup import KnownCoordinate

# What a recipe says of a weight, in its order; all of the first are named, of the others so many.
SAID = ("verified, critical", "verified, not measured", "verified, inert", "reported", "disputed")
SHOWN_PLACES = 4
WIDTH = 100  # of a recipe's comments


def export_recipe(model: str, coordinates: Sequence[KnownCoordinate]) -> str:
    """Return a recipe of llm-compressor (0.14) that quantizes all Linear modules but those of the coordinates.

    Raises CatalogError like by_module.
    """
    modules = by_module(coordinates)
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
                f"Inert: {inert} of these {len(known)}. Zeroing those is harmless, and --critical leaves them out."
            )
            if inert
            else []
        ),
        *(line for note in pointless(coordinates) for line in _comment(note)),
        *_comment("The scheme is an example: set your own. `ignore` is the same for GPTQModifier, SparseGPTModifier …"),
        "quantization_stage:",
        "  quantization_modifiers:",
        "    QuantizationModifier:",
        "      targets: [Linear]",
        "      scheme: W4A16",
        "      ignore:",
        "        - lm_head",
    ]
    for module in modules:
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
