"""Which cells make a curve, where two curves cross, and how that is said."""

import pandas as pd
import pytest
from report_helpers import aggregated
from result_factory import write_result

from learning import crossings, curves, describe_crossings, gain_of_doubling


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def curve(**scores):
    """f1 by notes, as n100=0.8."""
    notes = [int(name[1:]) for name in scores]
    frame = pd.DataFrame({"train_size": [*map(str, notes)], "train_notes": notes, "f1_mean": [*scores.values()]})
    return frame.astype({"train_notes": float})


def test_curves_cross_where_the_differences_do_in_the_logarithm_of_notes():
    reference = curve(n100=0.80, n1000=0.85, n10000=0.90)

    def of(**scores):
        leads, changes = crossings(curve(**scores), reference, "f1")
        return leads, pytest.approx(changes, rel=0.01)

    assert of(n100=0.70, n1000=0.95, n10000=0.99) == (False, [100 * 10**0.5])
    assert of(n100=0.79, n1000=0.80, n10000=0.90001) == (False, [10000])
    assert of(n100=0.81, n1000=0.86, n10000=0.91) == (True, [])
    assert of(n100=0.79, n1000=0.85, n10000=0.90) == (False, [])  # level is not ahead
    assert of(n100=0.81, n1000=0.85, n10000=0.90) == (True, [1000])
    assert of(n100=0.90, n1000=0.80, n10000=0.95) == (True, [10 ** (2 + 2 / 3), 1000 * 10**0.5])


def test_gain_of_doubling_is_the_slope_at_the_end():
    assert gain_of_doubling(curve(n10=0.1, n100=0.80, n400=0.86), "f1") == (100, pytest.approx(0.03))
    assert gain_of_doubling(curve(n100=0.80, n200=0.78), "f1") == (100, pytest.approx(-0.02))
    # from 390 to 400 notes chance alone would be a slope
    assert gain_of_doubling(curve(n10=0.1, n100=0.80, n390=0.90, n400=0.86), "f1") == (100, pytest.approx(0.03))
    assert gain_of_doubling(curve(n390=0.90, n400=0.86), "f1") is None


def test_only_sizes_that_both_have_are_compared():
    reference = curve(n100=0.80, n10000=0.90)
    found = crossings(curve(n50=0.1, n100=0.70, n1000=0.2, n10000=1.0), reference, "f1")
    assert found == (False, pytest.approx([1000]))


def test_sizes_without_a_score_are_left_out(runs):
    for notes, baseline, score in ((100, None, 0.6), (250, 0.7, 0.65), (1000, 0.75, 0.85), (2000, 0.8, None)):
        write_point(runs, "tfidf", notes, baseline, notes)
        write_point(runs, "drbert", notes, score, notes)
    (sentence,) = describe_crossings(aggregated(runs), "macro")
    assert sentence == "drbert needs about 397 training notes to pass tfidf."


def write_point(runs, model, notes, score, train_size, hours=0.5):
    splits = {
        part: {"notes": count, "over_max_length": 0}
        for part, count in (("train", notes), ("validation", 20), ("test", 20))
    }
    changes = {"data__splits": splits, "run__train_size": train_size, "cost__training_hours": hours}
    for fold in (0, 1):
        more = {"run__model": model, "run__head": None, "run__tuning": None, "run__num_folds": 2}
        write_result(runs, f"{model}-{notes}", fold, score, **changes, **more)


def test_curves_and_their_sentences(runs):
    for notes, size, baseline, better, worse in ((100, 100, 0.80, 0.70, 0.6), (1000, 1000, 0.85, 0.95, 0.7)):
        for model, score in (("tfidf", baseline), ("drbert", better), ("alibert", worse)):
            write_point(runs, model, notes, score, size)
    write_point(runs, "tfidf", 3000, 0.9, None)
    write_point(runs, "camembert-bio", 3000, 0.9, None)  # one size: no curve
    cells = aggregated(runs)
    assert [*curves(cells)] == ["tfidf", "alibert", "drbert"]
    assert curves(cells)["tfidf"].train_notes.tolist() == [100, 1000, 3000]
    assert curves(cells)["tfidf"].train_size.tolist() == ["100", "1000", "-"]
    assert describe_crossings(cells, "macro") == [
        "alibert does not pass tfidf with up to 1,000 training notes.",
        "drbert needs about 316 training notes to pass tfidf.",
    ]


def test_the_cheapest_is_the_reference_where_there_is_no_baseline(runs):
    for notes, score in ((100, 0.7), (1000, 0.8)):
        write_point(runs, "drbert", notes, score + 0.05, notes, hours=9.0)
        write_point(runs, "transformer", notes, score, notes, hours=0.1)
    # alone with so many notes, and dearer for it than the other with fewer
    write_point(runs, "transformer", 5000, 0.8, 5000, hours=20.0)
    assert describe_crossings(aggregated(runs), "macro") == [
        "drbert is ahead of transformer from 100 training notes on."
    ]


def test_a_lead_that_is_lost_is_told(runs):
    for notes, baseline, score in ((100, 0.70, 0.75), (1000, 0.80, 0.75)):
        write_point(runs, "tfidf", notes, baseline, notes)
        write_point(runs, "drbert", notes, score, notes)
    assert describe_crossings(aggregated(runs), "macro") == [
        "drbert is ahead of tfidf below about 316 training notes, and no longer above."
    ]


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ((0.60, 0.80, 0.80), "is not ahead of tfidf with 100 training notes, which changes at about 184, 500."),
        ((0.80, 0.70, 0.90), "is ahead of tfidf with 100 training notes, which changes at about 184, 500."),
        ((0.80, 0.75, 0.90), "is ahead of tfidf from 100 training notes on."),
        ((0.80, 0.80, 0.85), "is ahead of tfidf below about 1,000 training notes, and no longer above."),
    ],
)
def test_curves_that_cross_twice_or_end_level(runs, scores, sentence):
    for notes, baseline, score in zip((100, 250, 1000), (0.70, 0.75, 0.85), scores, strict=True):
        write_point(runs, "tfidf", notes, baseline, notes)
        write_point(runs, "drbert", notes, score, notes)
    assert describe_crossings(aggregated(runs), "macro") == [f"drbert {sentence}"]


def test_one_curve_crosses_nothing(runs):
    write_point(runs, "tfidf", 100, 0.7, 100)
    write_point(runs, "tfidf", 3000, 0.8, None)
    assert describe_crossings(aggregated(runs), "macro") == []


def test_sentences_are_of_the_sizes_that_both_have(runs):
    for notes, score in ((100, 0.7), (1000, 0.8)):
        write_point(runs, "tfidf", notes, score, notes)
    for notes, score in ((50, 0.1), (100, 0.75), (1000, 0.85), (2000, 0.1)):
        write_point(runs, "drbert", notes, score, notes)
    for notes in (100, 3000):
        write_point(runs, "alibert", notes, 0.1, notes)  # one size in common: not said to be worse up to 3,000
    assert describe_crossings(aggregated(runs), "macro") == ["drbert is ahead of tfidf from 100 training notes on."]
