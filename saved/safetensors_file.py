"""Checkpoints as .safetensors: tensors and one header of JSON, a format that holds no program to be run.

What predict.py and `--resume PATH --evaluate` need beside the weights (classes, preparation, flags of the test) is
JSON in the file's own metadata, under "two-stream": one file, which nothing can part from its description. Files of
timm and torchvision have none, and are read as bare weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from saved.safe import Refused
from utils import InputError, atomic_path

KEY = "two-stream"


def write_safetensors(path: str | os.PathLike, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a state_dict, on the CPU and contiguous, and what `about` says of it (saved.checkpoints.HELD).

    Give `checkpoint.tested_state` for the weights that a test uses.
    """
    save = _library().torch.save
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    text = json.dumps(dict(about), default=str)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt", KEY: text}))


def load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """A file as the content of a checkpoint: ours with what it says of itself, any other its tensors by name."""
    library = _library()
    try:
        with library.safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            text = (file.metadata() or {}).get(KEY)
    except library.SafetensorError:
        raise Refused("it is a damaged safetensors file, get it again") from None
    if text is None:
        return state
    about = json.loads(text)
    if not isinstance(about, dict):
        raise Refused(f"what it says under {KEY!r} is no JSON object")
    # Weights alone: engine.state tells a resumed training so, which needs the optimizer's state.
    return {**about, "format": KEY, "state_dict": state, "batch": 0, "ema": None}


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise InputError("safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors
