"""Read what a file says of itself: JSON and metadata, checked against pydantic's description of the format.

The description stands where the format is written. Everything that can be wrong with such a file is one line.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from utils import InputError

Natural = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(ge=1e-30, le=1e30, strict=True)]  # its square is neither 0 nor infinite
Names = Annotated[list[str], Field(min_length=1)]
T = TypeVar("T")


def read_json(path: str | os.PathLike, kind: type[T], remedy: str) -> T:
    """Return the JSON file as a `kind`: a model, a dataclass or a type. Raises InputError, which ends with `remedy`.

    Paths in it may hold bytes that are not UTF-8, as `utils.write_json` writes them.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None
    return parse_json(data.decode("utf-8", "surrogateescape"), kind, path, remedy)


def parse_json(text: str, kind: type[T], source: str | os.PathLike, remedy: str) -> T:
    """`read_json` of text that stands in the file `source`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read ({error}); {remedy}") from None
    return check(content, kind, source, remedy)


def check(content: Any, kind: type[T], source: str | os.PathLike, remedy: str) -> T:
    """Return plain data of the file `source` as a `kind`. Raises InputError, which ends with `remedy`."""
    try:
        return _adapter(kind).validate_python(content)  # type: ignore[arg-type]
    except (ValueError, RecursionError, OverflowError) as error:  # a ValidationError is a ValueError
        found = error.errors(include_url=False)[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        place = ".".join(str(part)[:60] for part in found["loc"])
        reason = f"{place}: {found['msg']}" if place else found["msg"]
        raise InputError(f"{source} cannot be read ({reason[:300]}); {remedy}") from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)
