"""Scores saved by other projects: .npz, .npy and .csv files that include the videos' names and labels.

Arrays, columns and keys are recognised by their usual names (ROLES). A `.npz` is the output of
numpy.savez(scores=..., labels=..., names=...), as in the evaluation scripts of CoViAR and dmc-net. A `.npy`
holds a structured array, or a dict of either kind. A `.csv` has a header line that includes the class names.
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataloader.names import UCF101_CLASSES, without_suffix
from saved.safe import load_arrays
from utils import InputError, plural

SUFFIXES = (".npz", ".npy", ".csv")
ROLES = {
    "scores": ("scores", "score", "logits", "predictions", "preds", "pred", "outputs", "output", "probs"),
    "names": ("names", "name", "videos", "video", "keys", "paths", "path", "files", "file", "filename", "id"),
    "labels": ("labels", "label", "targets", "target", "gt", "y", "y_true", "class", "class_id"),
    "class_names": ("class_names", "classes", "classnames"),
}
_NUMBERED = re.compile(r"(?:class|score|logit|prob|c|s|p)?[ _]?(\d+)", re.IGNORECASE)


def read_scores(path: Path) -> tuple[dict[Any, Any], dict[str, int] | None, list[str] | None]:
    """Read a .npz, .npy or .csv file safely. Return {video: scores}, {video: label}, class names.

    The last two are None if the file lacks them. Scores are (classes,) or (samples, classes). Raises
    InputError if the file lacks names or scores.
    """
    content = _read_csv(path) if path.suffix.lower() == ".csv" else load_arrays(path)
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0]  # numpy.save of a dict
    elif isinstance(content, np.ndarray) and content.dtype.names:
        content = {name: content[name] for name in content.dtype.names}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds scores without names; use numpy.savez(scores=, names=, labels=)")
    lower = {key.lower(): value for key, value in content.items() if isinstance(key, str)}
    columns = {role: next(lower[name] for name in usual if name in lower)
               for role, usual in ROLES.items() if not lower.keys().isdisjoint(usual)}  # fmt: skip
    if "scores" not in columns and not (columns and path.suffix.lower() == ".npz"):
        return content, None, None  # video -> scores, as in a prediction pickle
    for role in ("scores", "names"):
        if role not in columns:
            found = ", ".join(str(key) for key in list(content)[:8])
            remedy = f"call them {' or '.join(ROLES[role][:3])}"
            raise InputError(f"{path} has no {role} among its arrays ({found}); {remedy}")
    rows, seconds = _rows(columns["scores"], path)
    paths = [without_suffix(name).split("/") for name in _texts(columns["names"], path, "names")]
    names = ["/".join(parts[-2:]) for parts in paths]  # the class folder and the video
    labels = columns.get("labels", seconds)
    for what, values in (("names", names), ("labels", labels)):
        if values is not None and len(values) != len(rows):
            raise InputError(f"{path} has {len(values):,} {what} for scores of {plural(len(rows), 'video')}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} holds {twice[0]} twice; remove one")
    class_names = _texts(columns["class_names"], path, "class names") if "class_names" in columns else None
    numbered = labels is not None and zip(names, _label_numbers(labels, class_names, path), strict=True)
    return dict(zip(names, rows, strict=True)), dict(numbered) if numbered else None, class_names


def _rows(scores: Any, path: Path) -> tuple[list[np.ndarray], list | None]:
    """Return each video's scores, and the labels if the scores come as TSN's pairs (scores, label)."""
    pairs = isinstance(scores, list) and all(
        isinstance(row, (list, tuple)) and [np.ndim(part) > 0 for part in row] == [True, False] for row in scores)
    seconds = [row[1] for row in scores] if pairs else None
    rows: list[np.ndarray] = []
    for row in (row[0] for row in scores) if pairs else scores:
        try:
            row = np.asarray(row)
        except ValueError:  # a list of unequal lists
            row = np.array("")
        if row.dtype.kind not in "fiu" or not row.ndim:
            raise InputError(f"{path} has no numbers for scores of video number {len(rows) + 1}")
        samples = row.reshape(-1, row.shape[-1]) if row.size else row
        rows.append(samples[0] if len(samples) == 1 else samples)
    return rows, seconds


def _texts(values: Any, path: Path, what: str) -> list[str]:
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in list(values)]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: its {what} are no text")
    return [str(text) for text in texts]


def _label_numbers(labels: Sequence[Any], class_names: Sequence[str] | None, path: Path) -> list[int]:
    """Return the labels as numbers from 0; the file may give numbers or class names."""
    try:
        numbers = np.nan_to_num(np.array(list(labels), float), nan=-1, posinf=-1, neginf=-1)
    except (TypeError, ValueError):
        texts = [text.casefold() for text in _texts(labels, path, "labels")]
        order = {name.casefold(): place for place, name in enumerate(class_names or UCF101_CLASSES)}
        if unknown := sorted(set(texts) - set(order)):
            said = f"{path} labels videos {unknown[0]}"
            raise InputError(f"{said}, and has no class_names with it; add them") from None
        return [order[text] for text in texts]
    if numbers.ndim != 1 or (numbers % 1).any():
        raise InputError(f"{path}: its labels are neither whole numbers nor classes' names")
    return [int(number) for number in numbers]


def _read_csv(path: Path) -> dict[str, Any]:
    """Read a table's columns: names, labels, and the class scores (all other columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of columns that it leaves out
            table = pd.read_csv(path, encoding="utf-8-sig", dtype=str, keep_default_na=False, index_col=False)
        found: dict[str, Any] = {}
        for role in ("names", "labels"):  # the first such column; a later one is a class, such as "file"
            if column := next((column for column in table if column.strip().lower() in ROLES[role]), None):
                found[role] = table.pop(column).str.strip().tolist()
        found["scores"] = table.to_numpy(float)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        wanted = "with these names in its first line and numbers, with a decimal point, below"
        raise InputError(f"{path} is no table of video,label,<class>,... {wanted}: {error}".strip()) from None
    classes = [column.strip() for column in table]
    numbers = [int(match[1][:9]) for name in classes if (match := _NUMBERED.fullmatch(name))]
    # A table's columns may be sorted as text: 0, 1, 10, 2.
    if sorted(numbers) not in (list(range(len(classes))), list(range(1, len(classes) + 1))):
        return {**found, "class_names": classes}
    found["scores"] = found["scores"][:, np.argsort(numbers).astype(int)]
    return found
