"""TF-IDF and logistic regression: what a sensible user would try first, and a row in every table.

Word 1-2-grams and character 3-5-grams, with the regularisation and the class weights chosen on validation by the same
metric that selects the other models. scikit-learn, no GPU, seconds to minutes. `tfidf-nb` is the same with features
that count by naive Bayes weights, by the squares of them or all the same, also chosen there.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, starmap
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

from calibration import log_loss
from data import DataError
from metrics import SELECTION_METRIC, NoteClassificationMetric, selecting_score, tune_thresholds
from naive_bayes import POWERS, fit_weighted, weigh
from tokenization import WORD

BASELINES = {"tfidf": (0,), "tfidf-nb": POWERS}  # name -> powers of the naive Bayes weights to choose from
# The grid is ours: half-decades of C around the library's default of 1.
REGULARISATION = (0.3, 1.0, 3.0, 10.0, 30.0)
CLASS_WEIGHTS = (None, "balanced")
MODEL_FILE = "model.skops"  # skops stores scikit-learn models without pickle: loading one runs no code
TRUSTED = ["sklearn.multiclass._ConstantPredictor"]  # in the place of a label that every training note has


@dataclass(frozen=True)
class Settings:
    """What validation chooses."""

    C: float
    class_weight: str | None
    naive_bayes_power: int


def fit_features(texts: list[str]) -> tuple[FeatureUnion, csr_matrix]:
    """The vectoriser, and what it makes of these notes (notes, features); a feature must occur in two of them.

    Raises:
        DataError: none does.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=WORD)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2, sublinear_tf=True)
    features = FeatureUnion([("words", words), ("characters", characters)])
    try:
        return features, features.fit_transform(compose(texts))
    except ValueError:  # of an empty vocabulary
        raise DataError(
            f"No word occurs in two of the {len(texts)} training notes: is --text_column the one with the notes?"
        ) from None


def build_classifier(settings: Settings, task: str) -> LogisticRegression | OneVsRestClassifier:
    classifier = LogisticRegression(C=settings.C, class_weight=settings.class_weight, max_iter=1000)
    return OneVsRestClassifier(classifier) if task == "multi-label" else classifier


def compose(texts: Sequence[str]) -> list[str]:
    """In one Unicode form (NFC), as the tokenizers read them: an "é" of two characters is the one of one."""
    return [unicodedata.normalize("NFC", text) for text in texts]


class TfidfClassifier:
    """Vectoriser and classifier; `predict_probabilities` gives (notes, classes) as the neural models do."""

    def __init__(self, task: str, class_names: list[str], pipeline: Pipeline | None = None):
        self.task = task
        self.class_names = class_names
        self.pipeline = pipeline

    def fit(self, texts: list[str], labels: np.ndarray, settings: Settings) -> "TfidfClassifier":
        features, matrix = fit_features(texts)
        classifier = build_classifier(settings, self.task)
        fit_weighted(matrix, labels, weigh(matrix, labels, settings.naive_bayes_power), classifier)
        self.pipeline = Pipeline([("features", features), ("classifier", classifier)])
        return self

    def fit_and_select(
        self,
        texts: list[str],
        labels: np.ndarray,
        validation_texts: list[str],
        validation_labels: np.ndarray,
        powers: Sequence[int],
        selection: str | None = None,
    ) -> Settings:
        """Fit every setting of the grid on the training notes and keep the best on validation.

        Each is judged at the threshold tuned for it, as every model of the comparison is, by the score `selection`
        (default: SELECTION_METRIC of the task), or by `loss`, the cross-entropy.
        """
        selection = selection or SELECTION_METRIC[self.task]
        features, matrix = fit_features(texts)
        validation_matrix = features.transform(compose(validation_texts))
        weights = {power: weigh(matrix, labels, power) for power in powers}
        metric = NoteClassificationMetric(self.task, self.class_names)
        best_score, best_settings = -math.inf, None
        for settings in starmap(Settings, product(REGULARISATION, CLASS_WEIGHTS, powers)):
            classifier = build_classifier(settings, self.task)
            fit_weighted(matrix, labels, weights[settings.naive_bayes_power], classifier)
            probabilities = classifier.predict_proba(validation_matrix)
            scores = metric.compute(
                predictions=probabilities,
                references=validation_labels,
                thresholds=tune_thresholds(probabilities, validation_labels, self.task),
            )
            scores["loss"] = log_loss(probabilities, validation_labels, self.task)
            score = selecting_score(scores, selection)
            if score > best_score:
                best_score, best_settings = score, settings
                self.pipeline = Pipeline([("features", features), ("classifier", classifier)])
        return best_settings

    def predict_probabilities(self, texts: list[str]) -> np.ndarray:
        return self.pipeline.predict_proba(compose(texts))

    def count_parameters(self) -> int:
        """Coefficients and intercepts."""
        classifier = self.pipeline["classifier"]
        members = classifier.estimators_ if self.task == "multi-label" else [classifier]
        # (a label that every training note has needs no coefficients: scikit-learn puts a constant in its place)
        fitted = [member for member in members if hasattr(member, "coef_")]
        return sum(member.coef_.size + member.intercept_.size for member in fitted)

    def count_bytes(self) -> int:
        """Of the file that `save` writes; counted in memory, since it spells out words of the notes."""
        from skops import io

        return len(io.dumps(self.pipeline))

    def save(self, folder: Path):
        from skops import io  # here, not above: it takes two seconds, and every start of train.py would wait for it

        folder.mkdir(parents=True, exist_ok=True)
        io.dump(self.pipeline, folder / MODEL_FILE)

    @classmethod
    def load(cls, folder: Path, task: str, class_names: list[str]) -> "TfidfClassifier":
        from skops import io

        return cls(task, class_names, pipeline=io.load(folder / MODEL_FILE, trusted=TRUSTED))
