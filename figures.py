"""The figures of the report, and how a model is named, ordered and coloured in all of it. Reads no file.

`cells` is one row a (dataset, model, head, tuning, train size); evaluate.py says what the columns are.
"""

import itertools
import textwrap

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from calibration import reliability

OTHER = "other backbones"
# The paper's order and, for the figure, one colour a model (Okabe and Ito's palette, made for colour-blind readers).
MODELS = {
    "tfidf": "#000000",
    "tfidf-nb": "#CC79A7",
    "camembert-bio": "#0072B2",
    "alibert": "#D55E00",
    "drbert": "#009E73",
    OTHER: None,  # MORE_COLOURS in turn
    "transformer": "#E69F00",
    "moe-transformer": "#56B4E9",
    "transformer-pretrained": "#B8860B",
    "moe-transformer-pretrained": "#3A5FCD",
}
IN_HOUSE = {
    "transformer-pretrained": "transformer (pretrained in-house)",
    "moe-transformer-pretrained": "moe-transformer (pretrained in-house)",
}
MORE_COLOURS = "#882255 #999933 #888888 #44AA99 #332288 #AA4499 #661100 #6699CC".split()
HEADS = {"-": "X", "linear": "o", "adapter": "s", "lightweight": "^", "tiny-attention": "D", "grn": "*"}
TUNINGS = {  # how a marker is filled
    "-": {},
    "frozen": {"markerfacecolor": "white"},
    "lora": {"fillstyle": "left", "markerfacecoloralt": "white"},
    "full": {},
}


def in_paper_order(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows as the paper lists them: baseline, backbones with their heads, models trained from scratch."""

    def rank(cell: pd.Series) -> tuple:
        model = real_model(cell)
        model_rank = list(MODELS).index(model if model in MODELS else OTHER)
        head_rank, tuning_rank = (
            list(known).index(name) if name in known else len(known)
            for known, name in ((HEADS, cell["head"]), (TUNINGS, cell.tuning))
        )
        size = float("inf") if cell.train_size == "-" else int(cell.train_size)
        return cell.dataset, model_rank, model, head_rank, cell["head"], tuning_rank, cell.tuning, cell.model, size

    ranks = cells.apply(rank, axis=1)
    return cells.loc[ranks.sort_values().index].reset_index(drop=True)


def may_be_ranked(cells: pd.DataFrame) -> pd.Series:
    """For the cells of one data set: complete, and no model that knows test text beside others: that flatters it."""
    complete, knowing = cells.status == "complete", cells.transductive.astype(bool)
    return complete if knowing[complete].all() else complete & ~knowing


def seeds_differ(cells: pd.DataFrame) -> bool:
    """Of the models that have all their folds: an unfinished one has no say in how the others are compared."""
    return cells.seeds[cells.status == "complete"].nunique() > 1


def hours_to_compare(cells: pd.DataFrame) -> pd.Series:
    """Of training each model as if it were the only one: all its seeds, or a single one where some have more."""
    if seeds_differ(cells):
        return cells.training_hours / cells.seeds + cells.feature_hours + cells.pretraining_hours
    return cells.standalone_hours


def real_model(cell: pd.Series) -> str:
    return cell.model if cell.stand_in_for == "-" else cell.stand_in_for


def shown_model(cell: pd.Series) -> str:
    name = IN_HOUSE.get(cell.model, cell.model) if cell.stand_in_for == "-" else f"{cell.stand_in_for} (stand-in)"
    return f"{name} (transductive: test text not kept out)" if cell.transductive else name


def cell_name(cell: pd.Series) -> str:
    size = "-" if cell.train_size == "-" else f"on {cell.train_size} notes"
    return " ".join(part for part in (shown_model(cell), cell["head"], cell.tuning, size) if part != "-")


def draw_figure(cells: pd.DataFrame, average: str) -> Figure:
    """F1 against hours, a panel for each data set and a point for each row of the table; bars are ± one sd.

    The hours of a point include a shared pass over the notes and pretraining in-house: what the model costs if it is
    the only one trained, with one seed where models differ in their number.
    """
    drawn = cells[(cells.folds_finished > 0) & (cells.train_size == "-")]
    panels = list(drawn.groupby("dataset", sort=False))
    colours, fronts = assign_colours(drawn), {}
    figure = Figure(figsize=(10, 5.5 * len(panels)), layout="constrained")
    for axes, (dataset, rows) in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        # a log axis has no zero: a time too short for its clock is drawn at a hundredth of a second
        rows = rows.assign(hours=hours_to_compare(rows).clip(lower=0.01 / 3600))
        fronts[dataset] = draw_front(axes, rows, average)
        for _, cell in rows.iterrows():
            f1, sd = cell[f"f1_{average}_mean"], cell[f"f1_{average}_sd"]
            colour = colours[shown_model(cell)]
            alpha = 0.3 if is_doubtful(cell) else 1
            axes.errorbar(cell.hours, f1, yerr=sd, fmt="none", ecolor=(colour, 0.4 * alpha), zorder=2)
            axes.plot(cell.hours, f1, zorder=3, alpha=alpha, **marker_style(colour, cell["head"], cell.tuning))
        axes.set(xscale="log", title=dataset, ylabel=f"F1 ({average}), mean ± sd over folds and seeds")
        seeds = "all folds of one seed" if seeds_differ(rows) else "all folds"
        axes.set_xlabel(f"hours, {seeds}: training, a frozen backbone's pass over the notes, pretraining in-house")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = legend_handles(drawn, colours)
    for dataset, names in fronts.items():
        title = "Best for their hours" + (f", {dataset}" if len(fronts) > 1 else "")
        lines = [f"{place} {name}" for place, name in enumerate(names, start=1)]
        handles += [Patch(alpha=0, label=line) for line in (title, *lines)] if names else []
    for handle in handles:  # else a long name leaves no room for the figure
        handle.set_label(textwrap.fill(handle.get_label(), 40))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def draw_curves(curves: dict[str, pd.DataFrame], average: str) -> Figure:
    """F1 against training notes (learning.py), one line a model; bars are ± one sd over folds and seeds."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    colours = assign_colours(pd.concat(curves.values()))
    for name, curve in curves.items():
        last = curve.iloc[-1]
        style = marker_style(colours[shown_model(last)], last["head"], last.tuning)
        f1, sd = curve[f"f1_{average}_mean"], curve[f"f1_{average}_sd"]
        axes.errorbar(
            curve.train_notes, f1, yerr=sd, label=textwrap.fill(name, 40), capsize=2, elinewidth=0.8, **style
        )
    axes.set(xscale="log", xlabel="training notes", ylabel=f"F1 ({average}), mean ± sd over folds and seeds")
    sizes = sorted({round(notes) for curve in curves.values() for notes in curve.train_notes})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw_reliability(claims: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """The share of claims that are so against the probability they were made with, a panel for each model.

    `claims` has, for each model, a line's name -> what was claimed with which probability, and whether it is so
    (calibration.py). The area of a point grows with the number of claims in its bin.
    """
    figure = Figure(figsize=(5.5 * len(claims), 5), layout="constrained")
    for axes, (model, lines) in zip(figure.subplots(1, len(claims), squeeze=False).flat, claims.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":")
        for (name, told), colour, marker in zip(lines.items(), ("#D55E00", "#0072B2"), "os", strict=True):
            mean, share, count = reliability(*told)
            filled = count > 0
            axes.plot(mean[filled], share[filled], color=colour, linewidth=1, label=name)
            area = 10 + 150 * count[filled] / count.max()
            axes.scatter(mean[filled], share[filled], area, color=colour, marker=marker, alpha=0.6, linewidths=0)
        axes.set(
            title=textwrap.fill(model, 40),
            xlabel="claimed probability",
            ylabel="share that is so",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def draw_front(axes: Axes, rows: pd.DataFrame, average: str) -> list[str]:
    """The models that no cheaper one equals (the Pareto front): a step line, and a number at each of them.

    Returns the names of those models, in the order of the numbers.
    """
    front, highest = [], -1.0
    ranked = rows[may_be_ranked(rows)].sort_values(["hours", f"f1_{average}_mean"], ascending=[True, False])
    for _, cell in ranked.iterrows():
        f1 = cell[f"f1_{average}_mean"]
        if f1 > highest + 1e-9:  # means of the same scores may differ in the last digit
            front.append((cell.hours, f1, cell_name(cell)))
            highest = f1
    if front:
        hours, scores, _ = zip(*front, strict=True)
        axes.step(hours, scores, where="post", color="0.6", lw=1, zorder=1)
    for place, (hours, f1, _) in enumerate(front, start=1):
        axes.annotate(str(place), (hours, f1), xytext=(-9, 6), textcoords="offset points", fontsize=9, weight="bold")
    return [name for _, _, name in front]


def is_doubtful(cell: pd.Series) -> bool:
    """Some folds are missing, or gave one answer to all notes: the table of results says which."""
    return cell.status != "complete" or cell.collapsed_folds > 0


def assign_colours(cells: pd.DataFrame) -> dict[str, str]:
    models = [cell for _, cell in cells.drop_duplicates(["model", "stand_in_for", "transductive"]).iterrows()]
    others = sum(real_model(cell) not in MODELS for cell in models)
    more = iter(MORE_COLOURS)
    if others > len(MORE_COLOURS):  # harder to tell apart, but no two alike
        more = (to_hex(colormaps["turbo"](place)) for place in np.linspace(0.05, 0.95, others))
    return {
        shown_model(cell): MODELS[real_model(cell)] if real_model(cell) in MODELS else next(more) for cell in models
    }


def marker_style(colour: str, head: str, tuning: str) -> dict:
    # a star looks smaller than a disc of its size
    size = 12 if head == "grn" else 8
    return {"color": colour, "marker": HEADS.get(head, "v"), "markersize": size} | TUNINGS.get(tuning, {})


def legend_handles(cells: pd.DataFrame, colours: dict[str, str]) -> list[Line2D | Patch]:
    """Colour is for the model, shape the head, filling the tuning, fading a doubt; only what the figure holds."""
    heads = [head for head in HEADS if head != "-" and head in set(cells["head"])]
    tunings = [tuning for tuning in TUNINGS if tuning != "-" and tuning in set(cells.tuning)]

    def entry(label: str, head: str, tuning: str) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **marker_style("dimgray", head, tuning))

    doubts = [Patch(color="dimgray", alpha=0.3, label="incomplete or collapsed")]
    groups = {
        "Model": [Patch(color=colour, label=model) for model, colour in colours.items()],
        "Head": [entry(head, head, "-") for head in heads],
        "Tuning": [entry(tuning, "linear", tuning) for tuning in tunings],
        "Faded": doubts if any(is_doubtful(cell) for _, cell in cells.iterrows()) else [],
    }
    titled = [[Patch(alpha=0, label=title), *handles] for title, handles in groups.items() if handles]
    return list(itertools.chain.from_iterable(titled))
