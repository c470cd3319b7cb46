"""Write this project's checkpoints; saved/checkpoint_reader.py reads them."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saved.safe import SAFETENSORS_KEY, safetensors_library
from utils import atomic_path

FORMAT, HEAD_FORMAT = "two-stream", "two-stream-head"  # the "format" field of our own files


def write_checkpoint(state: Mapping[str, Any], *paths: str | os.PathLike, **header: Any) -> None:
    """Write a checkpoint, `header` and `state`, to each path.

    `state` is engine.training.Training.state_dict with its weights. `header` is arch, class_names, dataset,
    split, preparation (from Preparation.as_dict) and args, the training flags as plain values.
    """
    save_tensors({"format": FORMAT, **header, "class_names": list(header["class_names"]), **state}, *paths)


def save_tensors(content: Mapping[str, Any], *paths: str | os.PathLike) -> None:
    """Write tensors and plain containers to each path in turn; torch's weights-only loader can read them."""
    buffer = io.BytesIO()  # so that a full disk fails in one plain write, not inside torch's zip writer
    torch.save(dict(content), buffer)
    for path in paths:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def write_safetensors(path: str | os.PathLike, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a state_dict as .safetensors, with `about` (HELD) as JSON in the file's own metadata."""
    save = safetensors_library().torch.save
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    text = json.dumps(dict(about), default=str)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt", SAFETENSORS_KEY: text}))


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and bytes of a state_dict's tensors; it identifies a prediction's weights."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().numpy()).data)
    return digest.hexdigest()
