"""Fit the n-gram branch of a small Transformer (scratch_model.py): logistic regression, no gradient step."""

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import normalize

from scratch_model import NgramBranch

C = 10.0  # inverse strength of the penalty (ours)
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
    if labels.ndim == 2:
        found = [(each.coef_[0], each.intercept_[0]) for each in regression.estimators_]
        weight, bias = (np.stack(values) for values in zip(*found, strict=True))
    elif (
        len(regression.coef_) == 1
    ):  # binary: one row for both classes, in a softmax half for one, half against the other
        weight = np.concatenate([-regression.coef_, regression.coef_]) / 2
        bias = np.concatenate([-regression.intercept_, regression.intercept_]) / 2
    else:
        weight, bias = regression.coef_, regression.intercept_
    for parameter, values in ((branch.idf, idf), (branch.weight, weight), (branch.bias, bias)):
        parameter.data.copy_(torch.from_numpy(values))
