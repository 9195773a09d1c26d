"""What is drawn: the order of rows, the Markdown, the figure."""

import importlib.util
import itertools
import sys
from pathlib import Path

import matplotlib.colors
import pandas as pd
import pytest
from result_factory import write_failure, write_result

import report

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


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def make_report(runs, monkeypatch):
    """The report's folder, after the command has run on the folder of runs."""

    def run(*options, name="report"):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(runs), "--output", str(runs.parent / name), *options])
        command.main()
        return runs.parent / name

    return run


def aggregated(runs) -> pd.DataFrame:
    results = pd.DataFrame(command.read_files([runs], "result.json", command.read_result, []))
    failures = pd.DataFrame(columns=[*command.CELL, "failed"])
    return report.in_paper_order(command.aggregate(results, failures, command.find_missing([], results)))


def markdown_rows(text: str, heading: str) -> list[dict]:
    """The first table after a heading, read back as Markdown: one dictionary a row."""
    lines = text[text.index(heading) :].splitlines()
    table = list(itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(not_a_row, lines)))
    header, _, *body = ([field.strip() for field in line.replace("\\|", "¦").split("|")[1:-1]] for line in table)
    return [dict(zip(header, row, strict=True)) for row in body]


def not_a_row(line: str) -> bool:
    return not line.startswith("|")


def test_rows_are_in_the_papers_order(runs):
    expected = [("tfidf", "-", "-")]
    expected += [(model, head, "frozen") for model in BACKBONES for head in STRUCTURES]
    expected += [("drbert", "grn", tuning) for tuning in ("lora", "full")]
    expected += [("almanach/other", "grn", "frozen"), ("transformer", "-", "-"), ("moe-transformer", "-", "-")]
    for cell in expected:
        write_run(runs, *(None if name == "-" else name for name in cell))
    cells = aggregated(runs)
    assert list(cells[["model", "head", "tuning"]].itertuples(index=False, name=None)) == expected


def test_stand_in_takes_the_place_of_the_real_one(runs):
    write_run(runs, "transformer")
    write_run(runs, "standins/mini", "grn", "frozen", model__stand_in_for="alibert")
    write_run(runs, "tfidf")
    cells = aggregated(runs)
    assert [report.shown_model(cell) for _, cell in cells.iterrows()] == ["tfidf", "alibert (stand-in)", "transformer"]
    assert report.assign_colours(cells)["alibert (stand-in)"] == report.MODELS["alibert"]


def test_markdown_table_reads_back(runs, make_report):
    write_run(runs, "tfidf", scores=(0.7, 0.8))
    write_run(runs, "drbert", "grn", "frozen", scores=(0.8, 0.9), cost__feature_hours=0.125)
    write_run(runs, "alibert", "grn", "frozen", scores=(0.99,))  # one fold of two: not the best yet
    write_failure(runs, "adapter", head="adapter", error="a | b")
    text = (make_report() / "results.md").read_text()
    tfidf, alibert, adapter, drbert = markdown_rows(text, "## synthetic")
    assert (tfidf["Model"], tfidf["F1 (macro)"], tfidf["Folds"]) == ("tfidf", "0.750 ± 0.071", "2/2")
    assert drbert["F1 (macro)"] == "**0.850 ± 0.071**"
    assert drbert["Accuracy"] == "0.850 ± 0.071"
    assert (drbert["Training hours (all folds)"], drbert["Feature hours (shared)"]) == ("0.5", "0.125")
    assert drbert["Trainable parameters"] == "1,771,778"
    assert (alibert["F1 (macro)"], alibert["Folds"], alibert["Notes"]) == ("0.990", "1/2", "INCOMPLETE")
    assert (adapter["F1 (macro)"], adapter["Folds"], adapter["Notes"]) == ("-", "-", "FAILED")
    assert "- failed: drbert adapter frozen: adapter: a | b" in text


def test_a_bar_in_a_name_does_not_break_the_table(runs, make_report):
    write_run(runs, "a|b", "grn", "frozen")
    (row,) = markdown_rows((make_report() / "results.md").read_text(), "## synthetic")
    assert row["Model"] == "a¦b" and row["Folds"] == "2/2"


def test_feature_hours_only_where_there_are_any(runs, make_report):
    write_run(runs, "tfidf")
    (row,) = markdown_rows((make_report() / "results.md").read_text(), "## synthetic")
    assert "Training hours (all folds)" in row and "Feature hours (shared)" not in row


def test_markdown_says_what_was_run(runs, make_report):
    hardware = {"cpu": "a processor", "cores": 2, "gpu": "a card"}
    write_run(runs, "tfidf", environment__git_dirty=True)
    write_run(runs, "transformer", environment__hardware=hardware, environment__packages={"torch": "2.12.0"})
    text = (make_report("--average", "weighted") / "results.md").read_text()
    assert "- Notes: 100 (a fold: train 60, validation 20, test 20)" in text
    assert "- Task: binary, 2 classes: absent, present" in text
    assert "- Data fingerprint: `abc123`" in text
    assert "- Hardware: a processor, 2 cores, GPU: a card / a processor, 2 cores, GPU: none" in text
    assert "- Git commit: 0123456789ab, 0123456789ab (with uncommitted changes)" in text
    assert "- Packages: torch 2.12.0, torch 2.13.0" in text
    assert f"python evaluate.py {runs} --output {runs.parent / 'report'} --average weighted" in text
    assert report.STAND_INS not in text


def test_the_papers_numbers_stand_beside_ours(runs, make_report):
    write_run(runs, "tfidf")
    text = (make_report() / "results.md").read_text()
    grn, moe = markdown_rows(text, "## What the papers report")
    scores = ["Accuracy", "Precision", "Recall", "F1"]
    assert [grn[name] for name in scores] == ["0.88"] * 4 and "2407.19299" in grn["Source"]
    assert [moe[name] for name in scores] == ["0.87", "0.87", "0.85", "0.86"] and "2303.12892" in moe["Source"]
    assert "averaging not stated" in text and "not comparable cell by cell" in text


def test_figure_files(runs, make_report):
    write_run(runs, "tfidf")
    write_run(runs, "drbert", "grn", "frozen", model__stand_in_for="drbert")
    first, second = make_report(), make_report(name="again")
    svg = (first / "f1_vs_hours.svg").read_text()
    assert ">drbert (stand-in)</text>" in svg  # text, not outlines
    assert svg == (second / "f1_vs_hours.svg").read_text()
    assert (first / "f1_vs_hours.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_the_figure(runs):
    write_run(runs, "tfidf", scores=(0.7, 0.8), cost__training_hours=0.0)
    write_run(runs, "drbert", "grn", "frozen", scores=(0.8, 0.9), cost__training_hours=0.5, cost__feature_hours=0.25)
    (axes,) = report.draw_figure(aggregated(runs), "macro").axes
    tfidf, drbert = (line for line in axes.lines if line.get_marker() in "X*")
    assert axes.get_xscale() == "log"
    assert drbert.get_xydata().tolist() == [[pytest.approx(1.25), pytest.approx(0.85)]]  # the shared pass once
    assert tfidf.get_xdata()[0] > 0 and tfidf.get_ydata()[0] == pytest.approx(0.75)
    assert matplotlib.colors.to_hex(drbert.get_color()).upper() == report.MODELS["drbert"]
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars[1] == pytest.approx([0.85 - 0.0707107, 0.85 + 0.0707107])


def test_a_panel_for_each_data_set(runs):
    write_run(runs, "tfidf")
    write_run(runs, "drbert", "grn", "frozen", run__dataset="notes.csv")
    panels = report.draw_figure(aggregated(runs), "macro").axes
    assert [axes.get_title() for axes in panels] == ["notes.csv", "synthetic"]
