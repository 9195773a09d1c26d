"""Logistic regression on features that naive Bayes has weighed, as Wang and Manning (2012) do for support vectors.

A feature that notes of one class have more often than others counts more, a feature that all have equally not at all.
So the penalty falls on what says little, and a few hundred notes do for a hundred thousand features.
"""

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits

SMOOTHING = 3.0  # notes added to either side of a share (ours)
POWERS = (0, 1, 2)  # to which the weights are raised, 0 being none at all: validation chooses one (ours)


def weigh(matrix: sparse.csr_array, labels: np.ndarray, power: int = 1) -> np.ndarray:
    """How much each feature tells, (features,): 0 and up, the mean square of all occurrences being 1.

    The log ratio of two shares: of the notes with the class, those that have the feature, over the same of the notes
    without it (Bernoulli naive Bayes); of several classes the largest in size (ours). Rare classes make the weights
    more alike, since every rare feature seems to tell them.

    Args:
        matrix: (notes, features), not 0 where a note has the feature.
        labels: (notes,) class indices, or (notes, classes) with 0 and 1.
        power: of the ratio; the higher, the more the features that tell much stand out. 0: all count the same.
    """
    present = sparse.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
    has_class = labels if labels.ndim == 2 else np.eye(labels.max() + 1, dtype=int)[labels]
    of_class = has_class.sum(axis=0)
    kept = (of_class > 0) & (of_class < len(labels))  # a class that no or every note has is told by nothing
    if power == 0 or not kept.any() or not matrix.nnz:
        return np.ones(matrix.shape[1])
    occurrences = present.sum(axis=0)
    told = np.zeros(matrix.shape[1])
    for column, notes in zip(has_class.T[kept], of_class[kept], strict=True):  # all at once take gigabytes
        within = present.T @ column  # (features,): notes with both
        share = (within + SMOOTHING) / (notes + 2 * SMOOTHING)
        elsewhere = (occurrences - within + SMOOTHING) / (len(labels) - notes + 2 * SMOOTHING)
        np.maximum(told, np.abs(np.log(share / elsewhere)), out=told)
    told **= power
    scale = np.sqrt((told**2 * occurrences).sum() / occurrences.sum())
    return told / scale if scale else np.ones_like(told)


def fit_weighted(
    matrix: sparse.csr_array,
    labels: np.ndarray,
    weights: np.ndarray,
    classifier: LogisticRegression | OneVsRestClassifier,
) -> LogisticRegression | OneVsRestClassifier:
    """Fit the classifier to features times weights; its coefficients then hold the weights: it predicts from `matrix`.

    Args:
        matrix, labels: as `weigh` takes them.
        weights: (features,)
    """
    # Its vectors are too short to share: two threads beside one other process took five times as long as one.
    with threadpool_limits(1):
        classifier.fit(matrix @ sparse.diags_array(weights), labels)
    for fitted in getattr(classifier, "estimators_", [classifier]):
        if hasattr(fitted, "coef_"):  # none where every note has the label, or no note
            fitted.coef_ = fitted.coef_ * weights
    return classifier
