"""Intervals and tests against independent computations, by hand and by simulation; the verdict's rule."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from comparison import (
    Answers,
    can_be_told_apart,
    choose_model,
    compare,
    difference,
    hard_notes,
    interval,
    mcnemar_test,
    notes_that_would_tell,
    permutation_test,
    resampled_t_test,
    step_down,
)


def binary(labels, predicted, groups=None, folds=None):
    labels, predicted = np.asarray(labels), np.atleast_2d(predicted)
    everything = np.arange(len(labels))
    groups = everything if groups is None else np.asarray(groups)
    folds = np.zeros(len(labels), dtype=int) if folds is None else np.asarray(folds)
    return Answers(everything, labels, predicted, groups, folds, num_classes=2)


def invent(seed, notes=150, group_size=1, accuracy=0.8, models=1):
    """`models` that are right with the same probability; whole groups are easier or harder than others."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(notes // group_size), group_size)
    labels = draw.integers(0, 2, len(groups))
    ease = draw.normal(0, 0.8, groups.max() + 1)[groups] + stats.norm.ppf(accuracy) * np.sqrt(1 + 0.8**2)
    predictions = [np.where(draw.normal(size=len(groups)) < ease, labels, 1 - labels) for _ in range(models)]
    return [binary(labels, each, groups) for each in predictions]


METRICS = ["accuracy", *(f"{name}_{a}" for name in ("precision", "recall", "f1") for a in ("macro", "weighted"))]


@pytest.mark.parametrize("task", ["binary", "multi-class", "multi-label"])
def test_metrics_from_counts_are_those_of_scikit_learn(task):
    draw = np.random.default_rng(0)
    classes = 2 if task == "binary" else 4
    if task == "multi-label":
        labels, predicted = (draw.integers(0, 2, (60, classes)) for _ in range(2))
        predicted[:, 3] = 0  # a class that is never predicted
        extra = ["f1_micro", "precision_micro", "recall_micro"]
    else:
        labels, predicted = draw.integers(0, classes, 60), draw.integers(0, classes - (task != "binary"), 60)
        extra = ["f1_positive", "precision_positive", "recall_positive"] if task == "binary" else []
    answers = Answers(np.arange(60), labels, predicted[None], np.arange(60) // 3, np.arange(60) % 5, classes)
    for metric in METRICS + extra:
        if metric == "accuracy":
            expected = sk.accuracy_score(labels, predicted)
        else:
            name, average = metric.split("_")
            average = "binary" if average == "positive" else average
            expected = getattr(sk, f"{name}_score")(labels, predicted, average=average, zero_division=0)
        assert answers.estimate(metric) == pytest.approx(expected), metric
    first_fold = np.arange(60) % 5 == 0
    truth = labels[first_fold]
    present = np.flatnonzero(truth.any(axis=0)) if task == "multi-label" else np.unique(truth)
    expected = sk.f1_score(truth, predicted[first_fold], labels=present, average="macro", zero_division=0)
    assert answers.score(answers.by_fold, "f1_macro")[0, 0] == pytest.approx(expected)


def test_seeds_are_averaged():
    answers = binary([0, 1, 1, 0], [[0, 1, 1, 0], [0, 1, 0, 1]])
    assert answers.estimate("accuracy") == 0.75


@pytest.mark.parametrize("group_size", [1, 5])
def test_interval_covers_the_truth_in_95_of_100_cases(group_size):
    """Where notes of a group are alike, an interval that took them as independent would cover far less."""
    covered = 0
    for seed in range(400):
        (answers,) = invent(seed, notes=300, group_size=group_size)
        low, high = interval(answers, "accuracy")
        covered += low <= 0.8 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_interval_agrees_with_scipy():
    (answers,) = invent(3)
    right = answers.correct[0].astype(float)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", random_state=0)
    assert interval(answers, "accuracy") == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_interval_of_a_difference_is_of_the_same_notes():
    """Two models that err on the same notes differ by a known amount, however uncertain each of them is."""
    labels = np.zeros(200, dtype=int)
    first, second = labels.copy(), labels.copy()
    first[:50], second[:60] = 1, 1
    gap, low, high, standard_error = difference(binary(labels, first), binary(labels, second), "accuracy")
    assert gap == pytest.approx(0.05)
    assert 0.02 <= low < 0.05 < high <= 0.085
    assert standard_error == pytest.approx(np.sqrt(0.05 * 0.95 / 200), rel=0.1)


@pytest.mark.parametrize("group_size", [1, 4])
def test_permutation_test_rejects_5_of_100_true_hypotheses(group_size):
    p_values = []
    for seed in range(300):
        first, second = invent(1000 + seed, notes=200, group_size=group_size, models=2)
        p_values.append(permutation_test(first, second, "f1_macro"))
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.085


def test_permutation_test_agrees_with_scipy():
    first, second = invent(7, notes=40, accuracy=0.7, models=2)
    theirs = stats.permutation_test(
        (first.correct[0].astype(float), second.correct[0].astype(float)),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert permutation_test(first, second, "accuracy") == pytest.approx(theirs.pvalue, abs=0.02)


def test_permutation_test_by_hand():
    """One of two models right on 5 notes, both right on the rest: of 2^5 swaps, 2 are as extreme."""
    labels = np.array([0, 1] * 10)
    wrong = labels.copy()
    wrong[:5] = 1 - wrong[:5]
    right, worse = binary(labels, labels), binary(labels, wrong)
    assert permutation_test(right, worse, "accuracy") == pytest.approx(2 / 32, abs=0.01)
    assert permutation_test(right, right, "accuracy") == 1


def test_permutation_test_is_of_the_difference_shown_whatever_the_order_of_seeds():
    """Three seeds against one, the first of the three as good as that one: it may not decide alone."""
    labels = np.array([0, 1] * 100)
    wrong = [np.where(np.arange(200) % 20 < errors, 1 - labels, labels) for errors in (5, 1, 1)]
    other = binary(labels, np.roll(wrong[0], 10))
    orders = [binary(labels, np.stack([wrong[seed] for seed in order])) for order in ((0, 1, 2), (2, 1, 0))]
    p_values = [permutation_test(each, other, "accuracy") for each in orders]
    assert max(p_values) < 0.01 and p_values == [permutation_test(other, each, "accuracy") for each in orders]
    two = binary(labels, np.stack([np.roll(wrong[0], 10), wrong[1]]))  # two against three: six pairs
    gap = orders[0].estimate("accuracy") - two.estimate("accuracy")
    assert gap == pytest.approx(2 / 60) and 0.001 < permutation_test(orders[0], two, "accuracy") < 0.5


@pytest.mark.parametrize("groups", [5, 6])
def test_of_five_groups_no_difference_is_significant(groups):
    labels = np.array([0, 1] * 60)
    of_group = np.arange(120) % groups
    right, never = binary(labels, labels, of_group), binary(labels, 1 - labels, of_group)
    assert (permutation_test(right, never, "accuracy") < 0.05) == can_be_told_apart(right) == (groups == 6)


def test_mcnemar_by_hand():
    """Agresti's rule: of n notes on which they disagree, the smaller count is binomial(n, 1/2), two-sided."""
    labels = np.zeros(30, dtype=int)
    first, second = labels.copy(), labels.copy()
    first[:2], second[2:11] = 1, 1
    assert mcnemar_test(binary(labels, first), binary(labels, second)) == (9, 2, pytest.approx(67 * 2 / 2**11))


def test_resampled_t_test_by_hand():
    labels = np.zeros(40, dtype=int)
    first, second = labels.copy(), labels.copy()
    folds = np.repeat(np.arange(4), 10)
    second[[0, 1, 10, 11, 20, 30, 31, 32]] = 1  # gaps of 0.2, 0.2, 0.1, 0.3
    p = resampled_t_test(binary(labels, first, folds=folds), binary(labels, second, folds=folds), "accuracy", 0.3)
    t = 0.2 / np.sqrt((1 / 4 + 0.3) * (0.02 / 3))
    assert p == pytest.approx(2 * stats.t.sf(t, 3))
    assert resampled_t_test(binary(labels, first), binary(labels, second), "accuracy", 0.3) is None


def test_folds_that_all_differ_by_as_much_tell_nothing_of_chance():
    labels, folds = np.zeros(30, dtype=int), np.repeat(np.arange(3), 10)
    worse = (np.arange(30) % 10 == 0).astype(int)  # 0.1 in every fold
    first, second = binary(labels, labels, folds=folds), binary(labels, worse, folds=folds)
    assert resampled_t_test(first, second, "accuracy", 0.3) is None


@pytest.mark.parametrize(("models", "group_size"), [(2, 1), (8, 1), (8, 4)])
def test_of_equal_models_none_is_called_worse_in_95_of_100_cases(models, group_size):
    """Though the best is picked by the very scores that are compared."""
    found = 0
    for seed in range(200):
        answers = invent(5000 + seed, notes=200, group_size=group_size, models=models)
        best = np.argmax([each.estimate("f1_macro") for each in answers])
        found += (np.delete(step_down(answers, "f1_macro")[best], best) < 0.05).any()
    assert 0.01 <= found / 200 <= 0.085


def test_models_that_answer_alike_are_corrected_for_less():
    """Of four models three give the same answers: only two differ from each other, which is one comparison."""
    first, second = invent(11, notes=300, models=2)
    table = step_down([first, second, second, second], "f1_macro")
    assert table == pytest.approx(table.T)
    assert table[0, 1] == table[0, 2] == pytest.approx(step_down([first, second], "f1_macro")[0, 1])
    assert table[1, 2] == 1
    others = invent(11, notes=300, models=6)
    assert step_down(others, "f1_macro")[0, 1] > table[0, 1]


def test_of_six_pairs_the_one_furthest_apart_is_corrected_for_six():
    """By less than Bonferroni, since the pairs share models."""
    answers = invent(2, notes=2000, accuracy=0.7, models=4)
    scores = [each.estimate("accuracy") for each in answers]
    low, high = np.argmin(scores), np.argmax(scores)
    together, alone = step_down(answers, "accuracy"), step_down([answers[low], answers[high]], "accuracy")[0, 1]
    assert 2 * alone < together[low, high] < 6 * alone
    assert together[low, high] == together.min()


def test_as_many_notes_as_would_tell():
    gap, standard_error, notes = 0.02, 0.01, 500
    for tests in (1, 10):
        needed = notes_that_would_tell(gap, standard_error, notes, tests)
        at_that_size = standard_error * np.sqrt(notes / needed)
        least = stats.norm.ppf(1 - 0.025 / tests)  # standard errors that a difference must be apart from 0
        assert stats.norm.sf(least - gap / at_that_size) == pytest.approx(0.8, abs=0.001)
    assert notes_that_would_tell(0.0, 0.01, 500, 1) is None
    assert notes_that_would_tell(0.1, 0.01, 500, 1) is None  # so many are there


def test_everything_is_compared_with_the_best():
    labels = np.array([0, 1] * 100)
    best, middle, bad = labels.copy(), labels.copy(), labels.copy()
    best[:4], middle[2:10], bad[:80] = 1 - best[:4], 1 - middle[2:10], 1 - bad[:80]
    two_seeds = binary(labels, [middle, middle])  # another number of seeds, alike
    table = compare([binary(labels, bad), binary(labels, best), binary(labels, middle), two_seeds], "f1_macro", 0.25)
    assert table.is_best.tolist() == [False, True, False, False]
    assert table.gap[0] == pytest.approx(table.score[0] - table.score[1]) and np.isnan(table.gap[1])
    assert table.p_corrected[0] < 0.001 and table.p_corrected[2] > 0.05
    assert (table.p_corrected >= table.p)[[0, 2, 3]].all() and np.isnan(table.p_corrected[1])
    assert table.loc[3, ["gap", "p", "p_mcnemar"]].tolist() == table.loc[2, ["gap", "p", "p_mcnemar"]].tolist()
    assert table[["only_this", "only_best"]].loc[2].tolist() == [2, 6]


def verdict_of(scores, p_values, hours, gap_low=-0.01, collapsed=()):
    best = int(np.argmax(scores))
    rows = {"score": scores, "is_best": np.arange(len(scores)) == best, "p": p_values, "p_corrected": p_values}
    table = pd.DataFrame(rows).assign(gap=np.array(scores) - scores[best], gap_low=gap_low, gap_se=0.01)
    return choose_model(table, pd.Series(hours), table.index.isin(collapsed), 1000)


def test_the_cheapest_that_is_not_significantly_worse():
    verdict = verdict_of([0.80, 0.88, 0.90, 0.89], [0.01, 0.3, np.nan, 0.6], [0.1, 2.0, 30.0, 5.0])
    assert (verdict.choice, verdict.best, verdict.dearest) == (1, 2, 2)
    assert verdict.candidates == [1, 2, 3] and not verdict.too_few_notes and verdict.notes_needed is None


def test_the_best_may_be_the_cheapest_and_the_untested_is_no_candidate():
    verdict = verdict_of([0.90, 0.85, 0.89], [np.nan, 0.2, np.nan], [1.0, 2.0, 0.1])
    assert verdict.choice == verdict.best == 0 and verdict.candidates == [0, 1]


def test_a_warning_where_the_notes_cannot_tell():
    verdict = verdict_of([0.88, 0.90], [0.2, np.nan], [0.1, 2.0], gap_low=-0.07)
    assert verdict.choice == 0 and verdict.too_few_notes
    assert verdict.notes_needed == notes_that_would_tell(-0.02, 0.01, 1000, 1)
    among_more = verdict_of([0.88, 0.90, 0.5], [0.2, np.nan, 0.001], [0.1, 2.0, 3.0], gap_low=-0.07)
    assert among_more.notes_needed == notes_that_would_tell(-0.02, 0.01, 1000, 3) > verdict.notes_needed


def test_a_model_that_tells_nothing_apart_is_not_chosen_for_being_cheap():
    verdict = verdict_of([0.60, 0.65, 0.70], [0.08, 0.4, np.nan], [0.1, 1.0, 9.0], collapsed=[0])
    assert (verdict.choice, verdict.candidates, verdict.passed_over) == (1, [0, 1, 2], [0])


def test_notes_that_most_models_miss():
    labels = np.array([0, 1, 2, 0, 1])
    given = [[0, 2, 2, 1, 1], [0, 2, 0, 2, 1], [0, 2, 1, 1, 0]]
    models = [Answers(np.array([*"abcde"]), labels, np.array([each]), labels, labels, 3) for each in given]
    table = hard_notes(models, ["non", "oui", "peut-être"])
    assert table.id.tolist() == ["b", "d", "c"]  # all wrong and agreed; all wrong; two wrong; e: only one
    assert table.missed_by.tolist() == pytest.approx([1, 1, 2 / 3])
    assert table.contradicted_by.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert table.label.tolist() == ["oui", "non", "peut-être"]
    assert table.their_answer.tolist()[:2] == ["peut-être", "oui"]


def test_a_model_counts_once_however_many_seeds_it_has():
    labels = np.array([0, 1])
    ours, others = binary(labels, [[1, 1]] * 3), [binary(labels, labels)] * 2
    assert hard_notes([ours, *others], ["non", "oui"]).empty  # of three models one misses the first note
    both = [ours, binary(labels, [[1, 1], [0, 1]])]  # the other one with one of its two seeds
    assert hard_notes(both, ["non", "oui"]).missed_by.tolist() == [0.75]


def test_answers_to_multi_label_notes_are_sets():
    labels = np.array([[1, 0], [1, 1]])
    model = Answers(np.array(["a", "b"]), labels, np.array([[[1, 0], [0, 0]]]), np.arange(2), np.zeros(2), 2)
    (row,) = hard_notes([model], ["toux", "fièvre"]).itertuples(index=False)
    assert (row.id, row.label, row.their_answer) == ("b", "toux, fièvre", "none")


def test_folds_drawn_twice_count_a_note_once():
    """Where a test knows notes one by one: McNemar's, and the list of hard notes; a note of two draws is one note."""
    labels = np.array([0, 1, 0, 1])
    first, second = np.array([[0, 1, 1, 1]]), np.array([[1, 1, 1, 0]])
    ids, twice = np.array(["a", "b", "c", "d"]), np.repeat(np.arange(4), 2)

    def answers(first_draw, second_draw):
        predicted = np.stack([first_draw, second_draw], axis=2).reshape(1, 8)
        return Answers(ids[twice], labels[twice], predicted, twice, np.tile([0, 1], 4), 2)

    ours, theirs = answers(first, 1 - first), answers(second, second)
    assert ours.repeats == 2
    assert mcnemar_test(ours, theirs)[:2] == mcnemar_test(binary(labels, first), binary(labels, second))[:2] == (2, 0)
    table = hard_notes([ours, theirs], ["non", "oui"]).set_index("id")
    assert table.missed_by.to_dict() == {"c": 0.75, "a": 0.75, "d": 0.75}


def test_a_resample_without_a_rare_class_says_nothing_against_the_model():
    """All is right: so is every resample, also those without the one patient of class 2."""
    labels = np.array([0, 1] * 20 + [2])
    answers = Answers(labels, labels, labels[None], np.arange(41), np.zeros(41), 3)
    assert interval(answers, "f1_macro") == (1.0, 1.0)


def test_a_resample_without_a_rare_class_is_no_better_for_it():
    """The one patient of class 2 is missed, which is a third of the macro average with or without him."""
    labels = np.array([0, 1] * 20 + [2])
    answers = Answers(np.arange(41), labels, np.where(labels == 2, 0, labels)[None], np.arange(41), np.zeros(41), 3)
    low, high = interval(answers, "f1_macro")
    assert 0.6 < low <= answers.estimate("f1_macro") <= high < 0.67
    assert interval(answers, "f1_weighted")[1] == 1.0  # where a class counts by its notes


def test_scores_that_differ_by_rounding_are_equal():
    assert notes_that_would_tell(1.1e-16, 0.01, 500, 1) is None
    labels = np.array([0, 1] * 10)
    wrong = np.stack([np.where(np.arange(20) < n, 1 - labels, labels) for n in (1, 3, 7)])
    orders = [binary(labels, wrong[list(order)]) for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1))]
    for first in orders:
        assert compare([first, *orders], "f1_macro", 0.25).is_best[0]


def test_so_does_a_resample_or_a_fold_without_positive_notes():
    labels, folds = np.array([0] * 57 + [1] * 3), np.arange(60) % 4  # the last fold has none
    folds[57:] = [0, 1, 2]
    perfect, poor = binary(labels, labels, folds=folds), binary(labels, 1 - labels, folds=folds)
    assert interval(perfect, "f1_positive") == (1.0, 1.0)
    assert np.isnan(perfect.score(perfect.by_fold, "f1_positive")[0, 3])
    assert difference(poor, perfect, "f1_positive")[:3] == (-1.0, -1.0, -1.0)
    assert compare([poor, perfect], "f1_positive", 0.25).p_corrected[0] < 0.05
