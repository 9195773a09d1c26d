"""The n-gram branch: counts by hand, the same as scikit-learn would say, nothing of padding, round trips."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from transformers import AutoModelForSequenceClassification

from calibration import log_loss
from metrics import probabilities_from_logits
from naive_bayes import weigh
from ngrams import FITS, IN_WORD, C, choose_weights, count_ngrams, fit_ngrams, ngram_features, set_ngrams, spell_tokens
from scratch_model import NgramBranch, ScratchConfig, ScratchForSequenceClassification
from tokenization import train_tokenizer

SMALL = dict(vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=32, ngram_buckets=2**12)


def invent(count=40, classes=2):
    """Notes of 12 tokens; the class is told by a pair of tokens that stand together."""
    draw = np.random.default_rng(0)
    notes, labels = [], np.arange(count) % classes
    for label in labels:
        ids = draw.integers(10, 60, 12)
        ids[4:6] = [5 + label, 6 + label]
        notes.append([ids.tolist()])
    return notes, labels


WORDS = ["Le", "patient", "n'a", "pas", "de", "fièvre", "métastases"]
TOKENIZER = train_tokenizer([" ".join(WORDS)] * 6, family="bpe", vocab_size=300, max_length=32)


def branch(classes=2, spelled=()):
    """With the tokens of `spelled`, (id, text) pairs, having characters."""
    made = NgramBranch(ScratchConfig(**SMALL, num_labels=classes))
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    for token, text in spelled:
        made.spelling[token, : len(text)] = torch.tensor([2 * ord(letter) + letter.isalnum() for letter in text])
    return made


def count(made, ids, mask=None, window_note=None):
    """(notes, 3, buckets), not sparse."""
    return made.count(ids, torch.ones_like(ids) if mask is None else mask, window_note).to_dense()


def count_words(text, cuts=()):
    """(buckets,): how often the words of `text` occur, with tokens that end at the places `cuts`."""
    edges = [0, *cuts, len(text)]
    pieces = [text[low:high] for low, high in zip(edges, edges[1:], strict=False)]
    made = branch(spelled=[(7 + number, piece) for number, piece in enumerate(pieces)])
    ids = torch.arange(7, 7 + len(pieces))[None]
    return count(made, ids)[0, 0]


WEIGHTS = {"words-nb1": 0.75, "characters-nb2": 0.5, "ends-nb0": 0.25}


def fit(made, notes, labels, weights=WEIGHTS):
    set_ngrams(made, fit_ngrams(made, count_ngrams(made, TOKENIZER, notes), labels, weights), weights)


def test_each_word_and_each_two_in_a_row_are_counted_once():
    counts = count_words("de toux, de toux")
    # de and toux twice, the comma once; "de toux" twice, "toux ," and ", de" once
    assert sorted(counts[counts > 0].tolist()) == [1, 1, 1, 2, 2, 2] and counts.shape == (2**12,)
    assert torch.equal(counts, count_words("de toux , de  toux"))
    assert not torch.equal(counts, count_words("toux de, de toux"))
    assert not torch.equal(count_words("abc"), count_words("acb"))


@pytest.mark.parametrize("cuts", [(3,), (5, 6), (2, 9, 10), (1, 2, 3, 4)])
def test_words_are_the_same_wherever_tokens_end(cuts):
    assert torch.equal(count_words("de toux, sans", cuts), count_words("de toux, sans"))


def test_a_very_long_word_is_one_word():
    assert count_words("m" * 90, (20, 40, 60, 80)).sum() == 1


def test_no_words_are_counted_in_notes_without_characters():
    counts = count(branch(), torch.tensor([[7, 8, 7]]))
    assert counts.shape == (1, 3, 2**12) and counts.sum() == 0


def test_each_run_of_three_to_five_characters_is_counted_once_wherever_tokens_end():
    made = branch(spelled=[(7, "ab"), (8, "cab"), (9, "abcab"), (10, "abc")])
    whole = torch.tensor([[9]])
    counts = count(made, whole)[0, 1]
    # abc, bca, cab; abca, bcab; abcab
    assert sorted(counts[counts > 0].tolist()) == [1] * 6
    for pieces in ([7, 8], [10, 7], [7, 5, 8]):  # 5 has no characters
        ids = torch.tensor([pieces])
        assert torch.equal(count(made, ids)[0, 1], counts)
    assert not torch.equal(count(made, torch.tensor([[8, 7]]))[0, 1], counts)


def test_tokens_are_spelled_in_lower_case_and_special_ones_not_at_all():
    spelling = spell_tokens(TOKENIZER, len(TOKENIZER) + 2, 24)
    ids = TOKENIZER("Le patient n'a pas de FIÈVRE")["input_ids"]
    characters = [chr(number // 2) for token in ids for number in spelling[token] if number]
    assert "".join(characters).startswith("le patient n'a pas de fi")
    in_words = [chr(number // 2) for token in ids for number in spelling[token] if number % 2]
    assert "".join(in_words).startswith("lepatientnapasdefi")
    assert all(IN_WORD.fullmatch(sign) for sign in "\u0940\u064f")  # vowels of Hindi and Arabic
    assert len(spelling) == len(TOKENIZER) + 2 and spelling[TOKENIZER.all_special_ids].sum() == 0
    assert (spell_tokens(TOKENIZER, len(TOKENIZER), 2) > 0).sum(1).max() == 2


def test_halves_of_characters_are_told_apart():
    """Of characters that no five notes share, tokens are single bytes; those of scripts without spaces are words."""
    texts = [f"无 {'患者'[number % 2]}" for number in range(12)] + ["黄", "疸", "β"]
    tokenizer = train_tokenizer(texts, family="bpe", vocab_size=300, max_length=64)
    spelling = spell_tokens(tokenizer, len(tokenizer), 24)

    def spell(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(number) for token in ids for number in spelling[token] if number]

    assert spell("患") == [2 * ord("患")]  # a word by itself
    bytes_of = {text: [number // 2 - 0xDC00 for number in spell(text)] for text in ("黄", "疸", "β")}
    assert bytes_of == {text: list(text.encode()) for text in bytes_of}
    assert [number % 2 for text in ("黄", "β") for number in spell(text)] == [0, 1, 1, 1, 1]


def test_padding_and_short_notes_add_nothing():
    ids, mask = torch.tensor([[7, 8, 9, 0, 0], [7, 0, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    made = branch(spelled=[(0, "padding"), (7, "a"), (8, "bc"), (9, "d")])
    padded = count(made, ids, mask)
    assert torch.equal(padded[0], count(made, ids[:1, :3])[0])
    # the word abcd, abc, bcd, abcd, the word first and last; the word a, first and last
    assert padded.sum(2).tolist() == [[1, 2 + 1, 2], [1, 0, 2]]


def count_windows(*windows, overlap=0):
    """(3, buckets) of a note of these windows, each a list of words; they begin with a special token, 5."""
    words = [*dict.fromkeys(word for window in windows for word in window)]
    made = branch(spelled=[(number, f" {word}") for number, word in enumerate(words, start=7)])
    made.window_overlap = overlap
    ids = [torch.tensor([5, *(7 + words.index(word) for word in window)]) for window in windows]
    mask = torch.nn.utils.rnn.pad_sequence([*map(torch.ones_like, ids)], batch_first=True)
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return count(made, ids, mask, torch.zeros(len(ids), dtype=torch.long))[0]


def test_the_first_and_last_words_of_a_note_are_counted_apart():
    note = [f"w{number}" for number in range(NgramBranch.END_WORDS + 25)]
    once = count_windows(note)[2]
    assert once.sum() == 2 * (NgramBranch.END_WORDS + NgramBranch.END_WORDS - 1)  # words, and two in a row
    middle = slice(NgramBranch.END_WORDS, -NgramBranch.END_WORDS)
    changed = [*note[: middle.start], "other", "words", *note[middle.stop :]]
    assert torch.equal(once, count_windows(changed)[2])
    for place in (0, middle.start - 1, middle.stop, -1):
        changed = note.copy()
        changed[place] = "other"
        assert not torch.equal(once, count_windows(changed)[2])
    assert not torch.equal(once, count_windows([*note[middle.stop :], *note[middle], *note[: middle.start]])[2])


def test_a_note_in_windows_is_counted_as_the_whole_note():
    note = [f"w{number % 50}" for number in range(60)]
    whole = count_windows(note)
    assert torch.equal(whole, count_windows(note[:40], note[40:58], note[58:]))
    assert torch.equal(whole, count_windows(note[:40], note[30:55], note[45:], overlap=10))


def test_notes_in_windows_are_counted_apart():
    made = branch(spelled=[(7, " a"), (8, " b"), (9, " c")])
    ids, mask = torch.tensor([[5, 7, 9], [5, 8, 0], [5, 8, 8]]), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    counts = count(made, ids, mask, torch.tensor([0, 0, 1]))
    assert counts.shape == (2, 3, 2**12)
    assert torch.equal(counts[0], count(made, torch.tensor([[7, 9, 8]]))[0])
    assert torch.equal(counts[1], count(made, ids[2:])[0])


def test_counting_may_stand_in_a_compiled_model():
    torch.manual_seed(0)
    model = ScratchForSequenceClassification(ScratchConfig(**SMALL, num_labels=2)).eval()
    notes, labels = invent()
    fit(model.ngrams, notes, labels)
    compiled = torch.compile(model, backend="eager")
    for width in (12, 7):
        ids = torch.tensor([windows[0][:width] for windows in notes])
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", FITS)
def test_as_scikit_learn_on_the_same_counts(classes, name):
    notes, labels = invent(classes=classes)
    fitted = branch(classes)
    fit(fitted, notes, labels, {name: 1.0})
    vector, power = FITS[name]
    ids = torch.tensor([windows[0] for windows in notes])
    mask = torch.ones_like(ids)
    counts = count(fitted, ids, mask).numpy()[:, vector]
    assert counts.sum() > 0
    frequency = (counts > 0).sum(0)
    idf = np.where(frequency >= 2, np.log(41 / (1 + frequency)) + 1, 0)
    features = normalize(np.log1p(counts) * idf)
    features = features * weigh(csr_array(features), labels, power)
    expected = LogisticRegression(C=C, class_weight="balanced", max_iter=200).fit(features, labels)
    probabilities = fitted(ids, mask).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba(features), atol=1e-3)
    assert (probabilities.argmax(1) == labels).mean() > 0.9


def test_the_branch_is_the_weighted_sum_of_its_regressions():
    notes, labels = invent(classes=3)
    notes = [[windows[0], [5, *windows[0][:4]]] for windows in notes]
    fitted = branch(3)
    fits = fit_ngrams(fitted, count_ngrams(fitted, TOKENIZER, notes[:30]), labels[:30])
    assert list(fits) == list(FITS)
    weights = {name: number / 10 for number, name in enumerate(fits)}
    set_ngrams(fitted, fits, weights)
    features = ngram_features(fitted, notes)
    expected = sum(weights[name] * each.logits(features) for name, each in fits.items())
    for windows, logits in zip(notes, expected, strict=True):
        ids = torch.tensor([windows[0], windows[1] + [0] * 7])
        mask = (torch.arange(12) < torch.tensor([[12], [5]])).long()
        np.testing.assert_allclose(fitted(ids, mask, torch.zeros(2, dtype=torch.long))[0], logits, atol=1e-4)


def test_multi_label_notes():
    notes, labels = invent(classes=3)
    fitted = branch(3)
    fit(fitted, notes, np.eye(3, dtype=int)[labels])
    ids = torch.tensor([windows[0] for windows in notes])
    assert ((fitted(ids, torch.ones_like(ids)).sigmoid() > 0.5).numpy() == np.eye(3, dtype=bool)[labels]).all()


def test_labels_that_no_or_every_note_has():
    notes, labels = invent(classes=2)
    fitted = branch(4)
    fit(fitted, notes, np.stack([labels, 1 - labels, 0 * labels, 0 * labels + 1], axis=1))
    ids = torch.tensor([windows[0] for windows in notes])
    probabilities = fitted(ids, torch.ones_like(ids)).sigmoid()
    assert (probabilities[:, 2] < 0.01).all() and (probabilities[:, 3] > 0.99).all()
    unused = branch(3)  # classes 0 and 2 alone
    fit(unused, notes, 2 * labels)
    assert (unused(ids, torch.ones_like(ids)).argmax(1).numpy() == 2 * labels).all()
    assert unused.bfloat16()(ids, torch.ones_like(ids)).isfinite().all()


def test_evaluation_adds_the_logits_and_training_does_not(tmp_path):
    torch.manual_seed(0)
    model = ScratchForSequenceClassification(ScratchConfig(**SMALL, num_labels=2, dropout=0.0))
    notes, labels = invent()
    fit(model.ngrams, notes, labels)
    ids = torch.tensor([windows[0] for windows in notes])
    alone = model.train()(ids).logits
    torch.testing.assert_close(model.eval()(ids).logits, alone)  # until somebody says what the encoder counts
    model.config.encoder_weight = 0.3
    torch.testing.assert_close(model.train()(ids).logits, alone)
    both = model.eval()(ids).logits
    torch.testing.assert_close(both, 0.3 * alone + model.ngrams(ids, torch.ones_like(ids)))
    assert not any(parameter.requires_grad for parameter in model.ngrams.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(ids).logits, both)


def test_several_windows_of_a_note_are_one_note():
    notes, labels = invent()
    whole, cut = branch(), branch()
    cut.window_overlap = 2
    fit(whole, notes, labels)
    fit(cut, [[windows[0][:5], [5, *windows[0][3:]]] for windows in notes], labels)
    assert cut.weight.abs().sum() > 0
    torch.testing.assert_close(dict(cut.named_parameters()), dict(whole.named_parameters()))


def test_notes_that_share_no_ngram():
    fitted = branch(spelled=[(7 + number, chr(ord("a") + number)) for number in range(4)])
    labels = np.array([0, 0, 0, 1])
    set_ngrams(fitted, fit_ngrams(fitted, csr_array((4, 3 * 2**12)), labels, WEIGHTS), WEIGHTS)
    logits = fitted(torch.tensor([[7], [8]]), torch.ones(2, 1, dtype=torch.long))
    assert logits.isfinite().all() and torch.equal(logits[0], logits[1])


def make_logits(labels, wrong=0, size=2.0):
    """(notes, 2): `size` for the right class but of the first `wrong` notes."""
    logits = size * np.eye(2)[labels]
    logits[:wrong] = logits[:wrong, ::-1]
    return logits


def test_the_better_member_counts_and_chance_does_not():
    labels = np.arange(2000) % 2
    chance = np.random.default_rng(0).normal(size=(2000, 2))
    for good, bad in (("encoder", "words-nb1"), ("words-nb1", "encoder")):
        weights = choose_weights({good: make_logits(labels, 200), bad: chance}, labels, "binary")
        assert weights[good] > 0.9 and weights[bad] < 0.1
    backwards = choose_weights({"a": make_logits(labels, 200), "b": -make_logits(labels, 200)}, labels, "binary")
    assert backwards["a"] > 0.9 and backwards["b"] == 0.0  # never below nothing


def test_how_sure_a_member_is_does_not_matter():
    labels = np.arange(4000) % 2
    for size in (0.5, 2.0, 20.0):
        weight = choose_weights({"a": make_logits(labels, 400, size)}, labels, "binary")["a"]
        assert weight * size == pytest.approx(np.log(9), rel=0.05)  # right of nine in ten


def test_members_that_say_the_same_count_the_same():
    labels = np.arange(200) % 2
    weights = choose_weights({name: make_logits(labels, 20) for name in "abc"}, labels, "binary")
    assert np.ptp([*weights.values()]) < 1e-3


def test_members_that_err_apart_both_count():
    labels = np.arange(200) % 2
    apart = make_logits(labels)
    apart[60:90] = apart[60:90, ::-1]
    weights = choose_weights({"worse": make_logits(labels, 60), "better": apart}, labels, "binary")
    assert weights["better"] > weights["worse"] > 0.1


def test_notes_that_are_all_told_apart_do_not_make_it_ever_surer():
    labels = np.array([0, 1])
    assert 1 < choose_weights({"a": make_logits(labels, size=0.5)}, labels, "binary")["a"] < 1.5


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_the_chosen_weights_have_the_least_log_loss(task):
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 3
    truth = np.eye(3, dtype=int)[labels]
    members = {name: draw.normal(size=(300, 3)) * noise + 2 * truth for name, noise in (("a", 2.0), ("b", 3.0))}
    if task == "multi-label":
        labels, members = truth, {name: logits - 1 for name, logits in members.items()}
    weights = choose_weights(members, labels, task)

    def loss(weights):
        summed = sum(weights[name] * logits for name, logits in members.items())
        return log_loss(probabilities_from_logits(summed, task), labels, task)

    for name, step in ((name, step) for name in members for step in (-0.1, 0.1)):
        assert loss(weights) < loss(weights | {name: weights[name] + step})


def test_few_notes_draw_the_weights_together():
    draw = np.random.default_rng(0)
    apart = []
    for count in (30, 3000):
        labels = np.arange(count) % 2
        members = {
            name: make_logits(labels) + size * draw.normal(size=(count, 2)) for name, size in (("a", 1), ("b", 3))
        }
        weights = choose_weights(members, labels, "binary")
        apart.append((weights["a"] - weights["b"]) / (weights["a"] + weights["b"]))
    assert 0 < apart[0] < 0.8 * apart[1]
