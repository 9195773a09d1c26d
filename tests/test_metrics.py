"""Every score against numbers counted by hand, and thresholds against cases with a known answer."""

import os
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, ndtr
from sklearn.metrics import f1_score

from metrics import (
    SELECTION_METRIC,
    THRESHOLD_GRID,
    NoteClassificationMetric,
    _f1_at_thresholds,
    decide,
    probabilities_from_logits,
    selectable_scores,
    tune_thresholds,
)

ROOT = Path(__file__).resolve().parent.parent


def compute(task, probabilities, labels, thresholds=None):
    metric = NoteClassificationMetric(task, [f"class {number}" for number in range(len(probabilities[0]))])
    return metric.compute(predictions=np.array(probabilities), references=np.array(labels), thresholds=thresholds)


def positives(*probabilities):
    """Binary probabilities (notes, 2) from those of the positive class."""
    return [[1 - p, p] for p in probabilities]


def check(scores: dict, **expected):
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_binary():
    # TP 0.9, 0.8, 0.7; FN 0.4; FP 0.6, 0.5 (at the threshold: positive); TN 0.3, 0.2, 0.1, 0.0
    scores = compute(
        "binary", positives(0.9, 0.8, 0.7, 0.4, 0.6, 0.5, 0.3, 0.2, 0.1, 0.0), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    )
    assert scores["confusion_matrix"] == [[4, 2], [1, 3]]
    check(
        scores,
        accuracy=0.7,
        precision_positive=3 / 5,
        recall_positive=3 / 4,
        f1_positive=2 / 3,
        precision_macro=(4 / 5 + 3 / 5) / 2,
        recall_macro=(4 / 6 + 3 / 4) / 2,
        f1_macro=(8 / 11 + 2 / 3) / 2,
        precision_weighted=0.6 * 4 / 5 + 0.4 * 3 / 5,
        recall_weighted=0.7,
        f1_weighted=0.6 * 8 / 11 + 0.4 * 2 / 3,
        mcc=(3 * 4 - 2 * 1) / sqrt((3 + 2) * (3 + 1) * (4 + 2) * (4 + 1)),
        auroc=22 / 24,  # of 4 x 6 pairs only (0.4, 0.6) and (0.4, 0.5) are in the wrong order
        auprc=(1 + 1 + 1 + 4 / 6) / 4,  # precision where each positive is found
    )
    check(scores["per_class"]["class 0"], precision=4 / 5, recall=4 / 6, f1=8 / 11, support=6)
    check(scores["per_class"]["class 1"], precision=3 / 5, recall=3 / 4, f1=2 / 3, support=4)
    assert scores["collapsed"] is False


def test_threshold_moves_decisions_and_not_the_ranking():
    probabilities, labels = positives(0.9, 0.4, 0.3, 0.2), [1, 1, 0, 0]
    assert compute("binary", probabilities, labels)["confusion_matrix"] == [[2, 0], [1, 1]]
    moved = compute("binary", probabilities, labels, [0.35])
    assert moved["confusion_matrix"] == [[2, 0], [0, 2]]
    assert moved["auroc"] == compute("binary", probabilities, labels)["auroc"] == 1


def test_multi_class():
    # true 0: 0, 0, 1; true 1: 1; true 2: 2, 0
    probabilities = [
        [0.8, 0.1, 0.1],
        [0.5, 0.3, 0.2],
        [0.2, 0.7, 0.1],
        [0.3, 0.6, 0.1],
        [0.1, 0.0, 0.9],
        [0.6, 0.0, 0.4],
    ]
    scores = compute("multi-class", probabilities, [0, 0, 0, 1, 2, 2])
    assert scores["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    check(
        scores,
        accuracy=4 / 6,
        precision_macro=(2 / 3 + 1 / 2 + 1) / 3,
        recall_macro=(2 / 3 + 1 + 1 / 2) / 3,
        f1_macro=(2 / 3 + 2 / 3 + 2 / 3) / 3,
        f1_weighted=2 / 3,
        # one against the rest: 0: 6 of 9 pairs in order, 1: 4 of 5, 2: 8 of 8
        auroc=(6 / 9 + 4 / 5 + 1) / 3,
        auprc=((1 + 2 / 3 + 3 / 5) / 3 + 1 / 2 + 1) / 3,
        # Gorodkin's: (c s - sum p t) / sqrt((s2 - sum p2)(s2 - sum t2)), c right of s, p predicted, t true per class
        mcc=(4 * 6 - (3 * 3 + 2 * 1 + 1 * 2)) / sqrt((36 - 14) * (36 - 14)),
    )
    assert "f1_positive" not in scores and "f1_micro" not in scores


def test_a_part_without_positive_notes_says_nothing_of_them():
    scores = compute("binary", positives(0.7, 0.2), [0, 0])
    assert scores["f1_positive"] is scores["precision_positive"] is scores["recall_positive"] is None
    assert scores["f1_macro"] == pytest.approx(2 / 3)  # of the negatives alone


def test_multi_label():
    # predicted: [1, 0], [1, 1], [0, 0], [0, 1]
    probabilities = [[0.9, 0.2], [0.8, 0.6], [0.3, 0.1], [0.4, 0.7]]
    scores = compute("multi-label", probabilities, [[1, 0], [1, 0], [0, 0], [1, 1]])
    assert scores["confusion_matrix"] == [[[1, 0], [1, 2]], [[2, 1], [0, 1]]]
    check(
        scores,
        accuracy=2 / 4,  # notes with both labels right
        hamming_loss=2 / 8,
        precision_micro=3 / 4,
        recall_micro=3 / 4,
        f1_micro=3 / 4,
        f1_macro=(4 / 5 + 2 / 3) / 2,
        f1_weighted=(3 * 4 / 5 + 1 * 2 / 3) / 4,
        auroc=1,
        auprc=1,
        mcc=(3 * 3 - 1 * 1) / 16,
    )
    assert [scores["per_class"][name]["support"] for name in ("class 0", "class 1")] == [3, 1]
    assert compute("multi-label", probabilities, [[1, 0], [1, 0], [0, 0], [1, 1]], [0.65])["accuracy"] == 3 / 4


def test_a_class_that_never_occurs():
    scores = compute("multi-class", [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], [0, 1])
    assert scores["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert scores["per_class"]["class 2"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    check(scores, accuracy=1, f1_macro=1, auroc=1)  # means over the classes that have notes
    # taken for class 2, the first note is missed by its own class and counts for nothing there
    check(compute("multi-class", [[0.1, 0.0, 0.9], [0.2, 0.8, 0.0]], [0, 1]), accuracy=1 / 2, f1_macro=1 / 2)
    scores = compute("multi-label", [[0.9, 0.6, 0.1], [0.2, 0.1, 0.9]], [[1, 0, 0], [0, 0, 1]])
    check(scores, accuracy=1 / 2, f1_macro=1, f1_weighted=1, precision_micro=2 / 3)
    check(compute("multi-label", [[0.9, 0.6], [0.2, 0.1]], [[0, 0], [0, 0]]), accuracy=1 / 2, f1_macro=0)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize(
    ("task", "labels"), [("binary", [1, 1]), ("multi-class", [1, 1]), ("multi-label", [[1, 0], [1, 0]])]
)
def test_undefined_ranking_is_none(task, labels):
    scores = compute(task, positives(0.7, 0.8), labels)
    assert scores["auroc"] is None and scores["auprc"] is None


@pytest.mark.parametrize(
    ("task", "probabilities", "labels", "collapsed"),
    [
        ("binary", positives(0.7, 0.8, 0.9), [1, 0, 1], True),
        ("binary", positives(0.7, 0.8, 0.4), [1, 0, 1], False),
        ("binary", positives(0.7, 0.8, 0.9), [1, 1, 1], False),  # as they want it
        ("binary", positives(0.7, 0.8, 0.9), [0, 0, 0], True),
        ("binary", positives(0.2, 0.3, 0.4), [1, 1, 0], True),
        ("multi-class", [[0.1, 0.5, 0.4], [0.2, 0.6, 0.2]], [0, 1], True),
        ("multi-label", [[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 1]], True),
        ("multi-label", [[0.9, 0.1], [0.8, 0.7]], [[1, 0], [0, 1]], False),
    ],
)
def test_collapsed(task, probabilities, labels, collapsed):
    scores = compute(task, probabilities, labels)
    assert scores["collapsed"] is collapsed
    if collapsed and task != "multi-label":
        assert scores["mcc"] == 0


def test_scores_are_plain_numbers():
    scores = compute("binary", positives(0.7, 0.2), [1, 0])
    kinds = {type(score) for name, score in scores.items() if name not in ("per_class", "confusion_matrix")}
    assert kinds == {float, bool}
    assert {type(number) for row in scores["confusion_matrix"] for number in row} == {int}


def test_metric_can_be_computed_again():
    metric = NoteClassificationMetric("binary", ["no", "yes"])
    first = metric.compute(predictions=positives(0.7, 0.2), references=[1, 0])
    second = metric.compute(predictions=positives(0.7, 0.2, 0.1), references=[0, 1, 1])
    assert (first["accuracy"], second["accuracy"]) == (1, 0)


def test_unknown_task():
    with pytest.raises(ValueError, match="Unknown task 'regression'; choose one of: binary, multi-class, multi-label"):
        NoteClassificationMetric("regression", ["no", "yes"])


# ---- probabilities, decisions and thresholds -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 1000])
def test_probabilities_are_those_of_torch(scale):
    logits = scale * np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    tensor = torch.tensor(logits, dtype=torch.float64)
    np.testing.assert_allclose(probabilities_from_logits(logits, "multi-class"), tensor.softmax(1), atol=1e-12)
    np.testing.assert_allclose(probabilities_from_logits(logits, "multi-label"), tensor.sigmoid(), atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_large_logits():
    logits = np.array([[1e5, -1e5], [-1e5, 1e5]])
    for task in ("binary", "multi-label"):
        assert probabilities_from_logits(logits, task).tolist() == [[1, 0], [0, 1]]


def test_decide():
    probabilities = np.array([[0.3, 0.7], [0.7, 0.3], [0.5, 0.5]])
    assert decide(probabilities, "binary", None).tolist() == [1, 0, 1]
    assert decide(probabilities, "binary", [0.6]).tolist() == [1, 0, 0]
    assert decide(probabilities, "multi-label", None).tolist() == [[0, 1], [1, 0], [1, 1]]
    assert decide(probabilities, "multi-label", [0.6, 0.4]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert decide(np.array([[0.3, 0.4, 0.3], [0.4, 0.3, 0.3]]), "multi-class", None).tolist() == [1, 0]


def test_threshold_is_the_middle_of_the_best():
    probabilities = np.array(positives(0.1, 0.25, 0.65, 0.8))
    (threshold,) = tune_thresholds(probabilities, np.array([0, 0, 1, 1]), "binary")
    assert threshold == pytest.approx((0.26 + 0.65) / 2, abs=0.01)


def test_threshold_trades_one_mistake_for_another():
    # the positive at 0.30 is only had with three negatives: f1_macro is best without it, above 0.45
    probabilities = np.array(positives(0.30, 0.60, 0.70, 0.80, 0.45, 0.44, 0.40, 0.10, 0.20))
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    (threshold,) = tune_thresholds(probabilities, labels, "binary")
    assert 0.45 < threshold <= 0.60
    assert threshold in THRESHOLD_GRID


@pytest.mark.parametrize("mirrored", [False, True])
def test_thresholds_near_the_ends(mirrored):
    """A rare class, well told apart, at probabilities that are all small; or its complement, all large."""
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.uniform(0.0, 0.004, 970), draw.uniform(0.012, 0.04, 30)])
    labels = np.repeat([0, 1], [970, 30])
    if mirrored:
        scores, labels = 1 - scores, 1 - labels
    (threshold,) = tune_thresholds(np.stack([1 - scores, scores], axis=1), labels, "binary")
    assert ((scores >= threshold) == labels).mean() > 0.995


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_tells_no_threshold(label):
    """Its own F1 alone would be best at an end of the grid, where the other class is never found."""
    assert tune_thresholds(np.array(positives(0.1, 0.25, 0.65)), np.full(3, label), "binary") == [0.5]


def test_a_single_note_of_a_class_stands_for_others_of_it():
    """As wide as those of the other class: else any threshold below that note would do as well as the next."""
    scores = np.array([0.9, *np.linspace(0.1, 0.5, 20)])
    truth = np.arange(21) == 0
    f1, _ = _f1_at_thresholds(truth, scores)
    width = scores[1:].std()
    found = ndtr((0.9 - THRESHOLD_GRID) / width)
    alarms = ndtr((scores[1:, np.newaxis] - THRESHOLD_GRID) / (width * 20**-0.2)).sum(axis=0)
    assert f1 == pytest.approx(2 * found / np.maximum(2 * found + 1 - found + alarms, 1))


@pytest.mark.parametrize("times", [1, 20, 200])
def test_multi_label_thresholds_are_nearer_to_their_own_with_more_notes(times, monkeypatch):
    # class 1 has one note in nine, above all others; class 2 has none
    probabilities = np.array([[0.3, 0.7], [0.4, 0.6], [0.9, 0.7], [0.1, 0.9]] + [[0.1, 0.65]] * 5)
    labels = np.array([[1, 0], [1, 0], [1, 0], [0, 1]] + [[0, 0]] * 5)
    probabilities = np.tile(np.hstack([probabilities, np.full((9, 1), 0.5)]), (times, 1))
    labels = np.tile(np.hstack([labels, np.zeros((9, 1), dtype=int)]), (times, 1))
    found = np.array(tune_thresholds(probabilities, labels, "multi-label"))
    monkeypatch.setattr("metrics.SHRINKAGE", 0)
    own = np.array(tune_thresholds(probabilities[:, :2], labels[:, :2], "multi-label"))
    monkeypatch.setattr("metrics.SHRINKAGE", 1e12)
    common = tune_thresholds(probabilities, labels, "multi-label")
    assert common == pytest.approx([common[0]] * 3) and own[0] < 0.3 and own[1] > 0.7
    support = np.array([3, 1]) * times
    assert found[:2] == pytest.approx(common[0] + (own - common[0]) * support / (support + 20))
    assert found[2] == common[2]


@pytest.mark.parametrize(
    ("task", "average"), [("binary", "macro"), ("multi-label", "weighted"), ("multi-label", None)]
)
def test_with_many_notes_the_threshold_is_the_one_that_scikit_learn_scores_best(task, average, monkeypatch):
    """None: the best of each class, which notes without end would give it."""
    monkeypatch.setattr("metrics.SHRINKAGE", 0 if average is None else 1e12)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, size=4000 if task == "binary" else (4000, 3))
    probabilities = draw.random((4000, 3)) * 0.7 + 0.3 * (labels if task == "multi-label" else labels[:, None])
    if task == "binary":
        probabilities = np.stack([1 - probabilities[:, 1], probabilities[:, 1]], axis=1)
    thresholds = tune_thresholds(probabilities, labels, task)
    scores = [
        np.atleast_1d(f1_score(labels, decide(probabilities, task, each), average=average, zero_division=0))
        for each in (thresholds, *([threshold] for threshold in THRESHOLD_GRID))
    ]
    assert scores[0] == pytest.approx(np.max(scores[1:], axis=0), abs=0.005)
    assert (np.min(scores[1:], axis=0) < scores[0] - 0.1).all()


def test_thresholds_of_few_notes_are_good_for_others():
    """Better than those that are best for the few, which a model's every validation part would fit anew."""
    draw = np.random.default_rng(0)

    def notes(count):
        labels = draw.random(count) < 0.3
        return labels, expit(draw.normal(np.where(labels, 0.5, -1.5)))

    others, their_scores = notes(20_000)
    f1 = [f1_score(others, their_scores >= threshold, average="macro") for threshold in THRESHOLD_GRID]
    f1_of = dict(zip(THRESHOLD_GRID, f1, strict=True))
    tuned, best = [], []
    for _ in range(100):
        labels, scores = notes(40)
        (threshold,) = tune_thresholds(np.stack([1 - scores, scores], axis=1), labels.astype(int), "binary")
        tuned.append(f1_of[threshold])
        reached = scores[:, np.newaxis] >= THRESHOLD_GRID
        hits = np.stack([reached & labels[:, np.newaxis], ~reached & ~labels[:, np.newaxis]]).sum(axis=1)
        mistakes = 40 - hits.sum(axis=0)
        best.append(f1_of[THRESHOLD_GRID[np.argmax((2 * hits / (2 * hits + mistakes)).sum(axis=0))]])
    assert max(f1) - np.mean(tuned) < 0.6 * (max(f1) - np.mean(best))


def test_f1_to_be_expected():
    """Of notes whose scores are drawn around those at hand."""
    draw = np.random.default_rng(0)
    truth, scores = np.repeat([True, False], [6, 14]), draw.random(20)
    inside, outside = (
        draw.normal(part, part.std() * len(part) ** -0.2, size=(20_000, len(part)))
        for part in (scores[truth], scores[~truth])
    )
    for number in (10, 50, 80):
        found, alarms = ((part >= THRESHOLD_GRID[number]).sum(axis=1).mean() for part in (inside, outside))
        mistakes = 6 - found + alarms
        expected = 2 * found / (2 * found + mistakes), 2 * (14 - alarms) / (2 * (14 - alarms) + mistakes)
        assert [each[number] for each in _f1_at_thresholds(truth, scores)] == pytest.approx(expected, abs=0.01)
    assert not _f1_at_thresholds(np.zeros(20, dtype=bool), scores)[0].any()


def test_multi_class_has_no_threshold():
    assert tune_thresholds(np.eye(3), np.arange(3), "multi-class") is None


# ---- the library ---------------------------------------------------------------------------------------------------


def test_offline_and_without_a_file(tmp_path):
    """The library's own way is to keep the predictions in a file of its cache until the scores are there."""
    code = """
import sys
from pathlib import Path
import evaluate
from metrics import NoteClassificationMetric
assert issubclass(NoteClassificationMetric, evaluate.Metric) and evaluate.Metric.__module__ == "evaluate.module"
class Watched(NoteClassificationMetric):
    def _compute(self, **columns):
        print([str(path) for path in Path(sys.argv[1]).rglob("*") if path.is_file() and path.stat().st_size])
        return super()._compute(**columns)
scores = Watched("binary", ["no", "yes"]).compute(predictions=[[0.2, 0.8]] * 9, references=[1] * 9)
print(scores["accuracy"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "1.0"]


@pytest.mark.parametrize(
    ("task", "own"), [("binary", "f1_positive"), ("multi-class", None), ("multi-label", "f1_micro")]
)
def test_what_an_epoch_can_be_selected_by(task, own):
    names = selectable_scores(task, ["a", "b"] if task == "binary" else ["a", "b", "c"])
    assert SELECTION_METRIC[task] in names and "auroc" in names and "mcc" in names
    assert {"f1_positive", "f1_micro"} & set(names) == ({own} if own else set())
    assert not {"per_class", "confusion_matrix", "collapsed"} & set(names)
