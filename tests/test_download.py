"""Data sets from a server that cuts, changes and refuses. See data/download.py."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from file_server import CONTENT

from data import download
from tests.test_archives import FILES, VIDEOS, contents, make_rar, make_zip, split
from utils import InputError

ROOT = Path(__file__).resolve().parents[1]


def run_script(*words, **kwargs):
    return subprocess.run([sys.executable, str(ROOT / "data" / "download.py"), "--retry-wait", "0", *map(str, words)],
                          capture_output=True, text=True, check=False, timeout=60, **kwargs)


@pytest.fixture
def mirror(server, tmp_path):
    """tsfusion's archives in small, in 3 parts each, and UCF's, with the official lists of one class."""
    make = tmp_path / "make"
    make.mkdir()
    for name, top in (("ucf101_jpegs_256.zip", "jpegs_256"), ("ucf101_tvl1_flow.zip", "tvl1_flow/u")):
        make_zip(make / name, {path.replace("jpegs_256", top): content for path, content in FILES.items()})
        for part in split(make / name, 3):
            server.files[part.name] = part.read_bytes()
    server.files["UCF101TrainTestSplits-RecognitionTask.zip"] = make_zip(
        make / "lists.zip", {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}, zipfile.ZIP_DEFLATED)
    server.files["UCF101.rar"] = make_rar(VIDEOS)
    return server


def test_rgb_flow_and_lists_end_to_end(mirror, tmp_path):
    out = tmp_path / "out"
    mirror.cuts = [3000, 0, 1000]
    words = ["rgb", "flow", "lists", "--base-url", mirror.url + "/", "--ucf-url", mirror.url, "--output", out]
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    wanted = {name.replace("jpegs_256", top): content for name, content in FILES.items()
              for top in ("jpegs_256", "tvl1_flow/u")} | {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}
    found = contents(out)
    assert {name: found[name] for name in found if not name.startswith((".", "downloads/"))} == wanted
    assert sorted(path.name for path in (out / "downloads").iterdir()) == sorted(
        name for name in mirror.files if name != "UCF101.rar")  # no joined copy, nothing partial
    before, _, after = done.stdout.partition("rgb: 15 files")
    assert re.search(r"rgb +ucf101_jpegs_256\.zip: 3 parts, [\d.]+kB, of which [\d.]+kB to fetch; unpacked", before)
    assert re.search(r"free.*\n(.*\n)*  disk +about ", before)
    assert "--rgb-dir" in after and "--flow-dir" in after and "--ucf-list" in after
    assert "the connection was cut; trying again" in done.stderr
    assert "Traceback" not in done.stderr

    mirror.sent.clear()
    again = run_script(*words)  # finished: no byte is fetched
    assert again.returncode == 0 and "done before: 15 files in jpegs_256" in again.stdout
    assert mirror.sent == []

    gone, wrong = (out / name for name in list(FILES)[:2])
    gone.unlink()
    wrong.write_bytes(bytes(wrong.stat().st_size))
    repaired = run_script(*words, "--again")
    assert "rgb: 15 files" in repaired.stdout and "(2 written now)" in repaired.stdout
    assert mirror.sent == []
    assert {name: content for name, content in contents(out).items() if name[0] != "."} == {
        name: content for name, content in found.items() if name[0] != "."}


def test_videos_end_to_end(mirror, tmp_path):
    if not any(shutil.which(name) for name in ("unrar", "unar", "bsdtar")):
        pytest.skip("none of unrar, unar and bsdtar is installed")
    out = tmp_path / "out"
    done = run_script("--ucf-url", mirror.url, "--output", out, "--remove-archives")  # videos and lists by default
    assert done.returncode == 0, done.stderr
    found = {name: content for name, content in contents(out).items() if not name.startswith(".")}
    assert found == VIDEOS | {"ucfTrainTestlist/classInd.txt": b"1 Biking\r\n"}
    mirror.sent.clear()
    assert "done before" in run_script("--ucf-url", mirror.url, "--output", out).stdout
    assert mirror.sent == []
    shutil.rmtree(out / "UCF-101")  # what was noted as done is gone: it is fetched again
    assert run_script("videos", "--ucf-url", mirror.url, "--output", out).returncode == 0
    assert set(VIDEOS) < set(contents(out))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on_where_it_was(mirror, tmp_path):
    make_zip(tmp_path / "ucf101_jpegs_256.zip", FILES | {"jpegs_256/large": CONTENT})
    mirror.files |= {part.name: part.read_bytes() for part in split(tmp_path / "ucf101_jpegs_256.zip", 3)}
    mirror.step, mirror.pause = 1 << 16, 0.2
    out = tmp_path / "out"
    words = ["rgb", "--base-url", mirror.url, "--output", out]
    process = subprocess.Popen([sys.executable, str(ROOT / "data" / "download.py"), *map(str, words)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = out / "downloads" / "ucf101_jpegs_256.zip.001.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    second = run_script(*words)  # while the first is at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.returncode == 2 and "another download into" in second.stderr
    have = part.stat().st_size
    assert 0 < have < len(mirror.files["ucf101_jpegs_256.zip.001"])
    mirror.sent.clear()
    mirror.pause = 0
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    assert [begin for name, begin, sent in mirror.sent if name.endswith(".001") and sent > begin][-1] == have
    assert {name: (out / name).read_bytes() for name in FILES} == FILES


def test_offline_takes_what_is_there(mirror, tmp_path):
    out = tmp_path / "out"
    downloads = out / "downloads"
    downloads.mkdir(parents=True)
    run = ["rgb", "--offline", "--output", out]
    assert "put it there" in run_script(*run).stderr
    for number in (1, 3):
        name = f"ucf101_jpegs_256.zip.{number:03d}"
        (downloads / name).write_bytes(mirror.files[name])
    missing = run_script(*run)
    assert missing.returncode == 2 and "ucf101_jpegs_256.zip.002 is missing" in missing.stderr
    (downloads / "ucf101_jpegs_256.zip.002").write_bytes(mirror.files["ucf101_jpegs_256.zip.002"])
    for stray in ("ucf101_jpegs_256.zip.001.part", "ucf101_jpegs_256.zip.bak", "ucf101_jpegs_256.zip.1"):
        (downloads / stray).write_bytes(b"stray")
    assert run_script(*run).returncode == 0
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert mirror.sent == []


def test_a_mirror_with_the_zip_in_one_piece(server, tmp_path):
    server.files["ucf101_jpegs_256.zip"] = make_zip(tmp_path / "a.zip", FILES)
    assert run_script("rgb", "--base-url", server.url, "--output", tmp_path / "out").returncode == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES


def test_plain_errors(mirror, tmp_path):
    out = tmp_path / "out"

    def error(*words):
        done = run_script(*words, "--output", out)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith("error: ") or "download.py: error" in lines[-1]
        return lines[-1]

    assert "rgb needs --base-url" in error("rgb")
    assert re.search(r"/nowhere/ucf101_jpegs_256\.zip\.001 is not there \(HTTP 404\)",
                     error("rgb", "--base-url", f"{mirror.url}/nowhere"))
    assert "'frames' is none of videos, lists, rgb, flow" in error("frames")
    assert "check the connection" in error("lists", "--ucf-url", "http://127.0.0.1:9")
    (out / "downloads").mkdir(parents=True)
    (out / "downloads" / "UCF101TrainTestSplits-RecognitionTask.zip").write_bytes(b"somebody's")
    assert "has 10 bytes" in error("lists", "--ucf-url", mirror.url)
    assert contents(out / "downloads") == {"UCF101TrainTestSplits-RecognitionTask.zip": b"somebody's"}
    mirror.files["ucf101_tvl1_flow.zip.002"] = mirror.files["ucf101_tvl1_flow.zip.002"][::-1]
    assert re.search(r"is damaged .*delete .*flow\.zip\.00\d", error("flow", "--base-url", mirror.url))
    assert not (out / "tvl1_flow" / "u" / list(FILES)[-1]).exists()


def test_a_machine_without_a_network_is_told_so_at_once(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(sys, "argv", ["download.py", "--dry-run", "--output", str(tmp_path)])
    with pytest.raises(InputError, match=r"cannot reach http.*/UCF101\.rar \(Name or service not known\): .*--offline"):
        download.main()
    assert capsys.readouterr().err == ""  # no word of trying again


def test_it_says_what_it_takes_and_refuses_a_disk_that_is_too_small(mirror, tmp_path, monkeypatch, capsys):
    words = ["download.py", "rgb", "--base-url", mirror.url, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*words, "--dry-run"])
    download.main()
    size = sum(len(content) for name, content in mirror.files.items() if "jpegs" in name)
    peak = capsys.readouterr().out
    said = re.search(r"disk +about ([\d.]+)kB more at most", peak)
    assert float(said[1]) * 1000 == pytest.approx(size * 2.3, rel=0.01)  # archive and its files, 1.3 times as large
    assert mirror.sent == [] and list(contents(tmp_path / "out")) == [".download.lock"]

    monkeypatch.setattr(sys, "argv", words)
    usage = shutil.disk_usage(tmp_path)._replace(free=size * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"getting rgb needs .* only .* are free: make room"):
        download.main()
    assert mirror.sent == [] and list(contents(tmp_path / "out")) == [".download.lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size * 9))
    download.main()
    assert (tmp_path / "out" / next(iter(FILES))).exists()


def test_videos_are_not_fetched_without_a_program_to_unpack_them(mirror, tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "PROGRAMFILES": str(tmp_path)}
    done = run_script("--ucf-url", mirror.url, "--output", tmp_path / "out", env=environment)
    assert done.returncode == 2 and "apt install" in done.stderr
    assert mirror.sent == []


def test_help_shows_every_default():
    text = run_script("-h").stdout
    assert "default: videos lists" in text and "(default: data)" in text and "(default: 1.0)" in text
