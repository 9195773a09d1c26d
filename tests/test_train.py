"""The command: results, skipping, errors, a killed run, several processes, and no note text anywhere."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invent_notes
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import ngrams
import pretrain
import train
from data import DataArguments, DataError, load_notes
from locks import only_run_in
from metrics import NoteClassificationMetric
from trainer import NoteTrainer, Run, last_complete_checkpoint

ROOT = Path(__file__).parent.parent
ACCELERATE = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
IN_HOUSE = "--model transformer-pretrained --pretraining_tokens 10000 --min_steps 0".split()
SMALL = ["--folds", "2", "--max_length", "64", "--vocab_size", "400", "--num_train_epochs", "2", "--use_cpu"]


def arguments(notes_file, output, *more):
    return ["--model", "transformer", "--dataset", str(notes_file), "--output_dir", str(output), *SMALL, *more]


def read(folder):
    return json.loads((folder / "result.json").read_text())


def numbers(result):
    """What must not depend on when or where it was computed."""
    return {key: result[key] for key in ("arguments", "data", "model", "metrics", "validation")}


def test_the_model_for_use_trains_for_the_same_share_of_its_schedule(notes_file, tmp_path, monkeypatch):
    """Where --min_steps decides, more notes have fewer epochs: as many steps, of the same learning rates."""
    asked = {}
    monkeypatch.setattr(train, "train_network", lambda *given: asked.update(epochs=given[4]))
    monkeypatch.setattr(train, "save_model", lambda *given, **more: None)
    # eight notes a step: 40 notes have 5 steps an epoch, 90 have 12
    for steps, of_folds, expected in (
        ("--min_steps 240", 48, 10),
        ("--min_steps 0", 10, 5),
        ("--max_steps 50", 9, 4.5 * 5 / 12),
    ):
        run = Run(
            *train.parse_arguments(
                ["--model", "transformer", "--dataset", str(notes_file), "--output_dir", str(tmp_path), "--use_cpu"]
                + ["--num_train_epochs", "10", "--per_device_train_batch_size", "8", *steps.split()]
            ),
            load_notes(DataArguments(dataset=str(notes_file))),
        )
        result = {"cost": {"best_epoch": of_folds / 2}, "data": {"splits": {"train": {"notes": 40}}}}
        train.keep_model(run, [None, None], [result] * 3)
        assert asked["epochs"] == pytest.approx(expected)


def test_checkpoints_belong_to_one_pretrained_model(notes_file, tmp_path, monkeypatch):
    """Those of another have other numbers for their tokens."""
    told = []

    def stop(folder, settings):
        told.append(settings["pretrained"])
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "discard_foreign_checkpoints", stop)
    monkeypatch.setattr(Run, "pretrain", lambda self, split: tmp_path / "pretrained-one")
    assert train.main(arguments(notes_file, tmp_path / "run", "--model", "transformer-pretrained")) == 130
    assert told == ["pretrained-one"]


@pytest.mark.parametrize("overwrite", ["False", "True"])
def test_a_folder_of_the_users_is_no_kept_model(notes_file, tmp_path, overwrite, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    assert train.main(arguments(notes_file, tmp_path, "--overwrite", overwrite)) == 1
    assert "is no model of these scripts: choose another --output_dir" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").read_text() == "mine"


def test_corrected_ids_of_further_text_are_other_settings(notes_file, tmp_path):
    settings = []
    for ids in (["a", "b"], ["a", "c"]):
        archive = pd.DataFrame({"id": ids, "patient": ["x", "y"], "text": ["un texte", "un autre"]})
        archive.to_csv(tmp_path / "archive.csv", index=False)
        options = ["--unlabeled", str(tmp_path / "archive.csv"), "--group_column", "patient", "--use_cpu"]
        parsed = train.parse_arguments(["--model", "transformer-pretrained", "--dataset", str(notes_file), *options])
        settings.append(train.resolve_settings(Run(*parsed, load_notes(parsed[1])), 0))
    finished = {"schema_version": 9, "data": {"fingerprint": "x"}, "arguments": settings[0]}
    train.check_same_settings(tmp_path, finished, settings[0], "x")
    with pytest.raises(pretrain.ArgumentError, match="other settings .unlabeled_ids"):
        train.check_same_settings(tmp_path, finished, settings[1], "x")
    del settings[0]["model"]["unlabeled_ids"]  # of a version that did not write it
    train.check_same_settings(tmp_path, finished, settings[1], "x")


def test_folds_results_predictions_and_model(notes_file, tmp_path, capsys, caplog):
    output = tmp_path / "transformer"
    assert train.main(arguments(notes_file, output, "--group_column", "patient")) == 0
    notes = pd.read_csv(notes_file).set_index("id")
    tested = []
    for fold in range(2):
        result = read(output / f"fold-{fold}")
        assert result["schema_version"] == 9 and result["status"] == "finished"
        assert result["run"] == {
            "run_id": "transformer", "model": "transformer", "head": None, "tuning": None, "dataset": "notes.csv",
            "seed": 0, "order_seed": 0, "split_seed": 0, "fold": fold, "num_folds": 2, "num_seeds": 1,
            "train_size": None, "seeds": [0],
        }  # fmt: skip
        assert result["data"]["class_names"] == ["other", "failure"] and result["data"]["task"] == "binary"
        assert sum(part["notes"] for part in result["data"]["splits"].values()) == 90
        assert result["model"]["trainable_parameters"] == result["model"]["total_parameters"] > 0
        assert result["cost"]["training_hours"] > 0 and result["cost"]["feature_hours"] == 0
        assert 1 <= result["cost"]["best_epoch"] <= result["cost"]["epochs"] <= 2
        # what the model costs in use is measured once, in the last fold; this one is its weights of 4 bytes
        assert (result["cost"]["one_core_notes_per_second"] is not None) == (fold == 1)
        if fold == 1:
            assert result["cost"]["one_core_notes_per_second"] > 0
            assert result["cost"]["model_megabytes"] == 4 * result["model"]["total_parameters"] / 1e6
        assert set(result["environment"]) == {"git_commit", "git_dirty", "python", "packages", "hardware"}
        # the predictions beside it give the same numbers again, and name each note once
        predictions = pd.read_parquet(output / f"fold-{fold}" / "predictions.parquet")
        assert list(predictions.columns) == ["id", "group", "label", "predicted", "probabilities"]
        patients = notes.loc[predictions["id"], "patient"].to_numpy()
        assert (predictions.groupby(patients)["group"].nunique() == 1).all()
        assert predictions["group"].nunique() == len(set(patients)) < len(predictions)
        assert (predictions["label"] == predictions["predicted"]).mean() == result["metrics"]["accuracy"]
        expected = (notes.loc[predictions["id"], "label"] == "failure").astype(int)
        assert (predictions["label"].to_numpy() == expected.to_numpy()).all()
        again = NoteClassificationMetric("binary", ["other", "failure"]).compute(
            predictions=np.stack(predictions["probabilities"]),
            references=predictions["label"],
            thresholds=result["model"]["thresholds"],
        )
        assert again == result["metrics"]
        assert 0.05 <= result["model"]["temperature"] <= 20
        points = {(point["kept"], point["required"]) for point in result["operating_points"]}
        assert points == {(kept, required) for kept in ("recall", "precision") for required in (0.9, 0.95)}
        tested += list(predictions["id"])
        assert not (output / f"fold-{fold}" / "checkpoints").exists()
    assert sorted(tested) == sorted(notes.index)

    model = AutoModelForSequenceClassification.from_pretrained(output / "model")
    assert model.config.id2label == {0: "other", 1: "failure"}
    folds = [read(output / f"fold-{fold}")["model"]["thresholds"][0] for fold in range(2)]
    assert model.config.thresholds == pytest.approx([sum(folds) / 2])
    assert AutoTokenizer.from_pretrained(output / "model").model_max_length == 64
    card = (output / "model" / "README.md").read_text()
    assert (
        "All 90 notes" in card
        and f"{np.mean([read(output / f'fold-{f}')['metrics']['f1_macro'] for f in (0, 1)]):.3f}" in card
    )
    assert not list(output.rglob("*.bin")) + list(output.rglob("*.pt")) + list(output.rglob("*.pkl"))


def test_a_fold_leaves_no_model_in_memory(notes_file, tmp_path, monkeypatch):
    """Beside the next one a memory budget would not hold."""
    networks, left, run_fold, init = [], [], train.run_fold, NoteTrainer.__init__

    def remember(trainer, *given, **more):
        init(trainer, *given, **more)
        networks.append(weakref.ref(trainer.model))

    def watch(*given):
        left.append(sum(network() is not None for network in networks))
        return run_fold(*given)

    monkeypatch.setattr(NoteTrainer, "__init__", remember)
    monkeypatch.setattr(train, "run_fold", watch)
    assert train.main(arguments(notes_file, tmp_path / "run", "--keep_model", "False")) == 0
    assert len(networks) == 2 and left == [0, 0]


def test_a_model_without_its_results_is_not_taken_for_this_runs(tmp_path):
    """Left by a run on other notes that was cut off, or whose results were deleted."""
    output = tmp_path / "tfidf"
    left = output / "model"
    left.mkdir(parents=True)
    (left / "frugal_notes.json").write_text("{}")
    command = ["--model", "tfidf", "--dataset", "synthetic:120", "--folds", "2", "--output_dir", str(output)]
    assert train.main(command) == 0
    facts = json.loads((left / "frugal_notes.json").read_text())
    assert facts["class_names"] == ["no_cardiac_failure", "cardiac_failure"]
    files = [*left.iterdir()]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert train.main(command) == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps  # now it is


def test_subgroups_reach_predictions_and_report(notes_file, tmp_path, capsys):
    notes = pd.read_csv(notes_file).assign(ward=["north", "south", None] * 30, year=[2023, 2024] * 45)
    notes.to_csv(notes_file, index=False)
    output = tmp_path / "tfidf"
    options = ["--dataset", str(notes_file), "--folds", "2", "--keep_model", "False", "--subgroup_columns"]
    assert train.main(["--model", "tfidf", "--output_dir", str(output), *options, "ward", "year"]) == 0
    folds = pd.concat(pd.read_parquet(path) for path in output.rglob("predictions.parquet")).set_index("id")
    known = notes.set_index("id").loc[folds.index]
    assert (folds["subgroup:ward"] == known["ward"].fillna("-")).all()
    assert (folds["subgroup:year"] == known["year"].astype(str)).all()
    notes.replace({"ward": {"south": "north"}}).to_csv(notes_file, index=False)  # finished folds would be of before
    assert train.main(["--model", "tfidf", "--output_dir", str(output), *options, "ward", "year"]) == 1
    assert "finished with other settings (subgroup_values" in capsys.readouterr().err


def test_a_column_of_text_is_no_subgroup(notes_file, tmp_path, capsys):
    options = ["--dataset", str(notes_file), "--output_dir", str(tmp_path / "tfidf"), "--subgroup_columns", "id"]
    assert train.main(["--model", "tfidf", *options]) == 1
    assert "--subgroup_columns id: 90 different values; at most 50 short ones" in capsys.readouterr().err


def pretrained(notes_file, output, *more):
    few = ["--group_column", "patient", "--pretraining_tokens", "20000", "--min_steps", "0"]
    return ["--model", "transformer-pretrained", *arguments(notes_file, output, *few, *more)[2:]]


def test_a_model_pretrained_in_house_knows_no_held_out_note(notes_file, tmp_path, caplog, monkeypatch):
    """The further text holds notes of all folds: each fold's pretraining leaves its own out, by what they say."""
    output, further = tmp_path / "run", tmp_path / "further.txt"
    texts = [*pd.read_csv(notes_file)["text"], *invent_notes(40, seed=5)["text"].str.replace("Note", "Lettre")]
    further.write_text("\n".join(texts), encoding="utf-8")
    caplog.set_level("INFO")
    set_ngrams, fits = ngrams.set_ngrams, []
    monkeypatch.setattr("trainer.set_ngrams", lambda *given: (fits.append(given[-1]), set_ngrams(*given)))
    fit_ngrams, fitted = ngrams.fit_ngrams, []
    monkeypatch.setattr("trainer.fit_ngrams", lambda *given: (fitted.append(1), fit_ngrams(*given))[1])
    options = pretrained(notes_file, output, "--unlabeled", str(further), "--seeds", "0", "1")
    assert train.main(options) == 0
    results = {(seed, fold): read(output / f"seed-{seed}" / f"fold-{fold}") for seed in (0, 1) for fold in (0, 1)}
    for (_, fold), result in results.items():
        sizes = {part: facts["notes"] for part, facts in result["data"]["splits"].items()}
        facts = result["model"]["pretraining"]
        # some of these invented notes share half of their words with a held-out one, in runs of eight and more
        assert result["model"]["kind"] == "in-house" and sizes["train"] / 2 < facts["training_notes"] <= sizes["train"]
        held_out = sizes["validation"] + sizes["test"]
        assert facts["removed"]["by_content"] >= held_out and facts["removed"]["by_name"] == 0
        assert facts["documents"] + facts["removed"]["by_content"] + facts["removed"]["copies"] == sizes["train"] + 130
        assert not facts["transductive"] and not result["model"]["transductive"]
        assert result["cost"]["pretraining_hours"] > 0
        # the n-grams' are fitted, not trained: 2 classes x 3 vectors x 2^17 buckets and their inverse frequencies
        apart = result["model"]["total_parameters"] - result["model"]["trainable_parameters"]
        assert apart == 3 * 3 * 2**17 + 2
        assert facts == results[0, fold]["model"]["pretraining"]  # seeds share it
    assert results[0, 0]["model"]["pretraining"]["id"] != results[0, 1]["model"]["pretraining"]["id"]
    # the card tells what the model for use read, held-out notes of the folds included
    card = (output / "model" / "README.md").read_text()
    assert (
        "All 90 notes. Before that it was pretrained on the text of" in card and "90 of the notes among them." in card
    )
    hours = sum(result["cost"]["training_hours"] for result in results.values())
    hours += sum(results[0, fold]["cost"]["pretraining_hours"] for fold in (0, 1))
    assert float(card.split("## Cost\n\n")[1].split()[0]) > 1.05 * hours  # two seeds of two folds, and once more
    # one for each fold and one for the model for use, on all notes; the second seed does not look at the text again
    assert caplog.text.count("  text: ") == 3 and "done earlier" not in caplog.text
    assert caplog.text.count("pretraining a transformer in") == len(fitted) == 3
    assert len(list((output / "pretrained").glob("pretrained-*/pretrain.json"))) == 3
    config = AutoModelForSequenceClassification.from_pretrained(output / "model").config
    assert config.hidden_size == 256
    # its logits are weighed as those of the folds are on average
    chosen = [result["model"]["logit_weights"] for result in results.values()]
    expected = {name: statistics.mean(weights[name] for weights in chosen) for name in chosen[0]}
    assert fits[:-1] == chosen and fits[-1] == expected and config.encoder_weight == expected["encoder"]
    assert not any(text in caplog.text for text in texts)


def test_the_model_for_use_of_a_single_split_knows_no_test_note_either(notes_file, tmp_path):
    """Its card shows the test figures: it is trained again as the first seed, from the split's pretraining."""
    options = pretrained(notes_file, tmp_path / "run", "--folds", "1", "--seeds", "0", "1")
    assert train.main([*options, "--keep_model", "False"]) == 0
    path = tmp_path / "run" / "seed-1" / "fold-0" / "result.json"
    other = read(path.parent)
    other["model"]["thresholds"] = [0.987]
    path.write_text(json.dumps(other))
    assert train.main(options) == 0
    assert (tmp_path / "run" / "model" / "README.md").is_file()
    first = read(tmp_path / "run" / "seed-0" / "fold-0")["model"]["thresholds"]
    assert AutoConfig.from_pretrained(tmp_path / "run" / "model").thresholds == pytest.approx(first)
    assert len(list((tmp_path / "run" / "pretrained").glob("*/pretrain.json"))) == 1


def test_pretraining_once_on_unlabeled_text_or_knowingly_on_all(notes_file, tmp_path, capsys):
    further = tmp_path / "further.txt"
    further.write_text("\n".join(invent_notes(80, seed=5)["text"].str.replace("Note", "Lettre")), encoding="utf-8")
    more = ("--pretrain_on", "unlabeled", "--keep_model", "False")
    assert train.main(pretrained(notes_file, tmp_path / "none", *more)) == 1
    assert "--pretrain_on unlabeled: give the text with --unlabeled" in capsys.readouterr().err
    assert train.main(pretrained(notes_file, tmp_path / "once", *more, "--unlabeled", str(further))) == 0
    facts = [read(tmp_path / "once" / f"fold-{fold}")["model"]["pretraining"] for fold in (0, 1)]
    assert facts[0] == facts[1] and facts[0]["training_notes"] == 0
    assert facts[0]["documents"] + facts[0]["removed"]["by_content"] == 80  # the invented letters are much alike
    assert facts[0]["documents"] > 30
    again = (*more, "--unlabeled", str(further), "--transductive", "True", "--folds", "1")
    assert train.main(pretrained(notes_file, tmp_path / "unfiltered", *again)) == 0
    model = read(tmp_path / "unfiltered" / "fold-0")["model"]
    # of the notes it still reads none
    assert model["transductive"] and (model["pretraining"]["training_notes"], model["pretraining"]["documents"]) == (
        0,
        80,
    )

    assert train.main(pretrained(notes_file, tmp_path / "all", "--transductive", "True")) == 0
    models = [read(tmp_path / "all" / f"fold-{fold}")["model"] for fold in (0, 1)]
    assert models[0]["pretraining"] == models[1]["pretraining"] and models[0]["transductive"]
    assert models[0]["pretraining"]["documents"] == 90 and models[0]["pretraining"]["removed"] is None
    assert len(list((tmp_path / "all" / "pretrained").glob("*/pretrain.json"))) == 1  # the model for use has it too
    assert "flatter it" in (tmp_path / "all" / "model" / "README.md").read_text()


def test_an_encoder_pretrained_here_costs_its_hours(notes_file, tmp_path, capsys, caplog):
    tiny = "--hidden_size 16 --num_hidden_layers 1 --intermediate_size 32 --vocab_size 400 --max_length 32"
    for name, more in (("ours", []), ("stand-in", ["--stand_in_for", "drbert"])):
        options = [*tiny.split(), *more, "--max_steps", "2", "--use_cpu", "--output_dir", str(tmp_path / name)]
        assert pretrain.main(["--architecture", "roberta", "--unlabeled", str(notes_file), *options]) == 0
        run = ["--model", str(tmp_path / name), "--max_length", "32", "--folds", "1", "--keep_model", str(not more)]
        assert train.main([*arguments(notes_file, tmp_path / f"{name}-run")[2:], *run]) == 0
    ours, stand_in = (read(tmp_path / f"{name}-run" / "fold-0") for name in ("ours", "stand-in"))
    assert ours["cost"]["pretraining_hours"] > 0 and ours["model"]["pretraining"]["documents"] > 0
    assert ours["model"]["transductive"] and not stand_in["model"]["transductive"]  # it has read the test notes
    assert "were kept out of the text that ours was pretrained on: it counts as transductive" in caplog.text
    assert stand_in["cost"]["pretraining_hours"] == 0 and stand_in["model"]["pretraining"] is None
    card = (tmp_path / "ours-run" / "model" / "README.md").read_text()
    assert "pretrained in-house; nothing shows that its test notes" in card and "may flatter it" in card
    assert "pretrained on the text of" in card and "of the notes among them" not in card

    report = tmp_path / "ours" / "pretrain.json"
    facts = json.loads(report.read_text())
    del facts["tokens"]
    report.write_text(json.dumps(facts))
    assert train.main([*arguments(notes_file, tmp_path / "other-run")[2:], "--model", str(tmp_path / "ours")]) == 1
    complaint = capsys.readouterr().err
    assert "pretrain.json is not one that pretrain.py of this version writes" in complaint
    assert "Traceback" not in complaint
    assert not list((tmp_path / "other-run").rglob("checkpoint-*"))  # before any training


def test_finished_folds_are_kept_and_other_settings_refused(notes_file, tmp_path, capsys):
    output = tmp_path / "run"
    assert train.main(arguments(notes_file, output, "--keep_model", "False")) == 0
    assert not (output / "model").exists()
    files = [output / f"fold-{fold}" / "result.json" for fold in range(2)]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert train.main(arguments(notes_file, output)) == 0  # adds the model for use, trains no fold again
    assert [file.stat().st_mtime_ns for file in files] == stamps and (output / "model").is_dir()

    assert train.main(arguments(notes_file, output, "--learning_rate", "0.5")) == 1
    assert "other settings (learning_rate 0.001, now 0.5)" in capsys.readouterr().err
    assert train.main(arguments(notes_file, output, "--seed", "1")) == 1
    assert "other settings (seed 0, now 1)" in capsys.readouterr().err
    finished = json.loads(files[0].read_text())
    files[0].write_text(json.dumps(finished | {"schema_version": 1}))
    assert train.main(arguments(notes_file, output)) == 1
    assert "was finished by another version of these scripts" in capsys.readouterr().err
    del finished["arguments"]["training"]["eval_delay"]  # of before it was written there
    files[0].write_text(json.dumps(finished))
    stamps[0] = files[0].stat().st_mtime_ns
    assert train.main(arguments(notes_file, output)) == 0
    assert train.main(arguments(notes_file, output, "--eval_delay", "1")) == 1
    assert "other settings (eval_delay 0, now 1" in capsys.readouterr().err
    for hidden, status in ((0.0, 0), (0.15, 1)):  # an argument that has been removed since
        finished["arguments"]["model"]["word_dropout"] = hidden
        files[0].write_text(json.dumps(finished))
        stamps[0] = files[0].stat().st_mtime_ns
        assert train.main(arguments(notes_file, output)) == status
    assert "other settings (word_dropout 0.15, now 0.0)" in capsys.readouterr().err
    invent_notes(93).to_csv(notes_file, index=False)
    assert train.main(arguments(notes_file, output)) == 1
    assert "was finished on other notes or other splits" in capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert train.main(arguments(notes_file, output, "--overwrite", "--keep_model", "False")) == 0
    assert read(output / "fold-0")["data"]["splits"]["train"]["notes"] > 0 and not (output / "model").exists()


def test_a_baseline_asks_for_nothing_that_it_does_not_read(notes_file, tmp_path, capsys):
    baseline = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run")]
    assert train.main(baseline) == 0
    assert train.main([*baseline, "--learning_rate", "1", "--max_length", "64", "--class_weights", "none"]) == 0
    assert train.main([*baseline, "--metric_for_best_model", "auroc"]) == 1
    assert "other settings (metric_for_best_model None, now auroc)" in capsys.readouterr().err
    assert train.main([*baseline, "--split_seed", "1"]) == 1
    assert "was finished on other notes or other splits" in capsys.readouterr().err


def test_a_path_may_be_written_otherwise(notes_file, tmp_path, encoder_folder, monkeypatch):
    """The fingerprints say what is in a file or folder; and no result names a folder of this machine."""
    monkeypatch.chdir(notes_file.parent)
    output = tmp_path / "run"
    asked = ["--head", "linear", "--folds", "1", "--num_train_epochs", "1", "--use_cpu", "--keep_model", "False"]
    asked += ["--output_dir", str(output)]
    assert train.main([*asked, "--dataset", "notes.csv", "--model", str(encoder_folder)]) == 0
    stamp = (output / "fold-0" / "result.json").stat().st_mtime_ns
    assert train.main([*asked, "--dataset", str(notes_file), "--model", f"{encoder_folder}/"]) == 0
    assert (output / "fold-0" / "result.json").stat().st_mtime_ns == stamp
    result = read(output / "fold-0")
    assert str(encoder_folder.parent) not in json.dumps(result)
    result["arguments"]["model"]["model"] = str(encoder_folder)  # as results had it once
    (output / "fold-0" / "result.json").write_text(json.dumps(result))
    assert train.main([*asked, "--dataset", str(notes_file), "--model", str(encoder_folder)]) == 0


def test_overwrite_deletes_nothing_for_a_command_that_is_refused(notes_file, tmp_path, encoder_folder, capsys):
    baseline = ["--model", "tfidf", "--folds", "1", "--output_dir", str(tmp_path / "run"), "--dataset"]
    assert train.main([*baseline, str(notes_file)]) == 0
    without_weights = tmp_path / "encoder"
    shutil.copytree(encoder_folder, without_weights)
    (without_weights / "model.safetensors").write_bytes(b"no weights")
    for mistake in (
        ["nowhere.csv"],
        [str(notes_file), "--label_column", "diagnosis"],
        [str(notes_file), "--model", "transformer-pretrained", "--unlabeled", str(tmp_path / "nowhere.txt")],
        [str(notes_file), "--model", str(without_weights), "--use_cpu"],
    ):
        assert train.main([*baseline, *mistake, "--overwrite"]) == 1
        assert '  File "' not in capsys.readouterr().err
        assert (tmp_path / "run" / "fold-0" / "result.json").is_file() and (tmp_path / "run" / "model").is_dir()


def test_overwrite_deletes_what_a_run_leaves_and_nothing_else(notes_file, tmp_path):
    run = tmp_path / "run"
    theirs, ours = ("fold-0-backup", "seed-2024-data", "models"), ("fold-0", "fold-7", "seed-3", "model-checkpoints")
    for name in (*theirs, *ours):
        (run / name).mkdir(parents=True)
        (run / name / "file").touch()
    options = ["--model", "tfidf", "--folds", "1", "--output_dir", str(run), "--dataset", str(notes_file)]
    assert train.main([*options, "--overwrite"]) == 0
    assert not any((run / name / "file").exists() for name in ours)
    assert all((run / name / "file").is_file() for name in theirs)


def test_what_is_no_mistake_of_the_user_says_what_it_was(capsys):
    full = "I/O error: No space left on device (os error 28)"
    for error, told in (
        (SafetensorError(full), "weights could not be written or read; is the disk full"),
        (RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0"), "is the disk full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "memory ran out"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "memory ran out; smaller batches"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory ran out"),
        (RuntimeError("Mme Zwiebelkopf, CUDA error: out of memory"), "RuntimeError (its message may quote a note"),
        (OSError(28, "No space left on device", "/somewhere/notes"), "No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out; smaller batches take less (--per"),
        (ValueError("Mme Zwiebelkopf"), "ValueError (its message may quote a note"),
        (ValueError("Mme Zwiebelkopf, unexpected pos 1 vs 2"), "ValueError (its message may quote a note"),
        (RuntimeError("Mme Zwiebelkopf, unexpected positive culture"), "RuntimeError (its message may quote a note"),
    ):
        message = train.tell_unforeseen(error, "passive")
        assert told in message and "Zwiebelkopf" not in message + capsys.readouterr().err
        assert "somewhere" not in message


def test_checkpoints_of_other_notes_are_not_resumed(notes_file, tmp_path, monkeypatch, caplog):
    """Their training part may hold what is a test note now."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_network", interrupted)
    checkpoint = tmp_path / "run" / "fold-0" / "checkpoints" / "checkpoint-1"
    for notes, stays in ((90, False), (90, True), (80, False)):
        invent_notes(notes).to_csv(notes_file, index=False)
        assert train.main(arguments(notes_file, tmp_path / "run")) == 130
        assert checkpoint.exists() == stays
        checkpoint.mkdir(exist_ok=True)
    assert "checkpoints of an interrupted run with other settings are discarded" in caplog.text


def test_a_folder_that_cannot_be_used_is_one_line(notes_file, tmp_path, capsys):
    run = tmp_path / "run"
    with only_run_in(run):
        assert train.main(arguments(notes_file, run)) == 1
        assert f"--output_dir {run}: another run is at work there; wait for it, or" in capsys.readouterr().err
        assert train.main(arguments(notes_file, run, "--text_column", "nota")) == 1
    assert [path.name for path in run.iterdir()] == [".lock"]  # nothing that would say that the other one failed
    assert train.main(arguments(notes_file, notes_file / "run")) == 1
    assert "run: cannot be written (Not a directory); choose another folder." in capsys.readouterr().err
    assert train.main(arguments("nowhere.csv", notes_file / "run")) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_a_point_of_a_learning_curve(notes_file, tmp_path, capsys):
    """Fewer training notes, the same test notes, the same fingerprint: it belongs in the table of the whole."""
    sized = [*arguments(notes_file, tmp_path / "part", "--train_size", "30"), "--keep_model", "False"]
    assert train.main(sized) == 0
    assert train.main(arguments(notes_file, tmp_path / "whole", "--keep_model", "False")) == 0
    part, whole = (read(tmp_path / name / "fold-1") for name in ("part", "whole"))
    assert part["run"]["train_size"] == 30 and whole["run"]["train_size"] is None
    assert part["data"]["splits"]["train"]["notes"] == 30 < whole["data"]["splits"]["train"]["notes"]
    assert part["data"]["fingerprint"] == whole["data"]["fingerprint"]
    for name in ("notes", "groups", "labels"):
        assert part["data"]["splits"]["test"][name] == whole["data"]["splits"]["test"][name]
    assert train.main(arguments(notes_file, tmp_path / "kept", "--train_size", "30")) == 1
    assert "a model for use has all notes; add --keep_model False" in capsys.readouterr().err


def test_a_fold_that_is_missing_is_trained_and_the_others_are_not(notes_file, tmp_path):
    output = tmp_path / "run"
    assert train.main(arguments(notes_file, output, "--keep_model", "False")) == 0
    before = read(output / "fold-1")
    stamp = (output / "fold-0" / "result.json").stat().st_mtime_ns
    (output / "fold-1" / "result.json").unlink()
    left = [output / "fold-0" / "checkpoints", output / "model-checkpoints"]  # by a kill between result and clearing
    for folder in left:
        folder.mkdir()
    assert train.main(arguments(notes_file, output, "--keep_model", "False")) == 0
    assert not any(folder.exists() for folder in left)
    assert (output / "fold-0" / "result.json").stat().st_mtime_ns == stamp
    assert numbers(read(output / "fold-1")) == numbers(before)


def test_seeds_in_one_process_share_the_split(notes_file, tmp_path):
    output = tmp_path / "run"
    assert (
        train.main(arguments(notes_file, output, "--seeds", "0", "1", "--folds", "1", "--num_train_epochs", "1")) == 0
    )
    first, second = (pd.read_parquet(output / f"seed-{s}" / "fold-0" / "predictions.parquet") for s in (0, 1))
    assert (first["id"] == second["id"]).all()
    assert not np.allclose(np.stack(first["probabilities"]), np.stack(second["probabilities"]))
    assert read(output / "seed-1" / "fold-0")["run"]["num_seeds"] == 2


def test_seeds_that_are_added_later_leave_finished_folds_where_they_are(notes_file, tmp_path):
    output = tmp_path / "run"
    options = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(output), "--keep_model", "False"]
    assert train.main([*options, "--folds", "2"]) == 0
    stamp = (output / "fold-1" / "result.json").stat().st_mtime_ns
    for _ in range(2):
        assert train.main([*options, "--folds", "2", "--seeds", "1", "0"]) == 0
    assert train.main([*options, "--folds", "2", "--seed", "1"]) == 0  # alone, it is where it was, too
    assert (output / "fold-1" / "result.json").stat().st_mtime_ns == stamp
    finished = sorted(path.parent.relative_to(output).as_posix() for path in output.rglob("result.json"))
    assert finished == ["fold-0", "fold-1", "seed-1/fold-0", "seed-1/fold-1"]


def test_a_damaged_fold_is_trained_again_where_it_was(notes_file, tmp_path):
    output = tmp_path / "run"
    options = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(output), "--keep_model", "False"]
    assert train.main([*options, "--folds", "2"]) == 0
    shutil.rmtree(output / "fold-0")  # as the message says
    assert train.main([*options, "--folds", "2", "--seeds", "0", "1"]) == 0
    finished = sorted(path.parent.relative_to(output).as_posix() for path in output.rglob("result.json"))
    assert finished == ["fold-0", "fold-1", "seed-1/fold-0", "seed-1/fold-1"]


def test_the_model_for_use_that_fails_is_a_run_that_failed(notes_file, tmp_path, monkeypatch, capsys):
    def diverge(*given):
        raise train.ArgumentError("Training diverged")

    monkeypatch.setattr(train, "keep_model", diverge)
    assert train.main(arguments(notes_file, tmp_path / "run", "--model", "tfidf")) == 1
    assert "error: Training diverged" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "failed.json").read_text())["error"] == "Training diverged"


def test_the_model_for_use_looks_at_no_validation(notes_file, tmp_path):
    output = tmp_path / "run"
    assert train.main(arguments(notes_file, output, "--eval_on_start", "True", "--num_train_epochs", "1")) == 0
    assert (output / "model").is_dir()


def test_a_small_transformer_as_an_encoder(notes_file, tmp_path, capsys, caplog):
    """What pretrain.py makes: it takes every tuning, but is not pushed, since its code would be missing there."""
    encoder = tmp_path / "small"
    text = ["--dataset", str(notes_file), "--unlabeled", "synthetic:60", "--split_column", "none", "--output_dir"]
    small = "--architecture transformer --hidden_size 16 --num_attention_heads 2 --intermediate_size 32".split()
    small += "--max_length 32 --vocab_size 400".split()
    assert pretrain.main([*text, str(encoder), *small, "--max_steps", "2"]) == 0
    of_encoder = ["--model", str(encoder), "--head", "linear", "--folds", "1", "--num_train_epochs", "1"]
    for tuning in ("frozen", "lora", "full"):
        output = tmp_path / tuning
        assert train.main(arguments(notes_file, output, *of_encoder, "--tuning", tuning)) == 0
        result = read(output / "fold-0")
        assert result["model"]["kind"] == "pretrained" and result["cost"]["epochs"] == 1
        assert not result["model"]["transductive"]  # --dataset kept its notes out
    # what has learned the notes with their labels is no encoder
    for kept in (output / "model", tmp_path / "classifier" / "model"):
        if not kept.exists():
            small_classifier = ["--max_steps", "1", "--dataset", str(notes_file), "--output_dir", str(kept.parent)]
            assert train.main(["--model", "transformer", "--folds", "1", "--use_cpu", *small_classifier]) == 0
        assert train.main(arguments(notes_file, tmp_path / "again", *of_encoder, "--model", str(kept))) == 1
        assert "a model that train.py kept, which has learned its notes" in capsys.readouterr().err
        assert pretrain.main(["--model", str(kept), *text, str(tmp_path / "further"), "--max_steps", "2"]) == 1
        assert "a model that train.py kept, which has learned its notes" in capsys.readouterr().err
    # with given splits their training notes are in the text, which other splits then test on
    split = pd.read_csv(notes_file).assign(split=["train"] * 30 + ["validation"] * 30 + ["test"] * 30)
    split.to_csv(notes_file, index=False)
    given = [*text[:4], "--output_dir", str(tmp_path / "given"), *small, "--max_steps", "2"]
    assert pretrain.main(given) == 0
    of_given = [*of_encoder, "--model", str(tmp_path / "given"), "--tuning", "frozen", "--keep_model", "False"]

    def given_knows(case, *more):
        assert train.main(arguments(notes_file, tmp_path / case, *of_given, *more)) == 0
        return read(tmp_path / case / "fold-0")["model"]["transductive"]

    assert not given_knows("by its splits")
    assert given_knows("by others", "--split_column", "none")
    # what was kept out were other notes than those of today
    for one, knows in (("validation", False), ("train", True)):
        exchanged = split.split.replace({one: "test", "test": one})
        split.assign(split=exchanged).to_csv(notes_file, index=False)
        assert given_knows(f"test exchanged with {one}") == knows
    assert "kept out of the text that given was pretrained on" in caplog.text
    caplog.clear()
    split.sample(frac=1, random_state=0).to_csv(notes_file, index=False)
    assert not given_knows("in another order")
    assert "was pretrained on" not in caplog.text
    split.drop(columns="split").to_csv(notes_file, index=False)
    assert train.main(arguments(notes_file, tmp_path / "pushed", *of_encoder, "--push_to_hub")) == 1
    assert "push one of --model transformer-pretrained" in capsys.readouterr().err
    given = [*of_encoder, "--tuning", "full", "--gradient_checkpointing", "True"]
    assert train.main(arguments(notes_file, tmp_path / "checkpointed", *given)) == 1
    assert "--gradient_checkpointing: small, a small Transformer, has none" in capsys.readouterr().err
    # another one in the same folder: a fold that was trained on the first does not count for it
    assert pretrain.main([*text, str(encoder), "--overwrite", *small, "--max_steps", "3"]) == 0
    assert train.main(arguments(notes_file, tmp_path / "frozen", *of_encoder, "--tuning", "frozen")) == 1
    assert "was finished with other settings (encoder " in capsys.readouterr().err


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_pretrained_encoder(notes_file, tmp_path, encoder_folder, tuning):
    output = tmp_path / "run"
    more = ["--model", str(encoder_folder), "--head", "tiny-attention", "--tuning", tuning, "--folds", "1"]
    assert train.main(arguments(notes_file, output, *more)) == 0
    result = read(output / "fold-0")
    assert result["run"]["tuning"] == tuning and result["model"]["kind"] == "pretrained"
    full = result["model"]["trainable_parameters"] == result["model"]["total_parameters"]
    assert full == (tuning == "full")
    # the model for use is the fold's own, and gives the stored probabilities note by note
    model = AutoModelForSequenceClassification.from_pretrained(output / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    notes = pd.read_csv(notes_file).set_index("id")
    predictions = pd.read_parquet(output / "fold-0" / "predictions.parquet")
    encoded = tokenizer(
        notes.loc[predictions["id"][:5], "text"].tolist(), return_tensors="pt", padding=True, truncation=True
    )
    probabilities = model(encoded["input_ids"], encoded["attention_mask"]).logits.softmax(-1).detach().numpy()
    np.testing.assert_allclose(probabilities, np.stack(predictions["probabilities"])[:5], atol=1e-3)  # bfloat16


@pytest.mark.parametrize("model", ["transformer", "tfidf"])
def test_multi_class_and_multi_label(tmp_path, model):
    frame = invent_notes(90)
    frame["kind"] = [["a", "b", "c"][number % 3] for number in range(90)]
    frame["kinds"] = [
        ["a"] * (number % 2) + ["b"] * (number % 3 == 0) + ["c"] * (number % 5 < 2) for number in range(90)
    ]
    frame.to_parquet(tmp_path / "notes.parquet")
    for column, task, classes in (("kind", "multi-class", 3), ("kinds", "multi-label", 3)):
        output = tmp_path / column
        more = ["--model", model, "--label_column", column, "--folds", "1"]
        assert train.main(arguments(tmp_path / "notes.parquet", output, *more)) == 0
        result = read(output / "fold-0")
        assert result["data"]["task"] == task and len(result["metrics"]["per_class"]) == classes
        assert (result["model"]["thresholds"] is None) == (task == "multi-class")
        assert (output / "model").is_dir()


def test_long_notes_in_windows(tmp_path):
    frame = invent_notes(60)
    frame["text"] = frame["text"] + " Rien d’autre à signaler ce jour." * 12
    frame.to_csv(tmp_path / "notes.csv", index=False)
    more = ["--max_length", "32", "--long_notes", "windows", "--window_stride", "8", "--folds", "1"]
    assert train.main(arguments(tmp_path / "notes.csv", tmp_path / "run", *more)) == 0
    counts = {part: s["over_max_length"] for part, s in read(tmp_path / "run" / "fold-0")["data"]["splits"].items()}
    assert sum(counts.values()) == 60


def test_encoder_too_short_for_max_length_is_guarded(notes_file, tmp_path, encoder_folder, caplog):
    more = ["--model", str(encoder_folder), "--max_length", "128", "--folds", "1", "--keep_model", "False"]
    assert train.main(arguments(notes_file, tmp_path / "run", *more)) == 0
    assert "max_length 128 is more than the encoder takes: 64 used" in caplog.text
    assert read(tmp_path / "run" / "fold-0")["arguments"]["data"]["max_length"] == 64


def test_copies_of_a_text_are_no_independent_notes(notes_file, tmp_path):
    """Statistics take notes of one group together: copies get one answer."""
    notes = pd.read_csv(notes_file)
    copies = pd.concat([notes, notes.assign(id=notes.id + "-copy", text=notes.text.str.upper())])
    copies.drop(columns="patient").to_csv(notes_file, index=False)
    more = ["--model", "tfidf", "--folds", "2", "--keep_model", "False"]
    assert train.main(["--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), *more]) == 0
    for fold in range(2):
        predictions = pd.read_parquet(tmp_path / "run" / f"fold-{fold}" / "predictions.parquet")
        texts = copies.set_index("id").loc[predictions["id"], "text"].str.lower().to_numpy()
        assert (predictions.groupby(texts)["group"].nunique() == 1).all()
        assert predictions["group"].nunique() == len(set(texts)) < len(predictions)


# fmt: off
@pytest.mark.parametrize(("change", "message"), [
    (["--head", "gru"], "invalid choice: 'gru'"),
    (["--tuning", "half"], "invalid choice: 'half'"),
    (["--label_column", "diagnosis"], "--label_column diagnosis: no such column; found: id, patient, text, label"),
    (["--dataset", "nowhere.csv"], "--dataset nowhere.csv: no such file or folder"),
    (["--model", "no-such/encoder"], "no-such/encoder is not in the cache and the Hub did not give it"),
    (["--head", "linear"], "--head linear: transformer is no pretrained encoder; leave it out"),
    (["--tuning", "lora", "--model", "tfidf"], "--tuning lora: tfidf is no pretrained encoder; leave it out"),
    (["--folds", "0"], "--folds 0: give 1 for a single split"),
    (["--seeds", "1", "1"], "--seeds 1 1: give each seed once"),
    (["--num_train_epochs", "0"], "--num_train_epochs 0: give more than 0"),
    (["--max_steps", "0"], "--max_steps 0: give 1 or more, or -1"),
    (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0: give 1 or more"),
    (["--bf16_full_eval", "True"], "--bf16_full_eval: rounds the very weights that are kept"),
    (["--report_to", "clearml"], "--report_to clearml: not installed; install it, or give none"),
    (["--fold", "2"], "error: --fold: no such argument; did you mean --folds? --help lists all.\n"),
    (["--zzz=1"], "error: --zzz: no such argument; --help lists all.\n"),
    (["--seed", "1", "more"], "error: more: to which argument does it belong? --help lists all.\n"),
    (["--folds", "x"], "error: argument --folds: invalid int value: 'x'; --help lists all arguments.\n"),
    (["--dataset", ""], "error: --dataset is empty; give a file"),
    (["--model", "./ours"], "error: --model ./ours: no such folder.\n"),
    (["--model", "tfidf_nb"], "Did you mean tfidf-nb?"),
    (["--model", "drbert"], "or try `bash run_all.sh --demo`.\n"),
    (["--push_to_hub", "--model", "tfidf-nb"], "the vocabulary of tfidf-nb spells out words"),
    (["--metric_for_best_model", "f1"], "f1: not a score of a binary task; choose from accuracy, precision_macro, "),
    (["--push_to_hub", "--keep_model", "False"], "there would be no model to push"),
    (["--push_to_hub", "--hub_model_id", "a/b/c"], "a/b/c is no name for a model on the Hub (letters, digits"),
    (["--use_liger_kernel", "True"], "--use_liger_kernel: has no kernels for these models"),
    (["--fsdp", "full_shard"], "FSDP, DeepSpeed and the like: a model here fits one GPU"),
    (["--deepspeed", "nofile.json"], "deepspeed"),
    (["--accelerator_config", "nofile.json"], "nofile.json"),
])
# fmt: on
def test_a_users_mistake_is_one_clear_line(notes_file, tmp_path, capsys, change, message):
    try:
        status = train.main(arguments(notes_file, tmp_path / "run", *change))
    except SystemExit as exit:
        status = exit.code
    assert status in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "  File " not in error
    assert error.count("\n") == 1


def test_what_a_configuration_of_accelerate_shards_is_refused(notes_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert train.main(arguments(notes_file, tmp_path / "run")) == 1
    assert "error: FSDP, DeepSpeed and the like: a model here fits one GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "name"), [("runs/someone--their-bert-grn-frozen", "someone-their-bert-grn-frozen"), (".", "here")]
)
def test_a_run_has_a_name_that_the_hub_takes(notes_file, tmp_path, monkeypatch, folder, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _, _, training_args = train.parse_arguments(arguments(notes_file, folder, "--push_to_hub"))
    assert train.repository_of(training_args) == name


def test_folders_have_the_same_name_however_they_are_written(notes_file, tmp_path, monkeypatch):
    monkeypatch.chdir(notes_file.parent)
    for dataset, output in ((".", "."), ("../" + notes_file.parent.name, f"../{notes_file.parent.name}/")):
        described = train.describe_run(*train.parse_arguments(arguments(dataset, output))[:2], Path(output))
        assert described["dataset"] == described["run_id"] == notes_file.parent.name
    link = notes_file.with_name("cohort.csv")  # as tools that version data make them, to files named by a hash
    link.symlink_to(notes_file)
    assert train.describe_run(*train.parse_arguments(arguments(link, "out"))[:2], Path("out"))["dataset"] == link.name


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_an_encoder_without_weights_is_one_clear_line(notes_file, tmp_path, encoder_folder, capsys, tuning):
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder", ignore=shutil.ignore_patterns("*.safetensors"))
    given = arguments(notes_file, tmp_path / "run", "--model", str(folder), "--tuning", tuning, "--head", "linear")
    assert train.main(given) == 1
    error = capsys.readouterr().err
    assert "its weights are missing, damaged or cannot be read (" in error and error.count("\n") == 1


@pytest.mark.parametrize(("more", "again"), [([], ""), (["--overwrite"], " without --overwrite")])
def test_an_interrupted_run_says_how_it_goes_on(notes_file, tmp_path, monkeypatch, capsys, more, again):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_fold", interrupt)
    assert train.main(arguments(notes_file, tmp_path / "run", *more)) == 130
    assert capsys.readouterr().err == f"interrupted: given again{again}, the same command goes on from here\n"
    assert not (tmp_path / "run" / "failed.json").exists()


def test_notes_that_are_not_there_are_no_failed_run(tmp_path, capsys):
    """Else every later report of the folder would have a data set of the name that was mistyped."""
    assert train.main(arguments(tmp_path / "nots.csv", tmp_path / "run")) == 1
    assert "no such file or folder" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_failure_is_left_on_disk_until_the_run_succeeds(notes_file, tmp_path, monkeypatch):
    output = tmp_path / "run"
    assert train.main(arguments(notes_file, output, "--text_column", "note")) == 1
    failure = json.loads((output / "failed.json").read_text())
    assert failure["status"] == "failed" and failure["run"]["model"] == "transformer"
    assert failure["error"].startswith("--text_column note: no such column")
    assert train.main(arguments(notes_file, output, "--folds", "1", "--keep_model", "False")) == 0
    assert not (output / "failed.json").exists()
    assert train.main(arguments(notes_file, output, "--text_column", "note")) == 1
    assert not (output / "failed.json").exists()  # the results that are there have not failed

    def too_little_text(run, split, seed, folder, settings, is_last):
        raise DataError("19 different documents to pretrain on")

    monkeypatch.setattr("train.run_fold", too_little_text)  # what may be so in one fold only
    assert train.main(arguments(notes_file, output, "--folds", "1", "--seeds", "0", "1")) == 1
    assert "19 different documents" in json.loads((output / "failed.json").read_text())["error"]


SECRET = "Zébulonique"


def test_no_note_text_leaves_the_notes(tmp_path, capsys, caplog, encoder_folder):
    """A word that stands in one patient's notes is in no log, result, card, vocabulary or file name."""
    frame = invent_notes(90)
    frame.loc[:2, "text"] += f" Le doudou s’appelle {SECRET}."
    frame.to_csv(tmp_path / "notes.csv", index=False)
    output = tmp_path / "runs"
    more = ["--group_column", "patient"]
    assert train.main(arguments(tmp_path / "notes.csv", output / "transformer", *more)) == 0
    pretrained = ["--model", str(encoder_folder), "--head", "grn", "--folds", "1"]
    assert train.main(arguments(tmp_path / "notes.csv", output / "encoder", *more, *pretrained)) == 0
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text
    assert "fold 1 of 2" in caplog.text
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"result.json", "predictions.parquet", "README.md", "tokenizer.json"} <= {path.name for path in files}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        assert "doudou" not in path.read_bytes().decode("utf-8", errors="ignore"), path


def test_an_unforeseen_exception_does_not_quote_a_note(notes_file, tmp_path, capsys, monkeypatch):
    def choke(*args, **kwargs):
        raise RuntimeError(f"cannot digest: {SECRET}")

    monkeypatch.setattr(train, "run_fold", choke)
    assert train.main(arguments(notes_file, tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert SECRET not in error and "RuntimeError" in error and "--log_level debug" in error
    assert SECRET not in (tmp_path / "run" / "failed.json").read_text()


def launch(command, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_killed_run_resumes_to_the_same_result(notes_file, tmp_path):
    more = ["--folds", "1", "--num_train_epochs", "8", "--early_stopping_patience", "4", "--keep_model", "False"]
    undisturbed = launch([sys.executable], *arguments(notes_file, tmp_path / "undisturbed", *more))
    killed = launch([sys.executable], *arguments(notes_file, tmp_path / "killed", *more))
    checkpoints = tmp_path / "killed" / "fold-0" / "checkpoints"
    deadline = time.time() + 120
    while last_complete_checkpoint(checkpoints) is None and time.time() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "fold-0" / "result.json").exists()
    output, _ = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, output
    resumed = launch([sys.executable], *arguments(notes_file, tmp_path / "killed", *more))
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert "epoch 1/8" not in output  # it did not begin again
    whole, pieces = read(tmp_path / "undisturbed" / "fold-0"), read(tmp_path / "killed" / "fold-0")
    assert numbers(whole) == numbers(pieces)
    # the early-stopping count went on too: both stopped after the same epoch
    for key in ("epochs", "best_epoch"):
        assert whole["cost"][key] == pieces["cost"][key]
    assert not checkpoints.exists()


# On a CPU, `accelerate launch --num_processes 2` starts one process unless MPI is there (accelerate 1.15); torchrun
# starts two. Both must give a valid run.
@pytest.mark.parametrize(
    ("launcher", "processes", "more"),
    [
        (["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", *ACCELERATE], 1, []),
        (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2, []),
        (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2, IN_HOUSE),
    ],
)
def test_launchers(notes_file, tmp_path, monkeypatch, launcher, processes, more):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # where there is one GPU, accelerate looks for a second
    output = tmp_path / "run"
    run = launch([sys.executable, "-m", *launcher], *arguments(notes_file, output, *more))
    printed, _ = run.communicate(timeout=180)
    assert run.returncode == 0, printed
    notes = pd.read_csv(notes_file).set_index("id")
    for fold in range(2):
        result = read(output / f"fold-{fold}")
        assert result["environment"]["hardware"]["processes"] == processes
        predictions = pd.read_parquet(output / f"fold-{fold}" / "predictions.parquet")
        assert predictions["id"].is_unique and len(predictions) == result["data"]["splits"]["test"]["notes"]
        assert ((notes.loc[predictions["id"], "label"] == "failure").to_numpy() == (predictions["label"] == 1)).all()
        assert printed.count(f"fold {fold + 1} of 2") == 1  # one process speaks
    assert (output / "model" / "config.json").is_file()


def test_a_memory_budget_too_small_is_one_line(notes_file, tmp_path, capsys):
    arguments = ["--model", "transformer", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), *SMALL]
    assert train.main([*arguments, "--memory_gb", "0.001"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --memory_gb 0.001: training needs 0.0") and "at least" in error
