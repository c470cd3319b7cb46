"""Read JSON files and metadata, validated against a pydantic model of the format.

The module that writes a format also defines its model. Every problem with a file is a one-line InputError.
"""

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
    """Read a JSON file as a `kind`: a model, dataclass or type. Raises InputError that ends with `remedy`.

    Paths in the file may contain bytes that are not UTF-8, as written by `utils.write_json`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None
    return parse_json(data.decode("utf-8", "surrogateescape"), kind, path, remedy)


def parse_json(text: str, kind: type[T], source: str | os.PathLike, remedy: str) -> T:
    """Parse JSON text from the file `source`, as `read_json` does."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read ({error}); {remedy}") from None
    return check(content, kind, source, remedy)


def check(content: Any, kind: type[T], source: str | os.PathLike, remedy: str) -> T:
    """Validate plain data from the file `source` as a `kind`. Raises InputError that ends with `remedy`."""
    try:
        return _adapter(kind).validate_python(content)
    except (ValueError, RecursionError, OverflowError) as error:  # a ValidationError is a ValueError
        found = error.errors(include_url=False)[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
        place = ".".join(str(part)[:60] for part in found["loc"])
        reason = f"{place}: {found['msg']}" if place else found["msg"]
        raise InputError(f"{source} cannot be read ({reason[:300]}); {remedy}") from None


_adapter: Any = functools.cache(TypeAdapter)
