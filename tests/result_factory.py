"""Result files as train.py writes them, with invented numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from results import SCHEMA_VERSION  # evaluate.py has a copy of it: a different one fails its tests

HEADLINE = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "precision_weighted", "recall_weighted")
EXTRA = {
    "binary": ("precision_positive", "recall_positive", "f1_positive"),
    "multi-class": (),
    "multi-label": ("precision_micro", "recall_micro", "f1_micro", "hamming_loss"),
}


def make_result(run_id="drbert-grn-frozen", fold=0, score=0.8, **changes) -> dict:
    """A result in which every score is `score`; run__seed=1 among the changes puts 1 under "run", "seed"."""
    task = changes.get("data__task", "binary")
    names = (*HEADLINE, "f1_weighted", "auroc", "auprc", "mcc", *EXTRA.get(task, ()))
    scores = dict.fromkeys(names, score) | {"per_class": {}, "confusion_matrix": [[1, 0], [0, 1]], "collapsed": False}
    splits = {"train": 60, "validation": 20, "test": 20}
    result = {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "run": {
            "run_id": run_id,
            "model": "drbert",
            "head": "grn",
            "tuning": "frozen",
            "seed": 0,
            "order_seed": 0,
            "fold": fold,
        }
        | {"split_seed": 0, "num_folds": 3, "num_seeds": 1, "dataset": "synthetic", "train_size": None},
        "arguments": {
            "model": {"dropout": 0.1, "memory_gb": None},
            "data": {"long_notes": "windows", "max_length": 256},
            "training": {"learning_rate": 1e-3, "data_seed": None},
            "seed": 0,
        },
        "data": {
            "fingerprint": "abc123",
            "task": task,
            "class_names": ["absent", "present"],
            "splits": {
                name: {"notes": size, "groups": size, "labels": {}, "over_max_length": size // 10}
                for name, size in splits.items()
            },
        },
        "model": {"kind": "pretrained", "backbone": "Dr-BERT/DrBERT-7GB", "revision": "0f1e", "stand_in_for": None}
        | {"trainable_parameters": 1_771_778, "total_parameters": 112_000_000, "thresholds": None, "temperature": 2.0}
        | {"transductive": False, "pretraining": None, "logit_weights": None},
        "metrics": scores,
        "validation": scores,
        "operating_points": [
            {"kept": kept, "required": 0.9, "threshold": 0.4, "recall": 0.85, "precision": 0.75}
            for kept in ("recall", "precision")
        ]
        if task == "binary"
        else [],
        "cost": {
            "training_hours": 0.25,
            "feature_hours": 0.0,
            "pretraining_hours": 0.0,
            "evaluation_seconds": 1.2,
            "peak_memory_mb": 900.0,
            "one_core_notes_per_second": 8.0,
            "model_megabytes": 450.0,
            "power_watts": 20.0,
            "co2_g_per_kwh": 50.0,
            "power_is_measured": False,
        }
        | {"epochs": 7, "best_epoch": 4},
        "environment": {
            "git_commit": "0123456789abcdef0123",
            "git_dirty": False,
            "python": "3.11.9",
            "packages": {"torch": "2.13.0"},
            "hardware": {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": None},
        },
    }
    for place, value in changes.items():
        *parents, last = place.split("__")
        part = result
        for parent in parents:
            part = part[parent]
        part[last] = value
    return result


def invent_predictions(result: dict) -> pd.DataFrame:
    """Predictions on 20 test notes, two a patient, of which the share `accuracy` is right."""
    task, classes = result["data"]["task"], len(result["data"]["class_names"])
    fold, notes = result["run"]["fold"], np.arange(20)
    labels = notes % classes
    accuracy = result["metrics"].get("accuracy")
    wrong = (7 * notes + 3) % 20 >= round(20 * (0.5 if accuracy is None else accuracy))
    predicted = (labels + wrong) % classes
    if task == "multi-label":
        labels, predicted = (np.eye(classes, dtype=int)[column] for column in (labels, predicted))
    sure = np.where(np.eye(classes)[predicted] if predicted.ndim == 1 else predicted, 0.9, 0.1 / max(classes - 1, 1))
    columns = {"id": [f"f{fold}-{n:02}" for n in notes], "group": 10 * fold + notes // 2}
    columns |= {"label": labels.tolist(), "predicted": predicted.tolist(), "probabilities": sure.tolist()}
    return pd.DataFrame(columns)


def write_result(folder: Path, *args, **changes) -> Path:
    """Writes make_result(*args, **changes) where train.py would put it below the folder; returns the file's path."""
    result = make_result(*args, **changes)
    path = folder / result["run"]["run_id"] / f"fold-{result['run']['fold']}" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    invent_predictions(result).to_parquet(path.with_name("predictions.parquet"), index=False)
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def write_failure(
    folder: Path, run_id: str, model="drbert", head="grn", tuning="frozen", error="out of memory"
) -> None:
    (folder / run_id).mkdir(parents=True, exist_ok=True)
    run = {"run_id": run_id, "model": model, "head": head, "tuning": tuning, "dataset": "synthetic"}
    run["train_size"] = None
    content = {"schema_version": SCHEMA_VERSION, "status": "failed", "run": run, "error": error}
    (folder / run_id / "failed.json").write_text(json.dumps(content), encoding="utf-8")
