"""Super activations over several prompts, each as if it were run alone."""

import torch
from families import FAMILIES, build
from models import (
    COL,
    LAYER,
    PROMPT,
    ROW,
    WORDS,
    load_plain,
    plant,
    plant_in,
    random_llama,
    save,
    save_tokenizer,
    sized,
    streams,
    verify_folder,
    with_large_weights,
)

from analyzer.forward.runner import Runner
from analyzer.verify.activations.detection import detect
from analyzer.verify.settings import Thresholds

PROMPTS = [
    "apple banana cherry",
    "banana apple cherry date elder",
    "iris juniper kiwi lemon",
    "apple",  # too short to tell
    "pear olive nutmeg mango apple lemon kiwi juniper",
    "grape apple grape fig apple hazel fig fig grape",
    "cherry banana apple",
]


def counted_by_hand(plain, prompts):
    """In how many prompts, and where, each (layer, channel) holds the largest of its super activations there."""
    places = {}
    for prompt in prompts:
        ids = [WORDS.index(word) + 1 if word in WORDS else 18 for word in prompt.split()]
        if len(ids) < 3:
            continue
        stream = torch.stack(streams(plain.model, plain.blocks, ids))[:, 0].numpy()
        best = {}
        for activation in detect(stream, range(len(stream)), [""] * len(ids), Thresholds())[0]:
            place = (activation.layer, activation.channel)
            if place not in best or abs(activation.value) > abs(best[place].value):
                best[place] = activation
        for place, activation in best.items():
            places.setdefault(place, []).append(activation.position)
    return {place: (len(where), tuple(sorted(set(where)))) for place, where in places.items()}


def test_recurrences_over_prompts_are_those_of_each_alone(tmp_path):
    save(plant(random_llama(), value=0.2), tmp_path)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    expected = counted_by_hand(load_plain("llama", tmp_path), PROMPTS)
    assert result.prompts == len(PROMPTS)
    assert {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences} == expected
    assert expected[LAYER, ROW] == (5, (0, 1, 2, 4))
    assert {r.without_bos for r in result.recurrences} == {None}
    assert [r.prompts for r in result.recurrences] == sorted((r.prompts for r in result.recurrences), reverse=True)


def test_long_prompts_ride_in_as_many_passes_as_memory_asks_for(tmp_path, monkeypatch):
    save(plant(random_llama(), value=0.2), tmp_path)
    at_once = verify_folder(tmp_path, prompts=PROMPTS)
    run, watch = [], Runner._watch

    def watched(self, prompts, interventions, **options):
        run.append(len(prompts))
        return watch(self, prompts, interventions, **options)

    monkeypatch.setattr(Runner, "_watch", watched)
    monkeypatch.setattr("analyzer.forward.runner.STREAM_BYTES", 4 * 6 * 9 * 128 * 3)
    apart = verify_folder(tmp_path, prompts=PROMPTS)
    assert run[-2:] == [3, 3]
    assert apart.recurrences == at_once.recurrences
    assert [w.coordinate for w in apart.super_weights] == [w.coordinate for w in at_once.super_weights]


def test_recurrences_with_and_without_the_beginning_of_sequence(tmp_path):
    """Planted on the token that begins every text: gone where the prompts come without it."""
    model = random_llama()
    with torch.no_grad():
        first = model.model.embed_tokens.weight[18].clone()
        mlp = model.model.layers[LAYER].mlp
        mlp.gate_proj.weight[COL] = mlp.up_proj.weight[COL] = first / first.norm() * 3
        mlp.down_proj.weight[ROW, COL] = 0.4
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos=True)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    plain = load_plain("llama", tmp_path)
    with_bos = counted_by_hand(plain, [f"<s> {prompt}" for prompt in PROMPTS])
    without = counted_by_hand(plain, PROMPTS)
    found = {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences}
    assert found == with_bos
    assert {(r.layer, r.channel): r.without_bos for r in result.recurrences} == {
        place: without.get(place, (0,))[0] for place in with_bos
    }
    assert with_bos[LAYER, ROW] == (6, (0,))
    assert result.recurrences[0].without_bos == 0
    assert result.tokens[0] == "<s>"


def test_prompts_of_both_kinds_share_a_pass_and_the_same_ids_run_once(tmp_path, monkeypatch):
    plant(random_llama(), value=0.2).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos=True)
    run, watch = [], Runner._watch

    def watched(self, prompts, interventions, **options):
        run.append([tuple(prompt) for prompt in prompts])
        return watch(self, prompts, interventions, **options)

    monkeypatch.setattr(Runner, "_watch", watched)
    twice = verify_folder(tmp_path, prompts=[*PROMPTS, PROMPTS[0]])
    assert len(run[-1]) == len(set(run[-1])) == 2 * 6
    once = verify_folder(tmp_path, prompts=PROMPTS)
    seen = [next(r for r in each.recurrences if (r.layer, r.channel) == (LAYER, ROW)) for each in (once, twice)]
    assert (seen[1].prompts, seen[1].without_bos) == (seen[0].prompts + 1, seen[0].without_bos + 1)


def test_recurrences_of_a_bidirectional_model_run_each_prompt_by_itself(tmp_path, monkeypatch):
    """What follows a prompt would change it there, so they cannot share a padded batch."""
    model = with_large_weights(build(FAMILIES["modernbert"], **sized("modernbert", 16, 5))).eval()
    plant_in(model, "modernbert")
    save(model, tmp_path)
    prompts = [PROMPT, "apple banana cherry date elder", "iris juniper kiwi", PROMPT + " pear pear pear"]
    run, watch = [], Runner._watch

    def watched(self, prompts, interventions, **options):
        run.append([len(prompt) for prompt in prompts])
        return watch(self, prompts, interventions, **options)

    monkeypatch.setattr(Runner, "_watch", watched)
    result = verify_folder(tmp_path, prompts=prompts)
    assert run[-4:] == [[3], [5], [8], [11]]
    expected = counted_by_hand(load_plain("modernbert", tmp_path), prompts)
    assert {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences} == expected
    assert expected
