"""The project's own imports, read with ast wherever they stand: none runs against the stream, none in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# What a folder, or a file of the root, may import besides itself. benchmarks/ and tests/ may import anything.
BELOW = {
    "utils": set(),
    "common": {"utils"},
    "dataloader": {"utils", "common"},
    "network": {"utils", "common", "dataloader", "saved"},
    "saved": {"utils", "common", "dataloader"},
    "engine": {"utils", "common", "dataloader", "network", "saved"},
    "data": {"utils", "common", "dataloader"},
    "recogniser": {"utils", "common", "dataloader", "data", "network", "saved", "engine"},
    "report": {"utils", "common", "dataloader", "saved", "data"},
}
FREE = ("benchmarks", "tests")


def modules() -> dict[str, Path]:
    """{dotted name: file} of everything but hidden folders, benchmarks and tests."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith(".") for part in parts) and parts[0] not in FREE:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(module: str, path: Path, known: set[str]) -> set[str]:
    """The project's modules that a file imports: at its top, in functions and under TYPE_CHECKING alike."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    # `from data.flow import dis_flow` names data.flow, `from report import page` report.page, both their package
    longest = {name for name in names & known if not any(other.startswith(f"{name}.") for other in names & known)}
    return longest - {module}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    found = modules()
    return {module: imported(module, path, set(found)) for module, path in found.items()}


def test_imports_are_found(arrows):
    assert {"predict", "data.tvl1.tensor", "engine.runner", "utils"} <= arrows.keys()
    assert "dataloader.packed" in arrows["dataloader.layouts"] and "data.tvl1.cpu" in arrows["data.flow"]


def test_every_folder_has_its_place(arrows):
    folders = {module.partition(".")[0] for module in arrows if "." in module}
    assert folders <= BELOW.keys(), "say in BELOW what a new folder may import"


def test_no_import_runs_against_the_stream(arrows):
    wrong = []
    for module, targets in arrows.items():
        room = module.partition(".")[0]
        allowed = BELOW.get(room)  # None: a script, which nothing below imports
        for target in targets:
            within = target.partition(".")[0]
            if within != room and allowed is not None and not {within, target} & allowed:
                wrong.append((module, target))
    assert not wrong, "these import what lies above them"


def test_no_imports_go_in_a_circle(arrows):
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
