"""The report on finished runs: reads result files, trains nothing and opens no note.

    python evaluate.py runs --output report

`train.py` leaves one `result.json` a fold, written last, beside its `predictions.parquet` (ids, labels,
probabilities); this command finds them under the folders it is given, checks that they may be compared, averages over
folds and seeds, and has `report.py` draw the table and the figure.

Exit code: 0 if every run is complete; 1 if the report was written but a run is missing, failed or incomplete or a
file could not be used, and also if results contradict each other, in which case there is no report.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

# `evaluate` is also the Hugging Face library that metrics.py stands on, and this folder comes first on sys.path in
# whatever is started here (python train.py, pytest, accelerate launch). So when this file is imported by that name
# it steps aside: it loads the library, found where sys.path holds no such file, in its own place. The functions below
# are then defined in a module nobody sees; only `python evaluate.py` is our command.
if __name__ == "evaluate":
    elsewhere = [entry for entry in sys.path if not Path(entry, "evaluate.py").is_file()]  # of another clone neither
    spec = importlib.machinery.PathFinder.find_spec("evaluate", elsewhere)
    if spec is None:
        raise ModuleNotFoundError(
            "the library 'evaluate' is not installed (evaluate.py in this folder is a command, not the library): "
            "pip install evaluate",
            name="evaluate",
        )
    sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["evaluate"])
else:
    import argparse
    import json
    import math
    import os
    import re
    import shlex

    import numpy as np
    import pandas as pd

    import calibration
    import comparison
    import figures
    import learning
    import report

CELL = ["dataset", "model", "head", "tuning", "train_size"]  # what one row of the table is; of all notes, or a part
AVERAGES = {  # the averages of precision, recall and F1 that each task has
    "binary": ["macro", "weighted", "positive"],
    "multi-class": ["macro", "weighted"],
    "multi-label": ["macro", "weighted", "micro"],
}
SCORES = ["accuracy"]
SCORES += [f"{name}_{a}" for a in ("macro", "weighted", "positive", "micro") for name in ("precision", "recall", "f1")]
SCORES += ["hamming_loss", "auroc", "auprc", "mcc"]

# The part of the files that is read, in their shape: field and type. TEXT may be null and is then read as "-".
# results.py writes them; it is not imported for its version number, because that would load torch.
SCHEMA_VERSION = 9
REMOVED = {"word_dropout": 0.0}  # arguments of earlier versions, as a result that lacks them was made
TEXT, NUMBER, NUMBER_OR_NONE = str | None, int | float, int | float | None
RUN = {"run_id": str, "dataset": str, "model": str, "head": TEXT, "tuning": TEXT, "train_size": int | None}
PLAN = ["run_id", *CELL[1:]]
ABSOLUTE = r"(?<![\w:/.~-])~?/(?:[^\s/]+/)+(?=[^\s/])"  # the folders of an absolute path
FAILURE = {"run": RUN, "error": str}
RESULT = {
    "run": RUN | dict.fromkeys(["seed", "order_seed", "split_seed", "fold", "num_folds", "num_seeds"], int),
    "data": {
        "fingerprint": str,
        "task": str,
        "class_names": list,
        "splits": dict.fromkeys(["train", "validation", "test"], {"notes": int, "over_max_length": int}),
    },
    "arguments": {"data": dict},
    "model": {"kind": str, "backbone": TEXT, "revision": TEXT, "stand_in_for": TEXT, "temperature": NUMBER}
    | {"transductive": bool, "pretraining": dict | None}
    | dict.fromkeys(["trainable_parameters", "total_parameters"], int),
    "metrics": {"collapsed": bool},
    "cost": dict.fromkeys(["training_hours", "feature_hours", "pretraining_hours"], NUMBER)
    | dict.fromkeys(["evaluation_seconds", "peak_memory_mb", "epochs"], NUMBER_OR_NONE)
    | dict.fromkeys(["one_core_notes_per_second", "model_megabytes", "power_watts", "co2_g_per_kwh"], NUMBER_OR_NONE)
    | {"power_is_measured": bool},
    "environment": {"git_commit": TEXT, "git_dirty": bool | None, "python": str, "packages": dict, "hardware": dict},
}


# Of the arguments of a run, those in which the seeds of one row may differ: where and in what order they were trained,
# and what num_folds says; and those in which the rows of one learning curve may.
MAY_DIFFER = (
    "data_seed world_size bf16 fp16 tf32 memory_gb folds repeats subgroup_columns subgroup_values train_size".split()
)
CURVE = CELL[:-1]
POINT = {"kept": str, "required": NUMBER} | dict.fromkeys(["threshold", "recall", "precision"], NUMBER_OR_NONE)
ESTIMATE = {"runs": dict}
ESTIMATE_OF_RUN = {"training_hours": NUMBER, "training_hours_an_epoch": NUMBER, "fitting_hours_a_fold": NUMBER}
ESTIMATE_OF_RUN |= {"epochs": NUMBER_OR_NONE}


class PredictionsError(ValueError):
    """Of a fold; the message says which, and what to do."""


def main() -> int:
    args = parse_args()
    damaged: list[str] = []
    results = pd.DataFrame(read_files(args.folders, "result.json", read_result, damaged))
    failures = read_files(args.folders, "failed.json", read_failure, damaged)
    failures = pd.DataFrame(failures, columns=[*CELL, "run_id", "failed", "path"])
    plans = read_files(args.folders, "plan.tsv", read_plan, damaged)
    estimates = read_files(args.folders, "estimate.json", read_estimate, damaged)
    complain_of(damaged)
    if results.empty:
        folders = ", ".join(map(str, args.folders))
        return complain(f"no usable result.json under {folders} ({len(failures)} failed runs): train something first")
    try:
        check_comparable(results)
        check_average(results, args.average)
    except ValueError as error:
        return complain(error)
    try:  # before the statistics, which take their time
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "results.csv").open("a").close()
    except OSError as error:
        return complain(f"--output {args.output}: cannot be written ({error.strerror}); choose another folder")

    missing = find_missing(plans, pd.concat([results, failures]))
    cells = figures.in_paper_order(aggregate(results, failures, missing))
    # the report goes from hand to hand: it does not say where on this machine the runs are
    folders = [str(folder) if not folder.is_absolute() else folder.name for folder in [*args.folders, args.output]]
    command = shlex.join(["python", "evaluate.py", *folders[:-1], "--output", folders[-1]])
    command = f"{command} --average {args.average}"
    if args.price_per_hour is not None:
        command += f" --price_per_hour {args.price_per_hour:g}"
    unreadable: list[str] = []
    compared = {
        dataset: compare_models(rows, results[results.dataset == dataset], f"f1_{args.average}", unreadable)
        for dataset, rows in cells.groupby("dataset", sort=False)
    }
    complain_of(unreadable)
    damaged += unreadable
    estimated = compare_estimates(estimates, results)
    try:
        report.write_report(
            args.output, cells, results, compared, estimated, args.average, args.price_per_hour, damaged, command
        )
    except OSError as error:  # a full disk, or one file of another user's
        return complain(f"--output {args.output}: cannot be written ({error.strerror}); choose another folder")

    for dataset, rows in cells.groupby("dataset", sort=False):
        whole = rows[rows.train_size == "-"]
        if len(whole):
            print(f"\n{dataset}\n{report.results_table(whole, args.average).draw('simple')}")
        print("\n" + " ".join(report.verdict_sentences(rows, compared[dataset], args.average)))
        print("\n".join(learning.describe_crossings(rows, args.average)))
    problems = report.list_problems(cells)
    stand_ins = [report.STAND_INS] if (cells.stand_in_for != "-").any() else []
    print("\n".join(["", *stand_ins, *problems, f"report written to {args.output}"]))
    return 1 if problems or damaged else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help="where train.py wrote its runs")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument(
        "--average",
        default="macro",
        choices=["macro", "weighted", "positive", "micro"],
        help="how precision, recall and F1 are averaged over classes, in the tests and the verdict too; positive is "
        "the positive class of a binary task, micro is for multi-label tasks (default: macro; the CSV holds them all)",
    )
    parser.add_argument(
        "--price_per_hour",
        "--price-per-hour",
        type=float,
        help="what an hour of the machine costs, in any currency: adds a column of prices",
    )
    args = parser.parse_args()
    if args.price_per_hour is not None and not 0 <= args.price_per_hour < float("inf"):
        parser.error(f"--price_per_hour {args.price_per_hour:g}: give what an hour of the machine costs, from 0")
    for folder in args.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder: give the folder train.py wrote its runs to")
    return args


def complain_of(left_out: list[str]) -> None:
    for line in left_out:
        print(f"evaluate.py: left out: {line}", file=sys.stderr)


def complain(problem: object) -> int:
    print(f"evaluate.py: error: {problem}", file=sys.stderr)
    return 1


def read_files(folders: list[Path], name: str, read, damaged: list[str]) -> list[dict]:
    """Every file called `name` under the folders, through `read`; what is wrong with the others goes to `damaged`."""
    # one entry a file, also where one of the folders lies inside another
    paths = {path.resolve(): path for folder in folders for path in folder.rglob(name)}
    records = []
    for path in sorted(paths.values()):
        try:
            records.append(read(path) | {"path": path})
        except OSError as error:
            damaged.append(f"{within(path, folders)}: cannot be read ({error.strerror})")
        except ValueError as error:
            damaged.append(f"{within(path, folders)}: {error}")
    return records


def is_beneath(path: Path, folder: Path) -> bool:
    """Also where one was found from a relative and the other from an absolute path."""
    return path.resolve().is_relative_to(folder.resolve())


def within(path: Path, folders: list[Path]) -> Path:
    """As a report names a file: by the folder that was given, without the way there."""
    return next(folder.absolute().name / path.relative_to(folder) for folder in folders if path.is_relative_to(folder))


def read_result(path: Path) -> dict:
    """One fold as a flat record: the fields of RESULT under their own names, and SCORES, each of which may be None."""
    content = load_json(path, "finished", RESULT)
    task, metrics = content["data"]["task"], content["metrics"]
    if task not in AVERAGES:
        raise ValueError(f"data.task is none of {', '.join(AVERAGES)}")
    required = [f"{name}_{average}" for average in AVERAGES[task] for name in ("precision", "recall", "f1")]
    present = [score for score in SCORES if score in metrics]
    check_fields(content, {"operating_points": list})
    for point in content["operating_points"]:
        check_fields(point, POINT, "operating_points.")
    check_fields(content, {"metrics": dict.fromkeys(["accuracy", *required, *present], NUMBER_OR_NONE)})
    record = {key: content[part][key] for part, fields in RESULT.items() for key in fields}
    planned = content["run"].get("seeds", [])  # (of before it was written there, only how many)
    if not isinstance(planned, list) or not all(type(seed) is int for seed in planned):
        raise ValueError("run.seeds is no list of numbers")
    record["planned_seeds"] = {record["seed"], *planned}
    record["train_size"] = size_as_text(record["train_size"])
    record["class_names"] = tuple(map(str, record["class_names"]))
    record["operating_points"] = content["operating_points"]
    if record["revision"] == "-":  # a folder, whose path may have been written in several ways
        record["backbone"] = Path(record["backbone"]).name
    if record["pretraining"] is not None:
        check_fields(content, {"model": {"pretraining": {"id": str}}})
        record["pretraining"] = record["pretraining"]["id"]
    sizes = [part["notes"] for part in record["splits"].values()]
    data_arguments = record.pop("data")  # those of tokens only where the model reads tokens
    check_fields(content, {"arguments": {"model": dict, "training": dict}})
    settings = content["arguments"]["model"] | data_arguments | content["arguments"]["training"]
    record["repeats"] = data_arguments.get("repeats", 1)
    record["settings"] = {name: value for name, value in settings.items() if name not in MAY_DIFFER}
    is_cut = data_arguments.get("long_notes") == "truncate"
    record |= {
        "cut_test_notes": record["splits"]["test"]["over_max_length"] if is_cut else 0,
        "train_notes": record["splits"]["train"]["notes"],
        "test_notes": record["splits"]["test"]["notes"],
        "corpus_notes": sum(sizes),
    }
    return record | {score: metrics.get(score) for score in SCORES}


def read_failure(path: Path) -> dict:
    content = load_json(path, "failed", FAILURE)
    run, reason = content["run"], re.sub(ABSOLUTE, "", " ".join(content["error"].split()))
    size, name = size_as_text(run["train_size"]), model_name(run["model"])
    return run | {"model": name, "failed": f"{run['run_id']}: {reason}", "train_size": size}


def size_as_text(train_size: int | None) -> str:
    """As the plan has it: "-" for all notes."""
    return "-" if train_size is None else str(train_size)


def read_plan(path: Path) -> dict:
    """The runs that run_all.sh set out to do: one line each, the columns of PLAN with tabs between."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(PLAN):
            raise ValueError(f"line {number} has {len(row)} fields, not {', '.join(PLAN)} with tabs between")
    runs = [dict(zip(PLAN, row, strict=True)) for row in rows]
    return {"runs": [run | {"model": model_name(run["model"])} for run in runs]}


def model_name(model: str) -> str:
    """A folder by its name, as results have it, also one that is no longer there."""
    path = Path(os.path.expanduser(model))
    return path.absolute().name if path.is_absolute() or os.path.isdir(path) else model


def read_estimate(path: Path) -> dict:
    """What estimate.py expected of each run, by run id."""
    runs = load_json(path, "estimated", ESTIMATE)["runs"]
    check_fields(runs, dict.fromkeys(runs, ESTIMATE_OF_RUN), "runs.")
    return {"runs": runs}


def load_json(path: Path, status: str, schema: dict) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        # only the kind of error: the file may be anything, and what it holds is not ours to print
        raise ValueError(f"cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"not a file of schema version {SCHEMA_VERSION}")
    if content.get("status") != status:
        raise ValueError(f"its status is not '{status}'")
    check_fields(content, schema)
    return content


def check_fields(content: object, schema: dict, place: str = "") -> None:
    """Raises ValueError for a field that lacks or is of another type, or a number that is none; puts "-" for a TEXT
    that is null."""
    for field, expected in schema.items():
        if not isinstance(content, dict) or field not in content:
            raise ValueError(f"lacks {place}{field}")
        if isinstance(expected, dict):
            check_fields(content[field], expected, f"{place}{field}.")
        elif not isinstance(content[field], expected):
            raise ValueError(f"{place}{field} is of the wrong type, {type(content[field]).__name__}")
        elif isinstance(content[field], float) and not math.isfinite(content[field]):
            raise ValueError(f"{place}{field} is {content[field]}")
        elif expected == TEXT and content[field] is None:
            content[field] = "-"


def check_comparable(results: pd.DataFrame) -> None:
    """Raises ValueError if a fold is there twice, or if what would be averaged or put side by side is not alike."""
    twice = results[results.duplicated([*CELL, "seed", "fold"], keep=False)]
    if len(twice):
        raise ValueError(
            f"the same model, seed and fold more than once, remove all but one of: {', '.join(map(str, twice.path))}"
        )
    alike = [
        (
            ["dataset"],
            ["fingerprint", "task", "class_names"],
            "different notes, splits of them, tasks or classes under one data set",
        ),
        (CELL, ["num_folds"], "different folds under one name"),
        (CURVE, ["backbone", "revision", "stand_in_for", "transductive"], "different backbones under one name"),
    ]
    for keys, columns, problem in alike:
        for _, group in results.groupby(keys):
            variants = [rows for _, rows in group.groupby(columns)]
            if len(variants) > 1:
                folders = [sorted({str(path.parent.parent) for path in rows.path}) for rows in variants]
                name = ", ".join(value for value in group.iloc[0][keys] if value != "-")
                raise ValueError(
                    f"{problem} ({name}), report them apart: " + " | ".join(", ".join(names) for names in folders)
                )
    for _, group in results.groupby(CURVE):
        said = {}  # a result of before an argument was written down lacks it: train.py takes it for the same run too
        for row in group.itertuples():
            folder = row.path.parent.parent
            settings = REMOVED | row.settings
            differ = [name for name, value in settings.items() if said.setdefault(name, (value, folder))[0] != value]
            if differ:
                raise ValueError(
                    f"different settings under one name ({', '.join(differ)}), report them apart: "
                    f"{said[differ[0]][1]} | {folder}"
                )


def check_average(results: pd.DataFrame, average: str) -> None:
    for dataset, task in results.groupby("dataset").task.first().items():
        if average not in AVERAGES[task]:
            allowed = ", ".join(AVERAGES[task])
            raise ValueError(f"--average {average}: {dataset} is a {task} task, which has {allowed}")


def find_missing(plans: list[dict], seen: pd.DataFrame) -> pd.DataFrame:
    """The planned runs that left neither a result nor a failure beneath the folder of their plan."""
    missing = []
    for plan in plans:
        beneath = seen[[is_beneath(path, plan["path"].parent) for path in seen.path]]
        datasets = beneath.dataset.unique()
        # a plan does not name its data set: with several beneath it, which one the run was meant for is not known
        dataset = datasets[0] if len(datasets) == 1 else "data set not known"
        planned = [run for run in plan["runs"] if run["run_id"] not in set(beneath.run_id)]
        missing += [run | {"dataset": dataset, "missing": run["run_id"]} for run in planned]
    return pd.DataFrame(missing, columns=[*CELL, "missing"])


def compare_models(cells: pd.DataFrame, results: pd.DataFrame, metric: str, unreadable: list[str]) -> report.Compared:
    """Intervals, tests and the verdict for the complete cells of all notes, those whose predictions can be read.

    Cells whose predictions are on other notes or folds than the first's are left out too; `unreadable` gets a line for
    each cell that is. So are, beside others, those that know test text: their figures flatter them.
    """
    usable = []  # of each cell its number, answers, trust and subgroups
    whole = cells[cells.train_size == "-"]
    for number, cell in whole[figures.may_be_ranked(whole)].iterrows():
        folds = results[(results[CELL] == cell[CELL]).all(axis=1)].sort_values(["seed", "fold"])
        try:
            predictions = read_predictions(folds)
            of_cell = collect_answers(predictions, len(folds.class_names.iloc[0]))
            if usable and not same_notes(of_cell, usable[0][1]):
                raise ValueError("predictions on other notes")
            trust = measure_trust(predictions, folds, cell.task)
            usable.append((number, of_cell, trust, score_subgroups(predictions[0], of_cell, metric)))
        except (ValueError, KeyError, TypeError) as error:
            # else only the kind of error: the file may be anything, and what it holds is not ours to print
            where = error if isinstance(error, PredictionsError) else f"({type(error).__name__})"
            unreadable.append(f"statistics of {figures.cell_name(cell)}: no usable predictions {where}")
    kept, answers, trust, subgroups = map(list, zip(*usable, strict=True)) if usable else ([], [], [], [])
    # of no positive note there is no score
    if len(answers) < 2 or np.isnan(answers[0].estimate(metric)) or not comparison.can_be_told_apart(answers[0]):
        return report.Compared(kept, answers, trust, subgroups, None, None)
    folds = results[results.train_size == "-"]
    table = comparison.compare(answers, metric, folds.test_notes.sum() / folds.train_notes.sum())
    rows = cells.loc[kept].reset_index(drop=True)
    collapsed = rows.collapsed_folds == rows.folds_finished
    verdict = comparison.choose_model(table, figures.hours_to_compare(rows), collapsed, len(set(answers[0].ids)))
    return report.Compared(kept, answers, trust, subgroups, table, verdict)


def read_predictions(results: pd.DataFrame) -> list[pd.DataFrame]:
    """The predictions of each seed on all folds, in the order of the note ids."""
    of_seeds = []
    for _, folds in results.groupby("seed"):
        of_folds = []
        for path, notes in zip(folds.path, folds.test_notes, strict=True):
            try:
                of_folds.append(pd.read_parquet(path.with_name("predictions.parquet")))
                if len(of_folds[-1]) != notes:
                    raise ValueError("not as many predictions as test notes")
            except (OSError, ValueError) as error:
                fold = path.parent  # and the run that it is of, whatever folders they are in
                fold = Path(*fold.parts[-3 if fold.parent.name.startswith("seed-") else -2 :])
                raise PredictionsError(f"in {fold} ({type(error).__name__}): delete it and train it again") from error
        of_seeds.append(
            pd.concat(each.assign(fold=fold) for each, fold in zip(of_folds, folds.fold, strict=True)).sort_values(
                ["id", "fold"]
            )
        )
    return of_seeds


def collect_answers(predictions: list[pd.DataFrame], classes: int) -> comparison.Answers:
    labels, predicted = (
        [np.stack(seed[column].to_numpy()).astype(int) for seed in predictions] for column in ("label", "predicted")
    )
    ids, groups, folds = (predictions[0][column].to_numpy() for column in ("id", "group", "fold"))
    return comparison.Answers(ids, labels[0], np.stack(predicted), groups, folds, classes)


def same_notes(first: comparison.Answers, second: comparison.Answers) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("ids", "labels", "groups", "folds")
    )


def measure_trust(predictions: list[pd.DataFrame], results: pd.DataFrame, task: str) -> report.Trust:
    """How far probabilities can be believed, as they are and at each fold's temperature; and the operating points."""
    told, tempered = [], []
    temperature = results.set_index(["seed", "fold"]).temperature
    for seed, of_seed in zip(sorted(results.seed.unique()), predictions, strict=True):
        probabilities, labels = (np.stack(of_seed[column].to_numpy()) for column in ("probabilities", "label"))
        scaled = np.empty_like(probabilities)
        for fold in of_seed.fold.unique():
            rows = (of_seed.fold == fold).to_numpy()
            scaled[rows] = calibration.apply_temperature(probabilities[rows], temperature[seed, fold], task)
        told.append(calibration.claims(probabilities, labels, task))
        tempered.append(calibration.claims(scaled, labels, task))
    points = pd.DataFrame([point for fold in results.operating_points for point in fold])
    return report.Trust(told, tempered, points)


def score_subgroups(predictions: pd.DataFrame, answers: comparison.Answers, metric: str) -> pd.DataFrame:
    """One row for each value of each subgroup column: test notes, accuracy, metric, of all folds, mean over seeds.

    `predictions` are those of one seed, their rows the notes of `answers`. `least` is how many notes the rarer of two
    classes has, which F1 hangs on; of a task with more classes all notes.
    """
    tables = []
    # of a column that some folds lack nothing can be said
    for column in [name for name in predictions.dropna(axis=1) if name.startswith("subgroup:")]:
        place, values = pd.factorize(predictions[column], sort=True)
        counts = answers.count(place)
        accuracy, f1 = (answers.score(counts, name).mean(axis=0) for name in ("accuracy", metric))
        notes = np.bincount(place) // answers.repeats
        least = notes
        if answers.num_classes == 2 and not answers.is_multi_label:
            positive = np.bincount(place, answers.labels) // answers.repeats
            least = np.minimum(positive, notes - positive)
        table = {"value": values, "notes": notes, "least": least, "accuracy": accuracy, "f1": f1}
        tables.append(pd.DataFrame(table).assign(column=column.removeprefix("subgroup:")))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def compare_estimates(estimates: list[dict], results: pd.DataFrame) -> pd.DataFrame:
    """One row a finished run that was estimated: training hours expected beforehand and measured.

    An estimate of other notes, splits or numbers of seeds (or of before they were written down) is none of the run.

    Early stopping makes a run shorter than the estimate, which counts every epoch: `expected_for_epochs` is what the
    estimate gives for the epochs that were run, and `off` by which share the measured hours differ from that.
    """
    rows = []
    for estimate in estimates:
        beneath = results[[is_beneath(path, estimate["path"].parent) for path in results.path]]
        for run_id, folds in beneath.groupby("run_id", sort=False):
            expected = estimate["runs"].get(run_id, {})
            estimated_for = expected.get("fingerprint"), expected.get("folds")
            if estimated_for != (folds.fingerprint.iloc[0], len(folds)):
                continue
            measured, at_most = folds.training_hours.sum(), expected["training_hours"]
            for_epochs = at_most
            if expected["epochs"] is not None:
                for_epochs = expected["training_hours_an_epoch"] * folds.epochs.astype(float).sum()
                for_epochs += expected["fitting_hours_a_fold"] * len(folds)
            off = measured / for_epochs - 1 if for_epochs else None
            rows.append([run_id, at_most, for_epochs, measured, off])
    return pd.DataFrame(rows, columns=["run_id", "at_most", "expected_for_epochs", "measured", "off"])


def aggregate(results: pd.DataFrame, failures: pd.DataFrame, missing: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: mean, sample standard deviation and count of every score over folds and seeds, and the cost.

    Training hours are the sum over folds and seeds. Feature hours are the largest of any fold: the forward pass over
    the notes is made once and shared by every fold, so that adding them up would count it several times. So are the
    hours of a pretraining that several folds, seeds or cells share.
    """
    groups = results.groupby(CELL)
    cells = groups.agg(
        task=("task", "first"),
        fingerprint=("fingerprint", "first"),
        kind=("kind", "first"),
        stand_in_for=("stand_in_for", "first"),
        transductive=("transductive", "first"),
        folds_finished=("fold", "size"),
        folds_expected=("num_folds", "first"),
        seeds=("seed", "nunique"),
        collapsed_folds=("collapsed", "sum"),
        # the largest of any fold: the baseline's vocabulary, and so its size, varies
        trainable_parameters=("trainable_parameters", "max"),
        total_parameters=("total_parameters", "max"),
        training_hours=("training_hours", "sum"),
        feature_hours=("feature_hours", "max"),
        evaluation_seconds=("evaluation_seconds", "sum"),
        evaluated_notes=("test_notes", "sum"),
        cut_test_notes=("cut_test_notes", "sum"),
        train_notes=("train_notes", "mean"),
        corpus_notes=("corpus_notes", "first"),
        peak_memory_mb=("peak_memory_mb", "max"),
        one_core_notes_per_second=("one_core_notes_per_second", "mean"),
        model_megabytes=("model_megabytes", "mean"),
        power_watts=("power_watts", "mean"),
        co2_g_per_kwh=("co2_g_per_kwh", "mean"),
        power_is_measured=("power_is_measured", "all"),
    )
    # seeds may have been planned in one command or in several
    planned = groups.planned_seeds.agg(lambda sets: len(set.union(*sets)))
    cells["folds_expected"] *= groups.num_seeds.max().clip(lower=planned)
    once = results.dropna(subset="pretraining").drop_duplicates([*CELL, "pretraining"])
    cells["pretraining_hours"] = once.groupby(CELL).pretraining_hours.sum()
    shared = once.assign(hours=once.pretraining_hours / once.groupby("pretraining").pretraining.transform("size"))
    cells["shared_pretraining_hours"] = shared.groupby(CELL).hours.sum()
    cells = cells.fillna({"pretraining_hours": 0.0, "shared_pretraining_hours": 0.0})
    cells["standalone_hours"] = cells.training_hours + cells.feature_hours + cells.pretraining_hours
    numbers = results.astype(dict.fromkeys(SCORES, float))
    scores = numbers.groupby(CELL)[SCORES].agg(["mean", "std", "count"])
    scores.columns = [f"{score}_{'sd' if what == 'std' else what}" for score, what in scores.columns]
    cells = cells.join(scores)
    for over in ("fold", "seed"):  # what the one moves, the other averaged out
        means = numbers.groupby([*CELL, over])[SCORES].mean()
        cells = cells.join(means.groupby(CELL).std().add_suffix(f"_sd_{over}s"))

    for column, runs in (("failed", failures), ("missing", missing)):
        cells = cells.join(runs.groupby(CELL)[column].agg("; ".join), how="outer")
    cells = cells.reset_index().fillna({"failed": "", "missing": "", "stand_in_for": "-", "transductive": False})
    counts = ["folds_finished", "folds_expected", "seeds", "collapsed_folds"]
    cells[counts] = cells[counts].fillna(0).astype(int)
    cells["status"] = "complete"
    cells.loc[cells.folds_finished < cells.folds_expected, "status"] = "incomplete"
    cells.loc[cells.folds_finished == 0, "status"] = "missing"
    cells.loc[(cells.folds_finished == 0) & (cells.failed != ""), "status"] = "failed"
    return cells


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: the report is not complete; the same command writes it anew", file=sys.stderr)
        sys.exit(130)
