"""CONTRIBUTING.md's tables name files that are there, and in a row on changes only what those files define."""

import ast
import re

import pytest
from conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGES = [line for line in TEXT.partition("## To change one thing")[2].splitlines() if line.startswith("| ")][2:]
PLACES = [line for line in TEXT.partition("## To change one thing")[0].splitlines() if line.startswith("| `")]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def is_path(name: str) -> bool:
    return name.endswith((".py", "/"))


def defined(path: str) -> set[str]:
    """Names that a module defines, `Class.name` for what a class does."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        within = [("", node)]
        if isinstance(node, ast.ClassDef):
            within += [(f"{node.name}.", child) for child in node.body]
        for prefix, child in within:
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_there_are_rows():
    assert len(PLACES) >= 8 and len(CHANGES) >= 12


@pytest.mark.parametrize("row", PLACES)
def test_a_place_exists(row):
    where, subject = row.strip("| ").split(" | ", 1)
    paths = in_backticks(where)
    folders = [path for path in paths if path.endswith("/")]
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in filter(is_path, in_backticks(subject)):
        assert any((ROOT / folder / name).exists() for folder in [*folders, "."]), name


FOLDERS = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/**/__init__.py"))


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ("benchmarks", "tests")])
def test_every_file_of_code_has_its_place(folder):
    (row,) = (row for row in PLACES if f"`{folder}/`" in row.split(" | ")[0])
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert files <= set(in_backticks(row))


@pytest.mark.parametrize("row", CHANGES)
def test_a_change_names_what_is_there(row):
    what = row.strip("| ").split(" | ", 1)[1]
    names = in_backticks(what)
    paths = [name for name in names if is_path(name)]
    assert paths
    known = set().union(*map(defined, paths))  # which fails where a file is missing
    for name in names:
        if re.fullmatch(r"[\w.]+", name) and not is_path(name) and name not in ("conv1", "fc"):
            assert name in known, f"{name} is in none of {', '.join(paths)}"
