"""Files on disk: all or nothing, finished or not, complete checkpoints of the same run only."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

import results
from locks import FolderError
from results import (
    describe_environment,
    discard_foreign_checkpoints,
    last_complete_checkpoint,
    peak_memory_mb,
    read_finished,
    remove_checkpoints,
    write_json,
    write_result,
)


def test_the_commit_is_of_this_code_alone(tmp_path, monkeypatch):
    """Unpacked in a repository of something else, it has none; as a part of that one it has."""

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True)

    code = tmp_path / "code" / "results.py"
    code.parent.mkdir()
    code.write_text("")
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "of another")
    monkeypatch.setattr(results, "__file__", str(code))
    told = describe_environment(False)
    assert (told["git_commit"], told["git_dirty"]) == (None, None)
    git("add", "code")
    git("commit", "-q", "-m", "with the code")
    told = describe_environment(False)
    assert len(told["git_commit"]) == 40 and told["git_dirty"] is False


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"été": 1})
    with pytest.raises(TypeError):
        write_json(path, {"unwritable": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]  # nor what was begun
    assert json.loads(path.read_text(encoding="utf-8")) == {"été": 1}


def test_the_result_file_is_written_after_the_predictions(tmp_path, monkeypatch):
    assert read_finished(tmp_path) is None
    columns = {"id": ["a", "b"], "label": [[1, 0], [1, 1]], "probabilities": [[0.5, 0.25], [1.0, 0.0]]}

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_result(tmp_path, {"run": {}}, pd.DataFrame(columns))
    assert read_finished(tmp_path) is None
    write_result(tmp_path, {"run": {"fold": 3}}, pd.DataFrame(columns))
    assert read_finished(tmp_path) == {"schema_version": 9, "status": "finished", "run": {"fold": 3}}
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert predictions["id"].tolist() == ["a", "b"]
    assert np.stack(predictions["label"]).tolist() == [[1, 0], [1, 1]]
    assert np.stack(predictions["probabilities"]).tolist() == [[0.5, 0.25], [1.0, 0.0]]


def test_a_result_that_is_damaged_is_named(tmp_path):
    (tmp_path / "result.json").write_text('{"schema_ver')
    with pytest.raises(FolderError, match=f"result.json is damaged: copy it again, or delete {tmp_path} to train"):
        read_finished(tmp_path)


def test_a_checkpoint_that_was_cut_off_is_not_resumed(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for step in (5, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text('{"epoch": 1}')
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text('{"epo')
    assert last_complete_checkpoint(tmp_path) is None  # of --save_only_model
    for step in (5, 10, 20):
        (tmp_path / f"checkpoint-{step}" / "scheduler.pt").touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_checkpoints_of_other_settings_are_discarded(tmp_path):
    folder = tmp_path / "checkpoints"
    discard_foreign_checkpoints(folder, {"seed": 0})
    write_json(folder / "checkpoint-4" / "trainer_state.json", {"epoch": 1})
    (folder / "checkpoint-4" / "scheduler.pt").touch()
    discard_foreign_checkpoints(folder, {"seed": 0})
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")
    discard_foreign_checkpoints(folder, {"seed": 1})
    assert last_complete_checkpoint(folder) is None


def test_of_checkpoints_that_were_deleted_in_part_none_is_resumed(tmp_path, monkeypatch):
    """And the settings that say whose they are stay to the last."""
    write_json(tmp_path / "settings.json", {"seed": 0})
    write_json(tmp_path / "checkpoint-5" / "trainer_state.json", {"epoch": 1})
    (tmp_path / "checkpoint-5" / "scheduler.pt").touch()
    assert last_complete_checkpoint(tmp_path)

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results.shutil, "rmtree", stop)
        remove_checkpoints(tmp_path)
    assert last_complete_checkpoint(tmp_path) is None and (tmp_path / "settings.json").is_file()
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_checkpoints_know_their_best_one_after_a_move(tmp_path):
    discard_foreign_checkpoints(tmp_path / "before", {"seed": 0})
    for member in ("", "member-1"):
        folder = tmp_path / "before" / member
        state = {"best_model_checkpoint": str(folder / "checkpoint-2"), "epoch": 2}
        write_json(folder / "checkpoint-4" / "trainer_state.json", state)
    (tmp_path / "before" / "checkpoint-6").mkdir()
    (tmp_path / "before" / "checkpoint-6" / "trainer_state.json").write_text('{"epo')
    (tmp_path / "before").rename(tmp_path / "after")
    discard_foreign_checkpoints(tmp_path / "after", {"seed": 0})
    for folder in (tmp_path / "after", tmp_path / "after" / "member-1"):
        state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
        assert state == {"best_model_checkpoint": str(folder / "checkpoint-2"), "epoch": 2}


def test_environment_names_versions_and_hardware(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # one that is not used
    environment = describe_environment(on_gpu=False)
    assert environment["hardware"]["gpu"] is None
    assert environment["packages"]["torch"].startswith("2.") and environment["hardware"]["cores"] >= 1
    assert environment["hardware"]["cpu"] and json.dumps(environment)
    assert 50 < peak_memory_mb(on_gpu=False) < 1e6
