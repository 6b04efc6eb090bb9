"""Folders of surveys with made-up results, for the tests of what is made of them."""

import random

from analyzer.survey.store import Folder
from analyzer.survey.units import Job, Unit
from analyzer.verify.settings import VerifySettings

LAYERS, CHANNELS = 11, 20


def job_of(do, **settings):
    return Job(do, verify=None if do == "scan" else VerifySettings(**settings))


def unit_of(job, model, commit="a" * 40):
    return Unit(job.do, job.key, f"{model}@{commit}", model, None, commit)


def outlier(rank, layer, row, col, value):
    """Return an outlier as results have it; its z-score is ten times its |W|."""
    where = {"layer": layer, "expert": None, "row": row, "col": col, "writes": None}
    return {"rank": rank, **where, "value": value, "score": abs(value), "zscore": 10 * abs(value), "tensor": "t"}


def weight(layer, row, col, value, **fields):
    """Return a weight as a verification has it: a critical super weight, but for what `fields` say."""
    known = {"share": 0.5, "static_rank": 1, "status": "confirmed", "effect": "critical", "reason": None}
    costs = {"delta": 1.0, "delta_low": 0.9, "delta_high": 1.1, "zeroed_with": None}
    return {"layer": layer, "expert": None, "row": row, "col": col, "value": value, **known, **costs, **fields}


def verified(weights, *, magnitude=(), gain=()):
    sizes = {"num_layers": LAYERS, "hidden_size": CHANNELS}
    ratios = {f"{w['layer']},{w['row']},{w['col']}": 7 * abs(w["value"]) for w in weights}
    return {
        **sizes,
        "super_weights": weights,
        "row_ratios": ratios,
        "outliers_by": {"magnitude": list(magnitude), "gain": list(gain)},
    }


def scanned(outliers):
    return {"num_layers": LAYERS, "hidden_size": CHANNELS, "score": "magnitude", "outliers": outliers}


def random_result(seed, count=4):
    """Return a verification of some critical, inert and rejected weights, whose outliers have the first of them."""
    draw = random.Random(seed)
    made = [
        weight(
            draw.randrange(LAYERS),
            draw.randrange(CHANNELS),
            number,
            draw.uniform(-9, 9),
            share=draw.random(),
            static_rank=draw.randrange(1, 1000),
            status=("confirmed", "rejected")[number == 3],
            effect=("critical", "inert")[number > 1],
            delta=draw.gauss(1, 1),
            zeroed_with=7 if number == 3 else None,
        )
        for number in range(count)
    ]
    ranked = [outlier(rank, *(w[key] for key in ("layer", "row", "col", "value"))) for rank, w in enumerate(made, 1)]
    return verified(made, magnitude=ranked[:3], gain=[{**each, "rank": 3 - each["rank"]} for each in ranked[:2]])


def survey_in(root, job, results=(), failures=()):
    """Return a survey's folder with results by model, and failures as (class, line) by model; null is not run."""
    folder = Folder(root)
    units = {model: unit_of(job, model) for model in (*results, *failures)}
    folder.save_job(job, list(units.values()))
    for model, result in dict(results).items():
        folder.save_result(units[model], {"seconds": 1.0, "result": result})
    for model, failure in dict(failures).items():
        if failure is not None:
            folder.save_failure(units[model], *failure)
    return folder
