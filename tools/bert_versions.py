"""Three versions of one BERT, of chemical reactions, as safetensors: pretrained, and fine-tuned in two ways.

They are taken from the PyPI package rxnfp (MIT, Schwaller et al., "Mapping the Space of Chemical Reactions using
Attention-Based Neural Networks", 2021), which is downloaded but not installed, and checked against its known SHA-256.
Its pickles are opened with torch's `weights_only`, which builds tensors and runs nothing. The three folders' paths go
to stdout; those that are complete are not built again.

    python tools/bert_versions.py
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from wheels import build_once, download, model_folder

PACKAGE = "rxnfp==0.1.0"
WHEEL_SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"
INSIDE = "rxnfp/models/transformers"
VERSIONS = ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
TEXTS = ("config.json", "vocab.txt")


def main() -> None:
    """Print the folders of the three versions, building them first where they are not there."""
    folder = versions_folder()
    build_once(folder, _build)
    for version in VERSIONS:
        print(folder / version)


def versions_folder() -> Path:
    """Return the folder that holds, or will hold, a folder for each version."""
    return model_folder(WHEEL_SHA256, "bert-versions")


def _build(scratch: Path, folder: Path) -> None:
    wheel = download(PACKAGE, WHEEL_SHA256, scratch)
    with zipfile.ZipFile(wheel) as archive:
        for version in VERSIONS:
            for name in (*TEXTS, "pytorch_model.bin"):
                archive.extract(f"{INSIDE}/{version}/{name}", scratch)
            convert(scratch / INSIDE / version, folder / version)


def convert(pickled: Path, folder: Path) -> None:
    """Write a folder's pytorch_model.bin as model.safetensors, each tensor as it is, with its config and vocabulary."""
    import safetensors.torch
    import torch

    folder.mkdir(parents=True)
    tensors = torch.load(pickled / "pytorch_model.bin", map_location="cpu", weights_only=True)
    # Tied tensors share their memory, which safetensors refuses to guess about.
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    for name in TEXTS:
        shutil.copy(pickled / name, folder / name)


if __name__ == "__main__":
    main()
