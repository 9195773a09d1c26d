"""The command of evaluate.py as a module, and made-up runs for it, shared by the tests of what it writes."""

import importlib.util
from pathlib import Path

import pandas as pd
from result_factory import write_result

import figures

# under another name, for under its own it is the library
spec = importlib.util.spec_from_file_location(
    "evaluate_command", Path(__file__).resolve().parent.parent / "evaluate.py"
)
command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command)

BACKBONES = ["camembert-bio", "alibert", "drbert"]
STRUCTURES = ["linear", "adapter", "lightweight", "tiny-attention", "grn"]


def write_run(runs, model, head=None, tuning=None, scores=(0.8, 0.9), **changes):
    for fold, score in enumerate(scores):
        changes |= {"run__model": model, "run__head": head, "run__tuning": tuning, "run__num_folds": 2}
        write_result(runs, f"{model}-{head}-{tuning}".replace("/", "-"), fold, score, **changes)


def aggregated(runs) -> pd.DataFrame:
    results = pd.DataFrame(command.read_files([runs], "result.json", command.read_result, []))
    failures = pd.DataFrame(columns=[*command.CELL, "failed"])
    return figures.in_paper_order(command.aggregate(results, failures, command.find_missing([], results)))
