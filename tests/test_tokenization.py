"""Tokenizers keep accents, spell out no rare word, and are the same for the same texts."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data import DataError
from tokenization import train_tokenizer

FAMILIES = ("unigram", "bpe", "wordpiece")
FINDINGS = "œdème aigu évidente cardiaque insuffisance l'échographie fièvre enfant modérée à °C :".split()


def invent(number: int) -> str:
    return f"Enfant né à {number % 9} h, " + " ".join(random.Random(number).sample(FINDINGS, len(FINDINGS)))


TEXTS = [*map(invent, range(40)), "Le jeune Zwiebelkopf est né à Bâle."]  # the name in one text only


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return train_tokenizer(TEXTS, request.param, vocab_size=420, max_length=32)


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("text", ["œdème aigu, évidente à l'échographie", "Enfant né à Bâle : fièvre à 8 °C"])
def test_accents_and_case_survive(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert letters(tokenizer.decode(ids, skip_special_tokens=True)) == letters(text)
    # an "e" followed by a combining accent is the same letter
    decomposed = text.replace("é", "e\u0301").replace("è", "e\u0300")
    assert tokenizer(decomposed)["input_ids"] == ids


def test_rare_word_is_encoded_but_not_spelled_out(tokenizer):
    ids = tokenizer(" Zwiebelkopf", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert letters(tokenizer.decode(ids)) == "Zwiebelkopf"
    tokens = [token.strip("▁Ġ#") for token in tokenizer.get_vocab()]
    assert "cardiaque" in tokens
    # no token holds two letters in a row that only the rare word has
    assert not [token for token in tokens if any(pair in token for pair in ("Zw", "wi", "eb", "lk", "ko", "pf"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_black_bar_costs_no_other_character(family):
    """SentencePiece keeps it for itself, and left out whatever stood in one line with it."""
    tokenizer = train_tokenizer([*TEXTS, "Vu par ▅▅▅ le žx"], family, 430, 32)
    assert tokenizer.unk_token_id not in tokenizer(" žx", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_of_one_patient_count_once(family):
    texts = TEXTS[:40] + [f"Visite {number} : Zwiebelkopf" + " à °C" * (number % 2) for number in range(8)]
    groups = [f"p{number}" for number in range(40)] + ["p40"] * 8
    by_document = train_tokenizer(texts, family, 420, 32)
    by_patient = train_tokenizer(texts, family, 420, 32, groups=groups)
    spelled_out = [any("Zwiebelkopf" in token for token in t.get_vocab()) for t in (by_document, by_patient)]
    assert spelled_out == [True, False]


def test_save_and_load_give_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert loaded.model_max_length == 32
    assert loaded.all_special_ids == tokenizer.all_special_ids
    assert len(loaded(" ".join(TEXTS), truncation=True)["input_ids"]) == 32


@pytest.mark.parametrize(
    ("family", "special"),
    [
        ("unigram", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("bpe", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("wordpiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
    ],
)
def test_special_tokens(family, special):
    tokenizer = train_tokenizer(TEXTS, family, 420, 32)
    assert tokenizer.convert_ids_to_tokens(range(5)) == special  # the ids of the architectures' configurations
    ids = tokenizer("œdème <mask>" if family != "wordpiece" else "œdème [MASK]")["input_ids"]
    assert [ids[0], ids[-2], ids[-1]] == [tokenizer.cls_token_id, 4, tokenizer.sep_token_id]
    assert tokenizer.pad_token_id == special.index(tokenizer.pad_token)
    assert set(tokenizer("œdème")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("family", FAMILIES)
def test_vocabulary_size(family):
    sizes = [len(train_tokenizer(TEXTS, family, size, 32)) for size in (280, 300)]
    assert sizes[0] <= 280 and sizes[0] <= sizes[1] <= 300
    with pytest.raises(DataError, match="--vocab_size 30: single characters and special tokens alone take"):
        train_tokenizer(TEXTS, family, 30, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shared_word_leaves_characters(family):
    tokenizer = train_tokenizer(["œdème aigu, œdème, œdème", "toux"], family, 420, 32)  # often, but in one document
    assert tokenizer.unk_token_id not in tokenizer("œdème")["input_ids"]
    assert not any("dème" in tokenizer.decode([token]) for token in tokenizer.get_vocab().values())


def fingerprints() -> list[str]:
    trained = (train_tokenizer(TEXTS, family, 420, 32).backend_tokenizer.to_str() for family in FAMILIES)
    return [hashlib.sha256(text.encode()).hexdigest() for text in trained]


def test_same_texts_same_vocabulary_in_another_process():
    """The `tokenizers` library alone fails this for Unigram and WordPiece: it reads its hash tables in their order."""
    tests = Path(__file__).parent
    path = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]"
    program = f"{path}; import test_tokenization; print(*test_tokenization.fingerprints())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == fingerprints()


@pytest.mark.parametrize("family", FAMILIES)
def test_characters_of_scripts_without_spaces_are_words(family):
    """A whole clause would be in no five documents, and nothing learned but bytes."""
    characters = "患者咳嗽发热胸痛头晕乏力"
    texts = ["".join(random.Random(number).sample(characters, 8)) + "，CT检查。" for number in range(40)]
    tokenizer = train_tokenizer([*texts, "黄"], family, 420, 64)
    ids = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    tokens = [token.strip("#▁") for token in tokenizer.convert_ids_to_tokens(ids)]
    assert len([token for token in tokens if token]) <= 8 + 2 + 4  # a token each, "CT" perhaps one
    assert letters(tokenizer.decode(ids)) == texts[0]
    spelled = [tokenizer.decode([token]) for token in range(5, len(tokenizer))]
    assert not [text for text in spelled if sum(character in characters for character in text) > 1]
    assert tokenizer.decode(tokenizer("黄", add_special_tokens=False)["input_ids"]).strip() == "黄"
