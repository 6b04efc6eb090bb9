"""A checkpoint that is replaced while a job reads it, as a training job does: one line, and no result of two models."""

import shutil

import pytest
from checkpoints import random_downs, write_llama
from models import plant, random_llama, save, settings

from analyzer.analyze.analyzing import analyze_model
from analyzer.analyze.running import load_model
from analyzer.analyze.scanning import scan_model
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import SourceError
from analyzer.diff.versions import compare_models
from analyzer.scan.records import ScanSettings
from analyzer.source.opening import open_model


def by_rename(new, folder, name):
    shutil.copy(new / name, folder / "saving")
    (folder / "saving").replace(folder / name)


def in_place(new, folder, name):
    with (folder / name).open("r+b") as file:
        file.write((new / name).read_bytes())


class Saving:
    """A progress function that saves another model over one when a job has come so far."""

    def __init__(self, save, after):
        self.save, self.after = save, after

    def __call__(self, what, done, total):
        if self.save and self.after in (what, (what, done == total)):
            self.save()
            self.save = None


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two models of the same shapes, of which one has a super weight."""
    folder = tmp_path_factory.mktemp("models")
    return save(plant(random_llama()), folder / "old"), save(random_llama(seed=5), folder / "new")


@pytest.mark.parametrize("change", [by_rename, in_place])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("when", [("scan", True), "building the model"], ids=["scanned", "built"])
def test_no_entry_is_made_of_two_models(planted, tmp_path, change, name, when):
    old, new = planted
    folder = shutil.copytree(old, tmp_path / "model")
    saving = Saving(lambda: change(new, folder, name), when)
    with pytest.raises(SourceError, match=rf"{name} changed while it was read: run it again when nothing writes"):
        analyze_model(open_model(folder), settings(), scan=ScanSettings(top=5), progress=saving)
    assert saving.save is None


@pytest.mark.parametrize("change", [by_rename, in_place])
def test_no_scan_verification_or_difference_is_of_two_models(planted, tmp_path, change):
    old, new = planted
    for number, job in enumerate(
        (
            lambda folder, progress: scan_model(open_model(folder), progress=progress),
            lambda folder, progress: verify_model(open_model(folder), settings(), progress=progress),
            lambda folder, progress: compare_models(folder, new, progress=progress),
        )
    ):
        folder = shutil.copytree(old, tmp_path / str(number))
        saving = Saving(lambda folder=folder: change(new, folder, "model.safetensors"), ("scan", True))
        with pytest.raises(SourceError, match=r"model\.safetensors changed while it was read"):
            job(folder, saving)


@pytest.mark.parametrize("change", [by_rename, in_place])
def test_shards_of_two_versions_are_never_one_model(tmp_path, change):
    write_llama(tmp_path / "old", random_downs(layers=4), shards=4)
    write_llama(tmp_path / "new", random_downs(layers=4, seed=1), shards=4)
    source = open_model(tmp_path / "old")
    source.read("model-00001-of-00004.safetensors", 0, 8)
    change(tmp_path / "new", tmp_path / "old", "model-00004-of-00004.safetensors")  # not yet opened
    with pytest.raises(SourceError, match=r"model-00004-of-00004\.safetensors changed while it was read"):
        scan_model(source)


def test_a_model_for_experiments_does_not_go_on_with_other_weights(planted, tmp_path):
    old, new = planted
    folder = shutil.copytree(old, tmp_path / "model")
    model = load_model(open_model(folder))
    by_rename(new, folder, "model.safetensors")
    with pytest.raises(SourceError, match=r"model\.safetensors changed while it was read"):
        model.loss("Apple Inc. is a worldwide tech company.")


def test_a_tokenizer_file_that_comes_meanwhile_is_one_of_another_model(planted, tmp_path):
    folder = shutil.copytree(planted[0], tmp_path / "model")
    saving = Saving(lambda: (folder / "added_tokens.json").write_text("{}"), ("scan", True))
    with pytest.raises(SourceError, match=r"added_tokens\.json is new since the model was opened: run it again"):
        analyze_model(open_model(folder), settings(), scan=ScanSettings(top=5), progress=saving)


def test_what_is_beside_the_model_may_change(planted, tmp_path):
    folder = shutil.copytree(planted[0], tmp_path / "model")
    (folder / "training.log").write_text("step 1")
    saving = Saving(lambda: (folder / "training.log").write_text("step 2"), ("scan", True))
    analyze_model(open_model(folder), settings(), scan=ScanSettings(top=5), progress=saving)
    assert saving.save is None
