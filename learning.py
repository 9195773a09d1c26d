"""Learning curves: how the score grows with the notes that were trained on, and where the curves cross.

A curve is the cells of one model that differ in the size of the training part. Each fold draws its own part, so that
the spread over folds is a spread over draws too. Reads no file.
"""

import numpy as np
import pandas as pd

from figures import cell_name, hours_to_compare

MODEL = ["model", "head", "tuning"]


def curves(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By its name, the complete cells of each model with at least two sizes of training part, fewest notes first."""
    found = {}
    for _, of_model in cells[cells.status == "complete"].groupby(MODEL, sort=False):
        if of_model.train_size.nunique() > 1:
            name = cell_name(of_model.assign(train_size="-").iloc[0])
            found[name] = of_model.sort_values("train_notes", ignore_index=True)
    return found


def crossings(curve: pd.DataFrame, reference: pd.DataFrame, score: str) -> tuple[bool, list[float]]:
    """Whether a curve lies above another at the smallest size that both have, and the numbers of training notes at
    which that changes.

    Between two sizes, the difference of the scores is taken as linear in the logarithm of the notes.
    """
    both = curve.merge(reference, on="train_size", suffixes=("", "_of_reference"))
    gap = (both[f"{score}_mean"] - both[f"{score}_mean_of_reference"]).to_numpy()
    notes = np.log(both.train_notes.to_numpy())
    equal = np.flatnonzero(gap[1:-1] == 0) + 1
    touch = equal[gap[equal - 1] * gap[equal + 1] > 0]  # there, and on no other side after it: they do not cross
    gap, notes = np.delete(gap, touch), np.delete(notes, touch)
    before = np.flatnonzero(np.diff(gap > 0))  # the place of the size before each change
    share = gap[before] / (gap[before] - gap[before + 1])
    return bool(gap[0] > 0), np.exp(notes[before] + share * (notes[before + 1] - notes[before])).tolist()


def gain_of_doubling(curve: pd.DataFrame, score: str) -> tuple[int, float] | None:
    """What each doubling of the training notes brought at the end of the curve, and the size that it is reckoned from:
    the largest that was doubled at least; None if none was."""
    last = curve.iloc[-1]
    doubled = curve[2 * curve.train_notes <= last.train_notes]
    if doubled.empty:
        return None
    before = doubled.iloc[-1]
    gain = (last[f"{score}_mean"] - before[f"{score}_mean"]) / np.log2(last.train_notes / before.train_notes)
    return round(before.train_notes), float(gain)


def describe_crossings(cells: pd.DataFrame, average: str) -> list[str]:
    """A sentence for each curve against the baseline's, or against the cheapest model's where that has none."""
    found = curves(cells)
    if len(found) < 2:
        return []
    shared = set.intersection(*(set(curve.train_size) for curve in found.values()))
    # what each cost with as many notes as the others
    known = [curve[curve.train_size.isin(shared)] if shared else curve for curve in found.values()]
    hours = hours_to_compare(pd.concat(curve.tail(1) for curve in known))
    reference = "tfidf" if "tfidf" in found else [*found][hours.argmin()]
    sentences = []
    for name, curve in found.items():
        if name == reference:
            continue
        common, against = (each[each[f"f1_{average}_mean"].notna()] for each in (curve, found[reference]))
        common = common[common.train_size.isin(against.train_size)]
        if len(common) < 2:
            continue  # nothing to compare between
        leads, changes = crossings(common, against, f"f1_{average}")
        smallest, largest = common.train_notes.iloc[0], common.train_notes.iloc[-1]
        about = ", ".join(f"{notes:,.0f}" for notes in changes)
        if not changes:
            sentence = f"does not pass {reference} with up to {largest:,.0f} training notes"
            if leads:
                sentence = f"is ahead of {reference} from {smallest:,.0f} training notes on"
        elif len(changes) > 1:
            ahead = "ahead" if leads else "not ahead"
            sentence = f"is {ahead} of {reference} with {smallest:,.0f} training notes, which changes at about {about}"
        elif leads:
            sentence = f"is ahead of {reference} below about {about} training notes, and no longer above"
        else:
            sentence = f"needs about {about} training notes to pass {reference}"
        sentences.append(f"{name} {sentence}.")
    return sentences
