"""Writes the report: what evaluate.py has aggregated becomes a page, Markdown, CSV, JSON and figures. Reads no result.

`cells` is one row a (dataset, model, head, tuning, train size), `results` one row a fold; evaluate.py says what the
columns are. Page and Markdown are two templates (templates/) over the same content.
"""

import base64
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from tabulate import tabulate

from calibration import brier_score, expected_calibration_error
from comparison import (
    LEAST_GROUPS,
    LEVEL,
    PERMUTATIONS,
    POWER,
    RELEVANT,
    RESAMPLES,
    Answers,
    Verdict,
    can_be_told_apart,
    hard_notes,
    interval,
)
from figures import (
    cell_name,
    draw_curves,
    draw_figure,
    draw_reliability,
    hours_to_compare,
    may_be_ranked,
    seeds_differ,
    shown_model,
)
from learning import curves, describe_crossings, gain_of_doubling

STAND_INS = (
    "Stand-ins are mini encoders of the same architecture pretrained for about a minute for the demo; "
    "their numbers say nothing about the real CamemBERT-bio, AliBERT, DrBERT."
)
# What each column of the statistics is, and the function of comparison.py that computed it.
STATISTICS = {
    "F1": "Of the predictions of all test folds together, the mean over seeds (the table of results averages over "
    f"folds instead); in brackets the 95 % percentile bootstrap interval, {RESAMPLES:,} resamples of whole groups "
    "(patients, documents; notes where there are no groups; copies of one text belong together): `interval`.",
    "SD over folds / seeds": "Standard deviation of that F1, of a fold the mean over seeds, of a seed the mean over "
    "folds: what other notes move, and what chance in training does: `aggregate` of evaluate.py.",
    "Difference from the best": "On the same notes, with its paired bootstrap interval; this is the effect size: "
    "`difference`.",
    "p": f"Paired permutation test of that difference, the answers to whole groups exchanged {PERMUTATIONS:,} times: "
    "`permutation_test`.",
    "p (corrected)": "The same, corrected for having picked the best of all and for so many comparisons: Holm's "
    "procedure over all pairs of models, by the bootstrap, and never less than p: `step_down`.",
    "Right alone / best alone": "Notes that only this model, and only the best, has right (of a multi-label note: "
    "all of its labels); of the first seed, and with --repeats of the first draw of the folds.",
    "p (McNemar)": "The exact test of these two counts, notes taken as independent: `mcnemar_test`, by statsmodels.",
    "p (folds)": "t-test over folds, its variance corrected for their shared training notes (Nadeau and Bengio 2003): "
    "`resampled_t_test`.",
}
# Likewise of the table of costs, from what was measured when the folds were trained.
COSTS = {
    "Hours, alone": "Training on all folds, with all seeds, as if it were the only model, with an encoder's pass over "
    "the notes, or with pretraining in-house; measured with the threads of the run (Hardware), beside what ran at the "
    "same time.",
    "Hours, shared": "The same, that pass divided by the heads that used it, pretraining by the rows that did.",
    "Notes a second": "Prediction on the test folds, by the machine and the batches of the training; for a frozen "
    "encoder with its pass over these notes.",
    "Notes a second, one core": "The model as it is kept, in float32, one note at a time on one core of a processor.",
    "Energy, kWh": "Of the hours alone at the mean power of the training, by codecarbon: measured by the processor's "
    "own counters, which count all that runs on the machine, or estimated (est.) from its model and load; of a GPU "
    "that trained, all that it drew, for runs beside it too.",
    "CO2, g": "Of that energy, by the mix of the country that was given (--country_iso_code), else the world's mean.",
    "Peak memory, GB": "The most that the process held, imported libraries included; of the GPU where there is one "
    "(with --memory_gb there since training on the labels began).",
    "Trainable parameters": "Those that were trained; of a baseline its coefficients.",
    "All parameters": "Those that a prediction needs.",
    "Size, MB": "Of the model on disk.",
}
# Likewise of the table of calibration, by functions of calibration.py.
TRUST = {
    "Calibration error": "Expected calibration error of the test folds, 15 bins: how far, on average, a claimed "
    "probability is from the share of such claims that are so (binary: that a note is positive; multi-label: that it "
    "has a class; multi-class: that the answer is right), the mean over seeds: `expected_calibration_error`.",
    "Calibration error, at temperature": "The same after scaling by a temperature fitted on validation: "
    "`fit_temperature`.",
    "Brier score": "Mean squared distance between claim and truth; 0 is perfect: `brier_score`.",
    "Brier score, at temperature": "The same after temperature scaling.",
}
RULE = (
    f"The verdict (`choose_model`): of the models whose p (corrected) is at least {LEVEL}, the cheapest to train "
    f"alone. It warns where the chosen model may be worse than the best by more than {RELEVANT}, and says how many "
    f"test notes would show the difference seen with a power of {POWER:.0%}, corrected for as many pairs "
    "(`notes_that_would_tell`). A model that gave all notes the same answer in every fold is not chosen for being "
    f"cheap. Of fewer than {LEAST_GROUPS} groups no test can find a difference, and there is no verdict. The best is "
    "the best of the very scores that are tested, which favours it a little; they pool all folds, where the table of "
    "results averages over them. Intervals and tests are of the models as they were trained: where a difference is "
    "small, another seed may turn it round (`--seeds`)."
)
# All that is public of the papers' results. The papers' tables hold more cells; they were not available to us.
PAPER = [
    # source, model, accuracy, precision, recall, F1, cost
    (
        "arXiv 2407.19299",
        "best structure: GRN on one of the three backbones (which one is not public to us)",
        *(0.88, 0.88, 0.88, 0.88),
        "over 1,000 GPU-hours for all pretrained runs together",
    ),
    (
        "arXiv 2303.12892",
        "MoE-Transformer",
        *(0.87, 0.87, 0.85, 0.86),
        "under 6 hours for both small Transformers together (arXiv 2407.19299)",
    ),
]
PAPER_COLUMNS = ["Source", "Model", "Accuracy", "Precision", "Recall", "F1", "Cost"]
WRITTEN_SOMETIMES = ["hard_notes.csv", "f1_vs_hours.*", "learning_curves_*.*", "reliability_*.*"]
MANY_CUT = 0.05  # of the test notes: fewer hardly move a score (ours)
FEW_NOTES = 50  # in a subgroup: a 95 % interval of an accuracy of 0.9 is then 0.17 wide (ours)
# Below it intervals of 95 % hold less often: of 5, 10, 20 and 40 groups of 20 notes in 78, 91, 89 and 92 % of 300
# simulations (ours).
FEW_GROUPS = 40
FEW_OF_A_CLASS = 10  # likewise, of the rarer of two classes; of all test notes, groups of any class (ours)
LEFT_ALIGNED = {
    "Subgroup",
    "Threshold keeps",
    "Model",
    "Head",
    "Tuning",
    "Notes",
    "Run",
    "Source",
    "Cost",
    "Class",
    "True class",
}


@dataclass(frozen=True)
class Trust:
    """What one model claimed with which probability, and whether it is so (calibration.py), all folds together, a pair
    for each seed; as it is and at the temperature fitted on validation. `points` has a row for each fold's operating
    points."""

    told: list[tuple[np.ndarray, np.ndarray]]
    tempered: list[tuple[np.ndarray, np.ndarray]]
    points: pd.DataFrame


@dataclass(frozen=True)
class Compared:
    """The statistics of one data set. `answers`, `trust`, `subgroups` (a row for each value of the columns that scores
    are broken down by) and `table` have an entry for each of `cells`, the index of its row in the table of results;
    `table` is None where fewer than two models have all folds and predictions, or no test could tell them apart."""

    cells: list[int]
    answers: list[Answers]
    trust: list[Trust]
    subgroups: list[pd.DataFrame]
    table: pd.DataFrame | None
    verdict: Verdict | None

    def looked_at(self, metric: str) -> list[int]:
        """The models of a closer look: those of the verdict; where there is none, the one of the highest `metric`."""
        if self.verdict is not None:
            return self.verdict.shown
        ranked = sorted(range(len(self.cells)), key=lambda place: np.nan_to_num(self.answers[place].estimate(metric)))
        return ranked[-1:]


@dataclass
class Table:
    """Text, as it is shown."""

    columns: list[str]
    rows: list[list[str]]
    best: int | None = None  # the row to stress
    best_column: str | None = None  # and the cell of it
    caption: str = "All folds together, the mean over seeds"  # of a closer look

    @classmethod
    def of(cls, records: list[dict[str, str]], **more) -> "Table":
        return cls([*records[0]], [[*record.values()] for record in records], **more)

    def is_left(self, column: str) -> bool:
        return column in LEFT_ALIGNED

    def draw(self, style: str) -> str:
        """`style` is one of tabulate's; 'pipe' gives Markdown."""
        columns, rows = self.columns, [[*row] for row in self.rows]
        if style == "pipe":
            columns, *rows = [[escape_markdown(text) for text in row] for row in (columns, *rows)]
            if self.best is not None:
                place = self.columns.index(self.best_column)
                rows[self.best][place] = f"**{rows[self.best][place]}**"
        alignment = ["left" if self.is_left(column) else "right" for column in self.columns]
        width = 12 if style == "simple" else None  # a terminal is narrow; in Markdown and LaTeX a line is a row
        return tabulate(
            rows, columns, tablefmt=style, disable_numparse=True, colalign=alignment, maxheadercolwidths=width
        )


@dataclass
class DataSet:
    """What the report says of one data set."""

    name: str
    verdict: list[str]  # sentences; the first says what to deploy
    facts: dict[str, str]
    results: Table | None  # None where only parts of the notes were trained on
    costs: Table
    curves: Table | None
    crossings: list[str]
    has_stand_ins: bool
    statistics: Table | None
    trust: Table | None
    # of the chosen and the best model, or the only one: classes, confusion, operating points
    closer_look: dict[str, list[Table]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write_report(
    folder: Path,
    cells: pd.DataFrame,
    results: pd.DataFrame,
    compared: dict[str, Compared],
    estimated: pd.DataFrame,
    average: str,
    price_per_hour: float | None,
    damaged: list[str],
    command: str,
) -> None:
    """Writes index.html, results.md, results.csv, results.tex, hard_notes.csv, report.json, the figure to the folder.

    `compared` is the statistics of each data set, `estimated` one row a run whose hours were estimated beforehand
    (evaluate.py says what its columns are); `average` is the average of precision, recall and F1 to show (the CSV has
    them all), `price_per_hour` what an hour of the machine costs, if that is to be shown, `damaged` a line for each
    file that could not be used, `command` what to type to make the report again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in WRITTEN_SOMETIMES:  # by an earlier report, on other runs
        for path in folder.glob(pattern):
            path.unlink()
    cells.to_csv(folder / "results.csv", index=False)
    # text stays text in the SVG (searchable, sharp), a $ in a name is no formula, the same results give the same file
    drawn, style = {}, {"svg.fonttype": "none", "svg.hashsalt": "frugal-notes", "text.parse_math": False}
    with matplotlib.rc_context(style):
        if ((cells.train_size == "-") & (cells.folds_finished > 0)).any():
            drawn["f1_vs_hours"] = draw_figure(cells, average)
        for number_of_dataset, (name, rows) in enumerate(cells.groupby("dataset", sort=False), start=1):
            if found := curves(rows):
                drawn[f"learning_curves_{number_of_dataset}"] = draw_curves(found, average)
            if compared[name].cells:
                claims = {
                    cell_name(rows.loc[compared[name].cells[place]]): {
                        "as it is": compared[name].trust[place].told[0],
                        "at temperature": compared[name].trust[place].tempered[0],
                    }
                    for place in compared[name].looked_at(f"f1_{average}")
                }
                drawn[f"reliability_{number_of_dataset}"] = draw_reliability(claims)
        for name, figure in drawn.items():
            for suffix, more in (("svg", {"metadata": {"Date": None}}), ("pdf", {}), ("png", {"dpi": 150})):
                figure.savefig(folder / f"{name}.{suffix}", bbox_inches="tight", **more)
    datasets = [
        describe(name, rows, results[results.dataset == name], compared[name], average, price_per_hour)
        for name, rows in cells.groupby("dataset", sort=False)
    ]
    hard = [
        hard_notes(each.answers, results[results.dataset == name].class_names.iloc[0]).assign(dataset=name)
        for name, each in compared.items()
        if each.answers
    ]
    if hard:
        pd.concat(hard).to_csv(folder / "hard_notes.csv", index=False, float_format="%.3f")
    content = {
        "average": average,
        "datasets": datasets,
        "paper": Table(PAPER_COLUMNS, [[shown(value) for value in row] for row in PAPER]),
        "estimates": estimates_table(estimated) if len(estimated) else None,
        "damaged": damaged,
        "command": command,
    }
    pictures = {name: base64.b64encode((folder / f"{name}.svg").read_bytes()).decode() for name in drawn}
    constant = {
        "statistics": STATISTICS,
        "trust": TRUST,
        "costs": COSTS,
        "rule": RULE,
        "stand_ins": STAND_INS,
        "figures": pictures,
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"code": code_in_html, "markdown": escape_markdown}
    for name in ("index.html", "results.md"):
        (folder / name).write_text(templates.get_template(name).render(content | constant), encoding="utf-8")
    tex = "\n\n".join(
        f"% {' '.join(each.name.split())}\n{each.results.draw('latex_booktabs')}" for each in datasets if each.results
    )
    (folder / "results.tex").write_text(tex + "\n", encoding="utf-8")
    with open(folder / "report.json", "w", encoding="utf-8") as file:
        json.dump(content, file, default=asdict, ensure_ascii=False, indent=1)


def escape_markdown(text: str) -> str:
    """The name of a class or of a data set may hold what ends a cell or a line, or is read as markup."""
    markup = r"[\\|*`<&\[\]~]|(?<![^\W_])_|_(?![^\W_])"  # within a word "_" is none
    return re.sub(markup, r"\\\g<0>", " ".join(text.split()))


def code_in_html(text: str) -> Markup:
    """`name` becomes <code>name</code>; everything else is escaped."""
    parts = [
        f"<code>{escape(part)}</code>" if place % 2 else escape(part) for place, part in enumerate(text.split("`"))
    ]
    return Markup("".join(parts))


def describe(
    name: str,
    cells: pd.DataFrame,
    results: pd.DataFrame,
    compared: Compared,
    average: str,
    price_per_hour: float | None,
) -> DataSet:
    whole = cells[cells.train_size == "-"]
    measured = whole[whole.folds_finished > 0]
    content = DataSet(
        name=name,
        verdict=verdict_sentences(cells, compared, average),
        facts=describe_runs(results if measured.empty else results[results.train_size == "-"]),
        results=results_table(whole, average) if len(whole) else None,
        costs=costs_table(cells if measured.empty else measured, price_per_hour),
        curves=curves_table(cells, average),
        crossings=describe_crossings(cells, average),
        has_stand_ins=bool((cells.stand_in_for != "-").any()),
        statistics=None if compared.table is None else statistics_table(cells, compared, average),
        trust=trust_table(cells, compared) if compared.cells else None,
        problems=list_problems(cells),
    )
    for row in compared.looked_at(f"f1_{average}"):
        answers, class_names = compared.answers[row], results.class_names.iloc[0]
        title = cell_name(cells.loc[compared.cells[row]])
        tables = [class_table(answers, class_names), confusion_table(answers, class_names)]
        if len(points := compared.trust[row].points):
            tables.append(points_table(points))
        if len(subgroups := compared.subgroups[row]):
            tables.append(subgroups_table(subgroups, average))
        content.closer_look[title] = tables
    return content


def shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"


# ------------------------------------------------------------------------------------------------------------ tables


def results_table(cells: pd.DataFrame, average: str) -> Table:
    """The cells of one data set."""
    scores = {
        "Accuracy": "accuracy",
        **{f"{name} ({average})": f"{name.lower()}_{average}" for name in ("Precision", "Recall", "F1")},
        "AUROC": "auroc",
    }
    records, some_cut = [], cells.apply(is_cut, axis=1).any()
    for _, cell in cells.iterrows():
        record = {"Model": shown_model(cell), "Head": cell["head"], "Tuning": cell.tuning}
        record |= {title: mean_and_sd(cell, score) for title, score in scores.items()}
        record["Training hours (all folds)"] = number(cell.training_hours, ".3g")
        if (cells.feature_hours > 0).any():
            record["Feature hours (all heads)"] = number(cell.feature_hours, ".3g")
        if (cells.pretraining_hours > 0).any():
            record["Pretraining hours (all its runs)"] = number(cell.pretraining_hours, ".3g")
        if some_cut:
            share = cell.cut_test_notes / cell.evaluated_notes if cell.folds_finished else None
            record["Notes cut"] = f"{share:.0%}" if share else "-"
        record["Folds"] = f"{cell.folds_finished}/{cell.folds_expected}" if cell.folds_finished else "-"
        record["Notes"] = "; ".join(flags(cell, scores))
        records.append(record)
    means = cells[f"f1_{average}_mean"].where(may_be_ranked(cells)).reset_index(drop=True)
    best = None if means.isna().all() else int(means.idxmax())
    return Table.of(records, best=best, best_column=f"F1 ({average})")


def statistics_table(cells: pd.DataFrame, compared: Compared, average: str) -> Table:
    rows = cells.loc[compared.cells].reset_index(drop=True)
    records = []
    for row, line in compared.table.iterrows():
        cell = rows.loc[row]
        gap = f"{line.gap:+.3f} ({line.gap_low:+.3f} to {line.gap_high:+.3f})"
        values = [
            f"{line.score:.3f} ({line.low:.3f} to {line.high:.3f})",
            " / ".join(number(cell[f"f1_{average}_sd_{over}"], ".3f") for over in ("folds", "seeds")),
            "best" if line.is_best else gap,
            number(line.p, ".2g"),
            number(line.p_corrected, ".2g"),
            "-" if line.is_best else f"{line.only_this:.0f} / {line.only_best:.0f}",
            number(line.p_mcnemar, ".2g"),
            number(line.p_resampled_t, ".2g"),
        ]
        records.append({"Model": cell_name(cell), **dict(zip(STATISTICS, values, strict=True))})
    return Table.of(records, best=compared.verdict.choice, best_column="Model")


def curves_table(cells: pd.DataFrame, average: str) -> Table | None:
    found = curves(cells)
    if not found:
        return None
    sizes = sorted(
        {size for curve in found.values() for size in curve.train_size}, key=lambda s: (s == "-", s.zfill(9))
    )
    rows = []
    for name, curve in found.items():
        scores = {}
        for _, cell in curve.iterrows():
            beware = "; ".join(flags(cell, {"F1": f"f1_{average}"}))
            scores[cell.train_size] = mean_and_sd(cell, f"f1_{average}") + (f" ({beware})" if beware else "")
        rows.append([name, *(scores.get(size, "-") for size in sizes)])
    return Table(["Model", *("all notes" if size == "-" else f"{int(size):,} notes" for size in sizes)], rows)


def costs_table(cells: pd.DataFrame, price_per_hour: float | None) -> Table:
    # the heads that used one pass over the notes have its very hours
    heads_of_pass = cells.groupby(["model", "feature_hours"]).size()
    rows = []
    for _, cell in cells[cells.folds_finished > 0].iterrows():
        alone = cell.standalone_hours
        shared = cell.training_hours + cell.feature_hours / heads_of_pass[cell.model, cell.feature_hours]
        shared += cell.shared_pretraining_hours
        seconds = cell.evaluation_seconds / cell.evaluated_notes + 3600 * cell.feature_hours / cell.corpus_notes
        row = [cell_name(cell), number(alone, ".3g"), number(shared, ".3g")]
        # an encoder's pass reads all notes, and how many these are no result on a part of them says
        unknown = cell.feature_hours > 0 and cell.train_size != "-"
        speed = 1 / seconds if seconds and not unknown else None
        row.append(number(speed, ".2g"))
        row.append(number(cell.one_core_notes_per_second, ",.1f"))
        energy = alone * cell.power_watts / 1000
        row.append(number(energy, ".2g") + ("" if cell.power_is_measured or pd.isna(energy) else " (est.)"))
        row.append(number(energy * cell.co2_g_per_kwh, ".2g"))
        row.append(number(cell.peak_memory_mb / 1000, ".1f"))
        row += [number(cell.trainable_parameters, ",.0f"), number(cell.total_parameters, ",.0f")]
        row.append(number(cell.model_megabytes, ".1f"))
        if price_per_hour is not None:
            price = alone * price_per_hour
            row.append(f"{price:,.2f}" if price >= 0.01 else f"{price:.1g}")
        rows.append(row)
    return Table(["Model", *COSTS, *([] if price_per_hour is None else [f"Price, {price_per_hour:g} an hour"])], rows)


def class_table(answers: Answers, class_names: tuple[str, ...]) -> Table:
    """Precision, recall and F1 of every class, all folds together, the mean over seeds."""
    records = []
    counts = answers.by_group.sum(axis=1)
    for number_of_class, name in enumerate(class_names):
        values = {
            title: answers.score_classes(counts, title.lower())[:, number_of_class].mean()
            for title in ("Precision", "Recall", "F1")
        }
        support = (
            answers.labels[:, number_of_class] == 1 if answers.is_multi_label else answers.labels == number_of_class
        )
        record = {"Class": name, **{title: f"{value:.3f}" for title, value in values.items()}}
        records.append(record | {"Test notes": f"{support.sum() // answers.repeats:,}"})
    return Table.of(records)


def confusion_table(answers: Answers, class_names: tuple[str, ...]) -> Table:
    """Notes by true class and answer, all folds together, the mean over seeds and over several draws of the folds;
    multi-label notes class by class."""
    if answers.is_multi_label:
        counts = answers.by_group.sum(axis=1).mean(axis=0) / answers.repeats
        found, false_alarms, missed = answers.errors_by_class(counts)
        rows = np.stack([found, missed, false_alarms, counts[-1] - found - false_alarms - missed], axis=1)
        first, columns = "Class", ["found", "missed", "false alarm", "rightly not"]
    else:
        rows, columns = answers.confusion, [f"answered {name}" for name in class_names]
        first = "True class"
    style = ",.0f" if np.allclose(rows, np.round(rows)) else ",.1f"  # a mean of few mistakes is not rounded to none
    shown_rows = [[name, *(f"{n:{style}}" for n in row)] for name, row in zip(class_names, rows, strict=True)]
    return Table([first, *columns], shown_rows)


def trust_table(cells: pd.DataFrame, compared: Compared) -> Table:
    rows = []
    for number_of_cell, trust in zip(compared.cells, compared.trust, strict=True):
        values = [
            np.mean([score(*of_seed) for of_seed in part])
            for score in (expected_calibration_error, brier_score)
            for part in (trust.told, trust.tempered)
        ]
        rows.append([cell_name(cells.loc[number_of_cell]), *(f"{value:.3f}" for value in values)])
    return Table(["Model", *TRUST], rows)


def points_table(points: pd.DataFrame) -> Table:
    """Over the folds in which validation had a threshold that keeps what is required: its median, which
    `predict.py --threshold` takes, and the means of what each fold's own one gave."""
    rows = []
    for (kept, required), folds in points.groupby(["kept", "required"], sort=False):
        # with all its digits: those of a rare class, or of a model that is too sure, lie at 0 or 1
        threshold = number(folds.threshold.astype(float).median(), "")
        means = [number(folds[name].astype(float).mean(), ".3f") for name in ("recall", "precision")]
        rows.append(
            [
                f"{kept} of {required:g} on validation",
                threshold,
                *means,
                f"{folds.threshold.notna().sum()}/{len(folds)}",
            ]
        )
    return Table(
        ["Threshold keeps", "Threshold", "Recall on test", "Precision on test", "Folds with one"],
        rows,
        caption="Of the folds and seeds in which validation had such a threshold: its median, and the means of what "
        "each one's own gave on test",
    )


def subgroups_table(subgroups: pd.DataFrame, average: str) -> Table:
    """Scores of parts of the test notes; those of few notes, or few of one class, are marked, since chance alone moves
    them by much."""
    records = []
    for _, row in subgroups.iterrows():
        few = " (few: unreliable)" if row.notes < FEW_NOTES or row.least < FEW_OF_A_CLASS else ""
        records.append(
            {
                "Subgroup": f"{row.column} {row.value}",
                "Test notes": f"{row.notes:,}{few}",
                "Accuracy": f"{row.accuracy:.3f}",
                f"F1 ({average})": number(row.f1, ".3f"),
            }
        )
    return Table.of(records)


def estimates_table(estimated: pd.DataFrame) -> Table:
    total = estimated[["at_most", "expected_for_epochs", "measured"]].sum()
    total["off"] = total.measured / total.expected_for_epochs - 1 if total.expected_for_epochs else None
    rows = [
        [run_id, *(number(row[column], ".3g") for column in ("at_most", "expected_for_epochs", "measured"))]
        + [number(row.off, "+.0%")]
        for run_id, row in [*((row.run_id, row) for _, row in estimated.iterrows()), ("all of them", total)]
    ]
    return Table(["Run", "At most", "For the epochs run", "Measured", "Off by"], rows)


def mean_and_sd(cell: pd.Series, score: str) -> str:
    mean, sd = cell[f"{score}_mean"], cell[f"{score}_sd"]
    return number(mean, ".3f") if pd.isna(sd) else f"{mean:.3f} ± {sd:.3f}"


def number(value: float | None, style: str) -> str:
    """As `format`, but without exponents of large numbers."""
    if pd.isna(value):
        return "-"
    text = format(value, style)
    return f"{value:,.0f}" if "e+" in text else text


def flags(cell: pd.Series, scores: dict[str, str]) -> list[str]:
    """What a reader must know before believing the row, a few words each."""
    words = []
    if cell.status != "complete":
        words.append(cell.status.upper())
    words += [f"a run {kind.upper()}" for kind in ("failed", "missing") if cell[kind] and cell.status != kind]
    if cell.collapsed_folds:
        words.append(f"{cell.collapsed_folds} of {cell.folds_finished} folds COLLAPSED to one answer")
    for title, score in scores.items():
        if cell.folds_finished and cell[f"{score}_count"] < cell.folds_finished:
            words.append(f"{title} over {cell[f'{score}_count']:.0f} of {cell.folds_finished} folds")
    return words


def is_cut(cell: pd.Series) -> bool:
    """Whether the model read only the beginning of so many notes that its score may come from that."""
    return bool(cell.folds_finished and cell.cut_test_notes >= MANY_CUT * cell.evaluated_notes)


def list_problems(cells: pd.DataFrame) -> list[str]:
    """One line for every cell that lacks folds or had a failure, with the reason where there is one."""
    lines = []
    for _, cell in cells.iterrows():
        name = cell_name(cell)
        if cell.status == "incomplete":
            lines.append(f"incomplete: {name}: {cell.folds_finished} of {cell.folds_expected} folds")
        if cell.failed:
            lines.append(f"failed: {name}: {cell.failed}")
        if cell.missing:
            lines.append(f"missing: {name}: planned as {cell.missing}, no result")
    return lines


# -------------------------------------------------------------------------------------------------------------- text


def verdict_sentences(cells: pd.DataFrame, compared: Compared, average: str) -> list[str]:
    """The verdict, what to deploy first; `cells` are those of one data set."""
    if compared.verdict is None:
        why = "fewer than two models have all their folds and predictions that can be compared"
        if (cells.train_size != "-").all():
            why = "no model was trained on all notes"
        elif len(compared.cells) > 1 and not can_be_told_apart(compared.answers[0]):
            groups = compared.answers[0].by_group.shape[1]
            why = (
                f"of only {groups} {groups_in_words(compared.answers[0])} no test finds a difference, however large; "
                f"{LEAST_GROUPS} are the least, and {FEW_GROUPS} would do"
            )
        elif len(compared.cells) > 1:
            why = f"no test note is positive, so that F1 ({average}) says nothing"
        sentences, with_intervals = [f"No verdict: {why}."], 0
        for row, answers in zip(compared.cells, compared.answers, strict=True):
            if np.isnan(answers.estimate(f"f1_{average}")):
                continue
            score, (low, high) = answers.estimate(f"f1_{average}"), interval(answers, f"f1_{average}")
            name, groups = cell_name(cells.loc[row]), answers.by_group.shape[1]
            within = f" (95 % interval {low:.3f} to {high:.3f})" if groups > 1 else ""
            with_intervals += groups > 1
            sentences.append(f"{name} has F1 ({average}) {score:.3f}{within}.")
        if with_intervals:
            sentences += doubts_of_intervals(compared.answers[0], average)
        return sentences + left_out(cells)
    verdict, table = compared.verdict, compared.table
    rows = cells.loc[compared.cells].reset_index(drop=True)
    hours = hours_to_compare(rows)

    def name(row: int) -> str:
        return cell_name(rows.loc[row])

    chosen, best = table.loc[verdict.choice], table.loc[verdict.best]
    but = ""
    if verdict.passed_over:
        but = f" ({len(verdict.passed_over)} passed over for giving all notes the same answer)"
    sentences = [
        f"Deploy {name(verdict.choice)}: F1 ({average}) {chosen.score:.3f} (95 % interval {chosen.low:.3f} to "
        f"{chosen.high:.3f}), {duration(hours[verdict.choice])} of training."
    ]
    if verdict.choice == verdict.best:
        alike = len(verdict.candidates) - 1
        sentence = f"It has the highest score of {len(table)} models"
        if alike:
            sentence += f", and is the cheapest of the {alike + 1} that are not significantly worse{but}"
        else:
            sentence += ", and is significantly better than all others"
        sentences.append(f"{sentence}.")
    else:
        sentences.append(
            f"It is the cheapest of the {len(verdict.candidates)} of {len(table)} models that are not "
            f"significantly worse{but} than the best, {name(verdict.best)} ({best.score:.3f}; difference "
            f"{chosen.gap:+.3f}, {chosen.gap_low:+.3f} to {chosen.gap_high:+.3f}, p = {chosen.p_corrected:.2g}, "
            "corrected for all pairs of models), "
            f"which took {times(hours[verdict.best], hours[verdict.choice])}."
        )
    if rows.transductive.any():
        sentences.append("Beware: all of these models know test text, so that their figures flatter them.")
    if seeds_differ(rows):
        sentences.append("The models do not have as many seeds: hours are those of one.")
    if collapsed := rows.collapsed_folds[verdict.choice]:
        sentences.append(
            f"Beware: in {collapsed} of {rows.folds_finished[verdict.choice]} folds it gave all notes the same answer."
        )
    cut = rows.apply(is_cut, axis=1)
    if cut.any() and not cut.all():
        sentences.append(
            f"{cut.sum()} of the {len(rows)} models read only the beginning of many notes, --max_length tokens (Notes "
            "cut), the others nearly all of each: for a fair comparison train them with --long_notes windows."
        )
    sentences += doubts_of_intervals(compared.answers[0], average, ", and tests find more than there is")
    sentences += left_out(cells)
    if hours[verdict.dearest] >= 1.05 * hours[verdict.choice] and verdict.dearest != verdict.best:
        took = times(hours[verdict.dearest], hours[verdict.choice])
        sentences.append(f"The most expensive, {name(verdict.dearest)}, took {took}.")
    found = curves(cells).get(name(verdict.choice))
    gain = None if found is None else gain_of_doubling(found, f"f1_{average}")
    if gain is not None and not np.isnan(gain[1]):
        brought = "more notes brought it nothing."
        if gain[1] > 0:
            brought = f"each doubling brought it {gain[1]:+.3f}: expect no more than that from twice as many again."
        sentences.append(f"From {gain[0]:,} to {found.train_notes.iloc[-1]:,.0f} training notes {brought}")
    if verdict.too_few_notes:
        sentences.append(f"The notes are too few to be sure: it may be worse than the best by {-chosen.gap_low:.3f}.")
    if verdict.notes_needed:
        needed = float(f"{verdict.notes_needed:.2g}")  # it is no more exact than that
        sentences.append(f"About {needed:,.0f} test notes would show a difference as large as the one seen.")
    return sentences


def groups_in_words(answers: Answers) -> str:
    alone = answers.by_group.shape[1] == len(set(answers.ids))
    return "test notes" if alone else "groups of test notes (of one patient, document or text)"


def doubts_of_intervals(answers: Answers, average: str, more: str = "") -> list[str]:
    """A sentence on why they are too narrow, if they are."""
    groups, kind = answers.by_group.shape[1], groups_in_words(answers)
    if groups < FEW_GROUPS:
        return [f"With only {groups} {kind} intervals are too narrow{more}."]
    of_class = answers.groups_of_class[1:] if average == "positive" else answers.groups_of_class
    least = of_class[of_class > 0].min()
    if average in ("macro", "positive") and least < FEW_OF_A_CLASS:  # of which a sample may have none, or the same
        return [f"A class is in only {least} {kind}: intervals are too narrow{more}."]
    return []


def left_out(cells: pd.DataFrame) -> list[str]:
    """A sentence on the models that are not compared because their figures flatter them, if there are any."""
    complete = cells[(cells.status == "complete") & (cells.train_size == "-")]
    names = [cell_name(cell) for _, cell in complete[~may_be_ranked(complete)].iterrows()]
    why = "since test text was not kept out of their pretraining"
    return [f"Not compared, {why}: {', '.join(names)}."] if names else []


def times(hours: float, cheapest: float) -> str:
    if not cheapest:
        return duration(hours)
    ratio = hours / cheapest
    as_long = "about as long" if ratio < 1.05 else f"{ratio:{',.0f' if ratio >= 10 else '.2g'}} times as long"
    return f"{duration(hours)}, {as_long}"


def duration(hours: float) -> str:
    """In the unit that a reader would use: seconds below a minute, minutes below an hour."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    if hours < 1:
        return f"{hours * 60:.2g} min"
    return f"{hours:.2g} h" if hours < 10 else f"{hours:,.0f} h"


def processes_in_words(processes: int) -> str:
    return f"; {processes} processes, whose memory and processor's energy are those of one" if processes > 1 else ""


def describe_runs(results: pd.DataFrame) -> dict[str, str]:
    """What the runs of one data set were run on, with every distinct value where the runs differ."""
    if results.empty:
        return {}
    first = results.iloc[0]
    train, validation, test = (
        results.splits.map(lambda splits, name=name: splits[name]["notes"]) for name in ("train", "validation", "test")
    )
    packages = {(name, version) for row in results.packages for name, version in row.items()}
    hardware = {
        f"{h.get('cpu')}, {h.get('threads')} thread{'' if h.get('threads') == 1 else 's'} of {h.get('cores')} cores, "
        f"GPU: {h.get('gpu') or 'none'}{processes_in_words(h.get('processes', 1))}"
        for h in results.hardware
    }
    encoders = results[results.kind == "pretrained"]
    encoders = {
        f"{row.model}: {row.backbone}" + (f" at {row.revision[:12]}" if row.revision != "-" else "")
        for row in encoders.itertuples()
    }
    positive = f" (positive: {first.class_names[1]})" if first.task == "binary" else ""
    parts = f"a fold: train {span(train)}, validation {span(validation)}, test {span(test)}"
    commits = results.git_commit.str[:12] + results.git_dirty.map({True: " (with uncommitted changes)"}).fillna("")
    return {
        "Notes": f"{span(train + validation + test)} ({parts})" if first.train_size == "-" else parts,
        "Task": f"{first.task}, {len(first.class_names)} classes: {', '.join(first.class_names)}{positive}",
        "Data fingerprint": first.fingerprint,
        **({"Encoders": "; ".join(sorted(encoders))} if encoders else {}),
        "Folds": distinct(results.apply(folds_in_words, axis=1)),
        "Seeds": f"initialisation {distinct(results.seed)}; order of the notes {distinct(results.order_seed)}; splits "
        f"{distinct(results.split_seed)}",
        "Hardware": " / ".join(sorted(hardware)),
        "Git commit": distinct(commits),
        "Python": distinct(results.python),
        "Packages": ", ".join(f"{name} {version}" for name, version in sorted(packages)),
    }


def folds_in_words(result: pd.Series) -> str:
    if result.num_folds == result.repeats > 1:
        return f"the data's own split, {result.repeats} draws of training notes"
    if result.num_folds > result.repeats > 1:
        return f"{result.num_folds} ({result.num_folds // result.repeats} drawn {result.repeats} times)"
    return str(result.num_folds)


def span(values: pd.Series) -> str:
    return f"{values.min():,}" if values.nunique() == 1 else f"{values.min():,} to {values.max():,}"


def distinct(values: pd.Series) -> str:
    return ", ".join(map(str, sorted(values.unique())))
