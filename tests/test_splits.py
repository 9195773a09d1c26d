"""Splits are complete, disjoint and stratified, and neither a patient nor a text is on both sides of one."""

import logging
import tracemalloc
import unicodedata
from collections import Counter

import numpy as np
import pytest

from data import DataArguments, DataError, Notes
from splits import (
    _split_off,
    balanced_class_weights,
    draw_splits,
    draw_training_parts,
    report_repeated_texts,
    take_training_notes,
)

SEEDS = range(5)


def make_notes(labels, groups=None, texts=None, given=None) -> Notes:
    labels = np.asarray(labels)
    if labels.ndim == 2:
        task, classes = "multi-label", labels.shape[1]
    else:
        classes = labels.max() + 1
        task = "binary" if classes == 2 else "multi-class"
    return Notes(
        name="invented",
        task=task,
        class_names=[f"class {number}" for number in range(classes)],
        ids=np.array([f"n{row}" for row in range(len(labels))]),
        texts=texts or [f"note {row}" for row in range(len(labels))],
        labels=labels,
        groups=None if groups is None else np.asarray(groups).astype(str),
        given_splits=None if given is None else np.asarray(given),
    )


def patients(seed: int, count: int = 300, classes: int = 2) -> Notes:
    """Notes of patients with one to six notes each, whose labels lean towards the patient's own."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), draw.integers(1, 7, count))[:count]
    own = draw.integers(0, classes, count)[groups]
    return make_notes(np.where(draw.random(count) < 0.7, own, draw.integers(0, classes, count)), groups)


def shares(notes: Notes, indices: np.ndarray) -> np.ndarray:
    return np.array(list(notes.count_labels(indices).values())) / len(indices)


def draw(notes: Notes, **options):
    return draw_splits(notes, DataArguments(**options))


def rows(splits) -> list[dict]:
    return [{name: part.tolist() for name, part in split.parts()} for split in splits]


# ---- drawn splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_folds(seed, classes):
    notes = patients(seed, classes=classes)
    splits = draw(notes, folds=5, split_seed=seed)
    assert len(splits) == 5
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(notes)))  # each note once
    overall = shares(notes, np.arange(len(notes)))
    for split in splits:
        parts = [part for _, part in split.parts()]
        assert sorted(np.concatenate(parts)) == list(range(len(notes)))  # complete, and no note twice
        for part in parts:
            assert shares(notes, part) == pytest.approx(overall, abs=0.08)
        groups = [set(notes.groups[part]) for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups))  # no patient twice


@pytest.mark.parametrize("folds", [1, 2, 10])
def test_sizes(folds):
    notes = make_notes([0, 0, 1] * 200)
    splits = draw(notes, folds=folds, validation_fraction=0.2)
    assert len(splits) == folds
    for split in splits:
        test = 600 // (folds if folds > 1 else 5)  # a single split tests on a fifth
        assert len(split.test) == pytest.approx(test, abs=2)
        assert len(split.validation) == pytest.approx((600 - test) / 5, abs=2)


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.25, 0.3, 0.4, 0.45])
def test_validation_fraction(fraction):
    split = draw(make_notes([0, 0, 1] * 400), folds=2, validation_fraction=fraction)[0]
    assert len(split.validation) / 600 == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_identical_texts_never_cross(seed, grouped):
    draw_random = np.random.default_rng(seed)
    numbers = np.arange(300)
    numbers[draw_random.choice(300, 40, replace=False)] = draw_random.integers(0, 300, 40)  # copies of other notes
    texts = [f"Toux {number} fois" if draw_random.random() < 0.5 else f"TOUX  {number} fois " for number in numbers]
    groups = np.arange(300) // 2 if grouped else None
    notes = make_notes(draw_random.integers(0, 2, 300), groups, texts)
    for split in draw(notes, folds=3, split_seed=seed):
        parts = [set(numbers[part]) for _, part in split.parts()]
        assert sum(map(len, parts)) == len(set(numbers))
        if grouped:
            assert sum(len(set(groups[part])) for _, part in split.parts()) == len(set(groups))


def test_a_text_that_many_patients_share_is_told(caplog):
    """It joins them all, and no split cuts what is joined."""
    groups = np.arange(400) // 4
    texts = ["RAS" if row % 8 == 0 else f"note {row}" for row in range(400)]
    draw(make_notes(np.arange(400) % 2, groups, texts), folds=5)
    (warning,) = [message for message in caplog.messages if "cannot be parted" in message]
    assert "200 of the 400 notes cannot be parted, which is more than one of 5 parts: they are of 50 groups" in warning
    assert "which 50 notes with the text of another join" in warning and "RAS" not in warning
    caplog.clear()
    draw(make_notes(np.arange(400) % 2, groups), folds=5)
    assert not caplog.messages
    draw(make_notes(np.arange(400) % 2, np.maximum(np.arange(400), 100)), folds=5)
    assert "101 of the 400 notes cannot be parted" in caplog.text and "they are of one group. Parts" in caplog.text


def test_seed_of_the_splits():
    notes = patients(0)
    assert rows(draw(notes, split_seed=3)) == rows(draw(notes, split_seed=3))
    assert rows(draw(notes, split_seed=0)) != rows(draw(notes, split_seed=3))


@pytest.mark.parametrize("seed", SEEDS)
def test_rare_labels_reach_every_part(seed):
    draw_random = np.random.default_rng(seed)
    labels = (draw_random.random((400, 4)) < [0.6, 0.3, 0.1, 0]).astype(int)
    labels[draw_random.choice(400, 20, replace=False), 3] = 1  # 5 % of the notes
    notes = make_notes(labels)
    for split in draw(notes, folds=3, split_seed=seed):
        for _, part in split.parts():
            assert all(notes.count_labels(part).values())
            assert shares(notes, part)[3] == pytest.approx(0.05, abs=0.03)


def test_class_of_too_few_notes():
    with pytest.raises(DataError, match="Class 'class 1' is in 4 notes of 4 different notes, fewer than the 5 parts"):
        draw(make_notes([0] * 30 + [1] * 4), folds=5)


def test_class_of_too_few_patients():
    notes = make_notes([0] * 30 + [1] * 10, groups=[*range(30), *[30, 31] * 5])
    with pytest.raises(
        DataError, match=r"Class 'class 1' is in 10 notes of 2 different groups \(patients\), fewer than"
    ):
        draw(notes, folds=1)


def test_label_of_too_few_notes():
    labels = np.ones((30, 2), dtype=int)
    labels[4:, 1] = 0
    with pytest.raises(DataError, match="Class 'class 1' is in 4 notes"):
        draw(make_notes(labels), folds=5)


def test_too_few_patients():
    """Of four a single split tests on one; they cannot fill five folds."""
    notes = make_notes([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1] * 5, groups=np.arange(60) % 4)
    (split,) = draw(notes, folds=1)
    assert [len(rows) for _, rows in split.parts()] == [30, 15, 15]
    assert not set(notes.groups[split.test]) & set(notes.groups[split.train])
    few = "60 notes of 4 different groups or texts are too few to cut into 5 parts: use fewer --folds, or give more"
    with pytest.raises(DataError, match="Class 'class 0' is in 30 notes of 4 different groups"):
        draw(notes, folds=5)
    with pytest.raises(DataError, match=few):
        next(_split_off(notes, np.arange(60), 5, 0))
    patients = np.arange(30) // 15
    given = np.where(patients == 0, "test", "train")
    with pytest.raises(DataError, match="15 notes of 1 different groups or texts are too few to cut into 2 parts"):
        draw(make_notes(np.arange(30) % 2, groups=patients, given=given))


@pytest.mark.parametrize("fraction", [0.02, 0.15, 0.3, 0.45])
def test_of_a_few_patients_one_at_least_is_for_validation(fraction):
    notes = make_notes([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1] * 5, groups=np.arange(60) % 6)
    for split in draw(notes, folds=3, validation_fraction=fraction):
        assert len(split.validation) == {0.02: 10, 0.15: 10, 0.3: 20, 0.45: 20}[fraction]


def test_repeats_are_other_folds_of_the_same_notes():
    notes = patients(0)
    once, twice = draw(notes, folds=3), draw(notes, folds=3, repeats=2)
    assert rows(twice[:3]) == rows(once) and len(twice) == 6
    assert rows(twice[3:]) == rows(draw(notes, folds=3, split_seed=1)) != rows(once)
    assert sorted(np.concatenate([split.test for split in twice])) == sorted([*range(len(notes))] * 2)
    with pytest.raises(DataError, match="--repeats 2 with --folds 1: give 1, or 2 and more folds"):
        draw(notes, folds=1, repeats=2)


def test_one_long_note_costs_no_memory():
    """Texts held in one array of equal width would take 200 MB here, and gigabytes for a real corpus."""
    notes = make_notes([0, 1] * 250, texts=[f"note {row}" for row in range(499)] + ["x" * 100_000])
    tracemalloc.start()
    report_repeated_texts(notes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


# ---- given splits --------------------------------------------------------------------------------------------------

GIVEN = np.array(["train"] * 60 + ["validation"] * 20 + ["test"] * 20)


def test_given_splits_are_respected():
    split, *others = draw(make_notes([0, 1] * 50, given=GIVEN), folds=5)
    assert not others
    for name, part in split.parts():
        assert part.tolist() == np.flatnonzero(GIVEN == name).tolist()


def test_given_splits_have_several_draws_of_training_notes_alone(caplog):
    notes = make_notes([0, 1] * 50, given=GIVEN)
    arguments = DataArguments(train_size=20, repeats=3, folds=1)  # of folds that are not drawn
    splits = draw_splits(notes, arguments)
    parts = draw_training_parts(notes, splits, arguments)
    assert len(splits) == 1 and len(parts) == 3
    assert len({tuple(part.train) for part in parts}) == 3 and {len(part.train) for part in parts} == {20}
    assert all(np.array_equal(part.test, splits[0].test) for part in parts)
    assert not caplog.text
    whole = DataArguments(repeats=3)
    assert len(draw_training_parts(notes, draw_splits(notes, whole), whole)) == 1
    assert "--repeats 3: the data gives its splits, which are the same every time" in caplog.text
    folds = DataArguments(train_size=20, folds=3, repeats=2)
    drawn = make_notes([0, 1] * 50)
    assert len(draw_training_parts(drawn, draw_splits(drawn, folds), folds)) == 6


def test_training_parts_of_the_folds_are_drawn_apart():
    """Two folds share three quarters of their 144 training notes: of 20 drawn of each, chance makes 2 the same."""
    notes = make_notes([0, 1] * 100)
    shared = []
    for seed in range(20):
        arguments = DataArguments(train_size=20, folds=5, split_seed=seed, validation_fraction=0.1)
        first, second, *_ = draw_training_parts(notes, draw_splits(notes, arguments), arguments)
        assert len(first.train) == len(second.train) == 20
        shared.append(len(set(first.train) & set(second.train)))
    assert np.mean(shared) < 3.5


def test_validation_is_drawn_from_training_when_missing():
    given = np.where(GIVEN == "validation", "train", GIVEN)
    notes = make_notes([0, 1] * 50, groups=np.arange(100) // 2, given=given)
    (split,) = draw(notes)
    assert split.test.tolist() == list(range(80, 100))
    assert sorted([*split.train, *split.validation]) == list(range(80))
    assert len(split.validation) == pytest.approx(0.15 * 80, abs=2)
    assert not set(notes.groups[split.train]) & set(notes.groups[split.validation])


@pytest.mark.parametrize(
    ("parts", "found"),
    [(["train", "validation"], "splits train, validation"), (["test"], "split test"), (["train"], "split train")],
)
def test_given_splits_without_train_or_test(parts, found):
    notes = make_notes([0, 1] * 30, given=[parts[row % len(parts)] for row in range(60)])
    with pytest.raises(DataError, match=f"The data gives only the {found}: add the missing of train and test"):
        draw(notes)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_label_that_training_lacks(part):
    labels = np.where(GIVEN == part, 2, np.arange(100) % 2)
    with pytest.raises(DataError, match=f"The {part} part has labels that training lacks: class 2; correct the"):
        draw(make_notes(labels, given=GIVEN))


@pytest.mark.parametrize(
    ("part", "effect"),
    [("validation", "epochs and thresholds are chosen without it"), ("test", "macro averages are taken without it")],
)
def test_class_that_a_part_lacks(caplog, part, effect):
    labels = np.where(GIVEN == part, 0, np.arange(100) % 2)
    draw(make_notes(labels, given=GIVEN))
    assert f"The {part} part has no note of class class 1: {effect}." in caplog.text
    assert caplog.text.count("has no note") == 1


@pytest.mark.parametrize(("left", "right"), [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_given_splits_that_cut_a_group(left, right):
    groups = np.arange(100)
    groups[np.flatnonzero(GIVEN == right)[:2]] = groups[np.flatnonzero(GIVEN == left)[:2]]
    message = rf"Groups of the {left} part are also in the {right} part \(2\), there in 2 rows"
    with pytest.raises(DataError, match=message):
        draw(make_notes([0, 1] * 50, groups, given=GIVEN), allow_leaks=True)


def test_test_texts_repeated_in_training(caplog):
    texts = [f"note {row}" for row in range(100)]
    texts[90], texts[95] = "NOTE 3", "note  4"
    notes = make_notes([0, 1] * 50, texts=texts, given=GIVEN)
    with pytest.raises(DataError, match=r"train part are repeated in the test part: 2 rows \(91, 96\)\. Remove them"):
        draw(notes)
    caplog.set_level(logging.WARNING)
    (split,) = draw(notes, allow_leaks=True)
    assert split.test.tolist() == list(range(80, 100))
    assert "repeated in the test part: 2 rows (91, 96)" in caplog.text
    assert "note" not in caplog.text.lower()


def test_other_repeated_texts_are_a_warning(caplog):
    texts = [f"note {row}" for row in range(100)]
    texts[70], texts[85] = texts[0], texts[71]
    draw(make_notes([0, 1] * 50, texts=texts, given=GIVEN))
    assert "train part are repeated in the validation part: 1 row (71)" in caplog.text
    assert "validation part are repeated in the test part: 1 row (86)" in caplog.text


# ---- counts and weights --------------------------------------------------------------------------------------------


def test_a_text_is_the_same_however_unicode_writes_it():
    """macOS and some extractors of PDF write an accent as a character of its own."""
    texts = [f"Fièvre élevée, œdème numéro {number}." for number in range(40)]
    twice = make_notes([0, 1] * 40, texts=texts + [unicodedata.normalize("NFD", text) for text in texts])
    assert report_repeated_texts(twice)["repeated_texts"] == 80
    for split in draw(twice):
        assert not set(split.test % 40) & set(split.train % 40)


def test_repeated_texts_and_contradicting_labels(caplog):
    texts = ["toux", "Toux ", "fièvre", "fièvre", "fièvre", "galop"]
    counts = report_repeated_texts(make_notes([0, 0, 0, 1, 0, 1], texts=texts))
    assert counts == {"repeated_texts": 5, "contradicting_labels": 3}
    assert "5 notes share their text with another; 3 of them under different labels" in caplog.text
    labels = [[0, 1], [1, 1], [1, 0], [1, 0], [1, 0], [0, 0]]
    counts = report_repeated_texts(make_notes(labels, texts=texts))
    assert counts == {"repeated_texts": 5, "contradicting_labels": 2}


def test_no_repeated_texts(caplog):
    assert report_repeated_texts(make_notes([0, 1])) == {"repeated_texts": 0, "contradicting_labels": 0}
    assert not caplog.text


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 0, 1], [4 / 6, 4 / 2]),
        ([0, 1, 1, 2, 2, 2], [6 / 3, 6 / 6, 6 / 9]),
        ([[1, 0], [1, 0], [1, 1], [0, 0]], [1 / 3, 3 / 1]),
        ([[1, 0], [1, 0], [1, 1]], [1 / 3, 2 / 1]),  # which every note has: 0 would not teach it
    ],
)
def test_balanced_class_weights(labels, expected):
    assert balanced_class_weights(make_notes(labels), np.arange(len(labels))).tolist() == pytest.approx(expected)


def test_weights_look_at_the_given_rows_alone():
    notes = make_notes([0, 0, 0, 1, 1, 1])
    assert balanced_class_weights(notes, np.array([0, 1, 2, 3])).tolist() == pytest.approx([4 / 6, 4 / 2])
    weights = balanced_class_weights(notes, np.array([0, 1, 2, 3]))
    assert sum(weights[label] * count for label, count in Counter([0, 0, 0, 1]).items()) == pytest.approx(4)


# ---- parts of the training part ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_part_of_the_training_part(seed, classes):
    """Nested, whole groups, about as many notes as asked for, classes in proportion; other parts untouched."""
    notes = patients(seed, 600, classes)
    (split, *_) = draw(notes, split_seed=seed)
    before = set()
    for size in (50, 100, 200, 350):
        part = take_training_notes(notes, split, size, seed)
        taken = set(part.train.tolist())
        assert before <= taken <= set(split.train.tolist())
        assert abs(len(taken) - size) <= 3  # half of the largest group
        assert not set(notes.groups[part.train]) & set(notes.groups[np.setdiff1d(split.train, part.train)])
        assert np.abs(shares(notes, part.train) - shares(notes, split.train)).max() < 0.15
        assert part.validation is split.validation and part.test is split.test
        before = taken
    again = take_training_notes(notes, split, 100, seed)
    assert again.train.tolist() == take_training_notes(notes, split, 100, seed).train.tolist()
    assert again.train.tolist() != take_training_notes(notes, split, 100, seed + 1).train.tolist()


def test_without_groups_a_part_has_exactly_as_many_notes():
    notes = make_notes([0, 0, 1] * 60)
    (split, *_) = draw(notes)
    part = take_training_notes(notes, split, 30, 0)
    assert len(part.train) == 30 and notes.labels[part.train].sum() == 10


def test_parts_that_cannot_be_are_one_line():
    notes = make_notes([0] * 90 + [1] * 90 + [2] * 9)
    (split, *_) = draw(notes)
    with pytest.raises(DataError, match=f"--train_size 500: the training part has {len(split.train)} notes"):
        take_training_notes(notes, split, 500, 0)
    with pytest.raises(DataError, match="--train_size 5: so few training notes have none of class class 2"):
        take_training_notes(notes, split, 5, 0)
