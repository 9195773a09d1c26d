"""The estimate of a grid: what is scaled by what, who shares a probe, what is said of a run that cannot be probed."""

import io
import json
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from conftest import invent_notes
from transformers import TrainingArguments

import estimate as command
from data import DataArguments, load_notes
from estimate import Speed, estimate, kind_of_probe, spread_evenly, with_every_class
from splits import Split, draw_splits, fingerprint
from train import parse_arguments
from trainer import Run

SPEED = Speed(training=2.0, evaluation=0.5, saving=10.0, setting_up=100.0, features=0.25)
SPLITS = [Split(np.arange(60), np.arange(60, 80), np.arange(80, 90))] * 3


@pytest.fixture
def a_run(notes_file):
    def build(*arguments):
        parsed = parse_arguments(["--keep_model", "False", *arguments, "--dataset", str(notes_file), "--use_cpu"])
        return Run(*parsed, load_notes(parsed[1]))

    return build


def test_each_cost_grows_with_what_it_grows_with(a_run):
    run = a_run("--model", "transformer", "--num_train_epochs", "4", "--seeds", "1", "2")
    known = estimate(run, SPLITS, SPEED, start_up=8)
    epoch = 60 * 2.0 + 20 * 0.5 + 10.0
    training = 2 * 3 * 4 * epoch  # seeds, folds, epochs
    assert known["training_hours_an_epoch"] == pytest.approx(epoch / 3600)
    assert known["training_hours"] == pytest.approx(training / 3600)
    # then, for each fold and seed, validation and test are predicted once more
    assert known["hours"] == pytest.approx((training + 6 * (30 * 0.5 + 100) + 8) / 3600)
    assert known["feature_hours"] == pytest.approx(90 * 0.25 / 3600)
    assert known["epochs"] == 4 and known["folds"] == 6


def test_many_short_epochs_are_looked_at_as_rarely_as_few_long_ones(a_run):
    """With --min_steps: 60 notes are four steps, and of 40 epochs every tenth is evaluated and saved."""
    steps = "--num_train_epochs 4 --min_steps 160 --per_device_train_batch_size 15"
    run = a_run("--model", "transformer", *steps.split())
    known = estimate(run, SPLITS, SPEED, 0)
    assert known["epochs"] == 40
    assert known["training_hours"] == pytest.approx(3 * (40 * 60 * 2.0 + 4 * (20 * 0.5 + 10.0)) / 3600)


@pytest.mark.parametrize("model", ["tfidf", "transformer", "transformer-pretrained"])
def test_the_model_for_use_is_one_more_training(a_run, model):
    pretraining = model == "transformer-pretrained"
    of_pretraining = dict(pretraining=1e-3, pretraining_evaluation=10.0) if pretraining else {}  # of 5 documents
    speed = Speed(training=2.0, setting_up=100.0, **of_pretraining)
    options = ["--model", model, "--num_train_epochs", "4", "--min_steps", "0"]
    without, with_it = (
        estimate(a_run(*options, "--keep_model", keep), SPLITS, speed, 0) for keep in ("False", "True")
    )
    more = 0 if model == "tfidf" else 4 * 90 * 2.0 + 100 + pretraining * (5e6 * 1e-3 + 50)
    assert (with_it["hours"] - without["hours"]) * 3600 == pytest.approx(more)
    assert with_it["training_hours"] == without["training_hours"]  # with which the folds' own are compared


def test_a_limit_of_steps_is_a_number_of_epochs(a_run):
    limits = "--num_train_epochs 1 --max_steps 30 --per_device_train_batch_size 4"
    known = estimate(a_run("--model", "transformer", *limits.split()), SPLITS, SPEED, 0)
    assert known["epochs"] == 30 * 4 / 60
    assert known["training_hours"] == pytest.approx(3 * 2 * (60 * 2.0 + 20 * 0.5 + 10.0) / 3600)  # each is looked at


def test_a_pretraining_is_evaluated_as_often_however_long_it_is(a_run):
    run = a_run("--model", "transformer-pretrained", "--pretraining_tokens", "1e6", "--seeds", "0", "1")
    folds = [Split(np.arange(60), np.arange(60, 80), np.arange(80, 90) + number) for number in range(3)]
    speed = Speed(pretraining=1e-3, pretraining_evaluation=10.0)
    assert estimate(run, folds, speed, 0)["pretraining_hours"] == pytest.approx(3 * (1000 + 50) / 3600)  # one a fold
    # of draws of training notes a single one
    assert estimate(run, SPLITS, speed, 0)["pretraining_hours"] == pytest.approx((1000 + 50) / 3600)
    for unlabeled, held_out in ((310, 20), (100_000, 100)):  # of all documents 5 %, at least 5 and at most 100
        speed.unlabeled = unlabeled
        known = estimate(run, SPLITS, speed, 0)["pretraining_hours"]
        assert known == pytest.approx((1000 + 10 * held_out) / 3600)


def test_who_shares_a_probe(a_run, encoder_folder, tmp_path):
    def kind(*arguments):
        return kind_of_probe(a_run(*arguments))

    encoder = ["--model", str(encoder_folder), "--tuning"]
    assert kind("--model", "tfidf") != kind("--model", "transformer") != kind("--model", "moe-transformer")
    assert kind(*encoder, "full", "--head", "grn") == kind(*encoder, "full", "--head", "linear")
    assert kind(*encoder, "frozen", "--head", "grn") != kind(*encoder, "frozen", "--head", "linear")
    assert kind(*encoder, "full") != kind(*encoder, "lora")
    for name, value in (("vocab_size", 90_000), ("num_hidden_layers", 5)):  # of which each makes steps longer
        (tmp_path / name).mkdir()
        shutil.copytree(encoder_folder, tmp_path / name, dirs_exist_ok=True)
        config = json.loads((encoder_folder / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {name: value}))
        assert kind("--model", str(tmp_path / name), "--tuning", "full") != kind(*encoder, "full")


def test_a_probe_has_the_labels_and_lengths_of_the_corpus(tmp_path):
    frame = invent_notes(300)
    frame["text"] = [text + " Stable." * (number % 40) for number, text in enumerate(frame["text"])]
    frame.to_csv(tmp_path / "notes.csv", index=False)
    notes = load_notes(DataArguments(dataset=str(tmp_path / "notes.csv")))
    part = notes.select(spread_evenly(notes, 60))
    assert len(part) == len(set(part.ids)) == 60
    assert part.labels.mean() == pytest.approx(notes.labels.mean(), abs=0.02)
    assert np.mean([*map(len, part.texts)]) == pytest.approx(np.mean([*map(len, notes.texts)]), rel=0.05)
    assert part.texts == [notes.texts[int(name[1:])] for name in part.ids]
    assert len(spread_evenly(notes, 700)) == 700  # more than there are: some twice


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_a_probe_lacks_no_class(tmp_path, task):
    frame = invent_notes(300)
    frame["label"] = ["rare" if number == 77 else "often" if number % 2 else "else" for number in range(300)]
    if task == "multi-label":
        frame["label"] = [["all", label] if number else [label] for number, label in enumerate(frame["label"])]
    frame.to_json(tmp_path / "notes.jsonl", orient="records", lines=True)
    notes = load_notes(DataArguments(dataset=str(tmp_path / "notes.jsonl")))
    assert notes.task == task
    rows, training = np.arange(10, 70), np.arange(5, 60)
    more, places = with_every_class(notes, rows, training)
    added = 1 if task == "multi-class" else 2  # the rare one, and the note that lacks the usual one
    assert (more[:60] == rows).all() and (places[:55] == training).all() and len(more) == 60 + added
    assert places[55:].tolist() == [*range(60, 60 + added)]
    again = with_every_class(notes, more, places)
    assert len(again[0]) == len(more) and len(again[1]) == len(places)


def test_a_rare_class_stops_no_probe(run_command, tmp_path):
    frame = invent_notes(1200)
    frame["label"] = ["yes" if number in (0, 300, 600, 900, 1000, 1100) else "no" for number in range(1200)]
    frame.to_csv(tmp_path / "notes.csv", index=False)
    plan = [(name, name, "-", "-", "-") for name in ("tfidf", "transformer-pretrained")]
    # fmt: off
    status, printed, complaints, content = run_command(
        plan, "--dataset", tmp_path / "notes.csv", "--folds", 2, "--max_length", 48, "--use_cpu",
        "--per_device_train_batch_size", 4, "--keep_model", "False",
    )
    # fmt: on
    assert status == 0 and [*content["runs"]] == ["tfidf", "transformer-pretrained"], complaints


def test_a_small_corpus_leaves_a_probe_enough_to_pretrain_on(run_command, tmp_path):
    """Of few notes, which the probe has to repeat, those that it evaluates on are not all of them."""
    invent_notes(60).to_csv(tmp_path / "notes.csv", index=False)
    plan = [("transformer-pretrained", "transformer-pretrained", "-", "-", "-")]
    options = ("--dataset", tmp_path / "notes.csv", "--folds", 2, "--max_length", 48, "--use_cpu")
    status, printed, complaints, content = run_command(plan, *options, "--keep_model", "False")
    assert status == 0 and content["runs"]["transformer-pretrained"]["pretraining_hours"] > 0, complaints


@pytest.fixture
def run_command(monkeypatch, capsys, tmp_path):
    def run(plan, *arguments):
        monkeypatch.setattr(command, "timed_import", lambda: 8.0)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join("\t".join(line) + "\n" for line in plan)))
        path = tmp_path / "runs" / "estimate.json"
        monkeypatch.setattr(sys, "argv", ["estimate.py", "--estimate", str(path), *map(str, arguments)])
        status = command.main()
        printed, complaints = capsys.readouterr()
        return status, printed, complaints, json.loads(path.read_text()) if path.exists() else None

    return run


def test_the_command_probes_what_it_can(run_command, notes_file, encoder_folder):
    encoder = str(encoder_folder)
    plan = [
        ("tfidf", "tfidf", "-", "-", "-"),
        ("transformer", "transformer", "-", "-", "-"),
        ("transformer-pretrained", "transformer-pretrained", "-", "-", "-"),
        ("enc-adapter-frozen", encoder, "adapter", "frozen", "-"),
        ("enc-grn-lora", encoder, "grn", "lora", "-"),
        ("enc-adapter-lora", encoder, "adapter", "lora", "-"),
        ("no-such-grn-full", "no-such/encoder", "grn", "full", "-"),
        ("tfidf-n20", "tfidf", "-", "-", "20"),
        ("tfidf-n5000", "tfidf", "-", "-", "5000"),
    ]
    # fmt: off
    status, printed, _, content = run_command(
        plan, "--dataset", notes_file, "--folds", 2, "--jobs", 2, "--max_length", 48, "--vocab_size", 400,
        "--per_device_train_batch_size", 4, "--use_cpu", "--keep_model", "False",
    )
    # fmt: on
    assert status == 0
    runs = content["runs"]
    assert [*runs] == [name for name, *_ in plan[:6]] + ["tfidf-n20"]
    assert runs["tfidf-n20"]["training_hours"] < runs["tfidf"]["training_hours"]
    assert all(run["hours"] > run["training_hours"] > 0 for run in runs.values())
    assert runs["enc-adapter-frozen"]["feature_hours"] > 0 == runs["enc-grn-lora"]["feature_hours"]
    pretraining = runs["transformer-pretrained"]["pretraining_hours"]  # of five million tokens, for each of two folds
    assert runs["transformer-pretrained"]["hours"] > pretraining > 0 == runs["transformer"]["pretraining_hours"]
    assert runs["enc-grn-lora"]["training_hours"] == runs["enc-adapter-lora"]["training_hours"]  # one probe for both
    notes = load_notes(DataArguments(dataset=str(notes_file)))
    cut = fingerprint(notes, draw_splits(notes, DataArguments(dataset=str(notes_file), folds=2)))
    assert all((run["fingerprint"], run["folds"]) == (cut, 2) for run in runs.values())
    alone = [run["hours"] for run in runs.values()]
    side_by_side = content["wall_hours"] - runs["enc-adapter-frozen"]["feature_hours"]
    assert max(*alone, sum(alone) / 2) - 1e-9 <= side_by_side < sum(alone)
    assert "no-such/encoder is not in the cache" in printed and "2 runs without an estimate left out" in printed
    assert "--train_size 5000: the training part has" in printed


@pytest.mark.parametrize("evaluated", ["epoch", "steps"])
def test_a_probe_tells_training_from_evaluation(a_run, tmp_path, evaluated, monkeypatch):
    """However a run evaluates: an evaluation at the last step of an epoch is none of its training."""
    monkeypatch.setattr(command, "PROBE_SECONDS", 0.0)
    often = ["--eval_strategy", evaluated, "--save_strategy", evaluated, "--eval_steps", "2", "--save_steps", "2"]
    run = a_run("--model", "transformer", *often, "--eval_on_start", "True", "--vocab_size", "400")
    evaluate = command.PhaseClock.on_evaluate
    monkeypatch.setattr(command.PhaseClock, "on_evaluate", lambda *given, **more: slow(evaluate, *given, **more))
    monkeypatch.setattr(command.PhaseClock, "on_step_end", lambda *given, **more: time.sleep(0.05), raising=False)

    def slow(action, *given, **more):
        time.sleep(1.0)
        action(*given, **more)

    speed = command.probe(run, tmp_path)
    notes = run.training_args.per_device_train_batch_size * command.PROBE_STEPS
    assert speed.training * notes > 0.9 * 0.05 * command.PROBE_STEPS  # all steps of an epoch
    assert speed.evaluation * command.PROBE_NOTES > 1.0


def test_a_run_that_the_gpu_has_no_room_for_leaves_the_others(run_command, notes_file, monkeypatch):
    def measure(run, folder):
        if run.model_args.model == "moe-transformer":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SPEED

    monkeypatch.setattr(command, "probe", measure)
    plan = [(name, name, "-", "-", "-") for name in ("moe-transformer", "transformer")]
    status, printed, _, content = run_command(plan, "--dataset", notes_file, "--folds", 2, "--use_cpu")
    assert status == 0 and [*content["runs"]] == ["transformer"]
    assert "moe-transformer" in printed and "there is too little memory free; --memory_gb" in printed


def reckon(estimates, plan, jobs, device="cpu", monkeypatch=None):
    lines = [dict(zip(command.PLAN, line, strict=True)) for line in plan]
    parsed = [parse_arguments([*command.arguments_of(line), "--use_cpu", "--keep_model", "False"]) for line in lines]
    if monkeypatch is not None:
        monkeypatch.setattr(TrainingArguments, "device", torch.device(device))
    return command.reckon_wall_hours(lines, parsed, estimates, jobs)


def hours(whole, features=0.0, pretraining=0.0):
    return {"hours": whole, "feature_hours": features, "pretraining_hours": pretraining}


def test_runs_side_by_side_share_a_gpu(monkeypatch):
    known = {"tfidf": hours(3.0), "transformer": hours(6.0)}
    plan = [(name, name, "-", "-", "-") for name in known]
    assert reckon(known, plan, 3) == (6.0, 0.0, False)  # as long as the longest: there is none to take the third place
    assert reckon(known, plan, 3, "cuda", monkeypatch) == (3.0 + 6.0, 0.0, True)  # a baseline needs none
    assert reckon(known, plan, 1, "cuda", monkeypatch) == (9.0, 0.0, False)


def test_runs_begin_in_the_order_of_the_plan():
    known = dict(zip("abc", map(hours, (1.0, 2.0, 4.0)), strict=True))
    plan = [(name, "tfidf", "-", "-", "-") for name in known]
    assert [reckon(known, plan, jobs)[0] for jobs in (1, 2, 3)] == [7.0, 1.0 + 4.0, 4.0]


def test_what_runs_share_is_paid_once(encoder_folder):
    known = {"whole": hours(5.0, 0.0, 3.0), "n20": hours(4.0, 0.0, 3.0)}  # a pretraining for both sizes
    plan = [(name, "transformer-pretrained", "-", "-", size) for name, size in (("whole", "-"), ("n20", "20"))]
    assert reckon(known, plan, 1)[0] == 5.0 + 4.0 - 3.0
    known |= {"n20": hours(6.0, 0.0, 3.0), "n40": hours(4.0, 0.0, 3.0)}
    assert reckon(known, plan, 2)[0] == 6.0  # the second size waits for the first
    assert reckon(known, [*plan, ("n40", "transformer-pretrained", "-", "-", "40")], 2)[0] == 5.0 + 4.0 - 3.0
    known = {"a": hours(1.0, 0.5), "b": hours(2.0, 0.5)}  # a pass for both heads
    plan = [("a", str(encoder_folder), "grn", "frozen", "-"), ("b", str(encoder_folder), "linear", "frozen", "-")]
    assert reckon(known, plan, 1)[:2] == (3.5, 0.5)


def test_a_mistake_is_one_line(run_command, tmp_path):
    status, printed, complaints, content = run_command(
        [("transformer", "transformer", "-", "-", "-")], "--dataset", tmp_path / "none.csv"
    )
    assert status == 1 and not printed and content is None
    assert [line for line in complaints.splitlines() if line.startswith("error: ")] and "none.csv" in complaints
    plan = [("tfidf", "tfidf", "-", "-", "-")]
    status, _, complaints, _ = run_command(plan, "--dataset", "synthetic:60", "--metric_for_best_model", "f1")
    assert status == 1 and "error: --metric_for_best_model f1: not a score of a binary task" in complaints
    assert "Traceback" not in complaints


def test_the_command_itself_is_checked_before_the_probing(monkeypatch, capsys):
    monkeypatch.setattr(command, "estimate_all", None)
    for jobs, plan, message in (
        ("0", "tfidf\ttfidf\t-\t-\t-\n", "--jobs 0: give 1 or more"),
        ("1", "tfidf tfidf - - -\n", "standard input is no plan of run_all.sh: five fields a line"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(plan))
        monkeypatch.setattr(sys, "argv", ["estimate.py", "--jobs", jobs, "--dataset", "synthetic:60"])
        assert command.main() == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize(("given", "jobs", "threads"), [(None, "2", 4), (None, "16", 1), ("3", "2", None)])
def test_a_probe_has_its_share_of_the_cores(monkeypatch, given, jobs, threads):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(command, "available_cores", lambda: 8)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no plan\n"))
    monkeypatch.setattr(sys, "argv", ["estimate.py", "--jobs", jobs])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert command.main() == 1 and told == ([] if threads is None else [threads])


def test_where_it_goes_is_known_before_the_probing(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").write_text("in the way")
    monkeypatch.setattr(command, "estimate_all", None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("tfidf\ttfidf\t-\t-\t-\n"))
    monkeypatch.setattr(sys, "argv", ["estimate.py", "--estimate", str(tmp_path / "runs" / "estimate.json")])
    assert command.main() == 1
    assert f"error: {tmp_path}/runs: cannot be made or written (" in capsys.readouterr().err


def test_an_unforeseen_error_quotes_no_note(run_command, notes_file, monkeypatch):
    def fail(run, folder):
        raise ValueError(run.notes.texts[0])

    monkeypatch.setattr(command, "probe", fail)
    plan = [("transformer", "transformer", "-", "-", "-")]
    status, printed, complaints, content = run_command(plan, "--dataset", notes_file, "--folds", 2, "--use_cpu")
    assert status == 1 and content is None
    assert "error: ValueError (its message may quote a note" in complaints and "in fail" in complaints
    assert not any(text in printed + complaints for text in invent_notes(90)["text"])
