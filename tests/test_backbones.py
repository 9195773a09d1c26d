"""Encoders by name: what cannot be had or does not fit together is said in one line before any training."""

import json
import shutil
from dataclasses import replace

import pytest
import sentencepiece
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    LongformerConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from backbones import (
    BACKBONES,
    Backbone,
    BackboneError,
    encoder_fingerprint,
    find_backbone,
    is_local,
    load_config_and_tokenizer,
    longest_input,
    reading_weights,
    resolve_commit,
)
from batches import WindowCollator
from tokenization import train_tokenizer

ACCENTED = "Échographie À l’étage : œdème, FEVG à 25 %"


@pytest.fixture
def copy(encoder_folder, tmp_path):
    """A copy of the tiny encoder, without weights, with values of its JSON files changed."""

    def copy_folder(without=(), **changed):
        folder = tmp_path / "encoder"
        shutil.copytree(encoder_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", *without))
        for name, values in changed.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
        return folder

    return copy_folder


def load(folder):
    return load_config_and_tokenizer(find_backbone(str(folder)))


@pytest.mark.parametrize(
    ("alias", "hub_id"),
    [
        ("camembert-bio", "almanach/camembert-bio-base"),
        ("alibert", "quinten-datalab/AliBERT-7GB"),
        ("drbert", "Dr-BERT/DrBERT-7GB"),
    ],
)
def test_aliases_of_the_paper(alias, hub_id):
    assert find_backbone(alias).hub_id == hub_id
    assert find_backbone(hub_id) == find_backbone(alias)  # the traps of an encoder are those of its long name too


def test_other_names_are_hub_ids_or_folders(encoder_folder):
    backbone = find_backbone("someone/their-bert")
    assert (backbone.hub_id, backbone.revision) == ("someone/their-bert", None)
    assert not is_local(backbone)
    assert is_local(find_backbone(str(encoder_folder)))


def test_revision_given_by_the_user_goes_first(monkeypatch):
    monkeypatch.setitem(BACKBONES, "drbert", replace(BACKBONES["drbert"], revision="pinned"))
    assert find_backbone("drbert").revision == "pinned"
    assert find_backbone("drbert", "v2").revision == "v2"
    assert find_backbone("someone/their-bert", "v2").revision == "v2"


def test_a_folder_has_no_revision(encoder_folder):
    assert resolve_commit(find_backbone(str(encoder_folder))) is None
    with pytest.raises(BackboneError, match="--model_revision v2: .* is a folder, which has none; leave it out"):
        resolve_commit(find_backbone(str(encoder_folder), "v2"))


def test_a_tokenizer_knows_what_the_encoder_takes(copy):
    """Batches are padded to a multiple of eight, but no farther than that."""
    config, tokenizer = load(copy(config={"max_position_embeddings": 52}, tokenizer_config={"model_max_length": 1e30}))
    assert tokenizer.model_max_length == longest_input(config) == 50
    row = tokenizer("toux " * 100, truncation=True)["input_ids"]
    assert WindowCollator(tokenizer)([{"input_ids": [row], "labels": 0}])["input_ids"].shape == (1, 50)


def test_local_folder(encoder_folder):
    config, tokenizer = load(encoder_folder)
    assert config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert getattr(config, "_commit_hash", None) is None


@pytest.mark.parametrize("model", ["nobody/no-model", "drbert"])
def test_unreachable_hub(model):
    hub_id = find_backbone(model).hub_id
    message = f"{hub_id} is not in the cache .* run `hf download {hub_id}`, .* `bash run_all.sh --demo`"
    with pytest.raises(BackboneError, match=message) as caught:
        load_config_and_tokenizer(find_backbone(model))
    assert "\n" not in str(caught.value)


def test_another_encoder_in_the_same_folder_is_noticed(copy):
    folder = copy()
    before = encoder_fingerprint(find_backbone(str(folder)))
    assert before == encoder_fingerprint(find_backbone(str(folder)))
    (folder / "model.safetensors").write_bytes(b"another")
    assert before != encoder_fingerprint(find_backbone(str(folder)))
    assert encoder_fingerprint(Backbone("a/b", "1")) != encoder_fingerprint(Backbone("a/b", "2"))


def test_folder_without_model(tmp_path):
    with pytest.raises(BackboneError, match="not a folder with a model and its tokenizer"):
        load(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", None])
@pytest.mark.parametrize("content", [POINTER, b"", "half"])
def test_weights_that_are_not_there(copy, encoder_folder, name, content):
    """Not copied with the rest or not to the end, or a clone without Git LFS, which has lines in their place."""
    folder = copy()
    if name is not None:
        if content == "half":
            model = AutoModel.from_pretrained(encoder_folder)
            if name.endswith("bin"):
                torch.save(model.state_dict(), folder / name)
            else:
                model.save_pretrained(folder)
            content = (folder / name).read_bytes()[:5000]
        (folder / name).write_bytes(content)
    load_config_and_tokenizer(find_backbone(str(folder)))
    with pytest.raises(BackboneError, match="its weights are missing, damaged or cannot be read .*; copy or download"):
        with reading_weights(find_backbone(str(folder))):
            AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), BackboneError, "No space left on device"),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "no memory"),
    ],
)
def test_what_else_may_happen_while_weights_are_read(error, raised, message):
    with pytest.raises(raised, match=message), reading_weights(Backbone("someone/encoder")):
        raise error


@pytest.mark.parametrize("model_type", ["camembert", "xlm-roberta"])
def test_folder_without_tokenizer(copy, model_type):
    """transformers makes an empty tokenizer of such a folder, for which every word is unknown."""
    folder = copy(without=["tokenizer*"], config={"model_type": model_type})
    with pytest.raises(BackboneError, match="its tokenizer knows no word"):
        load(folder)


def test_tokenizer_without_padding(copy):
    with pytest.raises(BackboneError, match="its tokenizer has no padding token"):
        load(copy(tokenizer_config={"pad_token": None}))


def test_padding_id_of_another(copy):
    with pytest.raises(BackboneError, match="the tokenizer pads with id 1, the model expects 0"):
        load(copy(config={"pad_token_id": 0}))


def test_vocabulary_larger_than_the_model(copy, encoder_folder):
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    with pytest.raises(BackboneError, match=f"{size} tokens in the tokenizer, {size - 1} in the model"):
        load(copy(config={"vocab_size": size - 1}))


def test_vocabulary_smaller_than_the_model(copy):
    config, tokenizer = load(copy(config={"vocab_size": 512}))  # rows added for speed: common, harmless
    assert len(tokenizer) < config.vocab_size


def test_slow_tokenizer(copy):
    folder = copy(without=["tokenizer*"], config={"pad_token_id": 0})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(BackboneError, match="a fast tokenizer is needed, to cut long notes; found CanineTokenizer"):
        load(folder)


@pytest.mark.parametrize("name", ["AlbertTokenizer", "DebertaV2Tokenizer", "XLMRobertaTokenizer"])
def test_a_tokenizer_is_taken_as_it_is_saved(copy, encoder_folder, name):
    """The tokenizer_config.json of AliBERT names AlbertTokenizer, which would lowercase and strip accents."""
    folder = copy(tokenizer_config={"tokenizer_class": name})
    _, tokenizer = load_config_and_tokenizer(find_backbone(str(folder)))
    original = AutoTokenizer.from_pretrained(encoder_folder)
    assert tokenizer.mask_token_id == original.mask_token_id and tokenizer.cls_token_id == original.cls_token_id
    ids = tokenizer(ACCENTED)["input_ids"]
    assert ids == original(ACCENTED)["input_ids"]
    kept = set(tokenizer.decode(ids, skip_special_tokens=True))
    assert set("FEVGàœèé") <= kept


def bert(tmp_path, normalizer: dict | None, **said):
    """A folder whose tokenizer.json has this normalizer, if any, and its configuration names BertTokenizer."""
    train_tokenizer([ACCENTED, "Le patient tousse."], "wordpiece", 120, 62, min_documents=1).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = normalizer or content["normalizer"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "BertTokenizer", **said}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    BertConfig(vocab_size=len(content["model"]["vocab"])).save_pretrained(tmp_path)
    _, tokenizer = load(tmp_path)
    return tokenizer


CASED = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
CASED |= {"lowercase": False}


@pytest.mark.parametrize(
    ("normalizer", "said", "keeps_capitals"),
    [
        (None, {}, True),
        (None, {"do_lower_case": True}, True),  # which no normalizer of the file obeyed
        (CASED, {}, True),
        (CASED, {"do_lower_case": False}, True),
        (CASED, {"do_lower_case": True}, False),
    ],
)
def test_a_bert_of_ones_own_is_read_with_capitals_and_accents(tmp_path, normalizer, said, keeps_capitals):
    tokenizer = bert(tmp_path, normalizer, **said)
    text = tokenizer.decode(tokenizer(ACCENTED)["input_ids"], skip_special_tokens=True)
    assert set(text) & set("FÉÀ") == (set("FÉÀ") if keeps_capitals else set())


@pytest.mark.parametrize("content", ['{"model": {"type": "Later"}}', '{"model": '])
def test_a_damaged_tokenizer_is_one_line(encoder_folder, tmp_path, content):
    """Read by the tokenizers library itself, whose exception has no type of its own."""
    shutil.copytree(encoder_folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match="not a folder with a model and its tokenizer"):
        load(tmp_path)


def test_settings_beside_the_file_go_first(tmp_path):
    tokenizer = bert(tmp_path, CASED | {"lowercase": True}, strip_accents=False)
    assert tokenizer.backend_tokenizer.normalizer.normalize_str("État") == "état"


def test_special_tokens_are_those_of_the_class_where_the_file_has_none(tmp_path):
    """As a tokenizer that was trained by the tokenizers library is saved."""
    bert(tmp_path, None)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load(tmp_path)[1]
    ids = tokenizer("tousse")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("tousse").data == tokenizer("tousse").data


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (CamembertConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (LongformerConfig(max_position_embeddings=4098, pad_token_id=1), 4096),
        (BertConfig(max_position_embeddings=512), 512),
        (ModernBertConfig(max_position_embeddings=8192), 8192),
        (T5Config(), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_longest_input(config, tokens):
    assert longest_input(config) == tokens


def test_longest_input_is_what_the_encoder_takes(encoder_folder):
    model = AutoModel.from_pretrained(encoder_folder).eval()
    longest = longest_input(model.config)
    with torch.inference_mode():
        assert model(torch.full((1, longest), 5)).last_hidden_state.shape == (1, longest, 32)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 5))


def test_a_vocabulary_that_is_a_sentencepiece_file_alone(encoder_folder, copy):
    folder = copy(without=("tokenizer*",))
    texts = iter([ACCENTED, "le patient tousse", "pas de fièvre"] * 9)
    vocabulary = folder / "sentencepiece.bpe"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(vocabulary), vocab_size=40, model_type="unigram", minloglevel=2
    )
    vocabulary.with_name("sentencepiece.bpe.vocab").unlink()
    _, tokenizer = load_config_and_tokenizer(find_backbone(str(folder), None))
    assert tokenizer.decode(tokenizer("le patient")["input_ids"], skip_special_tokens=True) == "le patient"


def test_an_encoder_decoder(tmp_path, encoder_folder):
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(tmp_path)
    T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="it has a decoder, .*; give an encoder alone"):
        load_config_and_tokenizer(find_backbone(str(tmp_path), None))
