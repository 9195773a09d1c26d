"""How long a grid will take, before it runs: a short probe of each kind of run, scaled to all notes, folds and epochs.

    bash run_all.sh --dataset notes.csv --group_column patient --dry-run
    # of a grid that has begun
    python estimate.py --jobs 2 --dataset notes.csv --group_column patient --keep_model False < runs/plan.tsv

The probe is the real thing on a few notes, spread evenly over labels and lengths: the same model, Trainer, batches
and precision, with the seconds of training, of evaluation and of writing a checkpoint counted apart, because they grow
with different things. Runs of like arithmetic share a probe. Every epoch is counted, so an estimate is an upper bound
where early stopping ends a run sooner. It is left in estimate.json; `evaluate.py` reports how far off it was.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import copy
import gc
import heapq
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from tabulate import tabulate
from tqdm import tqdm
from transformers import IntervalStrategy, TrainerCallback

from backbones import BackboneError, find_backbone, load_config_and_tokenizer
from data import DataArguments, DataError, Notes, load_notes
from hub import HubError
from machine import available_cores, memory_ran_out
from memory import MemoryBudgetError
from models import TUNINGS, prepare_encoder
from pretrain import REPORT_FILE, ArgumentError, PretrainArguments, count_held_out
from results import SCHEMA_VERSION, write_json
from splits import Split, draw_splits, draw_training_parts, fingerprint
from train import check_selection, parse_arguments, tell_unforeseen
from trainer import Run, epochs_to_train, train_baseline, train_network

PLAN = ("run_id", "model", "head", "tuning", "train_size")  # the columns of the plan of run_all.sh
PROBE_STEPS = 8  # of the optimiser in an epoch of the probe
PROBE_SECONDS = 15  # after which no further epoch begins; the last epoch is counted
PROBE_EPOCHS = (2, 10)  # at least and at most: the first ones warm up (batches of each shape are new once)
PROBE_TOKENS = 40_000  # that a model is pretrained on
PROBE_NOTES = 64  # that the probe evaluates on
BASELINE_NOTES = 1000  # that the baseline is fitted to


@dataclass
class Speed:
    """What a probe measured, in seconds."""

    training: float = 0.0  # a training note, once
    evaluation: float = 0.0  # a note
    saving: float = 0.0  # an epoch's checkpoint
    setting_up: float = 0.0  # a fold: the model, the tokenizer
    fitting: float = 0.0  # a training note, of an n-gram branch
    features: float = 0.0  # a note, in the encoder's one pass over the corpus
    pretraining: float = 0.0  # a token, of a model pretrained in-house
    pretraining_evaluation: float = 0.0  # a held-out document, in all evaluations: as many, however long it trains

    unlabeled: int = 0  # no seconds: documents of further text, which the probe has counted

    def epoch(self, split: Split, every: int = 1) -> float:
        """Of a training that looks at validation, and saves, after every so many epochs."""
        return self.training * len(split.train) + (self.evaluation * len(split.validation) + self.saving) / every


class PhaseClock(TrainerCallback):
    """Seconds that the last epoch trained, evaluated and saved, and that all epochs took; ends the probe."""

    training = evaluation = saving = whole = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        return seconds

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.training = self.lap()
        if state.epoch > PROBE_EPOCHS[0] - 0.5 and self.mark - self.started > PROBE_SECONDS:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.whole = time.perf_counter() - self.started

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluation = self.lap()

    def on_save(self, args, state, control, **kwargs):
        self.saving = self.lap()


def spread_evenly(notes: Notes, count: int) -> np.ndarray:
    """`count` notes (with repeats if there are fewer) with about the corpus's shares of labels and lengths."""
    label = notes.labels if notes.labels.ndim == 1 else notes.labels.argmax(axis=1)
    order = np.lexsort([[len(text) for text in notes.texts], label])
    return order[np.linspace(0, len(order) - 1, count).round().astype(int)]


def with_every_class(notes: Notes, rows: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows` of the corpus, of which those at the places `training` are trained on, and a note more of each class that
    these lack: as a training part has every class, or a regression could not be fitted."""
    if notes.labels.ndim == 1:
        of_class = np.eye(len(notes.class_names), dtype=bool)[notes.labels]
    else:  # each class is one to tell from the rest
        of_class = np.hstack([notes.labels == 1, notes.labels == 0])
    for notes_of_it in map(np.flatnonzero, of_class.T):
        if len(notes_of_it) and not np.isin(notes_of_it, rows[training]).any():
            training = np.append(training, len(rows))
            rows = np.append(rows, notes_of_it[0])
    return rows, training


def probe(run: Run, folder: Path) -> Speed:
    """Train on a few of the run's notes, as the run would; what that leaves goes to `folder`."""
    model_args, arguments = copy.copy(run.model_args), copy.copy(run.training_args)
    is_baseline = model_args.kind == "baseline"
    count = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * PROBE_STEPS
    count = BASELINE_NOTES if is_baseline else count
    # at most a third of the notes, though they be few: what is trained on may not be among them
    looked_at = spread_evenly(run.notes, min(PROBE_NOTES, max(len(run.notes) // 3, 1)))
    others = np.setdiff1d(np.arange(len(run.notes)), looked_at)
    rows = np.concatenate([others[spread_evenly(run.notes.select(others), count)], np.resize(looked_at, PROBE_NOTES)])
    training, held_out = np.arange(count), np.arange(count, len(rows))
    rows, training = with_every_class(run.notes, rows, training)
    split = Split(training, held_out, np.array([], dtype=int))
    arguments.output_dir, arguments.num_train_epochs, arguments.max_steps = str(folder), PROBE_EPOCHS[1], -1
    # in epochs, as the clock counts; how often a run with steps looks at validation, the probe's few steps do not tell
    for name in ("eval_strategy", "save_strategy"):
        if getattr(arguments, name) == IntervalStrategy.STEPS:
            setattr(arguments, name, IntervalStrategy.EPOCH)
    arguments.eval_on_start, arguments.eval_delay = False, 0
    model_args.cache_dir, model_args.early_stopping_patience = str(folder / "features"), 0
    model_args.pretraining_tokens, model_args.min_steps, model_args.ensemble = PROBE_TOKENS, 0, 1
    notes = run.notes.select(rows)
    run = replace(
        run, model_args=model_args, training_args=arguments, notes=notes, held_out_anywhere=held_out, pretrained={}
    )
    if is_baseline:
        return Speed(training=train_baseline(run, split).cost["training_hours"] * 3600 / len(training))

    speed = Speed()
    if model_args.kind == "frozen":
        threads = torch.get_num_threads()
        torch.set_num_threads(available_cores())  # run_all.sh computes the hidden states with all of them
        speed.features = run.features.hours * 3600 / len(rows)
        torch.set_num_threads(threads)
    clock = PhaseClock()
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        started = time.perf_counter()
        trained = train_network(run, split, 0, Path(checkpoints), callbacks=[clock])
        pretraining = trained.cost["pretraining_hours"] * 3600 if model_args.kind == "in-house" else 0.0
        speed.setting_up = time.perf_counter() - started - trained.cost["training_hours"] * 3600 - pretraining
        if model_args.kind == "in-house":
            report = json.loads((run.pretrain(split) / REPORT_FILE).read_text(encoding="utf-8"))
            speed.pretraining_evaluation = report["cost"]["evaluation_hours"] * 3600 / report["held_out_documents"]
            speed.unlabeled = len(run.unlabeled)
            tokens_a_step = report["training"]["per_device_train_batch_size"] * report["arguments"]["max_length"]
            speed.pretraining = report["cost"]["seconds_a_step"] / tokens_a_step
    speed.training, speed.evaluation = clock.training / len(training), clock.evaluation / PROBE_NOTES
    speed.saving = clock.saving
    if model_args.ngram_branch:
        speed.fitting = (trained.cost["training_hours"] * 3600 - clock.whole) / len(training)
    return speed


def kind_of_probe(run: Run) -> tuple:
    """Runs with the same one take about the same time: where the encoder is trained, its head hardly counts."""
    model_args = run.model_args
    if model_args.kind not in TUNINGS:
        return (model_args.model,)
    config, _ = load_config_and_tokenizer(find_backbone(model_args.model, model_args.model_revision))
    sizes = "model_type hidden_size num_hidden_layers intermediate_size vocab_size num_experts".split()
    shape = tuple(getattr(config, name, None) for name in sizes)
    return (model_args.kind, shape, model_args.head if model_args.kind == "frozen" else None)


def estimate(run: Run, splits: list[Split], speed: Speed, start_up: float) -> dict:
    """Hours of one run over all its folds and seeds, as it goes into estimate.json."""
    arguments, folds = run.training_args, len(splits) * len(run.model_args.seeds)
    if run.model_args.kind == "baseline":
        epochs, fitting, an_epoch = None, 0.0, sum(speed.training * len(split.train) for split in splits)
        training = an_epoch * len(run.model_args.seeds)
    else:
        notes = int(np.mean([len(split.train) for split in splits]))
        epochs = epochs_to_train(run.model_args, arguments, notes)
        every = max(1, round(epochs / arguments.num_train_epochs))  # with --min_steps
        if arguments.max_steps > 0:
            batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
            epochs = arguments.max_steps * batch / np.mean([len(split.train) for split in splits])
        epochs *= run.model_args.ensemble
        an_epoch = sum(speed.epoch(split, every) for split in splits)
        fitting = sum(speed.fitting * len(split.train) for split in splits)
        training = (epochs * an_epoch + fitting) * len(run.model_args.seeds)
    predicted = sum(len(split.validation) + len(split.test) for split in splits) * len(run.model_args.seeds)
    # seeds share it, and folds where the same notes are held out, or it sees the unlabeled text alone, or all notes
    each = run.model_args.pretrain_on == "training-notes" and not run.model_args.transductive
    times = len({np.union1d(split.validation, split.test).tobytes() for split in splits}) if each else 1
    seconds = 0.0
    if run.model_args.keep_model and len(splits) > 1 and run.model_args.kind != "baseline":
        # the model for use, of all notes; a baseline's is one fit of the many that the folds choose from
        times += each
        seconds = (speed.training * epochs + speed.fitting) * len(run.notes) + speed.setting_up
    # at most: held-out notes are not in it, nor is all further text
    documents = speed.unlabeled + (len(run.notes) if run.model_args.pretrain_on == "training-notes" else 0)
    looking = speed.pretraining_evaluation * count_held_out(documents, PretrainArguments.held_out_fraction)
    pretraining = (speed.pretraining * run.model_args.pretraining_tokens + looking) * times
    seconds += training + pretraining + speed.evaluation * predicted + speed.setting_up * folds + start_up
    return {
        "hours": seconds / 3600,
        "training_hours": training / 3600,
        "training_hours_an_epoch": an_epoch / len(splits) / 3600,
        "fitting_hours_a_fold": fitting / len(splits) / 3600,
        "feature_hours": speed.features * len(run.notes) / 3600,
        "pretraining_hours": pretraining / 3600,
        "epochs": epochs,
        "folds": folds,  # of all seeds
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--estimate", type=Path, default=Path("runs/estimate.json"), help="where the estimate goes")
    args, of_train = parser.parse_known_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what is derived from the notes is cleared away
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if args.jobs < 1:
        return complain(f"--jobs {args.jobs}: give 1 or more")
    if "OMP_NUM_THREADS" not in os.environ:  # as run_all.sh gives each run
        torch.set_num_threads(max(1, available_cores() // args.jobs))
    try:
        plan = [dict(zip(PLAN, line.rstrip("\n").split("\t"), strict=True)) for line in sys.stdin]
    except ValueError:
        return complain("standard input is no plan of run_all.sh: five fields a line, with tabs between them")
    try:
        parsed = [parse_arguments(arguments_of(line) + of_train) for line in plan]
    except (ValueError, OSError, ImportError, HubError) as error:  # as in train.py
        return complain(error)
    try:
        args.estimate.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.estimate.parent).close()  # known before minutes of probing
    except OSError as error:
        return complain(f"{args.estimate.parent}: cannot be made or written ({error.strerror}); choose another")
    try:
        estimates, problems = estimate_all(plan, parsed)
    except (ArgumentError, DataError) as error:
        return complain(error)
    except KeyboardInterrupt:
        print("interrupted: no estimate was written", file=sys.stderr)
        return 130
    except Exception as error:
        return complain(tell_unforeseen(error, parsed[0][2].log_level))

    rows = []
    for line in plan:
        known = estimates.get(line["run_id"])
        rows.append([*line.values(), f"{known['hours']:.2g}" if known else "-"])
        if problems:
            rows[-1].append(problems.get(line["run_id"], ""))
    headers = [*PLAN, "hours, at most", *(["why not"] if problems else [])]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    wall, passes, share_a_gpu = reckon_wall_hours(plan, parsed, estimates, args.jobs)
    if passes:
        print(f"and {passes:.2g} h for the hidden states of frozen encoders, which heads and folds share")
    left_out = f"; {len(problems)} runs without an estimate left out" if problems else ""
    sharing = " (as if a GPU did one after the other, and it takes less)" if share_a_gpu else ""
    print(f"in all at most {wall:.2g} h, {args.jobs} at a time{sharing}; early stopping ends some sooner{left_out}")
    content = {"schema_version": SCHEMA_VERSION, "status": "estimated", "wall_hours": wall, "runs": estimates}
    write_json(args.estimate, content)
    return 0


def reckon_wall_hours(
    plan: list[dict], parsed: list[tuple], estimates: dict[str, dict], jobs: int
) -> tuple[float, float, bool]:
    """Hours that the grid takes with so many runs at a time, those of encoders' passes among them, and whether runs
    share a GPU.

    An encoder has one pass for all its heads, and a model one pretraining for all sizes of the training part, for
    which those that begin beside the first may have to wait until that one is done. The runs begin in the order of the
    plan, each when there is a place. A probe had its share of the cores, but the whole of a GPU, which runs side by
    side divide: their hours are added up.
    """
    places, on_gpus, passes, pretrained, ready, share_a_gpu = [0.0] * jobs, 0.0, {}, {}, {}, False
    for line, (model_args, _, training_args) in zip(plan, parsed, strict=True):
        known, model = estimates.get(line["run_id"]), line["model"]
        if known is None:
            continue
        on_gpu = model_args.kind != "baseline" and training_args.device.type != "cpu"
        share_a_gpu |= on_gpu and jobs > 1
        paid = pretrained.get(model, 0.0)
        pretrained[model] = max(paid, known["pretraining_hours"])
        shared = min(paid, known["pretraining_hours"])
        hours = known["hours"] - shared
        if on_gpu:
            on_gpus += hours
        else:
            begin = places[0]  # the place that is free first
            hours += min(shared, max(0.0, ready.get(model, 0.0) - begin))  # it waits for what is not there yet
            ready.setdefault(model, begin + hours)
            heapq.heapreplace(places, begin + hours)
        passes[model] = max(known["feature_hours"], passes.get(model, 0.0))
    of_passes = sum(passes.values())
    return max(places) + on_gpus + of_passes, of_passes, share_a_gpu


def complain(problem: object) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 1


def arguments_of(line: dict[str, str]) -> list[str]:
    """What run_all.sh gives to train.py for a line of its plan."""
    head = [] if line["head"] == "-" else ["--head", line["head"], "--tuning", line["tuning"]]
    size = [] if line["train_size"] == "-" else ["--train_size", line["train_size"]]
    return ["--model", line["model"], *head, *size]


def estimate_all(plan: list[dict], parsed: list[tuple]) -> tuple[dict[str, dict], dict[str, str]]:
    """For each run of the plan, by its id: the estimate, or why there is none. `parsed` is its arguments of train.py.

    Raises:
        DataError, ArgumentError: what train.py would say of the notes, or of arguments that do not suit them.
    """
    start_up = min(timed_import() for _ in range(2))
    corpus, speeds, estimates, problems = None, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        probing = tqdm(zip(plan, parsed, strict=True), "probing", len(plan), leave=False, disable=None)
        for line, (model_args, data_args, training_args) in probing:
            corpus = corpus or load_corpus(data_args)
            notes, splits = corpus
            check_selection(training_args.metric_for_best_model, notes)
            run = Run(model_args, data_args, training_args, notes)
            try:
                if model_args.kind in TUNINGS:
                    prepare_encoder(model_args, data_args)
                splits = draw_training_parts(notes, splits, data_args)
                kind = kind_of_probe(run)
                if kind not in speeds:
                    speeds[kind] = probe(run, Path(folder))
            except (BackboneError, DataError, MemoryBudgetError) as error:
                problems[line["run_id"]] = str(error)
                continue
            except (MemoryError, RuntimeError) as error:
                if not memory_ran_out(error):
                    raise
                remedy = "; --memory_gb says how much to use" if model_args.kind in ("scratch", "lora", "full") else ""
                problems[line["run_id"]] = f"there is too little memory free{remedy}"
                continue
            finally:  # trainers are cycles, and would stay beside the next ones
                gc.collect()
                torch.cuda.empty_cache()
            known = estimate(run, splits, speeds[kind], start_up)
            estimates[line["run_id"]] = known | {"fingerprint": fingerprint(*corpus)}
    return estimates, problems


def load_corpus(data_args: DataArguments) -> tuple[Notes, list[Split]]:
    notes = load_notes(data_args)
    return notes, draw_splits(notes, data_args)


def timed_import() -> float:
    """Seconds that a process of train.py takes before it reads a note."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train"], cwd=Path(__file__).parent, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
