"""The tested versions that `make` installs: one of each requirement, within its range."""

from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {(r := Requirement(line)).name: r for line in lines if line and not line.startswith("-r")}


def test_each_requirement_is_pinned_within_its_range():
    ranges = read("requirements.txt") | read("requirements-dev.txt")
    pins = read("constraints.txt")
    assert ranges.keys() == pins.keys()
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "==" and "+" not in version.version, name  # no build of its own: the default wheel
        assert ranges[name].specifier.contains(version.version), name
