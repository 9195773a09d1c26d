"""Fit the n-gram branch of a small Transformer (scratch_model.py): logistic regressions, stacked on the encoder.

Each vector of the branch (words, characters, words at the ends) has a regression for each power of the naive Bayes
weights. All are linear in the same features, so their weighted sum is one matrix: the model keeps that alone.
"""

import re
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from naive_bayes import POWERS, fit_weighted, weigh
from scratch_model import NgramBranch
from tokenization import MARKS, UNSPACED

C = 10.0  # inverse strength of the penalty (ours)
ALIKE = 10.0  # how strongly the weights of the logits are drawn towards each other (ours)
NEVER = -10.0  # the logit of a class that no training note has
MIN_NOTES = 2  # a bucket of fewer training notes says nothing
# A byte that begins a character of three bytes or four is none of a word, as punctuation and those scripts (ours).
IN_WORD = re.compile(f"[^\\W_{UNSPACED}]|[{MARKS}\udc80-\udcdf]")
ENCODER = "encoder"  # among the weights of the logits
# name -> number of the vector, power of its naive Bayes weights
FITS = {
    f"{vector}-nb{power}": (number, power)
    for (number, vector), power in product(enumerate(NgramBranch.VECTORS), POWERS)
}


class Fit(NamedTuple):
    """Logistic regression on one vector of the branch."""

    columns: np.ndarray  # (used,) of the features that training notes have
    weight: np.ndarray  # (classes, used)
    bias: np.ndarray  # (classes,)

    def logits(self, features: sparse.csr_array) -> np.ndarray:
        """Logits (notes, classes) of features (notes, 3 buckets), by this regression alone."""
        return features[:, self.columns] @ self.weight.T + self.bias


class FittedNgrams(NamedTuple):
    """All regressions of a fold; nothing of it is left to chance, so its seeds share them."""

    spelling: torch.Tensor  # of the branch
    idf: torch.Tensor  # likewise
    fits: dict[str, Fit]
    validation: dict[str, np.ndarray]  # by the regression's name, logits (notes, classes) of the validation notes
    seconds: float  # that they took


def count_ngrams(
    branch: NgramBranch, tokenizer: PreTrainedTokenizerBase, notes: list[list[list[int]]]
) -> sparse.csr_array:
    """The features of training notes; sets what the branch knows without their labels, in place.

    Args:
        notes: for each note its windows of token ids.
    """
    branch.spelling.copy_(spell_tokens(tokenizer, *branch.spelling.shape))
    counts = count_notes(branch, notes)
    frequency = np.bincount(counts.indices, minlength=branch.idf.numel())  # notes that have the bucket
    idf = np.where(frequency >= MIN_NOTES, np.log((1 + len(notes)) / (1 + frequency)) + 1, 0.0)
    branch.idf.data.copy_(torch.from_numpy(idf.reshape(branch.idf.shape)))
    return weigh_counts(branch, counts)


def ngram_features(branch: NgramBranch, notes: list[list[list[int]]]) -> sparse.csr_array:
    """The features (notes, 3 buckets) of notes, as the branch has them once `count_ngrams` has set it up."""
    return weigh_counts(branch, count_notes(branch, notes))


@torch.no_grad()
def count_notes(branch: NgramBranch, notes: list[list[list[int]]]) -> sparse.csr_array:
    buckets, counts = [], []
    for windows in notes:
        rows = [torch.tensor(window, device=branch.spelling.device) for window in windows]
        ids, mask = (pad_sequence(each, batch_first=True) for each in (rows, [*map(torch.ones_like, rows)]))
        counted = branch.count(ids, mask, ids.new_zeros(len(ids)))
        _, vector, bucket = counted.indices()
        buckets.append((vector * branch.buckets + bucket).int().cpu().numpy())  # 32 bits, as liblinear wants them
        counts.append(counted.values().cpu().numpy())
    row_ends = np.cumsum([0, *map(len, buckets)], dtype=np.int32)
    return sparse.csr_array(
        (np.concatenate(counts), np.concatenate(buckets), row_ends), (len(notes), branch.idf.numel())
    )


def weigh_counts(branch: NgramBranch, counts: sparse.csr_array) -> sparse.csr_array:
    idf = branch.idf.detach().float().cpu().numpy().ravel()
    weighted = sparse.csr_array(
        (np.log1p(counts.data) * idf[counts.indices], counts.indices, counts.indptr), counts.shape
    )
    vectors = [weighted[:, start : start + branch.buckets] for start in range(0, len(idf), branch.buckets)]
    features = sparse.csr_array(sparse.hstack([*map(normalize, vectors)]))
    features.eliminate_zeros()  # of the n-grams that too few training notes have
    return features


def fit_ngrams(
    branch: NgramBranch, features: sparse.csr_array, labels: np.ndarray, names: Iterable[str] = FITS
) -> dict[str, Fit]:
    """The regressions with these names.

    Args:
        features: (notes, 3 buckets) of the training notes, as `count_ngrams` returns them.
        labels: (notes,) class indices, or (notes, classes) with 0 and 1.
    """
    return {name: fit_vector(branch, features, labels, *FITS[name]) for name in names}


def fit_vector(branch: NgramBranch, features: sparse.csr_array, labels: np.ndarray, vector: int, power: int) -> Fit:
    regression = LogisticRegression(C=C, class_weight="balanced", max_iter=200)
    if labels.ndim == 2:
        regression = OneVsRestClassifier(LogisticRegression(C=C, class_weight="balanced", solver="liblinear"))
    # of the other buckets no coefficient is looked for: it would be 0
    used = branch.idf[vector].nonzero().squeeze(1).cpu().numpy()
    if not len(used):  # no n-gram is in two notes: the regression still learns how many notes each class has
        used = np.array([0])
    columns = vector * branch.buckets + used
    features = features[:, columns]
    fit_weighted(features, labels, weigh(features, labels, power), regression)
    classes = len(branch.bias)
    weight, bias = np.zeros((classes, len(columns)), np.float32), np.full(classes, NEVER)
    if labels.ndim == 2:
        for number, each in enumerate(regression.estimators_):
            if hasattr(each, "coef_"):
                weight[number], bias[number] = each.coef_[0], each.intercept_[0]
            elif labels[:, number].any():  # every note has this label
                bias[number] = -NEVER
    elif len(regression.coef_) == 1:  # two classes: half of it for the one and half against the other
        for number, sign in zip(regression.classes_, (-0.5, 0.5), strict=True):
            weight[number], bias[number] = sign * regression.coef_[0], sign * regression.intercept_[0]
    else:
        weight[regression.classes_], bias[regression.classes_] = regression.coef_, regression.intercept_
    return Fit(columns, weight, bias)


def set_ngrams(branch: NgramBranch, fits: dict[str, Fit], weights: dict[str, float]):
    """Put the weighted sum of the regressions into the branch, in place."""
    weight, bias = np.zeros(branch.weight.shape), np.zeros(len(branch.bias))
    for name, fit in fits.items():
        weight[:, fit.columns] += weights[name] * fit.weight
        bias += weights[name] * fit.bias
    branch.weight.data.copy_(torch.from_numpy(weight))
    branch.bias.data.copy_(torch.from_numpy(bias))


def choose_weights(logits: dict[str, np.ndarray], labels: np.ndarray, task: str) -> dict[str, float]:
    """What the logits of each member count in their sum, 0 and up, chosen on validation notes.

    Stacking (Wolpert 1992) with weights that cannot be negative (Breiman 1996), by log loss; their size also settles
    how sure the sum is. Penalties draw them towards each other, so that few notes do not choose one member for good,
    and a tenth as much towards the plain mean, else there is no end where no validation note is mistaken (ours).

    Args:
        logits: by the member's name, (notes, classes).
        labels: (notes,) class indices, or (notes, classes) with 0 and 1 for a multi-label task.
    """
    members = np.stack([*logits.values()]).astype(np.float64)
    truth = labels if task == "multi-label" else np.eye(members.shape[2])[labels]
    mean = 1 / len(members)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum over the labels, and its gradient."""
        summed = np.tensordot(weights, members, axes=1)
        if task == "multi-label":
            misfit, probabilities = (np.logaddexp(0, summed) - truth * summed).sum(), expit(summed)
        else:
            misfit, probabilities = -(truth * log_softmax(summed, axis=1)).sum(), softmax(summed, axis=1)
        gradient = np.tensordot(members, probabilities - truth, axes=2)
        apart, away = weights - weights.mean(), weights - mean
        penalty = ALIKE * (apart**2).sum() + (away**2).sum()
        return misfit + penalty, gradient + 2 * (ALIKE * apart + away)

    found = minimize(loss, np.full(len(members), mean), jac=True, bounds=[(0, None)] * len(members), method="L-BFGS-B")
    return dict(zip(logits, found.x.tolist(), strict=True))


def spell_tokens(tokenizer: PreTrainedTokenizerBase, tokens: int, width: int) -> torch.Tensor:
    """(tokens, width): the numbers of each token's characters in lower case, then zeros; special tokens have none.

    The number of a character is twice its Unicode code point, plus one if it is part of a word: a letter or digit, but
    of the scripts without spaces, where each is a word. Half a character, which a byte-level token may be, has the
    numbers of its bytes (surrogate escapes, as PEP 383).
    """
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    spelling = torch.zeros(tokens, width, dtype=torch.int32)
    for token in set(range(min(tokens, len(tokenizer)))).difference(tokenizer.all_special_ids):
        text = tokenizer.decode([token])
        if "\ufffd" in text:
            raw = bytes(byte_of[character] for character in tokenizer.convert_ids_to_tokens(token))
            text = raw.decode("utf-8", errors="surrogateescape")
        text = re.sub(r"\s", " ", text.lower()[:width])
        characters = [2 * ord(character) + bool(IN_WORD.fullmatch(character)) for character in text]
        spelling[token, : len(characters)] = torch.tensor(characters, dtype=torch.int32)
    return spelling
