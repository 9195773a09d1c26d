"""The command reads, checks and averages result files; imported by name, evaluate.py gives way to the library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from report_helpers import command, write_run
from result_factory import write_failure, write_result

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def evaluate(runs, monkeypatch, capsys):
    """Runs the command on the folder of runs: exit code, what it printed, what it complained of, the CSV's rows."""

    def run(*options, folders=(runs,)):
        output = runs.parent / "report"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, folders), "--output", str(output), *options])
        code = command.main()
        printed, complaints = capsys.readouterr()
        csv = output / "results.csv"
        return code, printed, complaints, pd.read_csv(csv) if csv.exists() else None

    return run


def python(*arguments):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_import_gives_the_library():
    # a submodule first: its parent, our file, must have given way before it is looked for
    done = python("-c", "import evaluate.utils, evaluate; print(evaluate.Metric.__module__, evaluate.__file__)")
    assert done.returncode == 0, done.stderr
    metric_module, file = done.stdout.split()
    assert metric_module == "evaluate.module"
    assert Path(file).name == "__init__.py" and Path(file).parent != ROOT


def test_import_gives_the_library_beside_another_clone(tmp_path):
    (tmp_path / "evaluate.py").write_text((ROOT / "evaluate.py").read_text())
    on_the_path = f"import sys; sys.path.insert(1, {str(tmp_path)!r})"
    done = python("-c", f"{on_the_path}; import evaluate; print(evaluate.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "__init__.py"


def test_import_says_that_the_library_is_missing():
    done = python("-S", "-c", "import evaluate")  # -S: no installed packages
    assert done.returncode != 0
    assert "ModuleNotFoundError: the library 'evaluate' is not installed" in done.stderr


def test_script_is_our_command():
    done = python("evaluate.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--average {macro,weighted,positive,micro}" in done.stdout


def write_three_models(runs):
    for name, score, hours in (("tfidf", 0.8, 0.125), ("drbert", 0.85, 4.0), ("transformer", 0.5, 1.0)):
        for fold in range(3):
            changes = {"run__model": name, "run__head": None, "run__tuning": None}
            write_result(runs, name, fold, score, cost__training_hours=hours / 3, **changes)


def test_verdict_is_printed_and_reported(runs, evaluate):
    write_three_models(runs)
    code, printed, _, _ = evaluate()
    report = (runs.parent / "report" / "results.md").read_text()
    (verdict,) = [line for line in printed.splitlines() if line.startswith("Deploy ")]
    deploy, *why = verdict.split(". ")
    assert code == 0 and f"**{deploy}.** {'. '.join(why)}" in report
    assert verdict.startswith("Deploy tfidf: F1 (macro) 0.8") and "7.5 min of training" in verdict
    assert "the cheapest of the 2 of 3 models that are not significantly worse than the best, drbert (0.8" in verdict
    assert "which took 4 h, 32 times as long" in verdict
    assert "The notes are too few to be sure" in verdict and "test notes would show" in verdict
    table = report.split("### Are the differences real?")[1].split("- **F1**")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows]
    assert names == ["Model", "**tfidf**", "drbert", "transformer"]
    assert rows[2].split("|")[4].strip() == "best"


def test_predictions_that_cannot_be_read_are_named_and_left_out(runs, evaluate):
    write_three_models(runs)
    (runs / "drbert" / "fold-1" / "predictions.parquet").write_text("le patient tousse")
    code, printed, complaints, rows = evaluate()
    assert code == 1 and "left out: statistics of drbert: no usable predictions in drbert/fold-1 (Arrow" in complaints
    assert "le patient" not in complaints
    assert len(rows) == 3 and "Deploy tfidf" in printed and "drbert (0." not in printed


def test_predictions_on_other_notes_are_left_out(runs, evaluate):
    write_three_models(runs)
    path = runs / "drbert" / "fold-1" / "predictions.parquet"
    predictions = pd.read_parquet(path)
    predictions.assign(id=["other", *predictions["id"][1:]]).to_parquet(path)  # as many, of which one is another
    broken = runs / "transformer" / "fold-0" / "predictions.parquet"
    pd.read_parquet(broken).assign(probabilities=[[0.5]] + [[0.5, 0.5]] * 19).to_parquet(broken)
    code, printed, complaints, _ = evaluate()
    assert code == 1 and "statistics of drbert" in complaints and "statistics of transformer" in complaints


def test_only_parts_of_the_notes_have_a_report_too(runs, evaluate):
    for size in (100, 1000):
        write_result(runs, f"tfidf-n{size}", run__train_size=size, run__num_folds=1)
    code, printed, _, rows = evaluate()
    assert code == 0 and "No verdict" in printed and len(rows) == 2
    text = (runs.parent / "report" / "results.md").read_text()
    assert "No run on all notes." in text and "f1_vs_hours" not in text and "1,000 notes" in text


def test_a_run_on_all_notes_that_failed_takes_nothing_from_the_others(runs, evaluate):
    for size in (100, 1000):
        write_result(runs, f"tfidf-n{size}", run__model="tfidf", run__train_size=size, run__num_folds=1)
    write_failure(runs, "tfidf", "tfidf")
    code, printed, _, _ = evaluate()
    assert code == 1 and "failed: tfidf grn frozen: tfidf: out of memory" in printed
    text = (runs.parent / "report" / "results.md").read_text()
    assert "Data fingerprint" in text and "abc123" in text
    costs = text.split("### What it costs")[1].split("\n#")[0]
    assert costs.count("tfidf grn frozen on ") == 2


def test_a_cheap_model_of_one_seed_is_tested_against_many_seeds(runs, evaluate):
    """All have the same answers: the cheaper is deployed, by the hours of one seed."""
    for model, seeds, hours in (("tfidf", 1, 0.2), ("drbert", 3, 0.3)):
        for seed in range(seeds):
            changes = {"run__model": model, "run__seed": seed, "run__num_folds": 1, "run__num_seeds": seeds}
            write_result(runs, f"{model}-{seed}", score=0.9, cost__training_hours=hours, **changes)
    _, printed, _, _ = evaluate()
    assert "Deploy tfidf grn frozen: " in printed and "12 min of training" in printed


def test_models_of_other_numbers_of_seeds_are_tested(runs, evaluate):
    """Of three models the best and one other have one seed, the third has three."""
    for model, score, seeds, hours in (("tfidf", 0.9, 1, 0.1), ("drbert", 0.95, 1, 4), ("alibert", 0.9, 3, 0.06)):
        for seed in range(seeds):
            for fold in range(3):
                changes = {"run__model": model, "run__seed": seed, "run__num_seeds": seeds}
                write_result(runs, f"{model}-{seed}", fold, score, cost__training_hours=hours / 3, **changes)
    _, printed, _, _ = evaluate()
    assert "the cheapest of the 3 of 3 models that are not significantly worse than the best, drbert" in printed
    assert (
        "Deploy alibert grn frozen: " in printed and "3.6 min of training" in printed
    )  # three seeds took longer than tfidf
    assert "The models do not have as many seeds: hours are those of one." in printed
    figure = (runs.parent / "report" / "f1_vs_hours.svg").read_text()
    assert ">1 alibert grn frozen</text>" in figure and ">2 drbert grn frozen</text>" in figure
    assert "hours, all folds of one seed: " in figure


def test_no_verdict_by_figures_that_flatter(runs, evaluate):
    write_three_models(runs)
    for fold in range(3):
        write_result(runs, "knowing", fold, 0.99, run__head="linear", model__transductive=True)
    code, printed, _, rows = evaluate()
    assert code == 0 and len(rows) == 4 and "Deploy tfidf: " in printed and "of the 2 of 3 models" in printed
    assert "Not compared, since test text was not kept out of their pretraining: drbert (transductive: " in printed
    assert "not kept out) linear frozen." in printed


def test_a_verdict_on_models_that_all_know_test_text_says_so(runs, evaluate):
    for fold in range(3):
        for head in ("linear", "grn"):
            write_result(runs, head, fold, run__head=head, model__transductive=True)
    _, printed, _, _ = evaluate()
    assert "Deploy drbert (transductive: " in printed
    assert "Beware: all of these models know test text, so that their figures flatter them." in printed


def test_one_model_beside_one_that_knows_test_text(runs, evaluate):
    write_result(runs, "blind", run__num_folds=1)
    write_result(runs, "knowing", run__num_folds=1, run__head="linear", model__transductive=True)
    _, printed, _, _ = evaluate()
    assert "No verdict" in printed and "not kept out of their pretraining: drbert (transductive" in printed


def test_a_data_set_without_a_result_has_no_place_in_the_others_way(runs, evaluate):
    write_result(runs, run__num_folds=1)
    write_failure(runs, "elsewhere")
    failed = runs / "elsewhere" / "failed.json"
    failed.write_text(failed.read_text().replace('"synthetic"', '"other.csv"'))
    code, printed, _, _ = evaluate()
    assert code == 1 and "failed: drbert grn frozen: elsewhere: out of memory" in printed
    assert "## other.csv" in (runs.parent / "report" / "results.md").read_text()


def test_a_model_that_tells_nothing_apart_is_passed_over_and_said_to_be(runs, evaluate):
    write_run(runs, "best", scores=(0.85, 0.85), cost__training_hours=2.0)
    write_run(runs, "cheap", scores=(0.8, 0.8), cost__training_hours=0.1, metrics__collapsed=True)
    _, printed, _, _ = evaluate()
    assert "Deploy best" in printed and "significantly better" not in printed
    assert "of the 2 that are not significantly worse (1 passed over for giving all notes the same answer)." in printed


def test_one_model_has_no_verdict(runs, evaluate):
    write_result(runs, run__num_folds=1)
    code, printed, _, _ = evaluate()
    assert code == 0 and "No verdict: fewer than two models" in printed


def test_estimate_is_compared_with_what_was_measured(runs, evaluate):
    for fold, epochs in enumerate([2, 4]):
        write_result(runs, "a-run", fold=fold, cost__training_hours=0.5, cost__epochs=epochs, run__num_folds=2)
    write_result(runs, "tfidf", cost__training_hours=0.3, cost__epochs=None, run__model="tfidf", run__num_folds=1)
    write_result(runs, "unfinished", run__model="transformer")
    write_result(runs, "of-other-notes", run__model="alibert", run__num_folds=1)
    write_result(runs, "unforeseen", run__model="other")
    expected = {
        "a-run": {"training_hours": 5.0, "training_hours_an_epoch": 0.2, "fitting_hours_a_fold": 0.5, "epochs": 10},
        "tfidf": {"training_hours": 0.2, "training_hours_an_epoch": 0.2, "fitting_hours_a_fold": 0.0, "epochs": None},
    }
    other = {"training_hours": 1.0, "training_hours_an_epoch": 0.1, "fitting_hours_a_fold": 0.0, "epochs": 10}
    expected |= {"unfinished": other, "never-run": other, "of-other-notes": other}
    for run_id in expected:
        folds = {"a-run": 2, "tfidf": 1, "of-other-notes": 1}.get(run_id, 3)
        cut = "def456" if run_id == "of-other-notes" else "abc123"
        expected[run_id] = expected[run_id] | {"fingerprint": cut, "folds": folds}
    content = {"schema_version": 9, "status": "estimated", "runs": expected, "wall_hours": 4.0}
    (runs / "estimate.json").write_text(json.dumps(content))
    evaluate()
    table = (runs.parent / "report" / "results.md").read_text().split("## Hours, estimated")[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert cells[1:] == [
        ["a-run", "5", "2.2", "1", "-55%"],  # 6 epochs of 0.2 hours, and the n-grams of two folds
        ["tfidf", "0.2", "0.2", "0.3", "+50%"],
        ["all of them", "5.2", "2.4", "1.3", "-46%"],
    ]
    (runs / "estimate.json").write_text(json.dumps(content | {"runs": {"a-run": {}}}))
    code, _, complaints, _ = evaluate()
    assert code == 1 and "estimate.json: lacks runs.a-run.training_hours" in complaints


def test_mean_sd_and_hours(runs, evaluate):
    for fold, (score, hours) in enumerate([(0.80, 0.5), (0.90, 0.25), (0.85, 0.125)]):
        write_result(runs, fold=fold, score=score, cost__training_hours=hours, cost__feature_hours=0.0625)
    code, printed, complaints, rows = evaluate()
    assert (code, complaints) == (0, "")
    (row,) = rows.to_dict("records")
    for score in ("accuracy", "f1_macro", "f1_weighted", "f1_positive", "auroc"):
        assert row[f"{score}_mean"] == pytest.approx(0.85)
        assert row[f"{score}_sd"] == pytest.approx(0.05)  # sqrt((0.0025 + 0.0025 + 0) / 2)
    assert row["training_hours"] == 0.875  # summed over folds
    assert row["feature_hours"] == 0.0625  # one pass for all folds
    assert (row["folds_finished"], row["folds_expected"], row["status"]) == (3, 3, "complete")
    assert "0.850 ± 0.050" in printed and "F1 (macro)" in " ".join(printed.split())


def test_spread_over_folds_and_over_seeds_are_told_apart(runs, evaluate):
    for seed, of_seed in enumerate([(0.80, 0.90, 0.70), (0.82, 0.92, 0.72)]):
        for fold, score in enumerate(of_seed):
            write_result(runs / f"seed-{seed}", fold=fold, score=score, run__seed=seed, run__num_seeds=2)
    code, _, complaints, rows = evaluate()
    assert (code, complaints) == (0, "")
    assert rows.f1_macro_sd_folds[0] == pytest.approx(0.1)  # of 0.81, 0.91, 0.71
    assert rows.f1_macro_sd_seeds[0] == pytest.approx(0.02 / 2**0.5)  # of 0.80 and 0.82


def test_one_fold_has_no_sd(runs, evaluate):
    write_result(runs, run__num_folds=1)
    code, printed, _, rows = evaluate()
    assert code == 0
    assert pd.isna(rows.f1_macro_sd[0]) and rows.f1_macro_mean[0] == 0.8
    assert "±" not in printed


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_folds_of_every_seed_are_expected(runs, evaluate, num_seeds):
    """Whether two seeds were asked for in one run or added as two runs of one."""
    for seed in (0, 1):
        for fold in range(3 - seed):
            write_result(runs, f"seed-{seed}", fold, run__seed=seed, run__num_seeds=num_seeds)
    code, _, _, rows = evaluate()
    assert (rows.folds_finished[0], rows.folds_expected[0], rows.seeds[0]) == (5, 6, 2)
    assert (rows.status[0], code) == ("incomplete", 1)


def test_seeds_that_never_began_are_expected(runs, evaluate):
    """One command for seed 0, then one for seeds 1 and 2 that was killed after seed 1."""
    for seed, asked in ((0, [0]), (1, [1, 2])):
        for fold in range(3):
            write_result(runs, f"grn-{seed}", fold, run__seed=seed, run__seeds=asked, run__num_seeds=len(asked))
    code, _, _, rows = evaluate()
    assert (rows.folds_finished[0], rows.folds_expected[0]) == (6, 9)
    assert (rows.status[0], code) == ("incomplete", 1)


def test_incomplete_failed_and_missing_are_told_apart(runs, evaluate):
    write_result(runs, "grn", fold=0)
    write_failure(runs, "grn", error="killed\nin fold 1")
    write_failure(runs, "adapter", head="adapter")
    planned = ["grn\tdrbert\tgrn\tfrozen\t-", "adapter\tdrbert\tadapter\tfrozen\t-", "tfidf\ttfidf\t-\t-\t-"]
    (runs / "plan.tsv").write_text("\n".join(planned) + "\n")
    code, printed, _, rows = evaluate()
    assert code == 1
    assert dict(zip(rows["head"], rows.status, strict=True)) == {
        "-": "missing",
        "adapter": "failed",
        "grn": "incomplete",
    }
    assert set(rows.dataset) == {"synthetic"}
    assert "incomplete: drbert grn frozen: 1 of 3 folds" in printed
    assert "failed: drbert grn frozen: grn: killed in fold 1" in printed
    assert "failed: drbert adapter frozen: adapter: out of memory" in printed
    assert "missing: tfidf: planned as tfidf, no result" in printed


def test_complete_plan_is_not_a_problem(runs, evaluate):
    write_result(runs, "tfidf", run__num_folds=1, run__model="tfidf", run__head=None, run__tuning=None)
    (runs / "plan.tsv").write_text("tfidf\ttfidf\t-\t-\t-\n")
    code, _, complaints, rows = evaluate()
    assert (code, complaints) == (0, "")
    assert rows.loc[0, ["model", "head", "tuning", "status"]].tolist() == ["tfidf", "-", "-", "complete"]


def test_a_seed_that_was_planned_and_not_run(runs, evaluate):
    """The row has folds enough by what its results say; only the plan knows of the other seed."""
    write_result(runs, "grn-seed-0", run__num_folds=1)
    (runs / "plan.tsv").write_text("grn-seed-0\tdrbert\tgrn\tfrozen\t-\ngrn-seed-1\tdrbert\tgrn\tfrozen\t-\n")
    code, printed, _, rows = evaluate()
    assert (code, rows.status.tolist()) == (1, ["complete"])
    assert "a run MISSING" in printed and "planned as grn-seed-1, no result" in printed


def test_a_plan_holds_for_its_own_folder(runs, evaluate):
    """Two grids side by side, each with its plan: what one lacks is not excused by the other's run of that name."""
    write_result(runs / "a", "tfidf", run__num_folds=1, run__model="tfidf", run__head=None, run__tuning=None)
    write_result(runs / "b", "grn", run__num_folds=1, run__dataset="notes.csv", data__fingerprint="def456")
    for folder in ("a", "b"):
        (runs / folder / "plan.tsv").write_text("tfidf\ttfidf\t-\t-\t-\n")
    code, _, _, rows = evaluate()
    assert code == 1
    assert rows[rows.status == "missing"][["dataset", "model"]].values.tolist() == [["notes.csv", "tfidf"]]


def test_damaged_plan_is_named(runs, evaluate):
    write_result(runs, run__num_folds=1)
    (runs / "plan.tsv").write_text("tfidf tfidf - -\n")
    code, _, complaints, _ = evaluate()
    assert code == 1
    assert "plan.tsv: line 1 has 1 fields" in complaints


def test_duplicates_are_named(runs, evaluate):
    paths = [write_result(runs, run_id) for run_id in ("first", "second")]
    code, _, complaints, rows = evaluate()
    assert code == 1 and rows is None
    assert "more than once" in complaints and all(str(path) in complaints for path in paths)


def test_a_file_found_through_two_folders_is_no_duplicate(runs, evaluate):
    path = write_result(runs, run__num_folds=1)
    code, _, _, rows = evaluate(folders=(runs, path.parent))
    assert code == 0 and rows.folds_finished.tolist() == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"data__fingerprint": "def456"},
        {"data__class_names": ["no", "yes"]},
        {"data__task": "multi-class"},
    ],
)
def test_different_data_under_one_name_are_refused(runs, evaluate, change):
    write_result(runs, "one", run__head="grn")
    write_result(runs, "other", run__head="linear", **change)
    code, _, complaints, rows = evaluate()
    assert code == 1 and rows is None
    assert "different notes, splits of them, tasks or classes" in complaints
    assert str(runs / "one") in complaints and str(runs / "other") in complaints


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"run__num_folds": 5}, "folds"),
        ({"model__stand_in_for": "drbert"}, "backbones"),
        ({"model__revision": "9"}, "backbones"),
        # points of one learning curve
        ({"model__revision": "9", "run__train_size": 20}, "backbones"),
        ({"arguments__training__learning_rate": 1.0, "run__train_size": 20}, "settings"),
        ({"arguments__model__word_dropout": 0.15}, "settings"),  # an argument that has been removed since
    ],
)
def test_different_runs_are_not_averaged(runs, evaluate, change, what):
    write_result(runs, "one", fold=0)
    write_result(runs, "other", fold=1, **change)
    code, _, complaints, rows = evaluate()
    assert code == 1 and rows is None
    assert f"different {what} under one name (" in complaints
    assert f"report them apart: {runs / 'one'} | {runs / 'other'}" in complaints


def test_other_settings_are_not_averaged(runs, evaluate):
    """Seeds that were added later have the settings of the others, wherever and in what order they were trained."""
    write_result(runs, "one", run__num_folds=1)
    elsewhere = {"arguments__training": {"learning_rate": 1e-3, "data_seed": 7}, "arguments__model__word_dropout": 0.0}
    write_result(runs, "other", run__num_folds=1, run__seed=1, **elsewhere)
    assert evaluate()[0] == 0
    write_result(runs, "third", run__num_folds=1, run__seed=2, arguments__training={"learning_rate": 1.0})
    code, _, complaints, _ = evaluate()
    assert code == 1
    assert "different settings under one name (learning_rate), report them apart: " in complaints
    assert str(runs / "one") in complaints and str(runs / "third") in complaints


def test_a_result_of_before_an_argument_was_written_down_is_of_the_same_run(runs, evaluate):
    write_result(runs, "one", run__num_folds=1, run__num_seeds=3)
    more = {"learning_rate": 1e-3, "data_seed": None}
    for seed, beta in ((1, 0.9), (2, 0.9)):
        more = more | {"adam_beta1": beta}
        write_result(runs, f"{seed}", run__num_folds=1, run__seed=seed, arguments__training=more, run__num_seeds=3)
    code, _, complaints, rows = evaluate()
    assert code == 0 and not complaints and rows.seeds.tolist() == [3]
    write_result(runs, "2", run__num_folds=1, run__seed=2, arguments__training=more | {"adam_beta1": 0.8})
    code, _, complaints, rows = evaluate()
    assert code == 1 and f"(adam_beta1), report them apart: {runs / '1'} | {runs / '2'}" in complaints


def test_predictions_that_are_cut_short_blame_no_other_model(runs, evaluate):
    write_three_models(runs)
    path = runs / "tfidf" / "fold-0" / "predictions.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    code, printed, complaints, _ = evaluate()
    assert code == 1 and "statistics of tfidf: no usable predictions" in complaints
    assert complaints.count("statistics of ") == 1 and "Deploy drbert" in printed


def test_a_plan_that_cannot_be_read_is_left_out(runs, evaluate):
    write_result(runs, "one", run__num_folds=1)
    (runs / "plan.tsv").mkdir()
    code, _, complaints, rows = evaluate()
    assert code == 1 and len(rows) == 1 and "plan.tsv: cannot be read (Is a directory)" in complaints


def test_no_verdict_where_no_test_note_is_positive(runs, evaluate):
    write_three_models(runs)
    for path in runs.rglob("predictions.parquet"):
        predictions = pd.read_parquet(path)
        predictions["label"] = 0
        predictions.to_parquet(path)
    _, printed, _, _ = evaluate("--average", "positive")
    assert "No verdict: no test note is positive, so that F1 (positive) says nothing." in printed
    assert "nan" not in printed.lower().split("no verdict")[1]


def test_no_report_says_where_on_the_machine_the_runs_are(runs, evaluate):
    encoder = runs.parent / "encoders" / "ours"
    write_result(runs, "ours-linear-frozen", run__num_folds=1, run__model="ours", run__head="linear")
    write_failure(runs, "ours-adapter-frozen", str(encoder), "adapter", error=f"{encoder}/config.json: no such file.")
    heads = ("linear", "adapter", "grn")
    plan = [f"ours-{head}-frozen\t{encoder}\t{head}\tfrozen\t-\n" for head in heads]
    (runs / "plan.tsv").write_text("".join(plan))
    (runs / "damaged").mkdir()
    (runs / "damaged" / "result.json").write_text("{")
    _, printed, _, rows = evaluate()
    assert set(rows.model) == {"ours"} and rows.status.tolist().count("missing") == 1
    assert "ours-adapter-frozen: config.json: no such file." in printed
    for path in (runs.parent / "report").iterdir():
        assert str(runs.parent).encode() not in path.read_bytes(), path.name


def test_two_data_sets_are_two_tables(runs, evaluate):
    write_result(runs, "one", run__num_folds=1)
    write_result(runs, "other", run__num_folds=1, run__dataset="notes.csv", data__fingerprint="def456")
    code, printed, _, rows = evaluate()
    assert code == 0 and rows.dataset.tolist() == ["notes.csv", "synthetic"]
    assert printed.count("Model") == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"schema_version": 9, "status": "fini', "cannot be read as JSON (JSONDecodeError)"),
        ('["le patient tousse"]', "not a file of schema version 9"),
        ('{"schema_version": 0, "status": "finished"}', "not a file of schema version 9"),
        ('{"schema_version": 9, "status": "running"}', "its status is not 'finished'"),
        ('{"schema_version": 9, "status": "finished", "run": {"run_id": "x"}}', "lacks run.dataset"),
    ],
)
def test_damaged_file_is_named_and_left_out(runs, evaluate, content, problem):
    write_result(runs, run__num_folds=1)
    damaged = runs / "damaged" / "result.json"
    damaged.parent.mkdir()
    damaged.write_text(content)
    code, _, complaints, rows = evaluate()
    assert code == 1 and len(rows) == 1
    assert f"left out: runs/damaged/result.json: {problem}" in complaints
    assert "tousse" not in complaints
    assert f"- runs/damaged/result.json: {problem}" in (runs.parent / "report" / "results.md").read_text()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data__task": "regression"}, "data.task is none of binary, multi-class, multi-label"),
        ({"metrics__f1_macro": "0.8"}, "metrics.f1_macro is of the wrong type, str"),
        ({"metrics__auroc": []}, "metrics.auroc is of the wrong type, list"),
        ({"model__temperature": float("nan")}, "model.temperature is nan"),
        ({"cost__training_hours": None}, "cost.training_hours is of the wrong type, NoneType"),
        ({"data__splits__test": {}}, "lacks data.splits.test.notes"),
        ({"metrics": {"collapsed": False}}, "lacks metrics.accuracy"),
        ({"run__seeds": "0 1"}, "run.seeds is no list of numbers"),
    ],
)
def test_wrong_field_is_named(tmp_path, change, problem):
    path = write_result(tmp_path, **change)
    with pytest.raises(ValueError, match=f"^{problem}"):
        command.read_result(path)


@pytest.mark.parametrize(
    ("task", "average", "allowed"),
    [
        ("binary", "micro", "macro, weighted, positive"),
        ("multi-class", "positive", "macro, weighted"),
        ("multi-label", "positive", "macro, weighted, micro"),
    ],
)
def test_average_that_the_task_lacks(runs, evaluate, task, average, allowed):
    write_result(runs, data__task=task)
    code, _, complaints, rows = evaluate("--average", average)
    assert code == 1 and rows is None
    assert complaints.endswith(f"--average {average}: synthetic is a {task} task, which has {allowed}\n")


def test_average_is_the_one_asked_for(runs, evaluate):
    write_result(runs, run__num_folds=1, data__task="multi-label", metrics__f1_micro=0.625)
    code, printed, _, _ = evaluate("--average", "micro")
    assert code == 0
    assert "F1 (micro)" in " ".join(printed.split()) and "0.625" in printed
    assert "F1 (micro)" in (runs.parent / "report" / "results.md").read_text()


def test_undefined_score_is_left_out_of_its_mean(runs, evaluate):
    write_result(runs, fold=0, score=0.6)
    write_result(runs, fold=1, score=0.8)
    write_result(runs, fold=2, score=0.9, metrics__auroc=None)
    code, printed, _, rows = evaluate()
    assert code == 0
    assert rows.auroc_mean[0] == pytest.approx(0.7) and rows.auroc_count[0] == 2
    assert "AUROC over 2 of 3 folds" in printed


def test_score_undefined_in_every_fold(runs, evaluate):
    write_result(runs, run__num_folds=1, metrics__auroc=None, metrics__f1_macro=None)
    code, printed, _, rows = evaluate()
    assert code == 0 and pd.isna(rows.auroc_mean[0])
    assert "nan" not in printed


def test_collapsed_and_stand_in_are_said(runs, evaluate):
    for fold in range(3):
        write_result(runs, fold=fold, metrics__collapsed=fold == 1, model__stand_in_for="drbert")
    code, printed, _, rows = evaluate()
    assert code == 0 and rows.collapsed_folds[0] == 1
    assert "1 of 3 folds COLLAPSED" in printed
    assert "drbert (stand-in)" in printed and "say nothing about the real CamemBERT-bio" in printed


def test_nothing_to_report_is_one_line(runs, evaluate):
    write_failure(runs, "grn")
    code, printed, complaints, rows = evaluate()
    assert (code, printed, rows) == (1, "", None)
    assert complaints == (
        f"evaluate.py: error: no usable result.json under {runs} (1 failed runs): train something first\n"
    )


def test_no_such_folder(runs, evaluate, capsys):
    with pytest.raises(SystemExit):
        evaluate(folders=(runs / "absent",))
    assert "absent is not a folder" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(runs, evaluate, monkeypatch):
    write_result(runs, "tfidf", 0, 0.8)
    (runs.parent / "report").touch()
    monkeypatch.setattr(command, "compare_models", None)  # it is known before the statistics are computed
    code, _, complaints, _ = evaluate()
    assert code == 1 and "report: cannot be written (File exists); choose another folder" in complaints
