"""Command lines: help that shows every default, bounded numbers, one-line errors."""

import argparse
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from utils import InputError


def bounded(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return an argparse type: an int or float from `low` to `high`, both included."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:  # also rejects NaN
            span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {span}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


class _Help(argparse.RawDescriptionHelpFormatter):
    """Show every default with its current value, which a recipe may have changed."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        has_none = action.nargs == 0 and not isinstance(action, Switch)  # store_true, and -h
        # If the default is None, the help text itself explains it.
        if has_none or default in (None, "", [], (), argparse.SUPPRESS) or "default:" in text:
            return text
        if isinstance(default, bool):
            default = "on" if default else "off"
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "")


class ArgumentParser(argparse.ArgumentParser):
    """A command line whose help shows every default, and whose errors are InputErrors."""

    def __init__(self, description: str | None = None, epilog: str = "", **settings: Any) -> None:
        width = min(110, shutil.get_terminal_size().columns)
        super().__init__(description=description, epilog=textwrap.fill(epilog, width), **settings)
        self.formatter_class = lambda prog: _Help(prog, max_help_position=32 if width > 100 else 24, width=width)

    def parse_given(self, argv: Sequence[str] | None, shown: Mapping[str, Any]) -> tuple[dict, dict]:
        """Parse once and return (the flags given on the command line, the defaults of all flags), by name.

        `shown` are defaults that the help shows instead of the flags' own.
        """
        defaults = {action.dest: action.default for action in self._actions if action.dest != "help"}
        self.set_defaults(**shown)
        absent = object()
        read = vars(self.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, absent))))
        return {name: read[name] for name in defaults if read[name] is not absent}, defaults

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; `python {sys.argv[0]} -h` explains all flags")


class Switch(argparse.BooleanOptionalAction):
    """--flag and --no-flag."""

    def __init__(self, *args: Any, help: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.help = help  # set here, because Python before 3.13 would append the default
