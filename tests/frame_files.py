"""Folders of empty images: for a layout only names count."""

from pathlib import Path


def make(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def numbered(pattern: str, start: int, count: int) -> list[str]:
    return [pattern % i for i in range(start, start + count)]
