"""Calibration by hand and by simulation; operating points that keep on validation what they were asked to keep."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_recall_curve

from calibration import (
    BINS,
    apply_temperature,
    brier_score,
    claims,
    expected_calibration_error,
    fit_temperature,
    operating_points,
    reliability,
)


def invent(task, notes=4000, temperature=1.0, seed=0):
    """Labels drawn from a model's own probabilities, which it then tells too surely or too shyly."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, (notes, 2 if task == "binary" else 4))
    if task == "multi-label":
        true = 1 / (1 + np.exp(-logits))
        return 1 / (1 + np.exp(-logits * temperature)), (draw.random(true.shape) < true).astype(int)
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (draw.random((notes, 1)) > true.cumsum(axis=1)).sum(axis=1)
    told = np.exp(logits * temperature)
    return told / told.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("task", ["binary", "multi-class", "multi-label"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_applied_is_found_and_undone(task, temperature):
    told, labels = invent(task, temperature=temperature)
    assert fit_temperature(told, labels, task) == pytest.approx(temperature, rel=0.15)
    calibrated = apply_temperature(told, temperature, task)
    assert expected_calibration_error(*claims(calibrated, labels, task)) < 0.03  # of 4,000 notes, by chance alone
    if temperature != 1.0:
        before = expected_calibration_error(*claims(told, labels, task))
        assert before > 2 * expected_calibration_error(*claims(calibrated, labels, task))


@pytest.mark.parametrize("task", ["binary", "multi-class", "multi-label"])
def test_temperature_changes_no_order_and_one_changes_nothing(task):
    told, _ = invent(task, notes=50)
    np.testing.assert_allclose(apply_temperature(told, 1.0, task), told, atol=1e-9)
    scaled = apply_temperature(told, 2.5, task)
    assert (scaled.argsort(axis=1) == told.argsort(axis=1)).all()
    if task != "multi-label":
        np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_no_temperature_where_none_is_the_likeliest():
    sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    assert fit_temperature(sure, np.array([0, 0, 1, 1]), "binary") == 1.0  # parted without a mistake
    assert fit_temperature(sure, np.array([1, 1, 1, 1]), "binary") == 1.0
    assert fit_temperature(sure, np.array([0, 1, 1, 1]), "binary") > 1.1


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_tells_nothing_apart_is_made_as_unsure_as_can_be(seed):
    draw = np.random.default_rng(seed)
    labels, sure = draw.integers(0, 2, 120), 1 / (1 + np.exp(-draw.normal(0, 4, 120)))
    told = np.stack([1 - sure, sure], axis=1)
    temperature = fit_temperature(told, labels, "binary")
    assert temperature > 5
    before, after = (
        expected_calibration_error(*claims(each, labels, "binary"))
        for each in (told, apply_temperature(told, temperature, "binary"))
    )
    assert after < before / 2
    assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 0]), "binary") > 19  # always wrong


@pytest.mark.parametrize("sure", [0.51, 0.9, 0.999])
def test_what_is_parted_without_a_mistake_stays_as_it_is(sure):
    labels = np.array([0, 1, 1, 0])
    told = np.where(np.eye(2)[labels] == 1, sure, 1 - sure)
    assert fit_temperature(told, labels, "binary") == fit_temperature(told, np.eye(2)[labels], "multi-label") == 1


def test_no_temperature_changes_probabilities_that_are_all_alike():
    labels = np.array([0, 1, 1, 2])
    assert fit_temperature(np.full((4, 3), 1 / 3), labels, "multi-class") == 1
    assert fit_temperature(np.full((4, 3), 0.5), np.eye(3)[labels], "multi-label") == 1


def test_certain_probabilities_have_a_temperature():
    told = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    # two of three right: as sure as that, of logits of 27.6, is a temperature of 40, and the largest is 20
    assert fit_temperature(told, np.array([0, 1, 1]), "binary") > 19
    of_each = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert fit_temperature(of_each, np.array([[1, 0], [0, 1], [0, 1]]), "multi-label") > 10


def test_error_by_hand():
    """Three claims of 0.9 of which two are so, one of 0.1 that is not: (3 |0.9 - 2/3| + |0.1 - 0|) / 4."""
    claimed, is_so = np.array([0.9, 0.9, 0.9, 0.1]), np.array([1.0, 1.0, 0.0, 0.0])
    assert expected_calibration_error(claimed, is_so) == pytest.approx((3 * (0.9 - 2 / 3) + 0.1) / 4)
    assert brier_score(claimed, is_so) == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4)


def test_bins_and_brier_are_those_of_scikit_learn():
    told, labels = invent("binary", notes=500)
    claimed, is_so = claims(told, labels, "binary")
    mean, share, count = reliability(claimed, is_so)
    expected_share, expected_mean = calibration_curve(is_so, claimed, n_bins=BINS)
    np.testing.assert_allclose(mean[count > 0], expected_mean)
    np.testing.assert_allclose(share[count > 0], expected_share)
    assert brier_score(claimed, is_so) == pytest.approx(brier_score_loss(is_so, claimed))


def test_operating_points_keep_what_is_required_where_they_were_chosen():
    told, labels = invent("binary", notes=600, temperature=1.5)
    validation, test = (told[:300], labels[:300]), (told[300:], labels[300:])
    precision, recall, thresholds = precision_recall_curve(validation[1], validation[0][:, 1])
    for point in operating_points(validation, test):
        kept, other = (recall, precision) if point["kept"] == "recall" else (precision, recall)
        reachable = kept[:-1] >= point["required"]
        chosen = np.flatnonzero(thresholds == point["threshold"])[0]
        assert reachable[chosen] and other[chosen] == pytest.approx(other[:-1][reachable].max())
        answered = test[0][:, 1] >= point["threshold"]
        assert point["recall"] == pytest.approx((answered & (test[1] == 1)).sum() / (test[1] == 1).sum())
        assert point["precision"] == pytest.approx((test[1][answered] == 1).mean())


def test_of_thresholds_that_find_as_much_the_one_with_the_fewest_false_alarms_is_taken():
    positive = np.concatenate([np.linspace(0.9, 0.99, 20), [0.8, 0.7, 0.6], np.linspace(0.1, 0.5, 10)])
    told, labels = np.stack([1 - positive, positive], axis=1), (np.arange(33) < 20).astype(int)
    for point in operating_points((told, labels), (told, labels)):
        if point["kept"] == "precision":
            assert (point["threshold"], point["recall"], point["precision"]) == (pytest.approx(0.9), 1, 1)


def test_what_cannot_be_kept_is_not_pretended():
    told, labels = np.array([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]), np.array([0, 1, 0])
    points = {(point["kept"], point["required"]): point for point in operating_points((told, labels), (told, labels))}
    assert points["precision", 0.9]["threshold"] is None and points["precision", 0.9]["recall"] is None
    assert points["recall", 0.9] == {
        "kept": "recall", "required": 0.9, "threshold": pytest.approx(0.3), "recall": 1.0,
        "precision": pytest.approx(1 / 3),
    }  # fmt: skip
