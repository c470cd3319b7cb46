"""The help of every script that a user runs."""

import re
import runpy
import sys

import pytest
from conftest import ROOT

FILES = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), ROOT / "recogniser/export.py"]
STARTED = re.compile(r"run_main\(main[,)]")
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in FILES if STARTED.search(path.read_text("utf-8")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_a_terminal_and_a_typo_in_a_flag_gets_one_line(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    said = []
    for flag, code in ("-h", 0), ("--no-such-flag", 2):
        monkeypatch.setattr(sys, "argv", [script, flag])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert exit_.value.code == code
        said.append(capsys.readouterr())
    text, error = said[0].out, said[1].err
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith("usage: ") and "default: []" not in text and "Path(" not in text
    assert error.startswith("error: ") and error.count("\n") == 1


def test_every_script_is_here():
    assert {"spatial_cnn.py", "motion_cnn.py", "fusion.py", "predict.py", "data/check.py"} < set(SCRIPTS)


def test_switches_commands_and_lists(monkeypatch, capsys):
    from common.commandline import ArgumentParser, Switch, bounded

    monkeypatch.setenv("COLUMNS", "80")
    parser = ArgumentParser(prog="x.py")
    parser.add_argument("--levels", "-l", type=int, nargs="+", default=[1, 2], help="of something")
    group = parser.add_argument_group("group")
    group.add_argument("--share", type=bounded(float, 0, 1), help="part")
    group.add_argument("--switch", action=Switch, default=True, help="so")
    parser.set_defaults(share="50%", switch=False)  # as a recipe does
    parser.add_argument("--none", type=float, nargs="*", default=[], help="empty by default")
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--levels(?: N \[N ...\])?, -l N \[N ...\] of something \(default: 1 2\)", text)  # Python < 3.13
    assert "--share X part (default: 50%)" in text and "--switch, --no-switch so (default: off)" in text
    assert "empty by default group:" in text


def test_a_number_and_its_noun():
    from utils import plural

    said = [plural(count, noun) for count, noun in ((1, "class"), (13320, "test video"), (2, "class"))]
    assert said == ["1 class", "13,320 test videos", "2 classes"]
