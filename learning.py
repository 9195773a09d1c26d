"""Learning curves: how the score grows with the notes that were trained on, and where the curves cross.

A curve is the cells of one model that differ in the size of the training part. Each fold draws its own part, so that
the spread over folds is a spread over draws too. Reads no file.
"""

import numpy as np
import pandas as pd

from figures import cell_name

MODEL = ["model", "head", "tuning"]


def curves(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By its name, the complete cells of each model with at least two sizes of training part, fewest notes first."""
    found = {}
    for _, of_model in cells[cells.status == "complete"].groupby(MODEL, sort=False):
        if of_model.train_size.nunique() > 1:
            name = cell_name(of_model.assign(train_size="-").iloc[0])
            found[name] = of_model.sort_values("train_notes", ignore_index=True)
    return found


def crossing(curve: pd.DataFrame, reference: pd.DataFrame, score: str) -> float | None:
    """The number of training notes from which on a curve lies above another, None if it does not in the end.

    0 where it lies above from the smallest size that both have. Between two sizes, the difference of the scores is
    taken as linear in the logarithm of the notes.
    """
    both = curve.merge(reference, on="train_size", suffixes=("", "_of_reference"))
    ahead = (both[f"{score}_mean"] - both[f"{score}_mean_of_reference"]).to_numpy()
    notes = np.log(both.train_notes.to_numpy())
    if len(both) < 2 or ahead[-1] <= 0:
        return None
    behind = np.flatnonzero(ahead <= 0)
    if not len(behind):
        return 0.0
    last = behind[-1]
    share = -ahead[last] / (ahead[last + 1] - ahead[last])
    return float(np.exp(notes[last] + share * (notes[last + 1] - notes[last])))


def gain_of_doubling(curve: pd.DataFrame, score: str) -> float:
    """What each doubling of the training notes brought at the end of the curve: its slope over the last two sizes."""
    (before, last), notes = curve[f"{score}_mean"].iloc[-2:], curve.train_notes.iloc[-2:]
    return float((last - before) / np.log2(notes.iloc[1] / notes.iloc[0]))


def describe_crossings(cells: pd.DataFrame, average: str) -> list[str]:
    """A sentence for each curve against the baseline's, or against the cheapest model's where that has none."""
    found = curves(cells)
    if len(found) < 2:
        return []
    hours = {name: curve.standalone_hours.iloc[-1] for name, curve in found.items()}
    reference = "tfidf" if "tfidf" in found else min(hours, key=hours.get)
    sentences = []
    for name, curve in found.items():
        if name == reference:
            continue
        common = curve[curve.train_size.isin(found[reference].train_size)]
        if len(common) < 2:
            continue  # nothing to compare between
        notes = crossing(curve, found[reference], f"f1_{average}")
        lost = crossing(found[reference], curve, f"f1_{average}")  # from where on the reference is ahead
        smallest, largest = common.train_notes.iloc[0], common.train_notes.iloc[-1]
        if notes is None and lost:
            sentences.append(
                f"{name} is ahead of {reference} below about {lost:,.0f} training notes, and behind above."
            )
        elif notes is None:
            sentences.append(f"{name} does not pass {reference} with up to {largest:,.0f} training notes.")
        elif notes == 0:
            sentences.append(f"{name} is ahead of {reference} from {smallest:,.0f} training notes on.")
        else:
            sentences.append(f"{name} needs about {notes:,.0f} training notes to pass {reference}.")
    return sentences
