"""Prediction: the same probabilities as in training, note by note, and clear errors."""

import json
import logging
import re
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invent_notes

import predict
import train
from tokenization import train_tokenizer

SMALL = ["--folds", "1", "--max_length", "32", "--vocab_size", "400", "--num_train_epochs", "1", "--use_cpu"]


@pytest.mark.parametrize("model", ["tfidf", "tfidf-nb", "moe-transformer"])
def test_predictions_are_those_of_training(notes_file, tmp_path, model):
    more = ["--long_notes", "windows", "--window_stride", "8"]
    more += ["--bf16", "False"]  # predict.py computes in float32: any difference shows
    run = ["--model", model, "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), *SMALL, *more]
    assert train.main(run) == 0
    new = invent_notes(90).drop(columns=["label"])
    new["text"] = new["text"].where(new.index % 4 > 0, new["text"] + " Rien d’autre." * 9)  # some notes have windows
    new.to_csv(tmp_path / "new.csv", index=False)
    asked = [str(tmp_path / "run" / "model"), "--dataset", str(tmp_path / "new.csv"), "--output"]
    assert predict.main([*asked, str(tmp_path / "a.csv")]) == 0
    assert predict.main([*asked, str(tmp_path / "b.csv"), "--batch_size", "7"]) == 0
    first, second = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    assert list(first.columns) == ["id", "predicted", "probability_other", "probability_failure"]
    assert list(first["id"]) == list(new["id"])
    np.testing.assert_allclose(first["probability_failure"], second["probability_failure"], atol=1e-5)

    stored = pd.read_parquet(tmp_path / "run" / "fold-0" / "predictions.parquet").set_index("id")["probabilities"]
    unchanged = [note for note in stored.index if int(note[1:]) % 4]
    expected = np.stack(stored[unchanged])[:, 1]
    np.testing.assert_allclose(first.set_index("id").loc[unchanged, "probability_failure"], expected, atol=1e-5)
    facts, _ = predict.read_facts(str(tmp_path / "run" / "model"))
    positive = first["probability_failure"] >= facts["thresholds"][0]
    assert (np.where(positive, "failure", "other") == first["predicted"]).all()


def test_another_threshold(notes_file, tmp_path, capsys):
    run = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), "--folds", "1"]
    assert train.main(run) == 0
    asked = [str(tmp_path / "run" / "model"), "--dataset", str(notes_file), "--output", str(tmp_path / "out.csv")]
    assert predict.main([*asked, "--threshold", "1.5"]) == 1
    assert "error: --threshold 1.5: give a probability, from 0 to 1." in capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "model" / "frugal_notes.json").read_text())["thresholds"][0]
    threshold = told + 0.2
    assert predict.main([*asked, "--threshold", str(threshold)]) == 0
    notes = pd.read_csv(tmp_path / "out.csv")
    positive = notes["probability_failure"] >= threshold
    assert 0 < positive.sum() < (notes["probability_failure"] >= told).sum()
    assert (np.where(positive, "failure", "other") == notes["predicted"]).all()


@pytest.mark.parametrize(("model", "missing", "instead"), [
    ("tfidf", "model.skops", ""), ("transformer", "model.safetensors", ""), ("transformer", "tokenizer.json", ""),
    ("transformer", "tokenizer_config.json", ""), ("transformer", "config.json", ""),
    ("transformer", "tokenizer.json", '{"model": {"type": "Later"}}'),
])  # fmt: skip
def test_a_model_folder_that_lacks_a_file(notes_file, tmp_path, capsys, model, missing, instead):
    options = ["--folds", "1", "--use_cpu", "--max_steps", "1"]
    command = ["--model", model, "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), *options]
    assert train.main(command) == 0
    (tmp_path / "run" / "model" / missing).unlink()
    if instead:
        (tmp_path / "run" / "model" / missing).write_text(instead)
    capsys.readouterr()
    asked = ["--dataset", str(notes_file), "--output", str(tmp_path / "out.csv")]
    assert predict.main([str(tmp_path / "run" / "model"), *asked]) == 1
    error = capsys.readouterr().err
    assert "model: files of it are missing or damaged" in error and error.count("\n") == 1


def test_a_threshold_is_for_two_classes():
    with pytest.raises(predict.ModelError, match="for two classes, and this model is multi-class; leave it"):
        predict.check_threshold(0.3, "multi-class")


def test_multi_label_notes_get_all_their_labels():
    facts = {"task": "multi-label", "thresholds": [0.4, 0.3, 0.4], "class_names": ["a", "b", "c"]}
    assert predict.label_notes(np.array([[0.5, 0.1, 0.4], [0.1, 0.2, 0.3]]), facts) == ["a|c", ""]


def test_a_run_in_the_place_of_its_model(notes_file, tmp_path, capsys):
    run = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), "--folds", "1"]
    asked = ["--dataset", str(notes_file), "--output", str(tmp_path / "out.csv")]
    assert train.main([*run, "--keep_model", "False"]) == 0
    for given in ("run", "run/model"):
        assert predict.main([str(tmp_path / given), *asked]) == 1
        assert f"{given}: a run that kept no model; give its train.py command again" in capsys.readouterr().err
    assert train.main(run) == 0
    assert predict.main([str(tmp_path / "run"), *asked]) == 1
    assert f"run: a run; its model is {tmp_path / 'run' / 'model'}." in capsys.readouterr().err
    assert predict.main([str(tmp_path / "run" / "fold-0"), *asked]) == 1
    assert f"fold-0: a run; its model is {tmp_path / 'run' / 'model'}." in capsys.readouterr().err


def test_an_id_of_the_hub_from_within_a_run(notes_file, tmp_path, monkeypatch):
    run = ["--model", "tfidf", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), "--folds", "1"]
    assert train.main(run) == 0
    monkeypatch.chdir(tmp_path / "run")
    for given in ("hospital/other-model", "other-model"):
        with pytest.raises(predict.ModelError, match=f"{given}: no frugal_notes.json there"):
            predict.read_facts(given)
    for given in (".", "fold-0"):
        with pytest.raises(predict.ModelError, match=rf"^{given}: a run; its model is model"):
            predict.read_facts(given)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory(notes_file, tmp_path, capsys, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(predict, "read_facts", lambda *_: ({}, None))
    monkeypatch.setattr(predict, "load_model", lambda *_: (fail, "a model"))
    asked = ["model", "--dataset", str(notes_file), "--output", str(tmp_path / "out.csv"), "--batch_size", "7"]
    assert predict.main(asked) == 1
    assert capsys.readouterr().err == "error: --batch_size 7: out of memory; give a smaller one.\n"
    assert not [*tmp_path.glob("out.csv*")]


@pytest.mark.parametrize("model", ["tfidf", "transformer"])
def test_a_command_that_was_interrupted_goes_on(notes_file, tmp_path, capsys, caplog, monkeypatch, model):
    caplog.set_level(logging.INFO)
    options = ["--folds", "1", "--use_cpu", "--max_steps", "1", "--dataset", str(notes_file)]
    assert train.main(["--model", model, *options, "--output_dir", str(tmp_path / "run")]) == 0
    asked = [str(tmp_path / "run" / "model"), "--batch_size", "8", "--dataset", str(notes_file), "--output"]
    assert predict.main([*asked, str(tmp_path / "whole.csv")]) == 0
    monkeypatch.setattr(predict, "PART_NOTES", 20)
    monkeypatch.setattr(predict, "SECONDS_A_LINE", 0)
    load_model, sizes, most = predict.load_model, [], 2

    def load_watched(*given):
        predict_part, of_model = load_model(*given)

        def watched(texts):
            sizes.append(len(texts))
            if len(sizes) > most:
                raise KeyboardInterrupt
            return predict_part(texts)

        return watched, of_model

    monkeypatch.setattr(predict, "load_model", load_watched)
    capsys.readouterr()
    assert predict.main([*asked, str(tmp_path / "out.csv")]) == 130
    (folder,) = tmp_path.glob("out.csv.*.parts")
    told = f"what is predicted is kept in {folder}, for the same command to go on from"
    assert capsys.readouterr().err == f"{told}\ninterrupted: {tmp_path / 'out.csv'} was not written\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and not (tmp_path / "out.csv").exists()
    assert re.search(r"  40 of 90 notes, at most \d+\.\d min left", caplog.text)
    second, most = folder / "20-20.npz", 0
    for damaged in (b"", b"PK\x03\x04 half", b"half a part", second.read_bytes()[:-50]):  # as where power was lost
        sizes.clear()
        second.write_bytes(damaged)
        assert predict.main([*asked, str(tmp_path / "out.csv")]) == 130 and sizes == [20]
    most = 90
    sizes.clear()
    assert predict.main([*asked, str(tmp_path / "out.csv")]) == 0
    assert sizes == [20, 20, 20, 10]  # the first part was there
    done, whole = (pd.read_csv(tmp_path / name) for name in ("out.csv", "whole.csv"))
    pd.testing.assert_frame_equal(done, whole, rtol=1e-5)
    assert not [*tmp_path.glob("*.parts")]
    pd.read_csv(notes_file).iloc[::-1].to_csv(notes_file, index=False)
    (tmp_path / "out.csv").unlink()
    most = 1
    sizes.clear()
    assert predict.main([*asked, str(tmp_path / "out.csv")]) == 130
    (of_others,) = tmp_path.glob("out.csv.*.parts")  # other notes are other predictions
    assert of_others != folder


def test_two_commits_of_the_hub_are_two_models(monkeypatch, tmp_path):
    class Network:
        def to(self, device):
            return self

    def cached(model, name, revision):
        folder = tmp_path / "snapshots" / f"commit-of-{revision}"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"schema_version": 9, "kind": "scratch", "max_length": 64, "long_notes": "truncate"}
        (folder / name).write_text(json.dumps(content | {"window_stride": None}))
        return str(folder / name)

    tokenizer = train_tokenizer(invent_notes(40)["text"].tolist(), family="bpe", vocab_size=300, max_length=64)
    loaded = []
    for kind, found in ((predict.AutoModelForSequenceClassification, Network()), (predict.AutoTokenizer, tokenizer)):
        monkeypatch.setattr(
            kind, "from_pretrained", lambda model, revision, found=found: loaded.append(revision) or found
        )
    monkeypatch.setattr(predict, "hf_hub_download", cached)
    of_models = set()
    for revision in (None, "v1", "v2", "v2"):
        facts, commit = predict.read_facts("owner/model", revision)
        of_models.add(predict.load_model("owner/model", commit, facts, 8)[1])
    assert len(of_models) == 3 and set(loaded) == {"commit-of-None", "commit-of-v1", "commit-of-v2"}


def test_two_commands_do_not_predict_the_same(tmp_path):
    with predict.parts_folder(tmp_path / "out.csv", "key"):
        with pytest.raises(predict.DataError, match="out.csv: another command is predicting the same; wait for it"):
            with predict.parts_folder(tmp_path / "out.csv", "key"):
                pass


def test_predictions_of_another_command_are_kept(tmp_path):
    output = tmp_path / "predictions.csv"
    output.write_text("theirs")  # since this one began
    with pytest.raises(predict.DataError, match="exists by now; choose another file"):
        predict.write_csv(pd.DataFrame({"id": [1]}), output)
    assert output.read_text() == "theirs" and [*tmp_path.iterdir()] == [output]


def test_errors_are_one_line(notes_file, tmp_path, capsys):
    asked = ["--dataset", str(notes_file), "--output", str(tmp_path / "out.csv")]
    assert predict.main([str(tmp_path), *asked, "--batch_size", "0"]) == 1
    assert "--batch_size 0: give 1 or more" in capsys.readouterr().err
    assert predict.main([str(tmp_path), *asked, "--model_revision", "v1"]) == 1
    assert "--model_revision v1: " in capsys.readouterr().err
    assert predict.main([str(tmp_path), *asked]) == 1
    assert "no frugal_notes.json there" in capsys.readouterr().err
    (tmp_path / "frugal_notes.json").write_text('{"schema_version": 8, "task": "binary"}', encoding="utf-8")
    assert predict.main([str(tmp_path), *asked]) == 1
    assert "of schema version 8, and this code reads 9; use the code" in capsys.readouterr().err
    (tmp_path / "out.csv").write_text("mine")
    assert predict.main([str(tmp_path), *asked]) == 1
    assert "exists already; choose another file" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "mine"
    for name, message in ((".", "a folder; give the name of the file too"), ("a.parquet", "is CSV; name it a.csv")):
        assert predict.main([str(tmp_path), "--dataset", str(notes_file), "--output", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(table, path, **options):
        Path(path).write_text("id,pre")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full_disk)
        with pytest.raises(
            predict.DataError, match=r"out.csv: cannot be written \(No space left on device\); make room"
        ):
            predict.write_csv(pd.DataFrame({"id": [1]}), tmp_path / "out.csv")
    assert not [*tmp_path.iterdir()]
    predict.write_csv(pd.DataFrame({"id": [1]}), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "id\n1\n" and len([*tmp_path.iterdir()]) == 1
