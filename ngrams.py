"""Fit the n-gram branch of a small Transformer (scratch_model.py): logistic regression, no gradient step."""

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import normalize

from scratch_model import NgramBranch

C = 10.0  # inverse strength of the penalty (ours)
NEVER = -10.0  # the logit of a class that no training note has
MIN_NOTES = 2  # a bucket of fewer training notes says nothing


def fit_ngrams(branch: NgramBranch, notes: list[list[list[int]]], labels: np.ndarray):
    """Set the branch's parameters from training notes, in place.

    Args:
        notes: for each note its windows of token ids.
        labels: (notes,) class indices, or (notes, classes) with 0 and 1.
    """
    counts = []
    with torch.no_grad():
        for windows in notes:
            rows = [torch.tensor([window]) for window in windows]
            counted = sum(branch.count(row, torch.ones_like(row)) for row in rows)
            counts.append(sparse.csr_array(counted.numpy()))
    counts = sparse.vstack(counts, format="csr")
    frequency = np.bincount(counts.indices, minlength=branch.buckets)  # notes that have the bucket
    idf = np.where(frequency >= MIN_NOTES, np.log((1 + len(notes)) / (1 + frequency)) + 1, 0.0)
    counts.data = np.log1p(counts.data)
    features = normalize(counts.multiply(idf[None, :]).tocsr())
    regression = LogisticRegression(C=C, class_weight="balanced", max_iter=200)
    if labels.ndim == 2:
        regression = OneVsRestClassifier(LogisticRegression(C=C, class_weight="balanced", solver="liblinear"))
    regression.fit(features, labels)
    classes = len(branch.bias)
    weight, bias = np.zeros((classes, branch.buckets)), np.full(classes, NEVER)
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
    for parameter, values in ((branch.idf, idf), (branch.weight, weight), (branch.bias, bias)):
        parameter.data.copy_(torch.from_numpy(values))
