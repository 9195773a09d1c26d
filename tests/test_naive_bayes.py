"""The weights by hand and as scikit-learn's naive Bayes has them; coefficients that hold them; what it is good for."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB

from naive_bayes import SMOOTHING, fit_weighted, weigh


def invent(notes=60, features=300, classes=2, telling=1):
    """Counts of which the first features tell the class, most of the time; the rest is chance."""
    draw = np.random.default_rng(0)
    labels = np.arange(notes) % classes
    counts = draw.poisson(0.2, (notes, features)).astype(float)
    for feature in range(telling * classes):
        counts[:, feature] = draw.random(notes) < np.where(labels == feature % classes, 0.7, 0.1)
    return counts, labels


def test_weights_by_hand():
    # of 2 notes with the class both have feature 0, one has 1, none has 2; of the 3 without none, one, three
    counts = np.array([[4, 1, 0], [1, 0, 0], [0, 1, 2], [0, 0, 1], [0, 0, 9]])
    labels = np.array([1, 1, 0, 0, 0])
    told = np.abs(np.log([(5 / 8) / (3 / 9), (4 / 8) / (4 / 9), (3 / 8) / (6 / 9)]))
    occurrences = np.array([2, 2, 3])
    expected = told / np.sqrt((told**2 * occurrences).sum() / 7)
    np.testing.assert_allclose(weigh(csr_array(counts), labels), expected)


def test_powers_make_what_tells_much_stand_out():
    counts, labels = invent()
    matrix = csr_array(counts)
    plain, squared = (weigh(matrix, labels, power) for power in (1, 2))
    np.testing.assert_allclose(squared / squared[0], (plain / plain[0]) ** 2)
    assert squared.max() > plain.max() and np.median(squared) < np.median(plain)
    assert (weigh(matrix, labels, 0) == 1).all()


def test_as_naive_bayes_of_scikit_learn():
    counts, labels = invent()
    told = np.abs(np.subtract(*BernoulliNB(alpha=SMOOTHING).fit(counts > 0, labels).feature_log_prob_))
    weights = weigh(csr_array(counts), labels)
    np.testing.assert_allclose(weights / weights[0], told / told[0])


def test_of_several_classes_the_one_that_a_feature_tells_most_counts():
    counts, labels = invent(classes=3)
    as_labels = np.eye(3, dtype=int)[labels]
    apart = [
        np.subtract(*BernoulliNB(alpha=SMOOTHING).fit(counts > 0, column).feature_log_prob_) for column in as_labels.T
    ]
    told = np.abs(apart).max(axis=0)
    for given in (labels, as_labels):
        weights = weigh(csr_array(counts), given)
        np.testing.assert_allclose(weights / weights[0], told / told[0])


def test_many_classes_need_no_more_memory():
    """A matrix (classes, features) would be gigabytes of codes and their n-grams: here 80 MB."""
    rows = np.arange(1000)
    matrix = csr_array((np.ones(1000), (rows, rows * 10)), shape=(1000, 10_000))
    tracemalloc.start()
    for power in (0, 1):
        weigh(matrix, rows, power)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_nothing_told_is_no_weighing():
    labels = np.array([0, 1, 0, 1])
    assert weigh(csr_array(np.ones((4, 3))), labels).tolist() == [1, 1, 1]
    assert weigh(csr_array((4, 3)), labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize("classes", [2, 3])
def test_coefficients_are_of_the_features_as_they_came(classes):
    counts, labels = invent(classes=classes)
    matrix = csr_array(counts)
    weights = weigh(matrix, labels)
    fitted = fit_weighted(matrix, labels, weights, LogisticRegression(C=1.0))
    expected = LogisticRegression(C=1.0).fit(counts * weights, labels)
    np.testing.assert_allclose(fitted.predict_proba(matrix), expected.predict_proba(counts * weights), atol=1e-6)


def test_labels_that_no_or_every_note_has_weigh_nothing():
    counts, labels = invent()
    matrix = csr_array(counts)
    several = np.stack([labels, np.zeros_like(labels), np.ones_like(labels)], axis=1)
    np.testing.assert_allclose(weigh(matrix, several), weigh(matrix, labels))
    np.testing.assert_allclose(weigh(matrix, 2 * labels), weigh(matrix, labels))  # class 1 has no note
    assert (weigh(matrix, np.zeros_like(labels)) == 1).all()
    with pytest.warns(UserWarning, match="training examples"):
        fitted = fit_weighted(matrix, several, weigh(matrix, several), OneVsRestClassifier(LogisticRegression()))
    probabilities = fitted.predict_proba(matrix)
    assert (probabilities[:, 1] == 0).all() and (probabilities[:, 2] == 1).all()


@pytest.mark.parametrize("rare", [False, True])
def test_few_notes_with_many_features_are_told_better(rare):
    """On notes that were not trained on; a label that four notes have takes nothing away."""
    counts, labels = invent(notes=460, features=3000, telling=3)
    if rare:
        labels = np.stack([labels, np.arange(len(labels)) % 15 == 0], axis=1).astype(int)
    train, test = slice(0, 60), slice(60, None)
    matrix = csr_array(counts[train])
    scores = []
    for weights in (np.ones(3000), weigh(matrix, labels[train])):
        classifier = OneVsRestClassifier(LogisticRegression(C=10.0)) if rare else LogisticRegression(C=10.0)
        told = fit_weighted(matrix, labels[train], weights, classifier).predict(counts[test])
        scores.append((told[:, 0] == labels[test, 0]).mean() if rare else (told == labels[test]).mean())
    assert scores[1] > scores[0] + (-0.02 if rare else 0.05)
