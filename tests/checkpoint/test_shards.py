"""Which files are a model's weights, and what is said where index, shards and folder disagree."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import LLAMA_DOWN, POINTER, edited, random_downs, write_config, write_llama, write_tensors
from safetensors.numpy import save_file

from analyzer.base.errors import CheckpointError, HeaderError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX, SINGLE
from analyzer.source.folder import FolderSource

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DOWNS = random_downs()


def open_checkpoint(folder):
    return Checkpoint(FolderSource(folder))


def refused(folder, error=CheckpointError):
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_down(checkpoint, layer=1, name=LLAMA_DOWN):
    tensor = checkpoint.tensors[name.format(layer)]
    return checkpoint.read(tensor, 0, tensor.record.stop - tensor.record.start)


def change_map(folder, change, index=INDEX):
    said = json.loads((folder / index).read_text())
    change(said["weight_map"])
    (folder / index).write_text(json.dumps(said))


# What agrees needs no words


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_whole_checkpoint_has_no_notes(tmp_path, shards):
    write_llama(tmp_path, DOWNS, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.notes, checkpoint.absent) == ((), ())


# The index against its shards


def test_a_tensor_that_no_shard_has_is_no_reason_to_stop(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    change_map(tmp_path, lambda weight_map: weight_map.update({"mtp.fc.weight": FIRST}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.absent == ("mtp.fc.weight",)
    assert checkpoint.notes == (f"{INDEX} names what no shard has: mtp.fc.weight",)
    assert "mtp.fc.weight" not in checkpoint.tensors
    assert read_down(checkpoint) == DOWNS[1].tobytes()


def test_very_many_tensors_that_no_shard_has_are_few_words(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    names = [f"mtp.layers.{layer}.{part}" for layer in range(500) for part in ("a", "b", "c", "d.7.e")]
    change_map(tmp_path, lambda weight_map: weight_map.update(dict.fromkeys(names, FIRST)))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.absent == tuple(sorted(names))
    assert checkpoint.notes == (
        f"{INDEX} names what no shard has: mtp.layers.*.a (500), mtp.layers.*.b (500), mtp.layers.*.c (500) and 1 more",
    )


def test_a_tensor_that_the_index_omits_is_part_of_the_model(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    name = LLAMA_DOWN.format(2)
    change_map(tmp_path, lambda weight_map: weight_map.pop(name))
    checkpoint = open_checkpoint(tmp_path)
    assert read_down(checkpoint, 2) == DOWNS[2].tobytes()
    assert checkpoint.notes == (f"{INDEX} does not name all that its shards have, which is read too: {name}",)
    assert checkpoint.absent == ()


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    name = LLAMA_DOWN.format(1)
    where = json.loads((tmp_path / INDEX).read_text())["weight_map"][name]
    change_map(tmp_path, lambda weight_map: weight_map.update({name: FIRST if where == SECOND else SECOND}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors[name].filename == where
    assert checkpoint.notes == ()


def test_an_omitted_tensor_in_two_shards_is_that_of_the_last_as_transformers_has_it(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    other = random_downs(seed=1)
    for number, downs in enumerate((other, DOWNS)):
        save_file({f"only.{number}": downs[0], LLAMA_DOWN.format(9): downs[1]}, tmp_path / f"x{number}.safetensors")
        change_map(tmp_path, lambda weight_map, n=number: weight_map.update({f"only.{n}": f"x{n}.safetensors"}))
    assert read_down(open_checkpoint(tmp_path), 9) == DOWNS[1].tobytes()


def test_a_file_that_no_index_names_is_said(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    save_file({"mtp.layers.0.mlp.down_proj.weight": DOWNS[0]}, tmp_path / "model-mtp-of-00002.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.notes == ("not among the model's files, so not read: model-mtp-of-00002.safetensors",)
    for number in range(4):
        save_file({"x": DOWNS[0]}, tmp_path / f"{number}.safetensors")
    assert open_checkpoint(tmp_path).notes[0].endswith(": 0.safetensors, 1.safetensors, 2.safetensors and 2 more")


def test_shards_in_a_subfolder_that_the_index_names(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    (tmp_path / "parts" / "a").mkdir(parents=True)
    for name in (FIRST, SECOND):
        (tmp_path / name).rename(tmp_path / "parts" / "a" / name)
    change_map(tmp_path, lambda weight_map: weight_map.update({k: f"parts/a/{v}" for k, v in weight_map.items()}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (f"parts/a/{FIRST}", f"parts/a/{SECOND}")
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    assert checkpoint.notes == ()


def test_a_missing_shard_is_named(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    (tmp_path / SECOND).unlink()
    assert refused(tmp_path) == f"{tmp_path.name}: the shard {SECOND} that {INDEX} names is missing: download it"


def test_a_missing_shard_that_a_scan_has_no_need_of(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    weight_map = {"lm_head.weight": "model-00003-of-00003.safetensors"}
    change_map(tmp_path, lambda said: said.update(weight_map))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (FIRST, SECOND)
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    assert checkpoint.absent == ("lm_head.weight",)
    assert checkpoint.notes == (
        f"{INDEX} names files that are missing: model-00003-of-00003.safetensors",
        f"{INDEX} names what no shard has: lm_head.weight",
    )
    change_map(tmp_path, lambda said: said.update({"mtp.layers.0.fc.weight": "model-00003-of-00003.safetensors"}))
    assert "the shard model-00003-of-00003.safetensors that" in refused(tmp_path)


def test_no_shard_at_all(tmp_path):
    write_config(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": SINGLE}}))
    assert refused(tmp_path).endswith(f"the shard {SINGLE} that {INDEX} names is missing: download it")


def test_the_first_of_several_broken_shards_is_named(tmp_path):
    write_llama(tmp_path, DOWNS, shards=5)
    for number in (4, 2, 5):
        (tmp_path / f"model-0000{number}-of-00005.safetensors").write_bytes(b"\0" * 100)
    messages = {refused(tmp_path, HeaderError) for _ in range(20)}
    assert len(messages) == 1
    assert "model-00002-of-00005.safetensors claims a header of 0 bytes" in messages.pop()


# No index


def test_shards_that_number_themselves_need_no_index(tmp_path):
    write_llama(tmp_path, DOWNS, shards=5)
    (tmp_path / INDEX).unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert [read_down(checkpoint, layer) for layer in range(3)] == [down.tobytes() for down in DOWNS]
    assert checkpoint.notes == (f"there is no {INDEX}: 5 shards are joined by their names",)


def test_shards_of_which_one_is_missing_need_one(tmp_path):
    write_llama(tmp_path, DOWNS, shards=3)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert refused(tmp_path) == (
        f"{tmp_path.name} has 2 safetensors files (model-00001-of-00003.safetensors, model-00002-of-00003.safetensors) "
        f"and no {INDEX} to join them"
    )


def test_two_rows_of_shards_need_one(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    (tmp_path / INDEX).unlink()
    for name in (FIRST, SECOND):
        (tmp_path / name.replace("model", "other")).write_bytes((tmp_path / name).read_bytes())
    assert "has 4 safetensors files (" in refused(tmp_path)


def test_a_tensor_in_two_shards_without_an_index(tmp_path):
    write_config(tmp_path)
    for name in (FIRST, SECOND):
        save_file({"a": DOWNS[0]}, tmp_path / name)
    assert refused(tmp_path).endswith(f"{FIRST} and {SECOND} both have a, and no {INDEX} says which counts")


# A single file beside an index


def test_the_single_file_is_read_as_transformers_does(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    write_llama(tmp_path, edited(DOWNS, 1, 3, 4, 9))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (SINGLE,)
    assert read_down(checkpoint) == edited(DOWNS, 1, 3, 4, 9)[1].tobytes()
    assert checkpoint.notes == (f"{SINGLE} is read, as transformers does, and not the shards of {INDEX}",)


def test_a_vocabulary_of_another_size_is_no_other_model(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    tensors = {LLAMA_DOWN.format(layer): down for layer, down in enumerate(DOWNS)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = np.ones((20, 8), ml_dtypes.bfloat16)
        tensors[f"model.layers.{layer}.post_attention_layernorm.weight"] = np.ones(8, ml_dtypes.bfloat16)
    write_tensors(tmp_path, {**tensors, "model.embed_tokens.weight": np.ones((17, 8), ml_dtypes.bfloat16)})
    assert open_checkpoint(tmp_path).shards == (SINGLE,)


def packed(down):
    return np.zeros((down.shape[0], down.shape[1] // 8), np.uint32)


@pytest.mark.parametrize(
    "tensors",
    [
        {LLAMA_DOWN.format(layer): np.zeros(0, np.float32) for layer in range(3)},
        {LLAMA_DOWN.format(layer): packed(down) for layer, down in enumerate(random_downs(intermediate=64))},
        {LLAMA_DOWN.format(0): DOWNS[0]},
        {"lm_head.weight": DOWNS[0]},
    ],
    ids=["empty", "packed", "one layer", "another part"],
)
def test_a_single_file_of_something_else_is_not_the_model(tmp_path, tensors):
    write_llama(tmp_path, DOWNS, shards=2)
    write_tensors(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (FIRST, SECOND)
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    assert checkpoint.notes == (
        f"the shards of {INDEX} are read, and not {SINGLE}, which has other tensors (transformers reads it)",
    )


@pytest.mark.parametrize("data", [POINTER.encode(), b"", b"<!doctype html>", bytes(100)])
def test_a_single_file_that_cannot_be_read_is_passed_over(tmp_path, data):
    write_llama(tmp_path, DOWNS, shards=2)
    (tmp_path / SINGLE).write_bytes(data)
    checkpoint = open_checkpoint(tmp_path)
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    (note,) = checkpoint.notes
    assert note.startswith(f"the shards of {INDEX} are read, since {SINGLE} ")


def test_a_single_file_among_the_shards_of_the_index(tmp_path):
    # transformers would not see the second one.
    write_llama(tmp_path, DOWNS)
    save_file({"mtp.fc.weight": DOWNS[0]}, tmp_path / "mtp.safetensors")
    names = {LLAMA_DOWN.format(1): SINGLE, "mtp.fc.weight": "mtp.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (SINGLE, "mtp.safetensors")
    assert "mtp.fc.weight" in checkpoint.tensors
    assert (
        "which is read too: model.embed_tokens.weight, model.layers.*.mlp.down_proj.weight (2)" in checkpoint.notes[0]
    )


def test_an_index_that_is_stale_is_passed_over(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    write_llama(tmp_path, DOWNS)
    (tmp_path / SECOND).unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == (SINGLE,)
    assert checkpoint.notes == (
        f"the shard {SECOND} that {INDEX} names is missing: download it",
        f"not among the model's files, so not read: {FIRST}",
    )
    (tmp_path / FIRST).unlink()
    (tmp_path / INDEX).write_text(POINTER)
    assert open_checkpoint(tmp_path).notes[0].startswith(f"{INDEX} is a Git LFS pointer")


def test_broken_shards_beside_a_single_file(tmp_path):
    write_llama(tmp_path, DOWNS, shards=2)
    write_llama(tmp_path, DOWNS)
    (tmp_path / FIRST).write_text(POINTER)
    checkpoint = open_checkpoint(tmp_path)
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    assert checkpoint.notes[0].startswith(
        f"{SINGLE} is read, and not the shards of {INDEX}, since {FIRST} is a Git LFS pointer"
    )


# Adapters


def write_adapter(folder, **config):
    folder.mkdir(exist_ok=True)
    tensors = {"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": np.ones((4, 20), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "training_args.bin").write_bytes(b"pickle")
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"peft_type": "LORA", "base_model_name_or_path": "someone/base"},
            "is a LoRA adapter of someone/base (adapter_config.json): scan someone/base, or merge the two",
        ),
        (
            {"peft_type": "IA3", "base_model_name_or_path": "x\n"},
            "is an adapter (IA3) of x\\n (adapter_config.json): sc",
        ),
        ({"peft_type": "LORA"}, "is a LoRA adapter, not a model: scan the model that it changes, or merge the two"),
        ({}, "is an adapter, not a model: scan the model that it changes, or merge the two"),
    ],
)
def test_an_adapter_alone(tmp_path, with_config, config, said):
    folder = tmp_path / "adapter"
    write_adapter(folder, **config)
    if with_config:
        write_config(folder, model_type="llama")
    assert refused(folder).startswith(f"adapter {said}")


@pytest.mark.parametrize("name", ["adapters.safetensors", "lora.safetensors", SINGLE])
def test_an_adapter_by_another_name(tmp_path, name):
    # MLX calls it adapters.safetensors; what holds nothing but adapters is one, whatever its name.
    folder = tmp_path / "adapter"
    write_adapter(folder, fine_tune_type="lora", model="someone/base")
    (folder / "adapter_model.safetensors").rename(folder / name)
    assert refused(folder).startswith(
        "adapter is a LoRA adapter of someone/base (adapter_config.json): scan someone/base"
    )
    (folder / "adapter_config.json").unlink()
    assert refused(folder).startswith("adapter is an adapter, not a model: scan the model that it changes")


@pytest.mark.parametrize("text", ["{", "[]", POINTER])
def test_an_adapter_whose_config_cannot_be_read(tmp_path, text):
    write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "is an adapter, not a model" in refused(tmp_path)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("index", [True, False])
def test_an_adapter_is_not_among_the_models_files(tmp_path, shards, index):
    write_llama(tmp_path, DOWNS, shards=shards)
    write_adapter(tmp_path, peft_type="LORA", base_model_name_or_path="someone/base")
    if shards == 1 and not index:
        (tmp_path / SINGLE).rename(tmp_path / "weights.safetensors")
    elif not index:
        (tmp_path / INDEX).unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert read_down(checkpoint) == DOWNS[1].tobytes()
    assert not any("lora" in name for name in checkpoint.tensors)
    assert checkpoint.notes[-1] == "not among the model's files, so not read: adapter_model.safetensors"
