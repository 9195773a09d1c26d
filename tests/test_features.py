"""Hidden states computed once: the same as in a forward pass, for truncated and windowed notes, and only once."""

import numpy as np
import pytest
import torch
from conftest import invent_notes
from transformers import AutoModel, AutoTokenizer

import train
from batches import WindowCollator, tokenize_notes
from data import DataArguments
from features import FeatureCollator, FrozenFeatures
from heads import HEADS, EncoderWithHeadForSequenceClassification


@pytest.fixture(params=["truncate", "windows"])
def case(request, encoder_folder, monkeypatch):
    monkeypatch.setattr("features.TOKENS_PER_BATCH", 200)  # several batches
    texts = [text + " Stable." * (number * 5 % 19) for number, text in enumerate(invent_notes(30)["text"])]
    arguments = DataArguments(max_length=40, long_notes=request.param, window_stride=8)
    encoder, tokenizer = AutoModel.from_pretrained(encoder_folder), AutoTokenizer.from_pretrained(encoder_folder)
    features = FrozenFeatures()
    features.compute(encoder, tokenizer, texts, arguments, torch.device("cpu"))
    return texts, arguments, tokenizer, features


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_the_whole_model_to_bfloat16_rounding(case, encoder_folder, head):
    texts, arguments, tokenizer, features = case
    torch.manual_seed(0)
    model = EncoderWithHeadForSequenceClassification.from_encoder(encoder_folder, head=head, tuning="frozen")
    torch.nn.init.normal_(model.classifier.weight)
    model.eval()
    rows, labels = np.array([7, 3, 29, 0, 11]), np.array([1, 0, 1, 0, 1])
    whole, is_long = tokenize_notes([texts[row] for row in rows], labels, tokenizer, arguments)
    cached, cached_is_long = features.select(rows, labels)
    assert list(cached["length"]) == list(whole["length"]) and (cached_is_long == is_long).all()
    expected = model(**WindowCollator(tokenizer)(list(whole)))
    found = model(**FeatureCollator(features)(list(cached)))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.02, atol=0.05)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.02, atol=0.02)


def test_memory_is_that_of_the_tokens(case):
    texts, arguments, tokenizer, features = case
    states = [window for note in features.states for window in note]
    tokens = sum(tokenize_notes(texts, None, tokenizer, arguments)[0]["length"])
    assert sum(state.untyped_storage().nbytes() for state in states) == tokens * 32 * 2
    assert all(state.dtype == torch.bfloat16 for state in states)
    assert features.hours > 0


def test_one_forward_pass_serves_all_folds_and_seeds(notes_file, tmp_path, encoder_folder, caplog):
    # fmt: off
    arguments = [
        "--model", str(encoder_folder), "--head", "adapter", "--dataset", str(notes_file),
        "--folds", "2", "--seeds", "0", "1", "--max_length", "48", "--num_train_epochs", "1", "--use_cpu",
        "--output_dir", str(tmp_path / "run"),
    ]
    # fmt: on
    caplog.set_level("INFO")
    assert train.main(arguments) == 0
    assert caplog.text.count("for all folds") == 1
    hours = {path.read_text().split('"feature_hours": ')[1].split(",")[0] for path in tmp_path.rglob("result.json")}
    assert len(hours) == 1 and float(hours.pop()) > 0
