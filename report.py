"""Draws the report: what evaluate.py has aggregated becomes Markdown, CSV and a figure. Reads no file.

`cells` is one row a (dataset, model, head, tuning), `results` one row a fold; evaluate.py says what the columns are.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tabulate import tabulate

from comparison import LEVEL, PERMUTATIONS, POWER, RELEVANT, RESAMPLES, Verdict

OTHER = "other backbones"
# The paper's order and, for the figure, one colour a model (Okabe and Ito's palette, made for colour-blind readers).
MODELS = {
    "tfidf": "#000000",
    "camembert-bio": "#0072B2",
    "alibert": "#D55E00",
    "drbert": "#009E73",
    OTHER: None,  # MORE_COLOURS in turn
    "transformer": "#E69F00",
    "moe-transformer": "#56B4E9",
}
MORE_COLOURS = ["#CC79A7", "#882255", "#999933", "#888888"]
HEADS = {"-": "X", "linear": "o", "adapter": "s", "lightweight": "^", "tiny-attention": "D", "grn": "*"}
TUNINGS = {  # how a marker is filled
    "-": {},
    "frozen": {"markerfacecolor": "white"},
    "lora": {"fillstyle": "left", "markerfacecoloralt": "white"},
    "full": {},
}

STAND_INS = (
    "Stand-ins are mini encoders of the same architecture pretrained for about a minute for the demo; "
    "their numbers say nothing about the real CamemBERT-bio, AliBERT, DrBERT."
)
STATISTICS = f"""What the columns are, and the function that computed each (comparison.py):

- **F1, all folds**: of the predictions of all test folds together, the mean over seeds, where the table above averages
  over folds; in brackets the 95 % percentile bootstrap interval, {RESAMPLES:,} resamples of whole groups (patients,
  documents; notes where there are no groups) (`interval`).
- **Difference from the best**: on the same notes, with its paired bootstrap interval: the effect size (`difference`).
- **p**: paired permutation test of that difference, the answers to whole groups exchanged, {PERMUTATIONS:,} times
  (`permutation_test`); **Holm**: corrected for all rows of the table (`holm`, by statsmodels).
- **Right alone / best alone**: notes that only this model or only the best has right; **McNemar**: the exact test of
  these two counts, of the first seed, notes taken as independent (`mcnemar_test`, by statsmodels).
- **Folds**: t-test over folds, its variance corrected for their shared training notes (`resampled_t_test`, Nadeau and
  Bengio 2003).
- **Hours, alone**: training all folds as if it were the only model; **pass shared**: the encoder's one pass over the
  notes divided by the heads that used it.

The verdict (`choose_model`): of the models whose p (Holm) is at least {LEVEL}, the cheapest to train alone. It warns
where the chosen model may be worse than the best by more than {RELEVANT}, and says how many test notes would show the
difference seen with a power of {POWER:.0%} (`notes_that_would_tell`). The best is the best of the very scores that are
tested, which favours it a little."""
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


@dataclass(frozen=True)
class Compared:
    """The statistics of one data set: `table` has a row for each of `cells`, the index of its row in the table of
    results; None where fewer than two models have all folds and their predictions."""

    cells: list[int]
    table: pd.DataFrame | None
    verdict: Verdict | None


def in_paper_order(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows as the paper lists them: baseline, backbones with their heads, models trained from scratch."""

    def rank(cell: pd.Series) -> tuple:
        model = real_model(cell)
        model_rank = list(MODELS).index(model if model in MODELS else OTHER)
        head_rank, tuning_rank = (
            list(known).index(name) if name in known else len(known)
            for known, name in ((HEADS, cell["head"]), (TUNINGS, cell.tuning))
        )
        return cell.dataset, model_rank, model, head_rank, cell["head"], tuning_rank, cell.tuning, cell.model

    ranks = cells.apply(rank, axis=1)
    return cells.loc[ranks.sort_values().index].reset_index(drop=True)


def real_model(cell: pd.Series) -> str:
    return cell.model if cell.stand_in_for == "-" else cell.stand_in_for


def shown_model(cell: pd.Series) -> str:
    return cell.model if cell.stand_in_for == "-" else f"{cell.stand_in_for} (stand-in)"


def write_report(
    folder: Path,
    cells: pd.DataFrame,
    results: pd.DataFrame,
    compared: dict[str, Compared],
    estimated: pd.DataFrame,
    average: str,
    damaged: list[str],
    command: str,
) -> None:
    """Writes results.csv, results.md, f1_vs_hours.svg and f1_vs_hours.png to the folder.

    `compared` is the statistics of each data set, `estimated` one row a run whose hours were estimated beforehand
    (evaluate.py says what its columns are); `average` is the average of precision, recall and F1 to show (the CSV has
    them all), `damaged` a line for each file that could not be used, `command` what to type to make the report again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells.to_csv(folder / "results.csv", index=False)
    markdown = markdown_report(cells, results, compared, estimated, average, damaged, command)
    (folder / "results.md").write_text(markdown, encoding="utf-8")
    # text stays text in the SVG (searchable, sharp), and the same results give the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frugal-notes"}):
        figure = draw_figure(cells, average)
        figure.savefig(folder / "f1_vs_hours.svg", bbox_inches="tight", metadata={"Date": None})
        figure.savefig(folder / "f1_vs_hours.png", bbox_inches="tight", dpi=150)


# ------------------------------------------------------------------------------------------------------------ table


def results_table(cells: pd.DataFrame, average: str, style: str) -> str:
    """The cells of one data set as a table; `style` is one of tabulate's, and 'pipe' gives Markdown."""
    scores = {
        "Accuracy": "accuracy",
        **{f"{name} ({average})": f"{name.lower()}_{average}" for name in ("Precision", "Recall", "F1")},
        "AUROC": "auroc",
    }
    f1 = f"f1_{average}"
    best = cells[f"{f1}_mean"].where(cells.status == "complete").max()
    rows = []
    for _, cell in cells.iterrows():
        shown = {title: mean_and_sd(cell, score) for title, score in scores.items()}
        if style == "pipe" and cell.status == "complete" and cell[f"{f1}_mean"] == best:
            shown[f"F1 ({average})"] = f"**{shown[f'F1 ({average})']}**"
        row = {"Model": shown_model(cell), "Head": cell["head"], "Tuning": cell.tuning, **shown}
        row["Training hours (all folds)"] = number(cell.training_hours, ".3g")
        if (cells.feature_hours > 0).any():
            row["Feature hours (shared)"] = number(cell.feature_hours, ".3g")
        row["Trainable parameters"] = number(cell.trainable_parameters, ",.0f")
        row["Folds"] = f"{cell.folds_finished}/{cell.folds_expected}" if cell.folds_finished else "-"
        row["Notes"] = "; ".join(flags(cell, scores))
        rows.append(row)
    if style == "pipe":
        rows = [{title: text.replace("|", "\\|") for title, text in row.items()} for row in rows]
    right = [*scores, "Training hours (all folds)", "Feature hours (shared)", "Trainable parameters", "Folds"]
    alignment = ["right" if title in right else "left" for title in rows[0]]
    # a terminal is narrow, but a Markdown header must stay on one line
    width = None if style == "pipe" else 12
    return tabulate(
        rows, headers="keys", tablefmt=style, disable_numparse=True, colalign=alignment, maxheadercolwidths=width
    )


def verdict_text(cells: pd.DataFrame, compared: Compared, average: str) -> str:
    """The verdict in plain sentences; `cells` are those of one data set."""
    if compared.verdict is None:
        return "No verdict: fewer than two models have all their folds and predictions that can be compared."
    verdict, table = compared.verdict, compared.table
    rows = cells.loc[compared.cells].reset_index(drop=True)
    hours = rows.training_hours + rows.feature_hours

    def name(row: int) -> str:
        return cell_name(rows.loc[row])

    chosen, best = table.loc[verdict.choice], table.loc[verdict.best]
    sentences = [
        f"Deploy {name(verdict.choice)}: F1 ({average}) {chosen.score:.3f} (95 % interval {chosen.low:.3f} to "
        f"{chosen.high:.3f}), {number(hours[verdict.choice], '.2g')} hours of training."
    ]
    if verdict.choice == verdict.best:
        alike = len(verdict.candidates) - 1
        others = (
            f"the cheapest of the {alike + 1} that are not significantly worse" if alike else "significantly better"
        )
        sentences.append(f"It has the highest score of {len(table)} models, and is {others}.")
    else:
        sentences.append(
            f"It is the cheapest of the {len(verdict.candidates)} of {len(table)} models that are not significantly "
            f"worse than the best, {name(verdict.best)} ({best.score:.3f}; difference {chosen.gap:+.3f}, "
            f"{chosen.gap_low:+.3f} to {chosen.gap_high:+.3f}, p = {chosen.p_holm:.2g}), which took "
            f"{times(hours[verdict.best], hours[verdict.choice])}."
        )
    if verdict.dearest not in (verdict.choice, verdict.best):
        took = times(hours[verdict.dearest], hours[verdict.choice])
        sentences.append(f"The most expensive, {name(verdict.dearest)}, took {took}.")
    if verdict.too_few_notes:
        sentences.append(f"The notes are too few to be sure: it may be worse than the best by {-chosen.gap_low:.3f}.")
    if verdict.notes_needed:
        sentences.append(
            f"About {verdict.notes_needed:,} test notes would show a difference as large as the one seen."
        )
    return " ".join(sentences)


def times(hours: float, cheapest: float) -> str:
    ratio = f", {hours / cheapest:.2g} times as many" if cheapest else ""
    return f"{number(hours, '.2g')} hours{ratio}"


def statistics_table(cells: pd.DataFrame, compared: Compared, average: str) -> str:
    rows = cells.loc[compared.cells].reset_index(drop=True)
    heads_of_pass = rows[rows.feature_hours > 0].groupby("model").size()
    lines = []
    for row, line in compared.table.iterrows():
        cell = rows.loc[row]
        shared = cell.feature_hours / heads_of_pass.get(cell.model, 1)
        lines.append(
            {
                "Model": cell_name(cell).replace("|", "\\|"),
                f"F1 ({average}), all folds": f"{line.score:.3f} ({line.low:.3f} to {line.high:.3f})",
                "Difference from the best": "best"
                if line.is_best
                else f"{line.gap:+.3f} ({line.gap_low:+.3f} to {line.gap_high:+.3f})",
                "p": number(line.p, ".2g"),
                "p (Holm)": number(line.p_holm, ".2g"),
                "Right alone / best alone": "-" if line.is_best else f"{line.only_this:.0f} / {line.only_best:.0f}",
                "p (McNemar)": number(line.p_mcnemar, ".2g"),
                "p (folds)": number(line.p_resampled_t, ".2g"),
                "Hours, alone": number(cell.training_hours + cell.feature_hours, ".3g"),
                "Hours, pass shared": number(cell.training_hours + shared, ".3g"),
            }
        )
    alignment = ["left"] + ["right"] * (len(lines[0]) - 1)
    return tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=alignment)


def cell_name(cell: pd.Series) -> str:
    return " ".join(part for part in (shown_model(cell), cell["head"], cell.tuning) if part != "-")


def estimates_table(estimated: pd.DataFrame) -> str:
    total = estimated[["at_most", "expected_for_epochs", "measured"]].sum()
    total["off"] = total.measured / total.expected_for_epochs - 1 if total.expected_for_epochs else None
    rows = [
        [run_id, *(number(row[column], ".3g") for column in ("at_most", "expected_for_epochs", "measured"))]
        + [number(row.off, "+.0%")]
        for run_id, row in [*((row.run_id, row) for _, row in estimated.iterrows()), ("all of them", total)]
    ]
    headers = ["Run", "At most", "For the epochs run", "Measured", "Off by"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=["left", *["right"] * 4])


def mean_and_sd(cell: pd.Series, score: str) -> str:
    mean, sd = cell[f"{score}_mean"], cell[f"{score}_sd"]
    return number(mean, ".3f") if pd.isna(sd) else f"{mean:.3f} ± {sd:.3f}"


def number(value: float, style: str) -> str:
    return "-" if pd.isna(value) else format(value, style)


def flags(cell: pd.Series, scores: dict[str, str]) -> list[str]:
    """What a reader must know before believing the row, a few words each."""
    words = []
    if cell.status != "complete":
        words.append(cell.status.upper())
    words += [f"a run {kind.upper()}" for kind in ("failed", "missing") if cell[kind] and cell.status != kind]
    if cell.collapsed_folds:
        words.append(f"{cell.collapsed_folds} of {cell.folds_finished} folds COLLAPSED to one class")
    for title, score in scores.items():
        if cell.folds_finished and cell[f"{score}_count"] < cell.folds_finished:
            words.append(f"{title} over {cell[f'{score}_count']:.0f} of {cell.folds_finished} folds")
    return words


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


# --------------------------------------------------------------------------------------------------------- Markdown


def markdown_report(
    cells: pd.DataFrame,
    results: pd.DataFrame,
    compared: dict[str, Compared],
    estimated: pd.DataFrame,
    average: str,
    damaged: list[str],
    command: str,
) -> str:
    parts = [
        "# Results",
        "Scores are on the test folds, mean ± sample standard deviation over folds and seeds (no ± for one fold). "
        f"Bold: the best F1 ({average}) of the complete rows. Training hours are the sum over folds and seeds; "
        "feature hours are a frozen backbone's one pass over the notes, which its heads and folds share.",
    ]
    for dataset, rows in cells.groupby("dataset", sort=False):
        parts.append(f"## {dataset}")
        parts.append(f"**{verdict_text(rows, compared[dataset], average)}**")
        parts.append(describe_runs(results[results.dataset == dataset]))
        parts.append(results_table(rows, average, "pipe"))
        if (rows.stand_in_for != "-").any():
            parts.append(STAND_INS)
        if compared[dataset].table is not None:
            parts.append("### Are the differences real?")
            parts.append(statistics_table(rows, compared[dataset], average))
            parts.append(STATISTICS)
        problems = list_problems(rows)
        if problems:
            parts.append("### Not complete\n\n" + "\n".join(f"- {line}" for line in problems))
    parts.append("![F1 against hours of training](f1_vs_hours.svg)")
    parts.append("## What the papers report")
    headers = ["Source", "Model", "Accuracy", "Precision", "Recall", "F1", "Cost"]
    parts.append(tabulate(PAPER, headers=headers, tablefmt="pipe", floatfmt=".2f"))
    parts.append(
        "For orientation only: a private corpus (5,444 notes of one hospital, binary), averaging not stated, other "
        "hardware, so not comparable cell by cell. These are all the numbers that are public to us."
    )
    if len(estimated):
        parts.append("## Hours, estimated beforehand and measured")
        parts.append(
            "Of training, all folds. The estimate counts every epoch; early stopping ends some runs sooner, so the "
            "measured hours are compared with what the estimate gives for the epochs that were run."
        )
        parts.append(estimates_table(estimated))
    if damaged:
        parts.append("## Files left out\n\n" + "\n".join(f"- {line}" for line in damaged))
    parts.append(f"## How to make this report again\n\n```\n{command}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_runs(results: pd.DataFrame) -> str:
    """What the runs of one data set were run on: a bullet each, with every distinct value where the runs differ."""
    if results.empty:
        return ""
    first = results.iloc[0]
    train, validation, test = (
        results.splits.map(lambda splits, name=name: splits[name]["notes"]) for name in ("train", "validation", "test")
    )
    packages = {(name, version) for row in results.packages for name, version in row.items()}
    hardware = {f"{h.get('cpu')}, {h.get('cores')} cores, GPU: {h.get('gpu') or 'none'}" for h in results.hardware}
    commits = results.git_commit.str[:12] + results.git_dirty.map({True: " (with uncommitted changes)"}).fillna("")
    facts = {
        "Notes": f"{span(train + validation + test)} "
        f"(a fold: train {span(train)}, validation {span(validation)}, test {span(test)})",
        "Task": f"{first.task}, {len(first.class_names)} classes: {', '.join(first.class_names)}",
        "Data fingerprint": f"`{first.fingerprint}`",
        "Folds": distinct(results.num_folds),
        "Seeds": distinct(results.seed),
        "Hardware": " / ".join(sorted(hardware)),
        "Git commit": distinct(commits),
        "Python": distinct(results.python),
        "Packages": ", ".join(f"{name} {version}" for name, version in sorted(packages)),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def span(values: pd.Series) -> str:
    return f"{values.min():,}" if values.nunique() == 1 else f"{values.min():,} to {values.max():,}"


def distinct(values: pd.Series) -> str:
    return ", ".join(map(str, sorted(values.unique())))


# ----------------------------------------------------------------------------------------------------------- figure


def draw_figure(cells: pd.DataFrame, average: str) -> Figure:
    """F1 against hours, a panel for each data set and a point for each row of the table; bars are ± one sd.

    The hours of a point include the shared pass over the notes: what the model costs if it is the only one trained.
    """
    drawn = cells[cells.folds_finished > 0]
    panels = list(drawn.groupby("dataset", sort=False))
    colours = assign_colours(drawn)
    figure = Figure(figsize=(10, 5.5 * len(panels)), layout="constrained")
    for axes, (dataset, rows) in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        for _, cell in rows.iterrows():
            # a log axis has no zero: a time too short for its clock is drawn at a hundredth of a second
            hours = max(cell.training_hours + cell.feature_hours, 0.01 / 3600)
            f1, sd = cell[f"f1_{average}_mean"], cell[f"f1_{average}_sd"]
            colour = colours[shown_model(cell)]
            axes.errorbar(hours, f1, yerr=sd, fmt="none", ecolor=(colour, 0.4), zorder=2)
            axes.plot(hours, f1, zorder=3, **marker_style(colour, cell["head"], cell.tuning))
            doubts = {"incomplete": cell.status == "incomplete", "collapsed": cell.collapsed_folds > 0}
            text = ", ".join(word for word, applies in doubts.items() if applies)
            axes.annotate(text, (hours, f1), xytext=(8, -10), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", title=dataset, ylabel=f"F1 ({average}), mean ± sd over folds and seeds")
        axes.set_xlabel("hours, all folds: training plus, for frozen backbones, the shared pass over the notes")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=legend_handles(drawn, colours), loc="outside right upper", frameon=False)
    return figure


def assign_colours(cells: pd.DataFrame) -> dict[str, str]:
    more = itertools.cycle(MORE_COLOURS)
    return {
        shown_model(cell): MODELS[real_model(cell)] if real_model(cell) in MODELS else next(more)
        for _, cell in cells.drop_duplicates(["model", "stand_in_for"]).iterrows()
    }


def marker_style(colour: str, head: str, tuning: str) -> dict:
    # a star looks smaller than a disc of its size
    size = 12 if head == "grn" else 8
    return {"color": colour, "marker": HEADS.get(head, "v"), "markersize": size} | TUNINGS.get(tuning, {})


def legend_handles(cells: pd.DataFrame, colours: dict[str, str]) -> list[Line2D | Patch]:
    """Colour says the model, shape the head, filling the tuning; only what the figure holds of each."""
    heads = [head for head in HEADS if head != "-" and head in set(cells["head"])]
    tunings = [tuning for tuning in TUNINGS if tuning != "-" and tuning in set(cells.tuning)]

    def entry(label: str, head: str, tuning: str) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **marker_style("dimgray", head, tuning))

    groups = {
        "Model": [Patch(color=colour, label=model) for model, colour in colours.items()],
        "Head": [entry(head, head, "-") for head in heads],
        "Tuning": [entry(tuning, "linear", tuning) for tuning in tunings],
    }
    titled = [[Patch(alpha=0, label=title), *handles] for title, handles in groups.items() if handles]
    return list(itertools.chain.from_iterable(titled))
