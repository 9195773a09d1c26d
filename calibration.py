"""What predicted probabilities are worth: calibration, temperature, and thresholds for a required recall or precision.

Probabilities are (notes, classes); `labels` (notes,) with class indices, or (notes, classes) with 0 and 1 for a
multi-label task. What is chosen is chosen on validation, what is reported is of the test part.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

BINS = 15  # of equal width, as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)  # among which one is looked for
REQUIRED = (0.9, 0.95)  # recall or precision that an operating point is to keep (ours)
LEAST = 1e-12  # a probability's distance from 0 and 1 before a logarithm


def log_loss(probabilities: np.ndarray, labels: np.ndarray, task: str) -> float:
    """Mean negative log-likelihood of the notes, of multi-label ones over their labels too."""
    safe = np.clip(probabilities, LEAST, 1 - LEAST)
    if task == "multi-label":
        return -np.mean(labels * np.log(safe) + (1 - labels) * np.log(1 - safe))
    return -np.mean(np.log(safe[np.arange(len(labels)), labels]))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, task: str) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    1, which changes nothing, where there is no such temperature: notes of one class, or that the model parts without a
    mistake, are the likelier the surer it is. A model that tells nothing apart is to be as unsure as TEMPERATURES
    allow (both ours).
    """

    def loss(logarithm: float) -> float:
        return log_loss(apply_temperature(probabilities, np.exp(logarithm), task), labels, task)

    answers = probabilities > 0.5 if task == "multi-label" else probabilities.argmax(axis=1)
    if len(np.unique(labels)) == 1 or (answers == labels).all():
        return 1.0
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    if loss(0.0) - found.fun < 1e-9:  # as where all probabilities are alike, whatever the temperature
        return 1.0
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float, task: str) -> np.ndarray:
    """The probabilities of the logits divided by the temperature: above 1 less sure, below 1 surer.

    The order of a note's classes is kept.
    """
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    if task == "multi-label":
        return expit(logit(p) / temperature)
    return softmax(np.log(p) / temperature, axis=1)


def claims(probabilities: np.ndarray, labels: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    """What a model claims with which probability, and whether it is so: (claims,) each.

    Binary: that a note is positive; multi-label: that a note has a class, for all pairs; multi-class: that the most
    probable class is the right one.
    """
    if task == "multi-label":
        return probabilities.ravel(), labels.ravel().astype(float)
    if task == "binary":
        return probabilities[:, 1], (labels == 1).astype(float)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)


def reliability(claimed: np.ndarray, is_so: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of BINS bins of claimed probability: its mean, the share that is so, how many; NaN in an empty bin."""
    place = np.minimum((claimed * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, share = (np.bincount(place, values, minlength=BINS) / count for values in (claimed, is_so))
    return mean, share, count


def expected_calibration_error(claimed: np.ndarray, is_so: np.ndarray) -> float:
    """Mean distance between claimed probability and share, weighted by the bins' counts (Guo et al. 2017, eq. 3)."""
    mean, share, count = reliability(claimed, is_so)
    return float(np.nansum(np.abs(mean - share) * count) / len(claimed))


def brier_score(claimed: np.ndarray, is_so: np.ndarray) -> float:
    """Mean squared distance between claimed probability and what is so: 0 is perfect, 0.25 is always saying 0.5."""
    return float(np.mean((claimed - is_so) ** 2))


def operating_points(
    validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> list[dict[str, str | float | None]]:
    """For a binary task, thresholds that keep a required recall or precision on validation, and what they give on
    test. Each part is (probabilities, labels).

    Of the thresholds that keep what is required the one with the most of the other is taken, and among equals the one
    that keeps the most; where none keeps it, all but `required` are None.
    """
    scores, truth = validation[0][:, 1], validation[1] == 1
    candidates = np.unique(scores)
    found = len(scores) - np.searchsorted(np.sort(scores), candidates)  # notes at or above each threshold, never 0
    hits = truth.sum() - np.searchsorted(np.sort(scores[truth]), candidates)
    of_validation = {"recall": hits / max(truth.sum(), 1), "precision": hits / found}
    points = []
    for kept, other in (("recall", "precision"), ("precision", "recall")):
        for required in REQUIRED:
            point = {"kept": kept, "required": required, "threshold": None, "recall": None, "precision": None}
            good = np.flatnonzero(of_validation[kept] >= required)
            if len(good):
                order = np.lexsort((of_validation[kept][good], of_validation[other][good]))  # by its last key first
                point["threshold"] = threshold = float(candidates[good[order[-1]]])
                answered, positive = test[0][:, 1] >= threshold, test[1] == 1
                right = (answered & positive).sum()
                point["recall"] = float(right / positive.sum()) if positive.any() else None
                point["precision"] = float(right / answered.sum()) if answered.any() else None
            points.append(point)
    return points
