"""Are the differences real, and which model to deploy: intervals, paired tests, the verdict; from stored predictions.

Knows predicted and true labels, folds and groups; no file, no model. What is resampled is whole groups (patients,
documents): notes of one patient are not independent. Without groups every text is its own.

Everything that is compared is a function of counts, and counts of groups add up: a resample of the notes is one row
of a matrix product, and thousands of them are cheap. For K classes there are C = 3 K + 2 counts: true positives, false
positives and false negatives of each class, notes answered rightly, notes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

LEVEL = 0.05  # of the tests; intervals have 1 - LEVEL
RESAMPLES = 2000  # of an interval
PERMUTATIONS = 10_000  # of a test: p-values from 0.0001
# Of g groups there are 2^g swaps, of which two are the most extreme: of fewer groups no p-value is below LEVEL.
LEAST_GROUPS = math.ceil(math.log2(2 / LEVEL))
POWER = 0.8  # with which "so many notes would tell" is reckoned
BLOCK = 500  # permutations at a time, for want of memory
DECIMALS = 12
ROUNDING = 10.0**-DECIMALS  # of scores: what is less apart is equal
RELEVANT = 0.02  # a difference in score that a hospital would care about (ours)
SEED = 0


@dataclass(frozen=True)
class Answers:
    """What one model answered on the test notes, each seed's on all folds together.

    `labels` is (notes,) with class indices, or (notes, classes) with 0 and 1; `predicted` is (seeds, *labels.shape).
    `ids`, `groups` and `folds` are (notes,). All models of a comparison have their notes in the same order.
    Where folds were drawn several times a note is there as often, its places beside each other.
    """

    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    num_classes: int

    @property
    def is_multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def correct(self) -> np.ndarray:
        """(seeds, notes): whether the answer is right; of a multi-label note, whether all of its classes are."""
        right = self.predicted == self.labels
        return right.all(axis=2) if self.is_multi_label else right

    @cached_property
    def repeats(self) -> int:
        """How often each note was in a test part."""
        return len(self.ids) // len(set(self.ids))

    def count(self, parts: np.ndarray) -> np.ndarray:
        """(seeds, parts, C): the counts of the notes of each part, `parts` (notes,) saying whose part a note is."""
        truth, answers = self.labels, self.predicted
        if not self.is_multi_label:
            truth, answers = (each[..., None] == np.arange(self.num_classes) for each in (truth, answers))
        truth, answers = truth.astype(bool), answers.astype(bool)
        notes = np.ones((*answers.shape[:2], 1), dtype=bool)
        counted = np.concatenate(
            [truth & answers, ~truth & answers, truth & ~answers, self.correct[..., None], notes], axis=2
        )
        totals = np.zeros((len(self.predicted), parts.max() + 1, counted.shape[2]))
        for seed, of_notes in enumerate(counted):
            np.add.at(totals[seed], parts, of_notes)
        return totals

    @cached_property
    def by_group(self) -> np.ndarray:
        """(seeds, groups, C)."""
        return self.count(pd.factorize(self.groups)[0])

    @cached_property
    def by_fold(self) -> np.ndarray:
        """(seeds, folds, C)."""
        return self.count(pd.factorize(self.folds, sort=True)[0])

    @cached_property
    def groups_of_class(self) -> np.ndarray:
        """(classes,): in how many groups there are notes of each."""
        hits, _, missed = self.errors_by_class(self.by_group[0])
        return (hits + missed > 0).sum(axis=0)

    def score(self, counts: np.ndarray, metric: str, whole: np.ndarray | None = None) -> np.ndarray:
        """Counts (..., C) to the metric (...,), named as in the result files; 0 where it is undefined.

        A fold may lack a rare class altogether, which says nothing against the model: a macro average is over the
        classes that have notes, and the positive class without any has NaN. A bootstrap sample, where `whole` are the
        counts that it is a sample of, is of the same classes as these: one that it lacks has the score of the whole.
        """
        hits, false_alarms, missed = self.errors_by_class(counts)
        if metric == "accuracy":
            return _ratio(counts[..., -2], counts[..., -1])
        name, average = metric.split("_")
        if average == "micro":
            return OF_CLASS[name](*(part.sum(axis=-1) for part in (hits, false_alarms, missed)))
        of_class, present = OF_CLASS[name](hits, false_alarms, missed), hits + missed > 0
        if whole is not None:
            of_class = np.where(present, of_class, self.score_classes(whole, name))
            present |= sum(self.errors_by_class(whole)[::2]) > 0
        if average == "positive":
            return np.where(present[..., 1], of_class[..., 1], np.nan)
        weights = hits + missed if average == "weighted" else present.astype(float)
        return _ratio((of_class * weights).sum(axis=-1), weights.sum(axis=-1))

    def score_classes(self, counts: np.ndarray, name: str) -> np.ndarray:
        """Counts (..., C) to precision, recall or f1 of every class (..., classes)."""
        return OF_CLASS[name](*self.errors_by_class(counts))

    def errors_by_class(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts (..., C) to true positives, false positives and false negatives, each (..., classes)."""
        return tuple(np.split(counts[..., :-2], 3, axis=-1))

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes): notes by true class and answer where classes exclude each other; the mean over seeds and
        over several draws of the folds."""
        pairs = (self.labels * self.num_classes + self.predicted).ravel()
        counts = np.bincount(pairs, minlength=self.num_classes**2).reshape(self.num_classes, -1)
        return counts / (len(self.predicted) * self.repeats)

    def estimate(self, metric: str) -> float:
        """On the notes of all folds together, the mean over seeds."""
        return float(self.score(self.by_group.sum(axis=1), metric).mean())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


OF_CLASS = {  # of true positives, false positives, false negatives
    "precision": lambda hits, false_alarms, missed: _ratio(hits, hits + false_alarms),
    "recall": lambda hits, false_alarms, missed: _ratio(hits, hits + missed),
    "f1": lambda hits, false_alarms, missed: _ratio(2 * hits, 2 * hits + false_alarms + missed),
}


# ---- statistics: each is named in the report by the line that says what it is --------------------------------------


@lru_cache(maxsize=2)
def bootstrap_weights(groups: int) -> np.ndarray:
    """(RESAMPLES, groups): how often each group is in each bootstrap sample; the same ones for every model."""
    draw = np.random.default_rng(SEED)
    return draw.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(np.float64)


@lru_cache(maxsize=2)
def swaps(groups: int) -> np.ndarray:
    """(PERMUTATIONS, groups): whether two models exchange their answers to the notes of a group."""
    return np.random.default_rng(SEED).integers(0, 2, size=(PERMUTATIONS, groups), dtype=np.int8)


def _resampled(answers: Answers, metric: str) -> np.ndarray:
    """(RESAMPLES,): the metric of each bootstrap sample, the mean over seeds."""
    weights = bootstrap_weights(answers.by_group.shape[1])
    whole = answers.by_group.sum(axis=1, keepdims=True)
    return answers.score(weights @ answers.by_group, metric, whole).mean(axis=0)


def interval(answers: Answers, metric: str) -> tuple[float, float]:
    """Percentile bootstrap interval of the metric, resampling groups (Efron and Tibshirani 1993, chapter 13)."""
    return tuple(np.nanquantile(_resampled(answers, metric), [LEVEL / 2, 1 - LEVEL / 2]))


def difference(first: Answers, second: Answers, metric: str) -> tuple[float, float, float, float]:
    """first - second on the same notes: the difference, its percentile bootstrap interval and its standard error."""
    values = _resampled(first, metric) - _resampled(second, metric)
    low, high = np.nanquantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return first.estimate(metric) - second.estimate(metric), low, high, float(np.nanstd(values, ddof=1))


def permutation_test(first: Answers, second: Answers, metric: str) -> float:
    """Two-sided p-value of no difference: the answers of the two are swapped for random halves of the groups.

    Paired (Yeh 2000, "More accurate tests for the statistical significance of result differences"); the smallest
    p-value is 1 / (PERMUTATIONS + 1). The answers of all seeds to a group change together; where the two have not as
    many seeds, each seed of the one is paired with others, all equally often.
    """
    observed = abs(first.estimate(metric) - second.estimate(metric))
    pairs = math.lcm(len(first.predicted), len(second.predicted))

    def paired(counts: np.ndarray) -> np.ndarray:
        return np.resize(counts, (pairs, *counts.shape[1:]))

    ours, theirs = (paired(each.by_group.sum(axis=1, keepdims=True)) for each in (first, second))  # (pairs, 1, C)
    both = ours + theirs
    as_extreme = 0
    for block in np.array_split(swaps(first.by_group.shape[1]), PERMUTATIONS // BLOCK):
        block = block.astype(np.float64)
        of_ours, of_theirs = (paired(block @ each.by_group) for each in (first, second))  # (pairs, BLOCK, C)
        of_one = theirs + of_ours - of_theirs
        gap = first.score(of_one, metric).mean(axis=0) - first.score(both - of_one, metric).mean(axis=0)
        as_extreme += int((np.abs(gap) >= observed - ROUNDING).sum())
    return (as_extreme + 1) / (PERMUTATIONS + 1)


def can_be_told_apart(answers: Answers) -> bool:
    """Whether the notes have groups enough for any difference between models to be significant."""
    return answers.by_group.shape[1] >= LEAST_GROUPS


def mcnemar_test(first: Answers, second: Answers) -> tuple[int, int, float]:
    """Notes that only the first has right, only the second, and the exact p-value of McNemar; of the first seed, and
    of the first of several draws of the folds: the test knows each note once."""
    ours, theirs = (each.correct[0, :: each.repeats] for each in (first, second))
    only_first, only_second = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    table = [[int((ours & theirs).sum()), only_first], [only_second, int((~ours & ~theirs).sum())]]
    return only_first, only_second, float(mcnemar(table, exact=True).pvalue)


def resampled_t_test(first: Answers, second: Answers, metric: str, test_to_train: float) -> float | None:
    """Corrected resampled t-test over folds (Nadeau and Bengio 2003): folds share training notes, which the variance
    is corrected for by adding the ratio of test to training notes, `test_to_train`. None for a single fold, and where
    all folds have the same difference: of how much it varies they then say nothing.
    """
    gaps = first.score(first.by_fold, metric).mean(axis=0) - second.score(second.by_fold, metric).mean(axis=0)
    gaps = gaps[~np.isnan(gaps)]
    folds = len(gaps)
    if folds < 2 or np.ptp(gaps) < ROUNDING:
        return None
    variance = gaps.var(ddof=1) * (1 / folds + test_to_train)
    return float(2 * stats.t.sf(abs(gaps.mean()) / np.sqrt(variance), folds - 1))


def step_down(answers: list[Answers], metric: str) -> np.ndarray:
    """(models, models): p-values of the differences between all pairs, corrected for so many of them.

    Holm's procedure by resampling (Romano and Wolf 2005, "Stepwise multiple testing as formalized data snooping"):
    from the largest difference down, each in standard errors, against the largest that the bootstrap finds among it
    and those below. All pairs count, though only the best is compared with others: it was picked by these scores, and
    Holm's correction for the other models alone found one of nine equally good ones worse in 12 of 100 data sets
    (ours). The resamples are the same for all, so that models which answer alike are corrected for less.
    """
    values = np.stack([_resampled(each, metric) for each in answers])  # (models, RESAMPLES)
    values = values[:, ~np.isnan(values).any(axis=0)]
    scores = np.array([each.estimate(metric) for each in answers])
    first, second = np.triu_indices(len(answers), 1)
    gaps, resampled = scores[first] - scores[second], values[first] - values[second]  # (pairs,), (pairs, resamples)
    errors = resampled.std(axis=1, ddof=1).clip(min=ROUNDING)
    observed = np.where(np.abs(gaps) < ROUNDING, 0.0, np.abs(gaps) / errors)
    order = np.argsort(-observed, kind="stable")
    by_chance = (np.abs(resampled - gaps[:, None]) / errors[:, None])[order]
    largest_from_here = np.maximum.accumulate(by_chance[::-1], axis=0)[::-1]
    as_extreme = (largest_from_here >= observed[order, None]).sum(axis=1)
    p_values = np.maximum.accumulate((as_extreme + 1) / (values.shape[1] + 1))
    table = np.ones((len(answers), len(answers)))
    table[first[order], second[order]] = table[second[order], first[order]] = p_values
    return table


def notes_that_would_tell(gap: float, standard_error: float, notes: int, tests: int) -> int | None:
    """How many test notes a difference of this size needs to be found with POWER.

    At LEVEL divided by the number of tests (Bonferroni), which a step-down correction never asks more than. None for
    no difference, and where so many notes are there: the tests, which rest on more than the standard error, say no.
    """
    if abs(gap) < ROUNDING or standard_error == 0:
        return None
    factor = stats.norm.ppf(1 - LEVEL / tests / 2) + stats.norm.ppf(POWER)
    needed = int(np.ceil(notes * (factor * standard_error / gap) ** 2))
    return needed if needed > notes else None


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare(answers: list[Answers], metric: str, test_to_train: float) -> pd.DataFrame:
    """One row a model, in the order given: its score and interval, and the paired tests against the best of them.

    The best is the one with the highest score. `gap` is the model minus the best; `p` is the permutation test's,
    `p_corrected` corrected for all pairs of models, and no less.
    `test_to_train` is the ratio of test to training notes in a fold.
    """
    scores = [each.estimate(metric) for each in answers]
    best = int(np.argmax(np.round(scores, DECIMALS)))
    corrected = step_down(answers, metric)[best]
    rows = []
    for number, each in enumerate(answers):
        low, high = interval(each, metric)
        row = {"score": scores[number], "low": low, "high": high, "is_best": number == best}
        if number != best:
            row |= zip(("gap", "gap_low", "gap_high", "gap_se"), difference(each, answers[best], metric), strict=True)
            row |= zip(("only_this", "only_best", "p_mcnemar"), mcnemar_test(each, answers[best]), strict=True)
            row["p"] = permutation_test(each, answers[best], metric)
            row["p_corrected"] = max(row["p"], corrected[number])
            row["p_resampled_t"] = resampled_t_test(each, answers[best], metric, test_to_train)
        rows.append(row)
    columns = ["score", "low", "high", "is_best", "gap", "gap_low", "gap_high", "gap_se", "p", "p_corrected"]
    return pd.DataFrame(rows, columns=[*columns, "only_this", "only_best", "p_mcnemar", "p_resampled_t"]).astype(
        {"p": float, "p_corrected": float}
    )


@dataclass(frozen=True)
class Verdict:
    """Rows of `compare`: the model to deploy, the best, the dearest, and all that are not significantly worse."""

    choice: int
    best: int
    dearest: int
    candidates: list[int]
    passed_over: list[int]  # of these, for giving all notes the same answer
    too_few_notes: bool  # the choice may be worse than the best by more than RELEVANT
    notes_needed: int | None  # to find the difference between the two, were it as large as it seems

    @property
    def shown(self) -> list[int]:
        """The models that the report looks at closely: the choice, and the best if that is another."""
        return list(dict.fromkeys([self.choice, self.best]))


def choose_model(table: pd.DataFrame, hours: pd.Series, collapsed: pd.Series, notes: int) -> Verdict:
    """The cheapest to train of the models that are not significantly worse than the best (`p_corrected` at LEVEL).

    One that gave all notes the same answer in every fold (`collapsed`) is passed over. `hours` are those of training
    the model as if it were the only one; of equally cheap ones the better is taken.
    """
    best = int(table.is_best.argmax())
    candidates = [row for row in table.index if row == best or table.p_corrected[row] >= LEVEL]
    passed_over = [row for row in candidates if row != best and collapsed[row]]
    eligible = [row for row in candidates if row not in passed_over]
    choice = min(eligible, key=lambda row: (hours[row], -table.score[row]))
    chosen = table.loc[choice]
    doubtful = choice != best and bool(chosen.gap_low < -RELEVANT)
    pairs = len(table) * (len(table) - 1) // 2
    needed = notes_that_would_tell(chosen.gap, chosen.gap_se, notes, pairs) if doubtful else None
    return Verdict(choice, best, int(hours.argmax()), candidates, passed_over, doubtful, needed)


# ---- notes to look at ----------------------------------------------------------------------------------------------


def hard_notes(answers: list[Answers], class_names: Sequence[str]) -> pd.DataFrame:
    """The notes that most models get wrong, hardest first: ids and counts, no text.

    `missed_by` is the share of models whose answer is wrong, `contradicted_by` the share that give one and the same
    other answer, `their_answer`: where that is most of them, the label may be the mistake. A model counts once,
    however many seeds and draws of the folds it has. Of a multi-label note an answer is the whole set of its labels.
    """
    repeats = answers[0].repeats
    ids, truth = answers[0].ids[::repeats], answers[0].labels[::repeats]
    given = np.stack(  # a row an answer to every note: of each model, seed and draw of the folds
        [seed[repeat::repeats] for each in answers for seed in each.predicted for repeat in range(repeats)]
    )
    shares = np.concatenate([np.full(n, 1 / n) for n in (len(each.predicted) * repeats for each in answers)])
    shares /= len(answers)  # of a row
    wrong = given != truth
    if truth.ndim == 2:
        wrong = wrong.any(axis=2)
    missed = shares @ wrong
    rows = []
    for note in np.flatnonzero(missed > 0.5 + ROUNDING):
        its_shares = shares[wrong[:, note]]
        others, which = np.unique(given[wrong[:, note], note], axis=0, return_inverse=True)
        votes = np.bincount(which.ravel(), its_shares)
        label, answer = _in_words(np.stack([truth[note], others[votes.argmax()]]), class_names)
        rows.append([ids[note], label, missed[note], votes.max(), answer])
    table = pd.DataFrame(rows, columns=["id", "label", "missed_by", "contradicted_by", "their_answer"])
    return table.sort_values(["missed_by", "contradicted_by"], ascending=False, kind="stable", ignore_index=True)


def _in_words(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    if labels.ndim == 1:
        return np.array(class_names, dtype=object)[labels]
    sets = (", ".join(name for name, has in zip(class_names, row, strict=True) if has) or "none" for row in labels)
    return np.array([*sets], dtype=object)
