"""What is written: tables, Markdown, the page in a browser; the same results give the same files."""

import html.parser
import itertools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from report_helpers import command, write_run
from result_factory import write_failure, write_result

import report
from comparison import Answers


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


def markdown_rows(text: str, heading: str) -> list[dict]:
    """The first table after a heading, read back as Markdown: one dictionary a row."""
    lines = text[text.index(heading) :].splitlines()
    table = list(itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(not_a_row, lines)))
    header, _, *body = ([field.strip() for field in line.replace("\\|", "¦").split("|")[1:-1]] for line in table)
    return [dict(zip(header, row, strict=True)) for row in body]


def not_a_row(line: str) -> bool:
    return not line.startswith("|")


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
    assert (drbert["Training hours (all folds)"], drbert["Feature hours (all heads)"]) == ("0.5", "0.125")
    assert (alibert["F1 (macro)"], alibert["Folds"], alibert["Notes"]) == ("0.990", "1/2", "INCOMPLETE")
    assert (adapter["F1 (macro)"], adapter["Folds"], adapter["Notes"]) == ("-", "-", "FAILED")
    assert "- failed: drbert adapter frozen: adapter: a \\| b" in text


def test_a_bar_in_a_name_does_not_break_the_table(runs, make_report):
    write_run(runs, "a|b", "grn", "frozen")
    (row,) = markdown_rows((make_report() / "results.md").read_text(), "## synthetic")
    assert row["Model"] == "a¦b" and row["Folds"] == "2/2"


def test_feature_hours_only_where_there_are_any(runs, make_report):
    write_run(runs, "tfidf")
    (row,) = markdown_rows((make_report() / "results.md").read_text(), "## synthetic")
    assert "Training hours (all folds)" in row and "Feature hours (all heads)" not in row


def test_pretraining_in_house_is_named_marked_and_paid_for(runs, make_report):
    """Both folds of the first share one pretraining of an hour; the second made one a fold, on test text too."""
    for fold in (0, 1):
        shared = {"run__model": "transformer-pretrained", "run__head": None, "run__tuning": None, "run__num_folds": 2}
        shared |= {"model__pretraining": {"id": "pretrained-a"}, "cost__pretraining_hours": 1.0}
        write_result(runs, "once", fold, **shared)
        write_result(runs, "once-n20", fold, run__train_size=20, **shared)
        own = {"run__model": "moe-transformer-pretrained", "model__pretraining": {"id": f"pretrained-b{fold}"}}
        write_result(runs, "own", fold, **(shared | own), model__transductive=True)
    text = (make_report() / "results.md").read_text()
    once, own = markdown_rows(text, "## synthetic")
    assert once["Model"] == "transformer (pretrained in-house)"
    assert own["Model"] == "moe-transformer (pretrained in-house) (transductive: test text not kept out)"
    assert (once["Pretraining hours (all its runs)"], own["Pretraining hours (all its runs)"]) == ("1", "2")
    once, own = markdown_rows(text, "### What it costs")
    assert (once["Hours, alone"], once["Hours, shared"]) == ("1.5", "1")  # half an hour of training, one of two sizes
    assert (own["Hours, alone"], own["Hours, shared"]) == ("2.5", "2.5")


def test_subgroups_of_few_positive_notes_are_marked(runs, make_report):
    for model, score in (("tfidf", 0.7), ("drbert", 0.9)):
        write_run(runs, model, scores=(score, score), data__splits__test__notes=60)
    for path in runs.rglob("predictions.parquet"):
        predictions = pd.concat([pd.read_parquet(path)] * 3, ignore_index=True)
        predictions["id"] += "-" + (predictions.index // 20).astype(str)
        predictions.loc[5:, "label"] = 0  # two of five are positive
        predictions.assign(**{"subgroup:ward": "north"}).to_parquet(path)
    (north,) = markdown_rows((make_report() / "results.md").read_text(), "| Subgroup")
    assert north["Test notes"] == "120 (few: unreliable)"


def test_subgroups_that_a_fold_lacks_are_left_out_and_the_model_is_not(runs, make_report):
    for model in ("tfidf", "drbert"):
        write_run(runs, model)
        for path in [*(runs / model).rglob("predictions.parquet")][:1]:
            pd.read_parquet(path).assign(**{"subgroup:ward": "north"}).to_parquet(path)
    text = (make_report() / "results.md").read_text()
    assert "Deploy" in text and "| Subgroup" not in text


def test_one_model_is_looked_at_as_closely(runs, make_report):
    write_run(runs, "tfidf", scores=(0.7, 0.8))
    folder = make_report()
    text, page = (folder / "results.md").read_text(), (folder / "index.html").read_text()
    assert "No verdict" in text and "tfidf has F1 (macro) 0.750 (95 % interval 0." in text
    assert [row["Class"] for row in markdown_rows(text, "| Class")] == ["absent", "present"]
    assert len(markdown_rows(text, "| Threshold keeps")) == 2
    assert "### Can its probabilities be trusted?" in text and (folder / "reliability_1.svg").exists()
    assert "Can its probabilities be trusted?" in page and "A closer look: tfidf" in page
    assert "Are the differences real?" not in text + page


def test_a_threshold_near_one_is_given_with_all_its_digits():
    sure = 1 - 5e-11
    points = pd.DataFrame({"kept": "recall", "required": 0.9, "threshold": sure, "recall": 0.9, "precision": [0.9]})
    assert float(report.points_table(points).rows[0][1]) == sure


def test_what_knows_test_text_is_not_called_best(runs, make_report):
    write_run(runs, "tfidf", scores=(0.7, 0.8))
    write_run(runs, "transformer", scores=(0.9, 0.9), model__transductive=True)
    best, knowing = markdown_rows((make_report() / "results.md").read_text(), "## synthetic")
    assert best["F1 (macro)"].startswith("**0.75") and knowing["F1 (macro)"] == "0.900 ± 0.000"
    legend = (runs.parent / "report" / "f1_vs_hours.svg").read_text()
    assert ">1 tfidf</text>" in legend and ">2 transformer" not in legend


def test_who_read_only_the_beginning_of_notes_is_told(runs, make_report):
    cut = {"arguments__data": {"long_notes": "truncate", "max_length": 256}}
    write_run(runs, "tfidf", scores=(0.7, 0.8))
    write_run(runs, "drbert", "grn", "frozen", scores=(0.8, 0.9), **cut)  # two of twenty test notes
    text = (make_report() / "results.md").read_text()
    whole, beginning = markdown_rows(text, "## synthetic")
    assert (whole["Notes cut"], beginning["Notes cut"]) == ("-", "10%")
    assert "1 of the 2 models read only the beginning of many notes, --max_length tokens (Notes cut), the" in text


def test_a_choice_that_collapsed_in_some_folds_is_told(runs, make_report):
    write_run(runs, "tfidf", scores=(0.8, 0.8), cost__training_hours=9.0)
    for fold in (0, 1):
        more = {"run__model": "drbert", "run__num_folds": 2, "metrics__collapsed": fold == 1}
        write_result(runs, "drbert", fold, 0.75, **more)
    text = (make_report() / "results.md").read_text()
    assert "Deploy drbert" in text and "Beware: in 1 of 2 folds it gave all notes the same answer." in text


def test_thresholds_of_rare_classes_are_not_rounded_away(runs, make_report):
    for fold, thresholds in enumerate([(0.9, 0.1), (0.00041234, 0.9999612), (0.0001, 0.999999)]):
        points = [
            {"kept": kept, "required": 0.9, "threshold": threshold, "recall": 0.9, "precision": 0.5}
            for kept, threshold in zip(("recall", "precision"), thresholds, strict=True)
        ]
        write_result(runs, "tfidf", fold, run__model="tfidf", operating_points=points)
    rows = markdown_rows((make_report() / "results.md").read_text(), "| Threshold keeps")
    assert [row["Threshold"] for row in rows] == ["0.00041234", "0.9999612"]  # medians: one fold does not move them


def test_subgroups_of_few_notes_are_marked(runs, make_report):
    for model, score in (("tfidf", 0.7), ("drbert", 0.9)):
        write_run(runs, model, scores=(score, score), data__splits__test__notes=60)
    for path in runs.rglob("predictions.parquet"):
        predictions = pd.concat([pd.read_parquet(path)] * 3, ignore_index=True)
        predictions["id"] += "-" + (predictions.index // 20).astype(str)
        predictions["subgroup:ward"] = ["north"] * 40 + ["south"] * 20
        predictions.loc[predictions["subgroup:ward"] == "south", "predicted"] = 1
        predictions.to_parquet(path)
    folder = make_report()
    north, south = markdown_rows((folder / "results.md").read_text(), "| Subgroup")
    assert (north["Subgroup"], north["Test notes"]) == ("ward north", "80")
    # all are called positive and half of them are: accuracy 1/2, F1 2/3 of the one class and 0 of the other
    assert list(south.values()) == ["ward south", "40 (few: unreliable)", "0.500", "0.333"]
    assert "few: unreliable" in (folder / "index.html").read_text()


def test_reliability_is_drawn_of_the_models_of_the_verdict(runs, make_report):
    write_run(runs, "tfidf", scores=(0.7, 0.8))
    write_run(runs, "drbert", "grn", "frozen", scores=(0.8, 0.9))
    folder = make_report()
    svg = (folder / "reliability_1.svg").read_text()
    assert ">claimed probability</text>" in svg and ">at temperature</text>" in svg
    assert "so, of the first seed](reliability_1.svg)" in (folder / "results.md").read_text()


def part_of(notes):
    return {"notes": notes, "groups": notes, "labels": {}, "over_max_length": 0}


def test_the_verdict_says_what_more_notes_would_buy(runs, make_report):
    for model, score in (("tfidf", 0.8), ("drbert", 0.7)):
        write_run(runs, model, scores=(score, score))  # of 60 training notes
        for fold in (0, 1):
            half = {"run__model": model, "run__head": None, "run__tuning": None, "run__num_folds": 2}
            half |= {"run__train_size": 30, "data__splits__train": part_of(30)}
            write_result(runs, f"{model}-n30", fold, score - 0.05, **half)
    text = (make_report() / "results.md").read_text()
    assert "Deploy tfidf" in text
    assert "From 30 to 60 training notes each doubling brought it +0.050: expect no more than that" in text


def test_markdown_says_what_was_run(runs, make_report):
    hardware = {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": "a card", "processes": 2}
    write_run(runs, "tfidf", environment__git_dirty=True)
    write_run(runs, "transformer", environment__hardware=hardware, environment__packages={"torch": "2.12.0"})
    write_run(runs, "drbert", "grn", "frozen")
    text = (make_report("--average", "weighted") / "results.md").read_text()
    assert "- Notes: 100 (a fold: train 60, validation 20, test 20)" in text
    assert "- Task: binary, 2 classes: absent, present" in text
    assert "- Encoders: drbert: Dr-BERT/DrBERT-7GB at 0f1e" in text
    assert "- Data fingerprint: abc123" in text
    machine = "a processor, 1 thread of 2 cores"
    two = "2 processes, whose memory and processor's energy are those of one"
    assert f"- Hardware: {machine}, GPU: a card; {two} / {machine}, GPU: none" in text
    assert "- Git commit: 0123456789ab, 0123456789ab (with uncommitted changes)" in text
    assert "- Packages: torch 2.12.0, torch 2.13.0" in text
    assert "python evaluate.py runs --output report --average weighted" in text  # as if called from where they are
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


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of texts, ids, and everything that a browser would fetch or follow."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.ids, self.links, self.inside = [], set(), [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.inside = tag

    def handle_data(self, data):
        if self.inside in ("td", "button") and data.strip():
            self.tables[-1][-1][-1] += data.strip()


def test_the_page_holds_every_row_and_fetches_nothing(runs, make_report):
    write_run(runs, "tfidf", scores=(0.7, 0.8), cost__training_hours=0.1)
    write_run(runs, "<b>bold</b>", "grn", "frozen", scores=(0.9, 0.9))
    write_failure(runs, "adapter", head="adapter", error="<script>alert(1)</script>")
    text = (make_report() / "index.html").read_text()
    page = Page(text)
    rows = {row[0]: row for table in page.tables for row in table}
    assert {"tfidf", "<b>bold</b>", "<b>bold</b> grn frozen", "drbert"} <= set(rows)
    assert "<b>" not in text and "<script>alert" not in text
    fetched = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert not fetched and {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    verdict = text[: text.index("<table")]  # it comes first, and what to deploy before the reasons
    assert verdict.index("<strong>Deploy ") < verdict.index("<li>It has the highest score of 2 models")


def test_the_statistics_are_explained_column_by_column(runs, make_report):
    write_run(runs, "tfidf")
    write_run(runs, "drbert", "grn", "frozen", scores=(0.7, 0.7))
    text = (make_report() / "index.html").read_text()
    columns = next(table[0] for table in Page(text).tables if "p (corrected)" in table[0])
    assert columns == ["Model", *report.STATISTICS]


def test_calibration_is_that_of_one_seed_however_many_there_are(runs, make_report, monkeypatch):
    """Two seeds that are as unsure of the ones as of the others: together they would look calibrated."""
    for seed, (of_negative, of_positive) in enumerate([(0.0, 0.5), (0.5, 1.0)]):
        folder = write_result(runs, f"drbert-{seed}", run__seed=seed, run__num_folds=1, run__num_seeds=2)
        path = folder.with_name("predictions.parquet")
        predictions = pd.read_parquet(path)
        claimed = predictions["label"].map({0: of_negative, 1: of_positive})
        probabilities = [[1 - each, each] for each in claimed]
        predictions.assign(probabilities=probabilities).to_parquet(path)
    drawn = []
    draw = report.draw_reliability
    monkeypatch.setattr(report, "draw_reliability", lambda claims: drawn.append(claims) or draw(claims))
    (row,) = markdown_rows((make_report() / "results.md").read_text(), "### Can its probabilities be trusted?")
    assert row["Calibration error"] == "0.250" and row["Brier score"] == "0.125"  # half of the notes are positive
    (claimed, _) = drawn[0]["drbert grn frozen"]["as it is"]
    assert set(claimed) == {0.0, 0.5}  # the first seed's


def test_a_closer_look_says_what_each_table_is(runs, make_report):
    write_run(runs, "tfidf")
    text = (make_report() / "results.md").read_text()
    look = text[text.index("### A closer look") :]
    assert look.index("All folds together") < look.index("| Threshold keeps") < look.index("its median, and the means")


def test_other_files(runs, make_report):
    write_run(runs, "tfidf")
    write_run(runs, "a_b%", "grn", "frozen")
    folder = make_report()
    content = json.loads((folder / "report.json").read_text())
    (data_set,) = content["datasets"]
    assert data_set["name"] == "synthetic" and len(data_set["results"]["rows"]) == 2
    hard = pd.read_csv(folder / "hard_notes.csv")
    assert set(hard.columns) == {"id", "label", "missed_by", "contradicted_by", "their_answer", "dataset"}
    assert len(hard) and (hard.missed_by > 0.5).all() and hard.id.str.match(r"f\d-\d\d").all()
    tex = (folder / "results.tex").read_text()
    assert tex.startswith("% synthetic\n") and "\\toprule" in tex and "a\\_b\\%" in tex
    assert "Training hours (all folds) &" in tex  # a title in one line, which is a row of LaTeX
    assert (folder / "f1_vs_hours.pdf").read_bytes().startswith(b"%PDF")


def test_multi_label_classes_have_their_counts(runs, make_report):
    for model, scores in (("tfidf", (0.9, 0.9)), ("drbert", (0.6, 0.6))):
        changes = {"data__task": "multi-label", "data__class_names": ["toux", "fièvre", "galop"]}
        write_run(runs, model, scores=scores, **changes)
    text = (make_report() / "results.md").read_text()
    rows = markdown_rows(text[text.index("### A closer look") :], "tfidf:")
    assert [row["Class"] for row in rows] == ["toux", "fièvre", "galop"]
    assert sum(int(row["Test notes"]) for row in rows) == 40  # each invented note has one label


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's package chromium")
def test_the_page_in_a_browser(runs, make_report, tmp_path):
    """No error in its console; a click on a header sorts by number, largest first."""
    for model, hours in (("tfidf", 0.5), ("drbert", 20.0), ("alibert", 3.0)):
        write_run(runs, model, cost__training_hours=hours)
    text = (make_report() / "index.html").read_text()
    click = (
        "<script>[...document.querySelectorAll('th button')].find(b => b.textContent.startsWith('Training')).click()"
    )
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", click + "</script></body>"))
    # fmt: off
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )
    # fmt: on
    assert "CONSOLE" not in done.stderr
    assert [row[0] for row in Page(done.stdout).tables[0][1:]] == ["drbert", "alibert", "tfidf"]


def test_costs_count_the_pass_once_and_share_it(runs, make_report):
    cost = {"cost__training_hours": 1.0, "cost__feature_hours": 0.5, "cost__evaluation_seconds": 2.0}
    for head in ("grn", "linear"):
        write_run(runs, "drbert", head, "frozen", **cost)
    write_run(runs, "tfidf", **(cost | {"cost__feature_hours": 0.0}))
    text = (make_report("--price_per_hour", "2") / "results.md").read_text()
    tfidf, linear, grn = markdown_rows(text, "### What it costs")
    assert (grn["Hours, alone"], grn["Hours, shared"], grn["Price, 2 an hour"]) == ("2.5", "2.25", "5.00")
    assert (tfidf["Hours, alone"], tfidf["Hours, shared"], tfidf["Notes a second"]) == ("2", "2", "10")
    assert grn["Notes a second"] == "0.055"  # 0.1 s a note, and 18 s of the pass
    assert (linear["Peak memory, GB"], linear["All parameters"]) == ("0.9", "112,000,000")
    # 2.5 hours at 20 W; 50 g a kilowatt-hour
    assert (grn["Energy, kWh"], grn["CO2, g"], tfidf["Energy, kWh"]) == ("0.05 (est.)", "2.5", "0.04 (est.)")
    assert (grn["Notes a second, one core"], grn["Size, MB"]) == ("8.0", "450.0")
    assert "Price" not in (make_report() / "results.md").read_text()


def test_costs_that_were_not_measured_are_a_dash(runs, make_report):
    unknown = {f"cost__{name}": None for name in ("power_watts", "co2_g_per_kwh", "one_core_notes_per_second")}
    write_run(runs, "tfidf", **unknown)
    write_run(runs, "drbert", "grn", "frozen", cost__power_is_measured=True)
    tfidf, grn = markdown_rows((make_report() / "results.md").read_text(), "### What it costs")
    assert [tfidf[name] for name in ("Energy, kWh", "CO2, g", "Notes a second, one core")] == ["-"] * 3
    assert "est." not in grn["Energy, kWh"] and grn["Energy, kWh"] != "-"


def test_hours_shared_are_of_the_heads_that_used_the_very_pass(runs, make_report):
    for head, hours in (("grn", 1.0), ("adapter", 1.0), ("linear", 3.0)):  # linear read windows of another length
        write_run(runs, "drbert", head, "frozen", cost__feature_hours=hours)
    rows = markdown_rows((make_report() / "results.md").read_text(), "### What it costs")
    shared = {row["Model"]: row["Hours, shared"] for row in rows}
    assert shared == {"drbert linear frozen": "3.5", "drbert adapter frozen": "1", "drbert grn frozen": "1"}


def test_costs_and_reason_where_only_parts_were_trained_on(runs, make_report):
    for model in ("tfidf", "drbert"):
        write_run(runs, model, run__train_size=20)
    write_run(runs, "drbert", "grn", "frozen", run__train_size=20, cost__feature_hours=0.5)
    text = (make_report() / "results.md").read_text()
    assert "No verdict: no model was trained on all notes." in text
    speeds = [row["Notes a second"] for row in markdown_rows(text, "### What it costs")]
    assert sorted(speed == "-" for speed in speeds) == [False, False, True]  # which pass was over how many notes?
    assert "- Notes: a fold: train 60, validation 20, test 20" in text


def test_large_numbers_have_no_exponents():
    numbers = {1234.5: "1,234", 237.4: "237", 99.6: "100", 12.3: "12", 0.0012: "0.0012"}
    assert {value: report.number(value, ".2g") for value in numbers} == numbers
    assert report.number(float("nan"), ".2g") == "-" and report.number(1.5, "+.0%") == "+150%"


def test_models_that_took_as_long_are_not_called_dear(runs, make_report):
    for model, hours in (("tfidf", 0.25), ("drbert", 0.2501), ("alibert", 0.2502)):
        write_run(runs, model, cost__training_hours=hours)
    text = (make_report() / "results.md").read_text()
    assert "Deploy tfidf" in text and "1 times" not in text and "most expensive" not in text
    assert report.times(1.01, 1.0) == "1 h, about as long" and report.times(2.0, 1.0) == "2 h, 2 times as long"


def test_files_of_an_earlier_report_do_not_outlive_their_runs(runs, make_report):
    write_run(runs, "tfidf")
    write_run(runs, "drbert")
    folder = make_report()
    assert (folder / "hard_notes.csv").exists() and (folder / "reliability_1.svg").exists()
    (folder / "mine.csv").write_text("mine")
    for path in runs.rglob("predictions.parquet"):
        path.unlink()
    make_report()
    assert not (folder / "hard_notes.csv").exists() and not [*folder.glob("reliability_*")]
    assert (folder / "mine.csv").exists() and (folder / "f1_vs_hours.svg").exists()


def test_a_mistake_of_one_seed_is_not_rounded_away():
    labels = np.array([0, 0, 1, 1])
    predicted = np.array([[0, 0, 1, 1], [0, 0, 1, 0]])
    answers = Answers(np.array([*"abcd"]), labels, predicted, np.arange(4), np.zeros(4, dtype=int), 2)
    assert report.confusion_table(answers, ("non", "oui")).rows[1] == ["oui", "0.5", "1.5"]


def test_names_are_no_markup(runs, make_report):
    for model in ("tfidf", "drbert"):
        write_run(runs, model, data__class_names=["<b>no</b>", "*`yes`* [a](b) __c__ d_e"])
    folder = make_report()
    text, page = (folder / "results.md").read_text(), (folder / "index.html").read_text()
    assert "\\<b>no\\</b>" in text and "\\*\\`yes\\`\\* \\[a\\](b) \\_\\_c\\_\\_ d_e" in text
    assert "<b>no</b>" not in text.replace("\\<", "") + page and "*`yes`*" in page


def test_two_data_sets_have_headings_of_their_own(runs, make_report):
    for dataset in ("one.csv", "two.csv"):
        for model in ("tfidf", "drbert"):
            write_run(runs / dataset, model, run__dataset=dataset, data__fingerprint=dataset)
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", (make_report() / "index.html").read_text())
    assert len(headings) == len(set(headings)) and "Can its probabilities be trusted? two.csv" in headings


@pytest.mark.parametrize(
    ("notes", "warns", "models"),
    [
        (10, True, ("tfidf", "drbert")),
        (30, False, ("tfidf", "drbert")),
        (10, True, ("tfidf",)),
        (30, False, ("tfidf",)),
    ],
)
def test_few_groups_are_told(runs, make_report, notes, warns, models):
    for model in models:
        write_run(runs, model, data__splits__test__notes=2 * notes)
    for path in runs.rglob("predictions.parquet"):
        fold = int(path.parent.name[-1])
        predictions = pd.concat([pd.read_parquet(path)] * 3, ignore_index=True).iloc[: 2 * notes]
        predictions["id"] = [f"{fold}-{number}" for number in range(2 * notes)]
        predictions["group"] = 100 * fold + np.arange(2 * notes) // 2
        predictions.to_parquet(path)
    text = (make_report() / "results.md").read_text()
    sentence = (
        f"With only {2 * notes} groups of test notes (of one patient, document or text) intervals are too narrow"
    )
    assert (sentence in text) == warns and ("too narrow" in text) == warns


@pytest.mark.parametrize(
    ("rare", "average", "warns"), [(3, "macro", True), (3, "weighted", False), (12, "macro", False)]
)
def test_a_class_in_few_groups_is_told(runs, make_report, rare, average, warns):
    for model in ("tfidf", "drbert"):
        write_run(runs, model, data__splits__test__notes=60)
    for path in runs.rglob("predictions.parquet"):
        predictions = pd.concat([pd.read_parquet(path)] * 3, ignore_index=True)
        predictions["id"] = predictions["group"] = [f"{path.parent.name}-{number}" for number in range(60)]
        predictions["label"] = (np.arange(60) < rare) * (path.parent.name == "fold-0")
        predictions.to_parquet(path)
    text = (make_report("--average", average) / "results.md").read_text()
    assert (f"A class is in only {rare} test notes: intervals are too narrow, and tests find more" in text) == warns
    assert f"F1 is F1 ({average})." in text


@pytest.mark.parametrize(
    ("folds", "repeats", "told"),
    [
        (2, 1, "2"),
        (6, 3, "6 (2 drawn 3 times)"),
        (3, 3, "the data's own split, 3 draws of training notes"),
        (1, 3, "1"),
    ],
)
def test_folds_that_were_drawn_several_times_are_told(folds, repeats, told):
    assert report.folds_in_words(pd.Series({"num_folds": folds, "repeats": repeats})) == told


def test_of_one_group_there_is_no_interval(runs, make_report):
    write_run(runs, "tfidf")
    for path in runs.rglob("predictions.parquet"):
        pd.read_parquet(path).assign(group="the only one").to_parquet(path)
    text = (make_report() / "results.md").read_text()
    assert re.search(r"tfidf has F1 \(macro\) 0\.\d{3}\.", text) and "too narrow" not in text


def test_parts_of_the_notes_on_which_a_model_collapsed_are_told(runs, make_report):
    for size in (100, 200):
        write_run(runs / str(size), "tfidf", run__train_size=size, metrics__collapsed=size == 100)
    text = (make_report() / "results.md").read_text()
    assert text.count("(2 of 2 folds COLLAPSED to one answer)") == 1


def test_of_a_few_groups_there_is_no_verdict(runs, make_report):
    """As many as the folds, which is two: no test finds a difference, so none says that the cheapest will do."""
    for model, scores in (("tfidf", (0.9, 0.9)), ("drbert", (0.5, 0.5))):
        write_run(runs, model, scores=scores)
    for path in runs.rglob("predictions.parquet"):
        pd.read_parquet(path).assign(group=path.parent.name).to_parquet(path)
    text = (make_report() / "results.md").read_text()
    assert (
        "No verdict: of only 2 groups of test notes (of one patient, document or text) no test finds a difference"
        in text
    )
    assert "Deploy" not in text and "tfidf has F1 (macro) " in text
    assert "- Task: binary, 2 classes: absent, present (positive: present)" in text
    look = text[text.index("### A closer look") : text.index("## What the papers report")]
    assert "tfidf:" in look and "drbert" not in look  # of many models it would be a page each


def test_folds_drawn_twice_count_a_note_once():
    labels, twice = np.array([0, 1, 1]), np.repeat(np.arange(3), 2)
    predicted = np.array([[0, 0, 1, 0, 1, 1]])
    answers = Answers(np.array(["a", "b", "c"])[twice], labels[twice], predicted, twice, np.tile([0, 1], 3), 2)
    assert [row[-1] for row in report.class_table(answers, ("non", "oui")).rows] == ["1", "2"]
    counts = np.array([row[1:] for row in report.confusion_table(answers, ("non", "oui")).rows], dtype=float)
    assert counts.sum() == 3


def test_errors_of_several_labels_are_counted_class_by_class():
    labels, predicted = np.array([[1, 0], [1, 1], [0, 0], [0, 0]]), np.array([[[1, 1], [0, 1], [1, 0], [0, 0]]])
    answers = Answers(np.arange(4), labels, predicted, np.arange(4), np.zeros(4), 2)
    table = report.confusion_table(answers, ("a", "b"))
    assert table.columns == ["Class", "found", "missed", "false alarm", "rightly not"]
    assert table.rows == [["a", "1", "1", "1", "1"], ["b", "1", "0", "1", "2"]]


def test_names_that_would_break_a_figure_or_a_table(runs, make_report):
    for model in ("tfidf", "transformer"):
        write_run(runs, model, run__dataset="notes_$2_$3_^.csv")
    assert (make_report() / "f1_vs_hours.svg").read_text().count("notes_$2_$3_^.csv") == 1
    lines = report.Table(["True class", "answered p|q\nr"], [["p|q\nr", "3"]]).draw("pipe").splitlines()
    assert len(lines) == 3 and lines[0].count("answered p\\|q r") == 1 and r"p\|q r" in lines[2]


def test_durations_are_in_the_unit_a_reader_would_use():
    hours = [0.5 / 3600, 90 / 3600, 0.5, 1, 1234.4]
    assert [report.duration(value) for value in hours] == ["0.5 s", "1.5 min", "30 min", "1 h", "1,234 h"]
