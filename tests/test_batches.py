"""Notes become windows of token ids and windows become batches, without a token lost."""

import numpy as np
import pytest
import torch
from conftest import invent_notes
from transformers import AutoTokenizer

from batches import WindowCollator, tokenize_notes
from data import DataArguments

SHORT, LONG = "Toux grasse.", " ".join(invent_notes(4, seed=2)["text"])


@pytest.fixture(scope="module")
def tokenizer(encoder_folder):
    return AutoTokenizer.from_pretrained(encoder_folder)


def encode(tokenizer, texts, labels=None, **options):
    return tokenize_notes(texts, labels, tokenizer, DataArguments(max_length=32, **options))


def tokens(tokenizer, text) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_truncation(tokenizer):
    dataset, too_long = encode(tokenizer, [SHORT, LONG, LONG], np.array([0, 1, 1]))
    assert too_long.tolist() == [False, True, True]
    assert dataset["labels"][:] == [0, 1, 1]
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert dataset["input_ids"][:2] == [
        [[start, *tokens(tokenizer, SHORT), end]],
        [[start, *tokens(tokenizer, LONG)[:30], end]],
    ]
    assert dataset["length"][:] == [len(tokens(tokenizer, SHORT)) + 2, 32, 32]


def test_a_note_of_just_the_maximum_is_not_too_long(tokenizer):
    text = next(LONG[:end] for end in range(len(LONG)) if len(tokens(tokenizer, LONG[:end])) == 30)
    assert encode(tokenizer, [text])[1] == 0
    assert encode(tokenizer, [text], long_notes="windows", window_stride=4)[0]["length"][:] == [32]


@pytest.mark.parametrize("stride", [0, 5, 15])
def test_windows_cover_every_token(tokenizer, stride):
    dataset, too_long = encode(tokenizer, [LONG, SHORT], long_notes="windows", window_stride=stride)
    assert too_long.tolist() == [True, False]
    long, short = dataset["input_ids"][:]
    assert short == [[tokenizer.cls_token_id, *tokens(tokenizer, SHORT), tokenizer.sep_token_id]]
    assert all(window[0] == tokenizer.cls_token_id and window[-1] == tokenizer.sep_token_id for window in long)
    assert all(len(window) == 32 for window in long[:-1]) and len(long[-1]) <= 32
    inner = [window[1:-1] for window in long]
    for left, right in zip(inner, inner[1:], strict=False):
        assert left[len(left) - stride :] == right[:stride]
    assert inner[0] + [token for window in inner[1:] for token in window[stride:]] == tokens(tokenizer, LONG)
    assert dataset["length"][0] == sum(map(len, long))


def test_without_labels(tokenizer):
    assert set(encode(tokenizer, [SHORT])[0].column_names) == {"input_ids", "length"}


def collate(tokenizer, texts, labels, **options):
    dataset, _ = encode(tokenizer, texts, labels, **options)
    return WindowCollator(tokenizer)([dataset[row] for row in range(len(dataset))])


def test_batch(tokenizer):
    texts = [SHORT, "Fièvre à 39 °C, crise d’asthme."]
    batch = collate(tokenizer, texts, np.array([1, 0]))
    assert list(batch) == ["labels", "input_ids", "attention_mask"]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 0]
    lengths = [len(tokens(tokenizer, text)) + 2 for text in texts]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8 * -(-max(lengths) // 8))
    for ids, mask, text, length in zip(batch["input_ids"], batch["attention_mask"], texts, lengths, strict=True):
        assert ids[1 : length - 1].tolist() == tokens(tokenizer, text)
        assert (ids[length:] == tokenizer.pad_token_id).all()
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)


def test_padding_is_the_tokenizers_own(tokenizer):
    dataset, _ = encode(tokenizer, [SHORT, LONG, SHORT], None, long_notes="windows", window_stride=4)
    rows = [window for note in dataset["input_ids"] for window in note]
    theirs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    ours = WindowCollator(tokenizer)(list(dataset))
    assert {name: ours[name].tolist() for name in theirs} == {name: theirs[name].tolist() for name in theirs}
    assert ours["input_ids"].dtype == ours["attention_mask"].dtype == torch.int64


def test_multi_label_batch(tokenizer):
    batch = collate(tokenizer, [SHORT, SHORT], np.array([[1, 0, 1], [0, 0, 0]]))
    assert batch["labels"].dtype == torch.float32  # what the binary cross-entropy takes
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_window_note(tokenizer):
    texts = [SHORT, LONG, SHORT]
    assert "window_note" not in collate(tokenizer, texts, np.array([0, 1, 0]))
    batch = collate(tokenizer, texts, np.array([0, 1, 0]), long_notes="windows", window_stride=4)
    windows = len(batch["input_ids"]) - 2
    assert windows > 2
    assert batch["window_note"].tolist() == [0, *[1] * windows, 2]
    assert batch["labels"].tolist() == [0, 1, 0]


def test_batch_without_labels(tokenizer):
    assert list(collate(tokenizer, [SHORT], None)) == ["input_ids", "attention_mask"]


def test_padding_stops_at_what_the_model_takes(encoder_folder):
    """A model of 30 positions must not get a row of 32, however good multiples of 8 are for speed."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder, model_max_length=30)
    dataset, _ = tokenize_notes([LONG, SHORT], None, tokenizer, DataArguments(max_length=30))
    batch = WindowCollator(tokenizer)([dataset[0], dataset[1]])
    assert batch["input_ids"].shape == (2, 30)
