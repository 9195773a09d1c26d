"""Splits and folds that no patient crosses.

Second stage of the pipeline, after data.py: the notes' own splits where the data gives them, stratified group folds
elsewhere. Every model of a comparison sees the same splits: they depend on the notes and on DataArguments alone.
"""

import hashlib
import logging
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from data import DataArguments, DataError, Notes, name_rows

logger = logging.getLogger(__name__)


@dataclass
class Split:
    """Row indices into `Notes`, disjoint. Test is read once, after selection on validation."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from (("train", self.train), ("validation", self.validation), ("test", self.test))


def fingerprint(notes: Notes, splits: list[Split]) -> str:
    """Of the notes and of how they are cut: results with the same one may stand in one table."""
    digest = hashlib.sha256(notes.fingerprint().encode())
    for split in splits:
        for _, rows in split.parts():
            digest.update(str(rows.tolist()).encode())
    return digest.hexdigest()[:16]


def _stratum(notes: Notes) -> np.ndarray:
    """One class a note to stratify by: its label; for multi-label notes the rarest of its labels (ours)."""
    if notes.task != "multi-label":
        return notes.labels
    by_rarity = np.argsort(notes.labels.sum(axis=0), kind="stable")
    rarest = notes.labels[:, by_rarity].argmax(axis=1)  # position of the first 1 in order of rarity
    return np.where(notes.labels.any(axis=1), rarest, len(notes.class_names))


def _same_text(notes: Notes) -> np.ndarray:
    """A number a note, equal for notes whose text differs at most in case, spacing and how Unicode writes it."""
    keys = [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in notes.texts]
    return pd.factorize(pd.Series(keys))[0]  # np.unique would give every text the width of the longest


@lru_cache(maxsize=1)  # of every fold and seed the same
def joined_groups(notes: Notes) -> np.ndarray:
    """Groups that a split must not cut: notes of one patient, and notes with the same text, transitively."""
    texts = _same_text(notes)
    if notes.groups is None:
        return texts
    groups = np.unique(notes.groups, return_inverse=True)[1]
    size = groups.max() + texts.max() + 2
    edges = coo_array((np.ones(len(notes)), (groups, groups.max() + 1 + texts)), shape=(size, size))
    return connected_components(edges, directed=False)[1][groups]


def report_repeated_texts(notes: Notes) -> dict[str, int]:
    """Counts of notes that repeat a text of another, and of those whose label differs from the other's."""
    texts = _same_text(notes)
    labels = notes.labels if notes.task != "multi-label" else np.unique(notes.labels, axis=0, return_inverse=True)[1]
    pairs = pd.DataFrame({"text": texts, "label": labels})
    counts = pairs.groupby("text")["label"].agg(["size", "nunique"])
    repeated = int(counts.loc[counts["size"] > 1, "size"].sum())
    contradicting = int(counts.loc[counts["nunique"] > 1, "size"].sum())
    if repeated:
        logger.warning(
            "%d notes share their text with another; %d of them under different labels", repeated, contradicting
        )
    return {"repeated_texts": repeated, "contradicting_labels": contradicting}


def _check_classes(notes: Notes, arguments: DataArguments):
    """Every class must be in enough notes, and enough groups, to reach every fold."""
    groups = joined_groups(notes)
    needed = max(arguments.folds, 3)  # a single split still has three parts
    for number, name in enumerate(notes.class_names):
        has_class = notes.labels[:, number] == 1 if notes.task == "multi-label" else notes.labels == number
        spread = len(set(groups[has_class]))
        if spread < needed:
            unit = "notes" if notes.groups is None else "groups (patients)"
            raise DataError(
                f"Class {name!r} is in {has_class.sum()} notes of {spread} different {unit}, fewer than the {needed} "
                f"parts to fill: use fewer --folds (at least 3 are needed even for one split), merge or remove it."
            )


def _most_parts(notes: Notes, indices: np.ndarray) -> int:
    """Into how many stratified parts that cut no group `indices` can be cut at most."""
    return min(len(set(joined_groups(notes)[indices])), np.bincount(_stratum(notes)[indices]).max())


def _split_off(notes: Notes, indices: np.ndarray, parts: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rest, part) of `indices` for each of `parts` stratified parts that cut no group."""
    strata, groups = _stratum(notes)[indices], joined_groups(notes)[indices]
    if _most_parts(notes, indices) < parts:
        fewer = "use fewer --folds, or " if parts > 3 else ""
        raise DataError(
            f"{len(indices)} notes of {len(set(groups))} different groups or texts are too few to cut into {parts} "
            f"parts: {fewer}give more notes."
        )
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    for rest, part in splitter.split(indices, strata, groups):
        yield indices[rest], indices[part]


def _draw_validation(
    notes: Notes, indices: np.ndarray, arguments: DataArguments, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) of `indices`: validation gets as many equal parts as come nearest to its fraction."""
    fraction = arguments.validation_fraction
    most = max(2, _most_parts(notes, indices))
    share = Fraction(fraction).limit_denominator(min(most, max(10, round(1 / fraction))))  # 0.15: one part of seven
    share = max(share, Fraction(1, most))  # of a few patients the nearest to a small fraction would be nothing
    parts = [part for _, part in _split_off(notes, indices, share.denominator, seed)]
    validation = np.sort(np.concatenate(parts[: share.numerator]))
    return np.setdiff1d(indices, validation), validation


def _report_large_groups(notes: Notes, parts: int):
    """Of notes that cannot be parted more than a part should have: texts that many patients share join them all."""
    groups = joined_groups(notes)
    joined = np.flatnonzero(groups == np.bincount(groups).argmax())
    if len(joined) <= len(notes) / parts:
        return
    patients = 1 if notes.groups is None else len(set(notes.groups[joined]))
    why, remedy = "they have one text" if notes.groups is None else "they are of one group", ""
    if patients > 1:
        repeated = int(pd.Series(_same_text(notes)[joined]).duplicated(keep=False).sum())
        why = f"they are of {patients} groups, which {repeated} notes with the text of another join"
        remedy = "; leave out notes that say nothing, as 'unchanged'"
    logger.warning(
        "%d of the %d notes cannot be parted, which is more than one of %d parts: %s. Parts are of unequal size%s.",
        len(joined), len(notes), parts, why, remedy,
    )  # fmt: skip


def draw_splits(notes: Notes, arguments: DataArguments) -> list[Split]:
    """The splits that all models share: as the data gives them, else stratified folds that cut no group.

    With folds, each note is in the test part exactly once a repeat, and validation is drawn from the remaining notes.
    Repeat r draws with the seed `split_seed + r`; its folds stand behind those of the repeats before it.
    """
    everything = np.arange(len(notes))
    if notes.given_splits is None:
        if arguments.folds == 1 < arguments.repeats:
            raise DataError(f"--repeats {arguments.repeats} with --folds 1: give 1, or 2 and more folds.")
        _check_classes(notes, arguments)
        # a single split tests on the first of five parts, or of as many as there are (ours)
        parts = arguments.folds if arguments.folds > 1 else min(5, max(3, _most_parts(notes, everything)))
        _report_large_groups(notes, parts)
        splits = []
        for seed in range(arguments.split_seed, arguments.split_seed + arguments.repeats):
            folds = islice(_split_off(notes, everything, parts, seed), arguments.folds)
            splits += [Split(*_draw_validation(notes, rest, arguments, seed), test) for rest, test in folds]
    else:
        found = set(notes.given_splits)
        if not {"train", "test"} <= found:
            raise DataError(
                f"The data gives only the split{'s' if len(found) > 1 else ''} {', '.join(sorted(found))}: add the "
                "missing of train and test, or draw the splits with --split_column none."
            )
        if arguments.repeats > 1 and arguments.train_size is None:
            logger.warning("--repeats %d: the data gives its splits, which are the same every time", arguments.repeats)
        train, validation, test = (everything[notes.given_splits == part] for part in ("train", "validation", "test"))
        if not len(validation):
            train, validation = _draw_validation(notes, train, arguments, arguments.split_seed)
        splits = [Split(train, validation, test)]
    for split in splits:
        _check_split(notes, split, arguments)
    return splits


def _check_split(notes: Notes, split: Split, arguments: DataArguments):
    """No group on both sides, no test text in training, no label that training lacks."""
    train_counts = notes.count_labels(split.train)
    for part, indices in (("validation", split.validation), ("test", split.test)):
        counts = notes.count_labels(indices)
        unseen = [name for name, count in counts.items() if count and not train_counts[name]]
        if unseen:
            is_given = notes.given_splits is not None and part in notes.given_splits
            remedy = "correct the splits" if is_given else "try another --split_seed"
            raise DataError(f"The {part} part has labels that training lacks: {', '.join(unseen)}; {remedy}.")
        lacking = [name for name, count in counts.items() if not count and train_counts[name]]
        if lacking:
            effect = {"validation": "epochs and thresholds are chosen", "test": "macro averages are taken"}[part]
            logger.warning("The %s part has no note of class %s: %s without it.", part, ", ".join(lacking), effect)
    texts = _same_text(notes)
    for left, right in (("train", "test"), ("train", "validation"), ("validation", "test")):
        left_rows, right_rows = getattr(split, left), getattr(split, right)
        if notes.groups is not None:
            shared = set(notes.groups[left_rows]) & set(notes.groups[right_rows])
            if shared:
                rows = right_rows[np.isin(notes.groups[right_rows], list(shared))]
                raise DataError(
                    f"Groups of the {left} part are also in the {right} part ({len(shared)}), there in "
                    f"{name_rows(rows)}: correct the splits, or draw them with --split_column none."
                )
        repeated = right_rows[np.isin(texts[right_rows], texts[left_rows])]
        if len(repeated):
            message = f"Texts of the {left} part are repeated in the {right} part: {name_rows(repeated)}"
            if (left, right) == ("train", "test") and not arguments.allow_leaks:
                raise DataError(f"{message}. Remove them, draw splits with --split_column none, or --allow_leaks.")
            logger.warning("%s.", message)


def draw_training_parts(notes: Notes, splits: list[Split], arguments: DataArguments) -> list[Split]:
    """What `--train_size` leaves of each split's training part; of splits that the data gives `--repeats` draws."""
    if arguments.train_size is None:
        return splits
    draws = splits if notes.given_splits is None else splits * arguments.repeats
    return [  # each with a seed of its own: else the parts of two folds would be more alike than chance makes them
        take_training_notes(notes, split, arguments.train_size, arguments.split_seed + number)
        for number, split in enumerate(draws)
    ]


def take_training_notes(notes: Notes, split: Split, size: int, seed: int) -> Split:
    """The split with about `size` notes in its training part; validation and test stay as they are.

    The groups of each class are shuffled, then all are put into one order in which every beginning has about the
    class shares of the whole; the first of them that hold `size` notes are taken. So a smaller training part lies
    within a larger one. A group counts for the most frequent class among its notes.

    Raises:
        DataError: the training part is not larger than that, or so few notes do not have every class.
    """
    if size >= len(split.train):
        raise DataError(
            f"--train_size {size}: the training part has {len(split.train)} notes; give fewer, or leave it out."
        )
    frame = pd.DataFrame({"group": joined_groups(notes)[split.train], "stratum": _stratum(notes)[split.train]})
    groups = frame.groupby("group").stratum.agg(["size", lambda strata: strata.mode()[0]])
    groups.columns = ["notes", "stratum"]
    groups = groups.sample(frac=1, random_state=seed)
    of_class = groups.groupby("stratum").notes
    # where in the class a group stands, from 0 to 1, by notes: the middle of its own
    groups["place"] = (of_class.cumsum() - groups.notes / 2) / of_class.transform("sum")
    groups = groups.sort_values("place", kind="stable")
    wanted = groups.index[groups.notes.cumsum() - groups.notes / 2 <= size]
    train = split.train[frame.group.isin(wanted).to_numpy()]
    missing = [
        name
        for name, count in notes.count_labels(train).items()
        if not count and notes.count_labels(split.train)[name]
    ]
    if missing:
        raise DataError(
            f"--train_size {size}: so few training notes have none of class {', '.join(missing)}; give more."
        )
    return Split(train, split.validation, split.test)


def balanced_class_weights(notes: Notes, indices: np.ndarray) -> np.ndarray:
    """Weights (classes,) that make every class count the same in the loss.

    Single-label: n / (K n_c), which weighs the average note 1. Multi-label: (n - n_c) / n_c for the positives of each
    class, as `pos_weight` of the binary cross-entropy expects.
    """
    counts = np.array(list(notes.count_labels(indices).values()), dtype=np.float64)
    if notes.task == "multi-label":
        # (of a class that every note has one is missing, else it would not be learned)
        return np.maximum(len(indices) - counts, 1) / np.maximum(counts, 1)
    return len(indices) / (len(counts) * np.maximum(counts, 1))
