"""Train one model on all its folds and write one result file a fold.

    python train.py --dataset notes.csv --group_column patient --model drbert --head grn   # or accelerate launch

`train` reads like the methods section: arguments, notes, splits; for each seed and fold a model built after seeding,
trained, selected on validation, its threshold tuned there, and the test part read once; then the model kept for use.
A fold whose result.json exists is finished and is not done again; an interrupted one resumes from its last checkpoint.
"""

import os

# Before the libraries read it: tokenising is parallel until a data loader forks, then it would only warn.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import hashlib
import json
import logging
import re
import shutil
import statistics
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, fields
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from transformers import TrainingArguments

import hub
from backbones import BackboneError
from baseline import Settings
from calibration import fit_temperature, operating_points
from data import DataArguments, DataError, NoNotesError, Notes, load_notes
from energy import known_countries
from locks import FolderError, only_run_in
from machine import (
    bfloat16_is_fast,
    describe_machine,
    keep_to_available_cores,
    memory_ran_out,
    what_ran_out,
)
from memory import MemoryBudgetError
from metrics import SELECTION_METRIC, NoteClassificationMetric, decide, selectable_scores, tune_thresholds
from models import TUNINGS, ModelArguments, prepare_encoder
from muon import GOES_WITH
from pretrain import (
    DECISIVE,
    SHARE,
    ArgumentError,
    ArgumentParser,
    check_ranges,
    check_training,
    is_to_use_cpu,
    refuse_several_gpus,
)
from results import (
    FAILURE_FILE,
    MODEL_FACTS,
    RESULT_FILE,
    SCHEMA_VERSION,
    describe_environment,
    discard_foreign_checkpoints,
    peak_memory_mb,
    read_finished,
    write_json,
    write_result,
)
from scratch_model import ScratchConfig
from splits import Split, draw_splits, draw_training_parts, fingerprint, joined_groups, report_repeated_texts
from trainer import Run, Trained, epochs_to_train, steps_an_epoch, train_baseline, train_network

logger = logging.getLogger("train")

# What differs from the defaults of TrainingArguments, for each kind of model; the command line wins. All ours: of
# these the paper's public text only says that batches had at most 8 notes, for want of memory (2 GB).
RECIPES = {
    "frozen": dict(learning_rate=3e-3, num_train_epochs=10, per_device_train_batch_size=32, warmup_steps=0.1),
    "lora": dict(learning_rate=5e-4, num_train_epochs=10, per_device_train_batch_size=16, warmup_steps=0.1),
    "full": dict(learning_rate=3e-5, num_train_epochs=10, per_device_train_batch_size=8, warmup_steps=0.1),
    "scratch": dict(learning_rate=1e-3, num_train_epochs=20, per_device_train_batch_size=32, warmup_steps=0.1),
    "in-house": dict(learning_rate=1e-4, num_train_epochs=4, per_device_train_batch_size=16, warmup_steps=0.1),
    "baseline": dict(),
}
# Likewise of the other arguments, for models pretrained in-house; docs/few-labels.md says what they gain.
OF_IN_HOUSE = dict(dropout=0.2, ngram_branch=True, min_steps=1200, long_notes="windows")
OF_IN_HOUSE |= dict(muon_learning_rate=4e-4)
COMMON_RECIPE = dict(
    weight_decay=0.01,
    per_device_eval_batch_size=64,
    eval_strategy="epoch",
    save_strategy="epoch",
    logging_strategy="epoch",
    load_best_model_at_end=True,
    save_total_limit=2,  # the best and the last: by that a run which was killed after its end knows that it ended
    restore_callback_states_from_checkpoint=True,  # else a resumed run would forget its early-stopping count
    train_sampling_strategy="group_by_length",
    remove_unused_columns=False,
    label_names=["labels"],
    ddp_find_unused_parameters=False,
    dataloader_pin_memory=torch.cuda.is_available(),
    logging_nan_inf_filter=False,  # it waits for the GPU in every step, and hides that a loss is none
    disable_tqdm=True,  # one line an epoch instead, which also reads well in a log file
    seed=0,
)
UNSAID = {field.name: field.default for field in fields(TrainingArguments)}  # of a result that lacks one of these
UNSAID |= {"word_dropout": 0.0}  # which has been removed since, as in evaluate.py
# The arguments of the model that cannot.
NOT_DECISIVE = "seeds keep_model overwrite cache_dir features_only country_iso_code".split()
OF_TOKENS = ("max_length", "long_notes", "window_stride")
OF_PRETRAINING = ("unlabeled", "pretrain_on", "pretraining_tokens", "transductive")  # of models pretrained in-house
RANGES = [  # of arguments of the model, beside those of pretrain.py
    ("lora_r", lambda number: number >= 1, "1 or more"),
    (
        "head_size early_stopping_patience min_steps muon_learning_rate dataloader_num_workers",
        lambda number: number >= 0,
        "0 or more",
    ),
    ("pretraining_tokens memory_gb", lambda number: number > 0, "more than 0"),
    ("dropout", lambda share: 0 <= share < 1, SHARE),
]

SPEED_NOTES, SPEED_SECONDS = 64, 5.0  # what a model's speed in use is measured on, at most (ours)
NOT_MEASURED = {"one_core_notes_per_second": None, "model_megabytes": None}


class FoldError(Exception):
    """A run that had begun and failed for a reason that the user can mend; the message is one line."""


@contextmanager
def failures_of_folds():
    """Has what went wrong in training count as a run that failed, not as a command that was refused."""
    try:
        yield
    except (ArgumentError, DataError, BackboneError) as error:
        raise FoldError(str(error)) from error


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The command line over the recipe of its kind of model over the defaults of the libraries."""
    parser = ArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),
        description=__doc__.splitlines()[0],
        allow_abbrev=False,  # run_all.sh would take --fold for another argument than --folds
        epilog=f"Other defaults than shown, for every model: {COMMON_RECIPE}, output_dir runs/..., use_cpu and bf16 "
        f"as the machine is, metric_for_best_model {SELECTION_METRIC}; by kind of model: {RECIPES}; for models "
        f"pretrained in-house also: {OF_IN_HOUSE}",
    )
    first_look, _ = parser.parse_known_args(argv)  # the recipe depends on --model and --tuning
    chosen = ModelArguments(model=first_look.model, head=first_look.head, tuning=first_look.tuning)
    use_cpu = first_look.use_cpu or is_to_use_cpu()
    parser.set_defaults(
        **COMMON_RECIPE,
        **RECIPES[chosen.kind],
        use_cpu=use_cpu,  # unsaid, TrainingArguments take bf16 for a GPU's
        **(OF_IN_HOUSE if chosen.kind == "in-house" else {}),
        bf16=chosen.kind != "baseline" and not first_look.fp16 and bfloat16_is_fast(use_cpu),
        output_dir=f"runs/{chosen.run_id}" + (f"-n{first_look.train_size}" if first_look.train_size else ""),
    )
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(argv)
    # TrainingArguments fill in "loss" where nothing was asked for; ours depends on the task, which the notes tell.
    training_args.metric_for_best_model = first_look.metric_for_best_model
    if model_args.seeds is None:
        model_args.seeds = [training_args.seed]
    check_numbers(model_args, training_args)
    check_training(training_args, model_args.seeds)
    if chosen.kind != "baseline":  # which uses none
        refuse_several_gpus(training_args)
    if len(set(model_args.seeds)) < len(model_args.seeds):
        raise ArgumentError(f"--seeds {' '.join(map(str, model_args.seeds))}: give each seed once.")
    if training_args.push_to_hub and chosen.kind == "baseline":
        raise ArgumentError(
            f"--push_to_hub: the vocabulary of {model_args.model} spells out words of the notes; it is not pushed."
        )
    for option in ("head", "tuning") if chosen.kind not in TUNINGS else ():
        if (given := getattr(chosen, option)) != parser.get_default(option):
            raise ArgumentError(f"--{option} {given}: {chosen.run_id} is no pretrained encoder; leave it out.")
    if chosen.kind == "in-house":
        check_pretraining(model_args)
    if model_args.ngram_branch and chosen.kind not in ("scratch", "in-house"):
        raise ArgumentError(f"--ngram_branch: {chosen.run_id} is no small Transformer.")
    check_muon(model_args, training_args)
    if model_args.ensemble < 1 or (model_args.ensemble > 1 and chosen.kind not in ("in-house", "full")):
        raise ArgumentError(
            f"--ensemble {model_args.ensemble} with {chosen.run_id}: give 1, or more with a model that begins "
            "pretrained and is trained as a whole (--tuning full, or one pretrained in-house)."
        )
    if model_args.country_iso_code is not None and model_args.country_iso_code not in known_countries():
        raise ArgumentError(
            f"--country_iso_code {model_args.country_iso_code}: not known; give three letters, as FRA, or leave it "
            "out for the world's average."
        )
    if model_args.features_only and chosen.kind != "frozen":
        raise ArgumentError(f"--features_only: {chosen.run_id} has no frozen encoder.")
    if data_args.train_size is not None and model_args.keep_model:
        raise ArgumentError("--train_size: a model for use has all notes; add --keep_model False.")
    if training_args.push_to_hub and not model_args.keep_model:
        raise ArgumentError("--push_to_hub with --keep_model False: there would be no model to push.")
    if training_args.push_to_hub:
        hub.check_name(repository_of(training_args))
    return model_args, data_args, training_args


def repository_of(training_args: TrainingArguments) -> str:
    """What the Hub, which takes no two hyphens in a row, is to call the model."""
    return training_args.hub_model_id or re.sub("-+", "-", own_name(training_args.output_dir))


def own_name(path: Path | str) -> str:
    """The last part of a path however it is written, as "." for the folder where one is; of a link its own."""
    return Path(os.path.abspath(path)).name


def check_numbers(model_args: ModelArguments, training_args: TrainingArguments):
    """What would end in a traceback, or mean nothing, for this kind of model."""
    check_ranges(vars(training_args) | vars(model_args), RANGES)
    if (name := training_args.lr_scheduler_type.value) in ("reduce_lr_on_plateau", "greedy"):
        raise ArgumentError(
            f"--lr_scheduler_type {name}: waits for a lower score, where a higher one is better; give another, as "
            "cosine."
        )
    if training_args.remove_unused_columns or training_args.label_names != COMMON_RECIPE["label_names"]:
        raise ArgumentError("--remove_unused_columns, --label_names: name nothing of your notes; leave them out.")
    if training_args.include_for_metrics:
        raise ArgumentError("--include_for_metrics: scores are of labels and predictions alone; leave it out.")
    sampling = training_args.train_sampling_strategy
    if sampling == "batch_rebalance" or (sampling == "random" and training_args.world_size > 1):
        raise ArgumentError(
            f"--train_sampling_strategy {sampling}: not with notes in an order of their seed's, batches of one "
            "size and, of several processes, a run that goes on after a kill; give group_by_length."
        )
    if training_args.neftune_noise_alpha is not None and model_args.kind == "frozen":
        raise ArgumentError(
            f"--neftune_noise_alpha: {model_args.run_id} trains no embeddings; give --tuning lora or full."
        )
    if training_args.gradient_checkpointing and model_args.kind not in ("lora", "full"):
        raise ArgumentError(
            f"--gradient_checkpointing: {model_args.run_id} has none; --memory_gb makes batches smaller."
        )


def check_muon(model_args: ModelArguments, training_args: TrainingArguments):
    """Whether Muon can train what it is asked to."""
    rate = model_args.muon_learning_rate
    if rate and model_args.kind not in ("scratch", "in-house"):
        raise ArgumentError(f"--muon_learning_rate: {model_args.run_id} is no small Transformer.")
    if rate and training_args.optim not in GOES_WITH:
        raise ArgumentError(
            f"--optim {training_args.optim.value}: Muon leaves embeddings and biases to {' or '.join(GOES_WITH)}; "
            "give one of these, or --muon_learning_rate 0."
        )


def check_pretraining(model_args: ModelArguments):
    """What the arguments of a model pretrained in-house need of each other."""
    if model_args.pretrain_on == "unlabeled" and not model_args.unlabeled:
        raise ArgumentError("--pretrain_on unlabeled: give the text with --unlabeled.")


def check_selection(name: str | None, notes: Notes):
    """Whether an epoch can be selected by what `--metric_for_best_model` names."""
    if name is None:
        return
    possible = [*selectable_scores(notes.task, notes.class_names), "loss"]
    if name.removeprefix("eval_") not in possible:
        raise ArgumentError(
            f"--metric_for_best_model {name}: not a score of a {notes.task} task; choose from {', '.join(possible)}."
        )


# ---- one fold ------------------------------------------------------------------------------------------------------


def resume_only_ones_own(run: Run, split: Split, folder: Path, settings: dict):
    """Discard the checkpoints in `folder` unless these settings, notes and pretrained model made them.

    Those that began with another model have other numbers for their tokens.
    """
    pretrained = run.pretrain(split)
    settings = settings | {"fingerprint": run.fingerprint, "pretrained": pretrained and pretrained.name}
    with run.training_args.main_process_first(local=False):
        if run.training_args.process_index == 0:
            discard_foreign_checkpoints(folder, settings)


def run_fold(
    run: Run, split: Split, seed: int, folder: Path, settings: dict, is_last: bool
) -> tuple[Trained, pd.DataFrame, dict]:
    """Train on one fold, tune its threshold on validation, read its test part once.

    Returns the trained model, its predictions on the test part, and the result but for its `run` section; the result
    of the last fold and seed also has what the model costs in use.
    """
    notes, training_args = run.notes, run.training_args
    checkpoints = folder / "checkpoints"
    if run.model_args.kind == "baseline":
        trained = train_baseline(run, split)
    else:
        resume_only_ones_own(run, split, checkpoints, settings)
        trained = train_network(run, split, seed, checkpoints)
    metric = NoteClassificationMetric(notes.task, notes.class_names)

    validation_probabilities = trained.predict(split.validation)
    thresholds = tune_thresholds(validation_probabilities, notes.labels[split.validation], notes.task)
    temperature = fit_temperature(validation_probabilities, notes.labels[split.validation], notes.task)
    started = time.perf_counter()
    test_probabilities = trained.predict(split.test)
    seconds = time.perf_counter() - started
    points = []
    if notes.task == "binary":
        validation = validation_probabilities, notes.labels[split.validation]
        points = operating_points(validation, (test_probabilities, notes.labels[split.test]))
    scores = {
        part: metric.compute(predictions=probabilities, references=notes.labels[rows], thresholds=thresholds)
        for part, probabilities, rows in (
            ("validation", validation_probabilities, split.validation),
            ("metrics", test_probabilities, split.test),
        )
    }
    on_gpu = run.model_args.kind != "baseline" and training_args.device.type == "cuda"
    result = {
        "arguments": settings,
        "data": {
            "task": notes.task,
            "class_names": notes.class_names,
            "splits": {
                part: {
                    "notes": len(rows),
                    "groups": None if notes.groups is None else len(set(notes.groups[rows])),
                    "labels": notes.count_labels(rows),
                    "over_max_length": trained.too_long[part],
                }
                for part, rows in split.parts()
            },
        },
        "model": trained.model | {"thresholds": thresholds, "temperature": temperature},
        **scores,
        "operating_points": points,
        "cost": {
            **trained.cost,
            "evaluation_seconds": seconds,
            "peak_memory_mb": peak_memory_mb(on_gpu),
            # of the last fold alone: a frozen encoder, which no fold needs, is loaded for it and stays in memory
            **(measure_deployment(run, trained, split) if is_last else NOT_MEASURED),
        },
        "environment": describe_environment(on_gpu),
    }
    predictions = pd.DataFrame(
        {
            "id": notes.ids[split.test],
            # which notes are of one patient, or copies of one text: a number, not the patient's id
            "group": pd.factorize(joined_groups(notes))[0][split.test],
            "label": notes.labels[split.test].tolist(),
            "predicted": decide(test_probabilities, notes.task, thresholds).tolist(),
            "probabilities": test_probabilities.tolist(),
            **{f"subgroup:{name}": values[split.test] for name, values in notes.subgroups.items()},
        }
    )
    return trained, predictions, result


def measure_deployment(run: Run, trained: Trained, split: Split) -> dict:
    """Notes a second on one core, one note at a time as a hospital's system would ask, and the size on disk.

    Of test notes evenly spread, as many as SPEED_NOTES and SPEED_SECONDS allow.
    """
    if run.training_args.world_size > 1:
        return NOT_MEASURED
    rows = split.test[np.linspace(0, len(split.test) - 1, min(SPEED_NOTES, len(split.test))).astype(int)]
    first, *others = [run.notes.texts[row] for row in rows]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained.deploy(first)  # which builds and loads things
    started, count = time.perf_counter(), 0
    while count < len(others) and time.perf_counter() - started < SPEED_SECONDS:
        trained.deploy(others[count])
        count += 1
    speed = count / (time.perf_counter() - started) if count else None
    torch.set_num_threads(threads)
    return {"one_core_notes_per_second": speed, "model_megabytes": trained.count_bytes() / 1e6}


# ---- the whole run -------------------------------------------------------------------------------------------------


def resolve_settings(run: Run, seed: int) -> dict:
    """Every argument that can move a number, as it goes into the result file; of `--unlabeled` text a fingerprint."""
    model_args, training_args = run.model_args, run.training_args
    in_house = model_args.kind == "in-house"
    left_out = NOT_DECISIVE if in_house else [*NOT_DECISIVE, *OF_PRETRAINING]
    model = {name: value for name, value in asdict(model_args).items() if name not in left_out}
    if in_house:
        model["unlabeled"] = run.unlabeled.fingerprint()
        model["unlabeled_ids"] = run.unlabeled.identity()  # by which documents are left out
        del model["vocab_size"]  # pretrain.py has its own
    if model_args.kind in TUNINGS:
        model["encoder"] = run.encoder
    data = asdict(run.data_args)
    # files and folders by their names alone, however their path was written: fingerprints tell what is in them
    for arguments, name in ((model, "model"), (data, "dataset")):
        path = Path(os.path.expanduser(arguments[name]))
        if os.path.exists(path):
            arguments[name] = path.resolve().name
    training = {name: getattr(training_args, name) for name in DECISIVE}
    if model_args.kind == "baseline":  # it reads nothing else
        model = {"model": model_args.model}
        training = {"metric_for_best_model": training_args.metric_for_best_model}
        data = {name: value for name, value in data.items() if name not in OF_TOKENS}
    if run.notes.subgroups:  # not in the fingerprint: with them or without, it is the same table
        values = [column.tolist() for column in run.notes.subgroups.values()]
        data["subgroup_values"] = hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]
    settings = {"model": model, "data": data, "training": training, "seed": seed}
    return json.loads(json.dumps(settings, default=str))


def folder_of_seed(output: Path, seed: int, seeds: list[int]) -> Path:
    """Where the folds of a seed are: in `output` for a single one, else in seed-SEED; or where they are already."""
    own = output / f"seed-{seed}"
    if own.is_dir():
        return own
    finished = map(read_finished, sorted(output.glob("fold-*")))
    alone = next((result for result in finished if result is not None), None)
    was_alone = alone is not None and alone["run"]["seed"] == seed
    return output if len(seeds) == 1 or was_alone else own


def check_same_settings(folder: Path, finished: dict, settings: dict, data_fingerprint: str):
    """A finished fold counts for this run only if it was made with the same settings on the same notes."""
    remedy = "choose another --output_dir, or --overwrite"
    if finished["schema_version"] != SCHEMA_VERSION:
        raise ArgumentError(f"{folder} was finished by another version of these scripts: {remedy}.")
    if finished["data"]["fingerprint"] != data_fingerprint:
        raise ArgumentError(f"{folder} was finished on other notes or other splits of them: {remedy}.")
    different = [
        f"seed {finished['arguments']['seed']}, now {settings['seed']}"
        for _ in range(finished["arguments"]["seed"] != settings["seed"])
    ]
    for part in ("model", "data", "training"):
        before, now = finished["arguments"][part], settings[part]
        different += [
            f"{name} {before.get(name, UNSAID.get(name))}, now {now.get(name, UNSAID.get(name))}"
            for name in {**now, **before}  # also what another version asked for
            # of these the fingerprints tell, however the path was written
            if name != "dataset"
            and not (name == "model" and "encoder" in now)
            and not (name in ("subgroup_values", "unlabeled_ids") and name not in before)  # as other versions left it
            and before.get(name, UNSAID.get(name)) != now.get(name, UNSAID.get(name))
        ]
    if different:
        more = [f"and {len(different) - 3} more"] if len(different) > 3 else []  # of another kind of model, nearly all
        told = "; ".join([*different[:3], *more])
        raise ArgumentError(f"{folder} was finished with other settings ({told}): {remedy}.")


def keep_model(run: Run, splits: list[Split], fold_results: list[dict]):
    """Leave a model for use in `output`/model.

    With folds it is trained once more, on all notes, for the median of the epochs and with the mean of the thresholds
    that the folds chose (ours); so none of its own figures is measured: its card carries the cross-validated ones. A
    single split's model, of the first seed, was saved when it was trained; if it was not kept then, it is trained
    again the same way.
    """
    notes, training_args, seed = run.notes, run.training_args, run.model_args.seeds[0]
    if len(splits) == 1:
        fold_results = [result for result in fold_results if result["run"]["seed"] == seed]
    nothing = np.array([], dtype=int)
    train = np.arange(len(notes)) if len(splits) > 1 else splits[0].train
    split = Split(train, nothing, nothing)
    logger.info("model for use: training on %d notes", len(train))
    if run.model_args.kind == "baseline":
        names = [field.name for field in fields(Settings)]
        chosen = Counter(tuple(result["model"][name] for name in names) for result in fold_results)
        trained = train_baseline(run, split, Settings(*chosen.most_common(1)[0][0]))
    else:
        # Of its own schedule as much as of the folds': with --min_steps that of more notes has fewer epochs.
        def its_share(result: dict) -> float:
            notes_then = result["data"]["splits"]["train"]["notes"]
            share = result["cost"]["best_epoch"] / epochs_to_train(run.model_args, training_args, notes_then)
            if training_args.max_steps > 0:  # as many steps, which are fewer epochs of more notes
                share *= steps_an_epoch(training_args, notes_then) / steps_an_epoch(training_args, len(train))
            return share

        share = statistics.median(map(its_share, fold_results))
        epochs = share * epochs_to_train(run.model_args, training_args, len(train))
        logit_weights = None
        if run.model_args.ngram_branch:
            chosen = [result["model"]["logit_weights"] for result in fold_results]
            logit_weights = {name: statistics.mean(weights[name] for weights in chosen) for name in chosen[0]}
        folder = run.output / "model-checkpoints"
        resume_only_ones_own(run, split, folder, resolve_settings(run, seed) | {"epochs": epochs})
        trained = train_network(run, split, seed, folder, epochs, logit_weights)
    trained_on = f"All {len(notes)} notes." if len(splits) > 1 else f"The {len(train)} notes of the training part."
    save_model(run, trained, fold_results, trained_on, once_more=True)


def save_model(run: Run, trained: Trained, fold_results: list[dict], trained_on: str, once_more: bool = False):
    """Write the model, its card and what predict.py needs to `output`/model, all of it or nothing.

    `once_more`: it is not the model of a fold, and its hours come on top of theirs.
    """
    data_args, training_args, output = run.data_args, run.training_args, run.output
    if training_args.process_index == 0:
        first = fold_results[0]
        thresholds = [result["model"]["thresholds"] for result in fold_results]
        thresholds = (
            None if thresholds[0] is None else [statistics.mean(values) for values in zip(*thresholds, strict=True)]
        )
        if trained.model["pretraining"] is not None:  # its own, which may have read what a fold's had to leave out
            facts = trained.model["pretraining"]
            trained_on += f" Before that it was pretrained on the text of {facts['documents']} documents"
            if trained.model["kind"] == "in-house":  # else nobody knows here
                trained_on += f", {facts['training_notes']} of the notes among them"
            trained_on += "."
        partial = output / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        trained.save(partial, thresholds)
        write_json(
            partial / MODEL_FACTS,
            {
                "schema_version": SCHEMA_VERSION,
                "kind": trained.model["kind"],
                "task": first["data"]["task"],
                "class_names": first["data"]["class_names"],
                "thresholds": thresholds,
                "max_length": data_args.max_length,
                "long_notes": data_args.long_notes,
                "window_stride": data_args.stride,
            },
        )
        if trained.model["kind"] != "baseline":
            more_hours = trained.cost["training_hours"] if once_more else 0.0
            if trained.model["pretraining"] and trained.model["pretraining"]["id"] not in [
                result["model"]["pretraining"]["id"] for result in fold_results
            ]:
                more_hours += trained.cost["pretraining_hours"]
            hub.write_model_card(partial, fold_results, trained_on, repository_of(training_args), more_hours)
        shutil.rmtree(output / "model", ignore_errors=True)  # of a run that was cut off just before its result
        partial.rename(output / "model")
        logger.info("model for use: %s", output / "model")
    if trained.model["kind"] != "baseline":  # which runs in one process only
        training_args.distributed_state.wait_for_everyone()


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments):
    """Read and check everything, then train in the run's folder."""
    is_main = training_args.process_index == 0
    if model_args.kind == "baseline" and not is_main:
        return  # scikit-learn knows no processes: the first one does it all
    if model_args.kind != "baseline":
        logger.info("machine: %s", describe_machine(training_args.use_cpu, training_args.bf16, training_args.fp16))

    notes = load_notes(data_args)
    check_selection(training_args.metric_for_best_model, notes)
    repeated = report_repeated_texts(notes)
    splits = draw_splits(notes, data_args)
    of_all = fingerprint(notes, splits)  # of the whole: a learning curve's points belong to one table
    splits = draw_training_parts(notes, splits, data_args)
    if model_args.kind in TUNINGS:
        encoder = prepare_encoder(model_args, data_args)
        if training_args.push_to_hub and encoder.model_type == ScratchConfig.model_type:
            raise ArgumentError(
                f"--push_to_hub: {model_args.model} is a small Transformer, and under a head it lacks its code on the "
                "Hub; push one of --model transformer-pretrained."
            )
        if encoder.model_type == "longformer":  # of which nothing attends globally here
            training_args.ddp_find_unused_parameters = True
        if training_args.gradient_checkpointing and encoder.model_type == ScratchConfig.model_type:
            raise ArgumentError(
                f"--gradient_checkpointing: {model_args.name}, a small Transformer, has none; --memory_gb makes "
                "batches smaller."
            )

    held_out = np.unique(np.concatenate([rows for split in splits for rows in (split.validation, split.test)]))
    run = Run(model_args, data_args, training_args, notes, of_all, held_out)
    if model_args.features_only:
        logger.info("%d notes ready in %.4f hours", len(run.features.is_long), run.features.hours)
        return
    with only_run_in(run.output) if is_main else nullcontext():
        train_folds(run, splits, repeated)


def train_folds(run: Run, splits: list[Split], repeated: dict[str, int]):
    """All folds and seeds of one model, then the model kept for use; `repeated` is what results say of equal texts."""
    model_args, data_args, training_args, output = run.model_args, run.data_args, run.training_args, run.output
    is_main = training_args.process_index == 0
    if (output / "model").is_dir() and not (output / "model" / MODEL_FACTS).is_file():
        raise FolderError(f"{output / 'model'} is no model of these scripts: choose another --output_dir.")
    settings_of_seed = {seed: resolve_settings(run, seed) for seed in model_args.seeds}
    if model_args.overwrite:
        if model_args.kind == "frozen":  # which may be refused yet: its weights are read here
            _ = run.features
        if is_main:
            ours = re.compile(r"model|model\.partial|model-checkpoints|(fold|seed)-\d+")
            for path in output.glob("*"):
                if ours.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
        if model_args.kind != "baseline":
            training_args.distributed_state.wait_for_everyone()
    # the model of a seed that finished earlier stays; of a run that was cut off before any result, it is replaced
    was_kept = (output / "model").is_dir() and any(output.rglob(RESULT_FILE))
    fold_results = []
    for seed in model_args.seeds:
        settings, of_seed = settings_of_seed[seed], folder_of_seed(output, seed, model_args.seeds)
        for number, split in enumerate(splits):
            folder = of_seed / f"fold-{number}"
            what = f"{model_args.run_id}: seed {seed}, fold {number + 1} of {len(splits)}"
            finished = read_finished(folder)
            if finished is not None:
                check_same_settings(folder, finished, settings, run.fingerprint)
                logger.info("%s: finished earlier, kept", what)
                if is_main:  # of a run that was killed between its result and this
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                fold_results.append(finished)
                continue
            sizes = ", ".join(f"{part} {len(rows)}" for part, rows in split.parts())
            logger.info("%s (%s)", what, sizes)
            is_last = seed == model_args.seeds[-1] and number == len(splits) - 1
            with failures_of_folds():
                trained, predictions, result = run_fold(run, split, seed, folder, settings, is_last)
            result["data"] |= {"fingerprint": run.fingerprint, **repeated}
            result["run"] = describe_run(model_args, data_args, output) | {
                "seed": seed,
                "order_seed": seed if training_args.data_seed is None else training_args.data_seed,
                "split_seed": data_args.split_seed,
                "fold": number,
                "num_folds": len(splits),
                "num_seeds": len(model_args.seeds),
                "seeds": model_args.seeds,  # that the command asked for
            }
            if model_args.keep_model and not was_kept and len(splits) == 1 and seed == model_args.seeds[0]:
                trained_on = f"The {len(split.train)} notes of the training part."
                save_model(run, trained, [result], trained_on)
                was_kept = True
            if is_main:
                write_result(folder, result, predictions)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                headline = {
                    name: round(result["metrics"][name], 4) for name in ("accuracy", "f1_macro", "f1_weighted")
                }
                logger.info("  test %s in %.1f s of training", headline, result["cost"]["training_hours"] * 3600)
            fold_results.append(result)
            del trained  # and its cycles: model and optimizer would stay in memory beside the next ones
            gc.collect()
    if model_args.keep_model and not was_kept:
        with failures_of_folds():
            keep_model(run, splits, fold_results)
    if is_main:
        shutil.rmtree(output / "model-checkpoints", ignore_errors=True)
        (output / FAILURE_FILE).unlink(missing_ok=True)
    if training_args.push_to_hub and is_main:
        address = hub.push_model(
            output / "model",
            repository_of(training_args),
            training_args.hub_private_repo,
            training_args.hub_token,
            training_args.hub_revision,
        )
        logger.info("pushed: %s", address)


def describe_run(model_args: ModelArguments, data_args: DataArguments, output: Path) -> dict:
    """How tables name the run."""
    has_head = model_args.kind in TUNINGS
    path = Path(os.path.expanduser(data_args.dataset))
    return {
        "run_id": own_name(output),
        "model": model_args.name,
        "head": model_args.head if has_head else None,
        "tuning": model_args.tuning if has_head else None,
        "dataset": own_name(path) if os.path.exists(path) else data_args.dataset,
        "train_size": data_args.train_size,
    }


def tell_unforeseen(error: Exception, log_level: str) -> str:
    """Print where an exception that nobody foresaw comes from; returns the line that says what it was.

    Its message may quote what it choked on, a patient's note included: the frames and the type say where to look.
    """
    print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr)
    known = what_ran_out(error)
    if memory_ran_out(error):
        known += (
            "; smaller batches take less (--per_device_train_batch_size, or --memory_gb, not for a frozen encoder)"
        )
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OSError) or log_level == "debug":
        print(error, file=sys.stderr)
    if known or isinstance(error, OSError) or log_level == "debug":
        return known or getattr(error, "strerror", None) or type(error).__name__
    return f"{type(error).__name__} (its message may quote a note and is shown only with --log_level debug)"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed with a line that says why, also left in OUTPUT_DIR/failed.json, 130 by Ctrl-C."""
    try:
        model_args, data_args, training_args = parse_arguments(argv)
    except (ValueError, OSError, ImportError, hub.HubError) as error:  # or of TrainingArguments; no note is read yet
        print(f"error: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if training_args.process_index == 0 else logging.ERROR
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else each request of the Hub's client is a line
    if training_args.log_level == "passive":
        # Else every fold's log begins with a table of the weights that a masked language model has and we do not use.
        transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    keep_to_available_cores()
    refused = False
    try:
        train(model_args, data_args, training_args)
        return 0
    except (FolderError, NoNotesError) as error:  # no run has begun that could have failed
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ArgumentError, DataError, BackboneError, hub.HubError) as error:
        refused, message = True, str(error)
    except (FoldError, MemoryBudgetError) as error:
        message = str(error)
    except KeyboardInterrupt:
        again = "given again without --overwrite" if model_args.overwrite else "given again"
        print(f"interrupted: {again}, the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        message = tell_unforeseen(error, training_args.log_level)
    print(f"error: {message}", file=sys.stderr)
    output = Path(training_args.output_dir)
    holds_results = any(output.rglob(RESULT_FILE))  # which a command that was refused says nothing against
    if training_args.process_index == 0 and not (refused and holds_results):
        run = describe_run(model_args, data_args, output)
        # a full disk may be what it failed of; what another process trains in there has not failed
        with suppress(OSError, FolderError), only_run_in(output):
            write_json(
                output / FAILURE_FILE,
                {"schema_version": SCHEMA_VERSION, "status": "failed", "run": run, "error": message},
            )
    return 1


if __name__ == "__main__":
    sys.exit(main())
