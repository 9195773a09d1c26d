"""From probabilities to numbers: one metric for model selection, for the result file and for the report.

An `evaluate.Metric` of our own, computed with scikit-learn, because `evaluate.load("f1")` would need the network.
Shapes: `labels` (notes,) class indices, or (notes, classes) 0/1 for a multi-label task; `probabilities` is
(notes, classes).
"""

import datasets
import evaluate
import numpy as np
from scipy.special import expit, ndtr, softmax
from sklearn import metrics as sk

from data import DataError

TASKS = ("binary", "multi-class", "multi-label")
# What a model is selected by, and what its thresholds are tuned for. Macro F1 where classes exclude each other;
# weighted F1 for multi-label notes, as DrBenchmark does (ours otherwise: the paper names no averaging).
SELECTION_METRIC = {"binary": "f1_macro", "multi-class": "f1_macro", "multi-label": "f1_weighted"}
# Steps of 0.01, and finer ones at both ends, where all probabilities of a rare class, or of a model too sure, may lie.
LOWEST = np.array([0.001, 0.002, 0.005])
THRESHOLD_GRID = np.concatenate([LOWEST, np.round(np.arange(0.01, 1.0, 0.01), 2), 1 - LOWEST[::-1]])
SHRINKAGE = 20  # validation notes of a class with which its own threshold counts as much as the common one (ours)


def probabilities_from_logits(logits: np.ndarray, task: str) -> np.ndarray:
    """Logits (notes, classes) to probabilities of the same shape: softmax, or sigmoid for a multi-label task."""
    logits = np.asarray(logits, dtype=np.float64)
    return expit(logits) if task == "multi-label" else softmax(logits, axis=1)


def decide(probabilities: np.ndarray, task: str, thresholds: list[float] | None) -> np.ndarray:
    """Predicted labels in the shape of the true ones.

    Binary: positive where the second class reaches the one threshold. Multi-label: every class that reaches its own.
    Multi-class: the most probable class; it has no threshold.
    """
    if task == "multi-class":
        return probabilities.argmax(axis=1)
    scores = probabilities[:, 1] if task == "binary" else probabilities
    return (scores >= np.array([0.5] if thresholds is None else thresholds)).astype(np.int64)


def tune_thresholds(probabilities: np.ndarray, labels: np.ndarray, task: str) -> list[float] | None:
    """The thresholds with the best selection metric on validation, for every model alike; None for multi-class.

    Binary: one, of the positive class. Multi-label: one a class, between the one that is best for this class and the
    one that is best for all, and the nearer to its own the more validation notes the class has: alone, a class with
    few would get a threshold that fits these and no others (ours).

    What counts is the F1 to be expected of further notes, not that of the few at hand: of 40 validation notes it gave
    thresholds with one point more of F1 on other notes, of 120 half a point, of 600 a tenth (ours). Among equally good
    thresholds of the grid the middle one is taken: it is the farthest from either mistake (ours).
    """
    if task == "multi-class":
        return None
    if task == "binary":  # macro F1: the mean of both classes
        if len(np.unique(labels)) == 1:  # alone it does not tell where the other begins
            return [0.5]
        positive, negative = _f1_at_thresholds(labels == 1, probabilities[:, 1])
        return [_middle_of_the_best(positive + negative)]
    columns = zip(labels.T, probabilities.T, strict=True)
    of_class = np.array([_f1_at_thresholds(truth == 1, scores)[0] for truth, scores in columns])
    support = labels.sum(axis=0)
    common = _middle_of_the_best(support @ of_class / max(support.sum(), 1))  # weighted F1: by their number of notes
    own = np.array([_middle_of_the_best(scores) if scores.any() else common for scores in of_class])
    return (common + (own - common) * support / (support + SHRINKAGE)).tolist()


def _middle_of_the_best(scores: np.ndarray) -> float:
    best = np.flatnonzero(np.isclose(scores, scores.max()))
    return float(THRESHOLD_GRID[best[len(best) // 2]])


def _f1_at_thresholds(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of a class and of its complement at every threshold of the grid, to be expected; 0 where there is no note."""
    inside, outside = scores[truth], scores[~truth]
    found, false_alarms = _expected_above(inside, outside), _expected_above(outside, inside)
    missed, rejected = len(inside) - found, len(outside) - false_alarms
    mistakes = missed + false_alarms
    return tuple(2 * hits / np.maximum(2 * hits + mistakes, 1) for hits in (found, rejected))


def _expected_above(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of as many further scores would reach each threshold of the grid.

    Each stands for a normal distribution of such scores, as wide as Scott's rule says: standard deviation x n^(-1/5);
    of a single score that of the `others`, those of the complement (ours).
    """
    if not len(scores):
        return np.zeros(len(THRESHOLD_GRID))
    alike = others if len(scores) == 1 and len(others) else scores
    width = max(alike.std() * len(scores) ** -0.2, 1e-9)
    return ndtr((scores[:, np.newaxis] - THRESHOLD_GRID) / width).sum(axis=0)


class NoteClassificationMetric(evaluate.Metric):
    """Everything that a result file says about predictions, as plain numbers.

    `compute(predictions=probabilities, references=labels, thresholds=...)`. The configuration name is the task.
    """

    def __init__(self, task: str, class_names: list[str]):
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r}; choose one of: {', '.join(TASKS)}.")
        self.class_names = list(class_names)
        # In memory: the library's default is to leave a copy of the predictions in a cache folder.
        super().__init__(config_name=task, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Accuracy, precision, recall and F1 in every averaging, AUROC, AUPRC and MCC.",
            citation="",
            inputs_description="predictions: probabilities per class; references: class index, or 0/1 per class.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(label) if self.config_name == "multi-label" else label,
                }
            ),
        )

    def _compute(self, predictions, references, thresholds: list[float] | None = None) -> dict:
        task, names = self.config_name, self.class_names
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        predicted = decide(probabilities, task, thresholds)
        indices = list(range(len(names)))
        per_class = sk.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
        # as in comparison.py: a class that no note of this part has says nothing for or against the model
        present = np.flatnonzero(per_class[3]).tolist() or indices
        averages = {"macro": present, "weighted": present} | ({"micro": indices} if task == "multi-label" else {})

        scores = {"accuracy": sk.accuracy_score(labels, predicted)}  # multi-label: all classes of a note right
        for average, over in averages.items():
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                labels, predicted, labels=over, average=average, zero_division=0
            )
            scores |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
        if task == "binary":
            for name, of_class in zip(("precision", "recall", "f1"), per_class[:3], strict=True):
                scores[f"{name}_positive"] = of_class[1] if 1 in present else None  # likewise
        if task == "multi-label":
            scores["hamming_loss"] = sk.hamming_loss(labels, predicted)

        scores |= _ranking_scores(probabilities, labels, task)
        scores["mcc"] = _matthews(labels, predicted, task)
        scores["per_class"] = {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(names, *per_class, strict=True)
        }
        if task == "multi-label":  # one [[TN, FP], [FN, TP]] a class
            scores["confusion_matrix"] = sk.multilabel_confusion_matrix(labels, predicted).tolist()
        else:  # rows: true class, columns: predicted class
            scores["confusion_matrix"] = sk.confusion_matrix(labels, predicted, labels=indices).tolist()
        # the same answer for every note, though not all of them want it
        scores["collapsed"] = bool((predicted == predicted[0]).all() and not (predicted == labels).all())
        return {
            name: float(score) if isinstance(score, float | np.floating) else score for name, score in scores.items()
        }


def selecting_score(scores: dict[str, float | None], name: str) -> float:
    """The score by which settings or epochs are selected, with or without "eval_", the higher the better.

    Raises:
        DataError: it is not defined on this validation part.
    """
    score = scores.get(name.removeprefix("eval_"))
    if score is None:
        raise DataError(
            f"--metric_for_best_model {name}: not defined on a validation part with one class; take another."
        )
    return -score if name.endswith("loss") else score


def selectable_scores(task: str, class_names: list[str]) -> list[str]:
    """The names of what `NoteClassificationMetric` gives as one number, by which an epoch can be selected."""
    right = np.eye(len(class_names))
    labels = right.astype(int) if task == "multi-label" else np.arange(len(class_names))
    scores = NoteClassificationMetric(task, class_names).compute(predictions=right, references=labels)
    return [name for name, score in scores.items() if isinstance(score, float)]


def _ranking_scores(probabilities: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float | None]:
    """AUROC and AUPRC: of the positive class, or the mean over classes (one against the rest). None if undefined."""
    if task == "binary":
        columns = [(labels == 1, probabilities[:, 1])]
    else:
        one_hot = labels if task == "multi-label" else labels[:, None] == np.arange(probabilities.shape[1])
        columns = list(zip(one_hot.T, probabilities.T, strict=True))
    defined = [(truth, score) for truth, score in columns if 0 < truth.sum() < len(truth)]
    if not defined:
        return {"auroc": None, "auprc": None}
    return {
        "auroc": float(np.mean([sk.roc_auc_score(truth, score) for truth, score in defined])),
        "auprc": float(np.mean([sk.average_precision_score(truth, score) for truth, score in defined])),
    }


def _matthews(labels: np.ndarray, predicted: np.ndarray, task: str) -> float:
    """Matthews correlation; for a multi-label task over all note-class pairs together. 0 where it is undefined."""
    if task == "multi-label":
        labels, predicted = labels.ravel(), predicted.ravel()
    if len(set(labels)) == 1 or len(set(predicted)) == 1:
        return 0.0
    return sk.matthews_corrcoef(labels, predicted)
