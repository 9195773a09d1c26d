"""The TF-IDF baseline learns, is chosen on validation alone, and comes back from disk without pickle."""

import unicodedata
import zipfile
from functools import cache
from itertools import product, starmap
from pathlib import Path

import numpy as np
import pytest
from conftest import FINDINGS
from sklearn.metrics import f1_score, log_loss, recall_score, roc_auc_score

from baseline import BASELINES, CLASS_WEIGHTS, REGULARISATION, Settings, TfidfClassifier, fit_features
from data import DataArguments, DataError, load_notes
from metrics import SELECTION_METRIC, THRESHOLD_GRID, decide, tune_thresholds
from naive_bayes import POWERS
from splits import draw_splits

FRACCO = Path(__file__).resolve().parents[2] / "shared" / "data" / "fracco_metastasis"
NAMES = {"binary": ["no", "yes"], "multi-class": ["a", "b", "c"], "multi-label": ["a", "b", "c"]}
WORDS = np.array(["fatigue", "pâleur", "polypnée"])


def make_corpus(task: str, seed: int = 0, noise: float = 0.0) -> tuple[list[str], np.ndarray]:
    """60 notes, each with the word of its class or of each of its labels, apart from a share of `noise`."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, (60, 3)) if task == "multi-label" else draw.integers(0, len(NAMES[task]), 60)
    shown = np.where(draw.random(labels.shape) < noise, draw.permutation(labels), labels)
    said = [WORDS[row == 1] if task == "multi-label" else [WORDS[row]] for row in shown]
    findings = draw.choice(sum(FINDINGS.values(), []), 60)
    return [f"{finding}, {' et '.join(words)}." for finding, words in zip(findings, said, strict=True)], labels


@cache
def fit(task: str, power: int = 0) -> TfidfClassifier:
    return TfidfClassifier(task, NAMES[task]).fit(*make_corpus(task), Settings(10.0, None, power))


@pytest.mark.parametrize("power", [0, *POWERS])
@pytest.mark.parametrize("task", NAMES)
def test_learns_what_can_be_read(task, power):
    texts, labels = make_corpus(task, 2)
    probabilities = fit(task, power).predict_probabilities(texts)
    assert probabilities.shape == (60, len(NAMES[task]))
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if task != "multi-label":
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert (decide(probabilities, task, None) == labels).mean() > 0.9


@pytest.mark.parametrize(("task", "powers"), [("binary", (0, 1)), ("multi-label", (0,))])
def test_validation_chooses_and_teaches_nothing(task, powers, monkeypatch):
    """Refitted one by one, no setting of the grid does better on validation than the one that was kept."""
    monkeypatch.setattr("metrics.THRESHOLD_GRID", THRESHOLD_GRID[::10])  # for speed
    texts, labels = make_corpus(task, 0, noise=0.3)
    validation_texts, validation_labels = make_corpus(task, 1, noise=0.3)
    validation_texts = [f"{text} Sarcoïdose." for text in validation_texts]
    model = TfidfClassifier(task, NAMES[task])
    kept = model.fit_and_select(texts, labels, validation_texts, validation_labels, powers)
    scores = {}
    for settings in starmap(Settings, product(REGULARISATION, CLASS_WEIGHTS, powers)):
        refitted = TfidfClassifier(task, NAMES[task]).fit(texts, labels, settings)
        probabilities = refitted.predict_probabilities(validation_texts)
        predicted = decide(probabilities, task, tune_thresholds(probabilities, validation_labels, task))
        average = SELECTION_METRIC[task].removeprefix("f1_")
        scores[settings] = f1_score(validation_labels, predicted, average=average)
        if settings == kept:
            np.testing.assert_allclose(model.predict_probabilities(validation_texts), probabilities, atol=1e-9)
    assert len(set(scores.values())) > 1  # there was something to choose
    assert scores[kept] == pytest.approx(max(scores.values()))
    vocabulary = dict(model.pipeline["features"].transformer_list)["words"].vocabulary_
    assert "fatigue" in vocabulary and "pâleur" in vocabulary
    assert "sarcoïdose" not in vocabulary


@pytest.mark.parametrize("power", [0, 2])
@pytest.mark.parametrize("task", NAMES)
def test_saved_and_loaded(task, power, tmp_path):
    model = fit(task, power)
    model.save(tmp_path / "model")
    (file,) = (tmp_path / "model").iterdir()
    assert file.suffix == ".skops" and zipfile.is_zipfile(file)
    assert not [name for name in zipfile.ZipFile(file).namelist() if "pkl" in name or "pickle" in name]
    loaded = TfidfClassifier.load(tmp_path / "model", task, NAMES[task])
    texts, _ = make_corpus(task, 2)
    assert (loaded.predict_probabilities(texts) == model.predict_probabilities(texts)).all()
    assert loaded.count_parameters() == model.count_parameters()


def test_both_forms_of_a_letter_are_the_same():
    """As texts from macOS have them: an accent of its own after its letter."""
    texts, _ = make_corpus("multi-class", 2)
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    assert decomposed != texts
    model = fit("multi-class")
    assert (model.predict_probabilities(decomposed) == model.predict_probabilities(texts)).all()


def test_words_of_scripts_without_spaces():
    """Of clauses, no two notes share one."""
    texts = [f"{'甲乙丙丁'[number % 4]}患{'戊己庚辛壬'[number % 5]}咳嗽" for number in range(20)]
    words = fit_features(texts)[0].named_transformers["words"].vocabulary_
    assert "患" in words and "咳 嗽" in words and not [word for word in words if len(word.split()[0]) > 1]


def test_words_with_signs_at_their_letters():
    """As the vowels of Hindi and Arabic are; Python's own \\w ends a word at each."""
    texts = [f"रोगी को {'बुखार' if number % 2 else 'दर्द'} है، مُصاب" for number in range(20)]
    words = fit_features(texts)[0].named_transformers["words"].vocabulary_
    assert {"रोगी", "बुखार", "दर्द", "مُصاب"} <= set(words)


def test_notes_that_share_no_word():
    with pytest.raises(DataError, match="No word occurs in two of the 3 training notes: is --text_column the one"):
        fit_features(["p001", "q234", "r567"])


def test_a_label_that_every_training_note_has_is_saved_too(tmp_path):
    texts, labels = make_corpus("multi-label")
    labels[:, 1] = 1
    model = TfidfClassifier("multi-label", NAMES["multi-label"]).fit(texts, labels, Settings(10.0, None, 0))
    model.save(tmp_path)
    loaded = TfidfClassifier.load(tmp_path, "multi-label", NAMES["multi-label"])
    probabilities = loaded.predict_probabilities(texts)
    assert (probabilities == model.predict_probabilities(texts)).all() and (probabilities[:, 1] == 1).all()


SCORES = {  # of labels, probabilities and predictions
    "auroc": lambda labels, probabilities, predicted: roc_auc_score(labels, probabilities[:, 1]),
    "eval_loss": lambda labels, probabilities, predicted: -log_loss(labels, probabilities),
    "recall_positive": lambda labels, probabilities, predicted: recall_score(labels, predicted),
}


@pytest.mark.parametrize("selection", SCORES)
def test_selected_by_the_score_that_is_asked_for(selection):
    corpus, (texts, labels) = make_corpus("binary", 0, noise=0.3), make_corpus("binary", 1, noise=0.3)
    kept = TfidfClassifier("binary", NAMES["binary"]).fit_and_select(*corpus, texts, labels, (0,), selection)
    scores = {}
    for settings in starmap(Settings, product(REGULARISATION, CLASS_WEIGHTS, (0,))):
        refitted = TfidfClassifier("binary", NAMES["binary"]).fit(*corpus, settings)
        probabilities = refitted.predict_probabilities(texts)
        predicted = decide(probabilities, "binary", tune_thresholds(probabilities, labels, "binary"))
        scores[settings] = SCORES[selection](labels, probabilities, predicted)
    assert len(set(scores.values())) > 1 and scores[kept] == pytest.approx(max(scores.values()))


def test_a_score_that_is_not_defined_on_validation():
    texts, labels = make_corpus("binary")
    negative = [text for text, label in zip(texts, labels, strict=True) if not label]
    model = TfidfClassifier("binary", NAMES["binary"])
    with pytest.raises(DataError, match="--metric_for_best_model auroc: not defined on a validation part with one"):
        model.fit_and_select(texts, labels, negative, np.zeros(len(negative), dtype=int), (0,), "auroc")


@pytest.mark.parametrize(("task", "rows"), [("binary", 1), ("multi-class", 3), ("multi-label", 3)])
def test_parameters(task, rows):
    model = fit(task)
    features = sum(len(part.vocabulary_) for _, part in model.pipeline["features"].transformer_list)
    assert model.count_parameters() == rows * (features + 1)


def test_size_is_that_of_the_file(tmp_path):
    model = fit("binary")
    model.save(tmp_path)
    (file,) = tmp_path.iterdir()
    assert model.count_bytes() == pytest.approx(file.stat().st_size, rel=0.01)


@pytest.mark.parametrize("task", NAMES)
def test_deterministic(task):
    texts, _ = make_corpus(task, 2)
    assert (fit(task).predict_probabilities(texts) == fit.__wrapped__(task).predict_probabilities(texts)).all()


def test_weighed_by_naive_bayes_is_another_model():
    texts, _ = make_corpus("binary", 2)
    plain, weighed, squared = (fit("binary", power).predict_probabilities(texts) for power in (0, 1, 2))
    assert np.abs(plain - weighed).max() > 0.01 and np.abs(weighed - squared).max() > 0.01


@pytest.mark.slow
@pytest.mark.skipif(not FRACCO.is_dir(), reason="needs the public notes of FRACCO beside the repository")
@pytest.mark.parametrize(("name", "score"), [("tfidf", 0.8762), ("tfidf-nb", 0.9349)])
def test_reference_score_on_public_notes(name, score):
    notes = load_notes(DataArguments(dataset=str(FRACCO / "data.parquet"), group_column="doc_id"))
    (split,) = draw_splits(notes, DataArguments())
    texts = {name: [notes.texts[row] for row in part] for name, part in split.parts()}
    model = TfidfClassifier(notes.task, notes.class_names)
    validation = texts["validation"], notes.labels[split.validation]
    model.fit_and_select(texts["train"], notes.labels[split.train], *validation, BASELINES[name])
    predicted = decide(model.predict_probabilities(texts["test"]), notes.task, None)
    assert f1_score(notes.labels[split.test], predicted, average="macro") == pytest.approx(score, abs=0.005)
