"""The order and the names of models, the figure's points, front and panels."""

import matplotlib.colors
import pytest
from report_helpers import BACKBONES, STRUCTURES, aggregated, write_run

import figures


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


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
    assert [figures.shown_model(cell) for _, cell in cells.iterrows()] == [
        "tfidf",
        "alibert (stand-in)",
        "transformer",
    ]
    assert figures.assign_colours(cells)["alibert (stand-in)"] == figures.MODELS["alibert"]


def test_transductive_in_one_table_and_not_in_the_other(runs):
    write_run(runs, "drbert", "grn", "frozen")
    write_run(runs / "more", "drbert", "linear", "frozen", model__transductive=True)
    cells = aggregated(runs)
    colours = figures.assign_colours(cells)
    assert {figures.shown_model(cell) for _, cell in cells.iterrows()} == set(colours) and len(colours) == 2


@pytest.mark.parametrize("others", [3, 12])
def test_no_two_models_have_one_colour(runs, others):
    for number in range(others):
        write_run(runs, f"someone/encoder-{number}", "grn", "frozen")
    write_run(runs, "drbert", "grn", "frozen")
    colours = figures.assign_colours(aggregated(runs))
    assert len(colours) == len(set(colours.values())) == others + 1 and colours["drbert"] == figures.MODELS["drbert"]


def test_points_of_the_figure(runs):
    write_run(runs, "tfidf", scores=(0.7, 0.8), cost__training_hours=0.0)
    write_run(runs, "drbert", "grn", "frozen", scores=(0.8, 0.9), cost__training_hours=0.5, cost__feature_hours=0.25)
    (axes,) = figures.draw_figure(aggregated(runs), "macro").axes
    tfidf, drbert = (line for line in axes.lines if line.get_marker() in "X*")
    assert axes.get_xscale() == "log"
    assert drbert.get_xydata().tolist() == [[pytest.approx(1.25), pytest.approx(0.85)]]  # the shared pass once
    assert tfidf.get_xdata()[0] > 0 and tfidf.get_ydata()[0] == pytest.approx(0.75)
    assert matplotlib.colors.to_hex(drbert.get_color()).upper() == figures.MODELS["drbert"]
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars[1] == pytest.approx([0.85 - 0.0707107, 0.85 + 0.0707107])


def test_doubtful_models_are_faded_and_the_legend_says_so(runs):
    write_run(runs, "tfidf")
    assert "Faded" not in [text.get_text() for text in figures.draw_figure(aggregated(runs), "macro").legends[0].texts]
    write_run(runs, "drbert", "grn", "frozen", metrics__collapsed=True)
    write_run(runs, "alibert", "grn", "frozen", scores=(0.8,))
    figure = figures.draw_figure(aggregated(runs), "macro")
    (axes,) = figure.axes
    faded = {line.get_color(): line.get_alpha() for line in axes.lines if line.get_marker() in "X*"}
    assert faded == {"#000000": 1, "#009E73": 0.3, "#D55E00": 0.3}
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend[legend.index("Faded") + 1] == "incomplete or collapsed"


def test_a_panel_for_each_data_set(runs):
    write_run(runs, "tfidf")
    write_run(runs, "drbert", "grn", "frozen", run__dataset="notes.csv")
    panels = figures.draw_figure(aggregated(runs), "macro").axes
    assert [axes.get_title() for axes in panels] == ["notes.csv", "synthetic"]


def test_front_holds_what_no_cheaper_model_equals(runs):
    """Only complete models count, and a dearer one must be better, not as good."""
    for model, score, hours in (
        ("tfidf", 0.80, 0.1),
        ("drbert", 0.90, 3.0),
        ("alibert", 0.85, 2.0),
        ("worse", 0.7, 4.0),
    ):
        write_run(runs, model, scores=(score, score), cost__training_hours=hours)
    write_run(runs, "as-good", scores=(0.85, 0.85), cost__training_hours=2.5)
    write_run(runs, "half-done", scores=(0.99,), cost__training_hours=0.01)
    figure = figures.draw_figure(aggregated(runs), "macro")
    (axes,) = figure.axes
    (front,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert front.get_ydata().tolist() == pytest.approx([0.80, 0.85, 0.90])
    assert front.get_xdata().tolist() == pytest.approx([0.2, 4.0, 6.0])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-4:] == ["Best for their hours", "1 tfidf", "2 alibert", "3 drbert"]


def test_an_unfinished_model_has_no_say_in_whose_hours_are_drawn(runs):
    for seed in (0, 1):
        write_run(runs / str(seed), "tfidf", cost__training_hours=0.5, run__seed=seed, run__num_seeds=2)
    write_run(runs, "drbert", "grn", "frozen", cost__training_hours=0.5, scores=(0.9,))
    (axes,) = figures.draw_figure(aggregated(runs), "macro").axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in "X*"]
    assert points == [pytest.approx(4 * 0.5), pytest.approx(0.5)] and "one seed" not in axes.get_xlabel()


def test_long_names_leave_room_for_the_figure(runs):
    write_run(runs, "hospital/" + "a-very-long-name-" * 5, "grn", "frozen")
    figure = figures.draw_figure(aggregated(runs), "macro")
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.4
    assert max(len(line) for text in figure.legends[0].texts for line in text.get_text().split("\n")) <= 40


def test_hours_are_written_as_decimals(runs):
    for model, hours in (("tfidf", 0.01), ("drbert", 0.2)):
        write_run(runs, model, cost__training_hours=hours)
    figure = figures.draw_figure(aggregated(runs), "macro")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    labels = [tick.get_text() for tick in axes.get_xticklabels(which="both") if low <= tick.get_position()[0] <= high]
    assert labels == ["0.03", "0.1", "0.3"]
