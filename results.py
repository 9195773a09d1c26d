"""The result file: the one contract between training and everything that reads results.

A run is one model on all its folds; it lives in one folder, with one folder a fold (of several seeds in seed-SEED/):

    runs/drbert-grn-frozen/fold-0/result.json           written last: a file that exists is a fold that finished
    runs/drbert-grn-frozen/fold-0/predictions.parquet   id, group, label, predicted, probabilities, subgroups; no text
    runs/drbert-grn-frozen/model/                       the model kept for use
    runs/drbert-grn-frozen/failed.json                  why the run did not finish, if it did not
"""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from locks import FolderError
from machine import available_cores

logger = logging.getLogger("train")

SCHEMA_VERSION = 9
RESULT_FILE, FAILURE_FILE, PREDICTIONS_FILE = "result.json", "failed.json", "predictions.parquet"
MODEL_FACTS = "frugal_notes.json"  # beside a kept model: task, classes, threshold, length, as predict.py needs them
PACKAGES = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "scikit-learn", "tokenizers")


def write_json(path: Path, content: dict):
    """Write all of it or nothing: through a temporary name in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_result(folder: Path, result: dict, predictions: pd.DataFrame):
    """Predictions on the test part first, the result file last."""
    folder.mkdir(parents=True, exist_ok=True)
    predictions.to_parquet(folder / PREDICTIONS_FILE, index=False)
    with open(folder / PREDICTIONS_FILE, "rb") as file:
        os.fsync(file.fileno())  # on the disk before what says that they are there
    write_json(folder / RESULT_FILE, {"schema_version": SCHEMA_VERSION, "status": "finished", **result})


def read_finished(folder: Path) -> dict | None:
    """The fold's result, or None if it has not finished.

    Raises:
        FolderError: the file is damaged, as by an interrupted copy.
    """
    path = folder / RESULT_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        raise FolderError(f"{path} is damaged: copy it again, or delete {folder} to train that fold again.") from None


def discard_foreign_checkpoints(folder: Path, settings: dict):
    """Delete the checkpoints of an interrupted run unless it had the same settings; else they are resumed.

    Each says where the best one is, by a path of where the folder was then, and the Trainer gives up one that it does
    not find: so these are told where the folder is now.
    """
    stored = folder / "settings.json"
    if folder.is_dir() and not (stored.is_file() and json.loads(stored.read_text(encoding="utf-8")) == settings):
        logger.warning("  checkpoints of an interrupted run with other settings are discarded")
        remove_checkpoints(folder)
    write_json(stored, settings)
    for path in folder.rglob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):  # cut off: it is not resumed
            state = json.loads(path.read_text(encoding="utf-8"))
            if best := state.get("best_model_checkpoint"):
                write_json(path, state | {"best_model_checkpoint": str(path.parent.with_name(Path(best).name))})


def remove_checkpoints(folder: Path):
    """Delete them, and last of all the settings that say whose they are, though it be killed on the way."""
    for path in folder.glob("checkpoint-*"):
        (path / "trainer_state.json").unlink(missing_ok=True)  # half of it is not resumed
        shutil.rmtree(path)
    shutil.rmtree(folder)


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose writing finished, to resume from; None to start afresh.

    The Trainer writes trainer_state.json last, so a checkpoint without it was cut off. One of `--save_only_model` does
    not say where the optimizer and the learning rate were.
    """

    def is_complete(checkpoint: Path) -> bool:
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return bool(state) and (checkpoint / "scheduler.pt").is_file()
        except (OSError, ValueError):
            return False

    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(checkpoints) if is_complete(path)), None)


def describe_environment(on_gpu: bool) -> dict:
    """Commit, versions and hardware that the result came from."""

    def git(*arguments: str) -> str | None:
        if shutil.which("git") is None:
            return None
        here = Path(__file__).parent
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # A repository around a copy of the code that is not part of it says nothing of it.
    is_in_it = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    status = git("status", "--porcelain", "--untracked-files=no") if is_in_it else None
    return {
        "git_commit": git("rev-parse", "HEAD") if is_in_it else None,
        "git_dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "gpu": torch.cuda.get_device_name() if on_gpu else None,
        },
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_mb(on_gpu: bool) -> float:
    """The most memory (10^6 bytes) that this process has held so far, of the GPU's or of the machine's.

    Of a GPU with `--memory_gb`: since training on the labels began.
    """
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
