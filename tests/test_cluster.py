"""The scripts of docs/slurm without SLURM: its variables are set, and srun is a stand-in that starts both tasks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import ROOT
from video_files import make_video

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="bash scripts")]

SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=0
for rank in 0 1; do SLURM_PROCID=$rank "$@" & done
wait -n && wait -n
"""


def run_bash(script, *arguments, **variables):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "SLURM_CPUS_PER_TASK": "1"}
    environment.update({key: str(value) for key, value in variables.items()})
    environment["PATH"] = f"{environment.pop('FIRST', '')}{os.pathsep}{path}"
    command = ["bash", str(ROOT / "docs/slurm" / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_an_array_job_makes_the_files_of_an_unsharded_run(tmp_path: Path, run) -> None:
    for number in range(3):
        folder = tmp_path / "videos" / "ab"[number % 2]
        make_video(folder / f"v{number}.avi", number, 13)
    for task in (2, 1, 2):  # one of them twice, as a requeued one
        run_bash("extract.sbatch", VIDEOS=tmp_path / "videos", DATA=tmp_path / "array", FLOW_FLAGS="--method dis",
                 SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT=2)  # fmt: skip
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "one/rgb", "--sampling-rate", 1, "--workers", 1)
    run("data/extract_flow.py", tmp_path / "videos", tmp_path / "one/flow", "--method", "dis", "--workers", 1)
    assert len(content(tmp_path / "one")) == 3 * (13 + 2 * 12)
    assert content(tmp_path / "array") == content(tmp_path / "one")


def test_a_training_in_two_tasks_goes_on_after_its_end(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    flags = ("--rgb-dir", tiny / "rgb", "--ucf-list", "none", "--arch", "resnet18", "--weights", "none", "--size", 32,
             "--batch-size", 3, "--test-samples", 2)  # fmt: skip
    job = {"FIRST": tmp_path, "SLURM_NTASKS": 2, "HOST": "127.0.0.1"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_bash("train.sbatch", "spatial_cnn.py", *flags, "--epochs", 2, "--output", whole, SLURM_JOB_ID=1, **job)
    run_bash("train.sbatch", "spatial_cnn.py", *flags, "--epochs", 1, "--output", parts, SLURM_JOB_ID=2, **job)
    run_bash("train.sbatch", "spatial_cnn.py", *flags, "--epochs", 2, "--output", parts, SLURM_JOB_ID=3, **job)
    one, other = (torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (whole, parts))
    assert one["epoch"] == other["epoch"] == 1
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
