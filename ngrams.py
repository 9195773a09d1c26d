"""Fit the n-gram branch of a small Transformer (scratch_model.py): weighed logistic regression, no gradient step."""

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from calibration import apply_temperature, fit_temperature, log_loss
from naive_bayes import fit_weighted, weigh
from scratch_model import NgramBranch

C = 10.0  # inverse strength of the penalty (ours)
NEVER = -10.0  # the logit of a class that no training note has
SHARES = [tenths / 10 for tenths in range(11)]
MIN_NOTES = 2  # a bucket of fewer training notes says nothing


@dataclass(frozen=True)
class NgramSettings:
    """What validation chooses: the branch's share of the probabilities, and how it is fitted."""

    weight: float
    power: int  # of its naive Bayes weights
    ends: bool  # whether the first and last words of a note count apart


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
        counted = branch.count(ids, mask, ids.new_zeros(len(ids))).flatten()
        buckets.append(counted.nonzero().squeeze(1).int().cpu().numpy())  # 32 bits, as liblinear wants them
        counts.append(counted.cpu().numpy()[buckets[-1]])
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


def ngram_logits(branch: NgramBranch, features: sparse.csr_array) -> np.ndarray:
    """Logits (notes, classes) of the branch by itself, of features that are counted already."""
    weight, bias = (each.detach().float().cpu().numpy() for each in (branch.weight, branch.bias))
    return features @ weight.T + bias


def fit_ngrams(branch: NgramBranch, features: sparse.csr_array, labels: np.ndarray, power: int, ends: bool):
    """Set the branch's weights and biases, in place.

    Args:
        features: (notes, 3 buckets) of the training notes, as `count_ngrams` returns them.
        labels: (notes,) class indices, or (notes, classes) with 0 and 1.
        power, ends: see `NgramSettings`.
    """
    regression = LogisticRegression(C=C, class_weight="balanced", max_iter=200)
    if labels.ndim == 2:
        regression = OneVsRestClassifier(LogisticRegression(C=C, class_weight="balanced", solver="liblinear"))
    used = np.unique(features.indices)  # of the other buckets no coefficient is looked for: it would be 0
    if not ends:
        used = used[used < (branch.VECTORS - 1) * branch.buckets]
    if not len(used):  # no n-gram is in two notes: the regression still learns how many notes each class has
        used = np.array([0])
    features = features[:, used]
    fit_weighted(features, labels, weigh(features, labels, power), regression)
    classes = len(branch.bias)
    weight, bias = np.zeros((classes, branch.idf.numel())), np.full(classes, NEVER)
    if labels.ndim == 2:
        for number, each in enumerate(regression.estimators_):
            if hasattr(each, "coef_"):
                weight[number, used], bias[number] = each.coef_[0], each.intercept_[0]
            elif labels[:, number].any():  # every note has this label
                bias[number] = -NEVER
    elif len(regression.coef_) == 1:  # two classes: half of it for the one and half against the other
        for number, sign in zip(regression.classes_, (-0.5, 0.5), strict=True):
            weight[number, used], bias[number] = sign * regression.coef_[0], sign * regression.intercept_[0]
    else:
        weight[np.ix_(regression.classes_, used)], bias[regression.classes_] = regression.coef_, regression.intercept_
    branch.weight.data.copy_(torch.from_numpy(weight))
    branch.bias.data.copy_(torch.from_numpy(bias))


def choose_ngrams(
    encoder: np.ndarray, ngrams: dict[tuple[int, bool], np.ndarray], labels: np.ndarray, task: str
) -> NgramSettings:
    """The branch's share of the probabilities and the way it is fitted, chosen on validation notes.

    Of the shares 0, 0.1 ... 1 with each fit the one with the least log loss at its best temperature, and the share
    nearest to a half where nothing tells them apart (ours). Not by F1: the encoder's epoch was, on the same notes. Not
    as the probabilities are: n-grams that are less sure than right would count too little.

    Args:
        encoder: probabilities (notes, classes) of the encoder by itself.
        ngrams: by power and ends, those of the branch by itself.
        labels: (notes,) class indices, or (notes, classes) with 0 and 1 for a multi-label task.
    """

    def rank(settings: NgramSettings) -> tuple[float, float]:
        mixed = (1 - settings.weight) * encoder + settings.weight * ngrams[settings.power, settings.ends]
        scaled = apply_temperature(mixed, fit_temperature(mixed, labels, task), task)
        return round(log_loss(scaled, labels, task), 6), abs(settings.weight - 0.5)

    return min((NgramSettings(share, *fit) for share, fit in product(SHARES, ngrams)), key=rank)


def spell_tokens(tokenizer: PreTrainedTokenizerBase, tokens: int, width: int) -> torch.Tensor:
    """(tokens, width): the numbers of each token's characters in lower case, then zeros; special tokens have none.

    The number of a character is twice its Unicode code point, plus one if it is part of a word (a letter or digit).
    """
    spelling = torch.zeros(tokens, width, dtype=torch.int32)
    for token in set(range(min(tokens, len(tokenizer)))).difference(tokenizer.all_special_ids):
        text = re.sub(r"\s", " ", tokenizer.decode([token]).lower()[:width])
        # half a character, which a byte-level token may be, is a letter more often than not
        characters = [2 * ord(character) + (character.isalnum() or character == "\ufffd") for character in text]
        spelling[token, : len(characters)] = torch.tensor(characters, dtype=torch.int32)
    return spelling
