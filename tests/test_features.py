"""Hidden states computed once: as in a forward pass, exact on disk, never read damaged, never computed twice."""

import errno
import json
import logging
import multiprocessing

import numpy as np
import pytest
import torch
from conftest import invent_notes
from transformers import AutoTokenizer

import features
import train
from backbones import Backbone
from batches import WindowCollator, tokenize_notes
from data import DataArguments, DataError
from features import TOKENS_PER_BATCH, FeatureCollator, features_key, load_or_compute
from heads import HEADS, EncoderWithHeadForSequenceClassification


def texts_of_many_lengths(count=30):
    return [text + " Stable." * (number * 5 % 19) for number, text in enumerate(invent_notes(count)["text"])]


def load(encoder_folder, cache_dir, texts=None, device="cpu", dtype=torch.float32, **arguments):
    return load_or_compute(
        Backbone(str(encoder_folder)),
        AutoTokenizer.from_pretrained(encoder_folder),
        texts or texts_of_many_lengths(),
        DataArguments(**{"max_length": 40, **arguments}),
        cache_dir,
        torch.device(device),
        dtype,
    )


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 200)


@pytest.fixture
def computed(caplog):
    """How often hidden states were computed so far."""
    caplog.set_level(logging.INFO)
    return lambda: caplog.text.count("hidden states: done in")


@pytest.mark.parametrize("long_notes", ["truncate", "windows"])
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_the_whole_model_to_bfloat16_rounding(encoder_folder, tmp_path, head, long_notes):
    texts, arguments = texts_of_many_lengths(), DataArguments(max_length=40, long_notes=long_notes, window_stride=8)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    cached = load(encoder_folder, tmp_path, texts, long_notes=long_notes, window_stride=8)
    torch.manual_seed(0)
    model = EncoderWithHeadForSequenceClassification.from_encoder(encoder_folder, head=head, tuning="frozen")
    torch.nn.init.normal_(model.classifier.weight)
    model.eval()
    rows, labels = np.array([7, 3, 29, 0, 11]), np.array([1, 0, 1, 0, 1])
    whole, is_long = tokenize_notes([texts[row] for row in rows], labels, tokenizer, arguments)
    selected, cached_is_long = cached.select(rows, labels)
    assert list(selected["length"]) == list(whole["length"]) and (cached_is_long == is_long).all()
    expected = model(**WindowCollator(tokenizer)(list(whole)))
    found = model(**FeatureCollator(cached)(list(selected)))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.02, atol=0.05)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.02, atol=0.02)


def test_in_bfloat16_it_is_as_in_float32_to_its_rounding(encoder_folder, tmp_path, monkeypatch):
    """Where the CPU has a unit for it with the weights laid out for the rows of a batch, and only then."""
    exact = load(encoder_folder, tmp_path / "float32").states.float()
    rounded = {"as it is": load(encoder_folder, tmp_path / "as it is", dtype=torch.bfloat16).states}
    packed = []
    with monkeypatch.context() as patch:
        patch.setattr(features, "pack_weights", lambda encoder, rows: packed.append(rows))
        for unit in (False, True):
            patch.setattr(features, "bfloat16_is_fast", lambda use_cpu, unit=unit: unit and use_cpu)
            rounded[unit] = load(encoder_folder, tmp_path / f"{unit}", dtype=torch.bfloat16).states
    assert packed == [200]
    for states in rounded.values():
        torch.testing.assert_close(states.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooled_vectors_are_all_that_a_linear_head_looks_at(encoder_folder, tmp_path, pooling):
    cached = load(encoder_folder, tmp_path, long_notes="windows", window_stride=8)
    model = EncoderWithHeadForSequenceClassification.from_encoder(
        encoder_folder, head="linear", tuning="frozen", pooling=pooling
    )
    torch.nn.init.normal_(model.classifier.weight)
    model.eval()
    rows, labels = np.arange(30), np.zeros(30, dtype=int)
    whole = model(**FeatureCollator(cached)(list(cached.select(rows, labels)[0])))
    pooled = cached.pool(pooling)
    assert len(pooled.states) == len(cached.starts) - 1 > 30
    found = model(**FeatureCollator(pooled)(list(pooled.select(rows, labels)[0])))
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_gathered_there(encoder_folder, tmp_path):
    cached = load(encoder_folder, tmp_path, long_notes="windows", window_stride=8)
    near = cached.near(torch.device("cuda"))
    assert near.states.is_cuda and not cached.near(torch.device("cpu")).states.is_cuda
    notes = list(cached.select(np.arange(30), np.zeros(30, dtype=int))[0])
    found, expected = FeatureCollator(near)(notes), FeatureCollator(cached)(notes)
    assert found["hidden_states"].is_cuda
    assert all(torch.equal(found[name].cpu(), expected[name]) for name in expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_hidden_states_of_a_cpu(encoder_folder, tmp_path):
    on_gpu = load(encoder_folder, tmp_path / "gpu", device="cuda")
    on_cpu = load(encoder_folder, tmp_path / "cpu")
    assert (on_gpu.starts == on_cpu.starts).all()
    torch.testing.assert_close(on_gpu.states.float(), on_cpu.states.float(), rtol=0.02, atol=0.02)


def test_on_disk_it_is_tokens_times_hidden_times_two_bytes_and_for_the_owner_alone(encoder_folder, tmp_path):
    cached = load(encoder_folder, tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    tokens = sum(tokenize_notes(texts_of_many_lengths(), None, tokenizer, DataArguments(max_length=40))[0]["length"])
    assert cached.states.shape == (tokens, 32) and cached.states.dtype == torch.bfloat16
    (states,) = (tmp_path / "cache").glob("*/hidden_states.bfloat16")
    assert states.stat().st_size == tokens * 32 * 2
    assert (tmp_path / "cache").stat().st_mode & 0o777 == states.parent.stat().st_mode & 0o777 == 0o700
    everything = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert not any(text[:20].encode() in everything for text in texts_of_many_lengths())


def test_the_second_time_it_is_read(encoder_folder, tmp_path, computed):
    first, second = load(encoder_folder, tmp_path), load(encoder_folder, tmp_path)
    assert computed() == 1 and torch.equal(first.states, second.states) and first.hours == second.hours > 0


def test_whatever_the_numbers_depend_on_has_a_cache_of_its_own(encoder_folder, tmp_path):
    tokenizer, texts = AutoTokenizer.from_pretrained(encoder_folder), texts_of_many_lengths()
    other_tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    other_tokenizer.add_tokens("furosémide")
    (tmp_path / "other").mkdir()
    for path in encoder_folder.iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "other" / "model.safetensors", "ab") as weights:
        weights.write(b"\0")
    here, windows = Backbone(str(encoder_folder)), DataArguments(long_notes="windows")
    cases = [
        (here, tokenizer, texts, DataArguments(), torch.float32),
        (here, tokenizer, texts, DataArguments(), torch.bfloat16),
        (here, tokenizer, texts, DataArguments(max_length=128), torch.float32),
        (here, tokenizer, texts, windows, torch.float32),
        (here, tokenizer, texts, DataArguments(long_notes="windows", window_stride=32), torch.float32),
        (here, tokenizer, texts[::-1], DataArguments(), torch.float32),
        (here, tokenizer, ["".join(texts)], DataArguments(), torch.float32),
        (here, other_tokenizer, texts, DataArguments(), torch.float32),
        (Backbone(str(tmp_path / "other")), tokenizer, texts, DataArguments(), torch.float32),
        (Backbone("some/encoder", "commit 1"), tokenizer, texts, DataArguments(), torch.float32),
        (Backbone("some/encoder", "commit 2"), tokenizer, texts, DataArguments(), torch.float32),
    ]
    assert len({features_key(*case) for case in cases}) == len(cases)
    # what does not matter has not: another split of the same notes, another stride where nothing is cut
    same = DataArguments(folds=3, split_seed=5, window_stride=16)
    assert features_key(here, tokenizer, texts, same, torch.float32) == features_key(*cases[0])


@pytest.mark.parametrize("name", ["hidden_states.bfloat16", "index.npz", "features.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_is_noticed_and_repaired(encoder_folder, tmp_path, computed, name, damage):
    expected = load(encoder_folder, tmp_path).states.clone()
    (path,) = tmp_path.glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x10
    path.unlink() if damage == "lose" else path.write_bytes(content[:-10] if damage == "cut" else content)
    assert torch.equal(load(encoder_folder, tmp_path).states, expected)
    assert computed() == 2 or (name, damage) == ("features.json", "flip")  # a digit of the hours harms nothing


@pytest.mark.parametrize("tokens_per_batch", [200, 3200])
def test_a_pass_that_was_cut_off_goes_on_where_it_was(
    encoder_folder, tmp_path, monkeypatch, computed, tokens_per_batch
):
    """Or begins anew where its batches would be others, as on another device: 3 of them are other notes there."""
    whole = load(encoder_folder, tmp_path / "whole").states
    monkeypatch.setattr("features.SECONDS_BETWEEN_SAVES", 0)
    collated = []

    class Collator(WindowCollator):
        stop_after = 3

        def __call__(self, examples):
            if len(collated) == self.stop_after:
                raise KeyboardInterrupt
            collated.append(len(examples))
            return super().__call__(examples)

    monkeypatch.setattr("features.WindowCollator", Collator)
    with pytest.raises(KeyboardInterrupt):
        load(encoder_folder, tmp_path / "cut")
    (progress,) = (tmp_path / "cut").glob("*.partial/progress.json")
    assert json.loads(progress.read_text())["batches"] == 3
    assert not list((tmp_path / "cut").glob("*/features.json"))
    Collator.stop_after = None
    before = sum(collated)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", tokens_per_batch)
    found = load(encoder_folder, tmp_path / "cut").states
    if tokens_per_batch == 200:
        assert torch.equal(found, whole)
    else:  # batches of another shape round otherwise
        torch.testing.assert_close(found.float(), whole.float(), rtol=0.02, atol=0.02)
    # each note went through the encoder once, but for those of before where that did not count
    assert sum(collated) == (30 if tokens_per_batch == 200 else 30 + before)
    assert not list((tmp_path / "cut").glob("*.partial")) and computed() == 2


def test_a_pass_that_was_killed_at_its_very_end_is_not_made_again(encoder_folder, tmp_path, monkeypatch):
    whole = load(encoder_folder, tmp_path / "whole").states
    monkeypatch.setattr("features.SECONDS_BETWEEN_SAVES", 0)
    write_json = features.write_json

    def stop(path, content):
        if path.name == "features.json":
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "write_json", stop)
        load(encoder_folder, tmp_path / "cut")
    monkeypatch.setattr(WindowCollator, "__call__", None)  # no batch is left
    assert torch.equal(load(encoder_folder, tmp_path / "cut").states, whole)
    assert not list((tmp_path / "cut").glob("*/progress.json"))


def test_what_cannot_be_mapped_is_not_deleted(encoder_folder, tmp_path, monkeypatch):
    load(encoder_folder, tmp_path)

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"be read \(Cannot allocate memory\)"):
        patch.setattr(features.np, "memmap", refuse)
        load(encoder_folder, tmp_path)
    assert list(tmp_path.glob("*/features.json"))


def test_a_cut_off_pass_of_another_size_is_not_resumed(encoder_folder, tmp_path):
    key = load(encoder_folder, tmp_path / "a").states
    (folder,) = [path for path in (tmp_path / "a").iterdir() if path.is_dir()]
    partial = tmp_path / "b" / f"{folder.name}.partial"
    partial.mkdir(parents=True)
    (partial / "hidden_states.bfloat16").write_bytes(b"\0" * 100)
    (partial / "progress.json").write_text(
        json.dumps({"batches": 2, "tokens_per_batch": 200, "size": 100, "seconds": 1.0})
    )
    assert torch.equal(load(encoder_folder, tmp_path / "b").states, key)


def _load_in_a_process(encoder_folder, cache_dir, start, log):
    torch.set_num_threads(1)
    logging.basicConfig(filename=log, level=logging.INFO, format="%(message)s")
    start.wait()
    load(encoder_folder, cache_dir)


def test_two_processes_compute_once(encoder_folder, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    start, logs = spawn.Event(), [tmp_path / "0.log", tmp_path / "1.log"]
    processes = [
        spawn.Process(target=_load_in_a_process, args=(encoder_folder, tmp_path / "cache", start, log)) for log in logs
    ]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    written = "".join(log.read_text() for log in logs)
    assert written.count("hidden states: done in") == 1 and written.count("computed earlier, read from") == 1


def test_a_full_disk_is_one_line(encoder_folder, tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"hidden states take 0.00 GB, .* free \(No space left on device\); choose"):
        load(encoder_folder, tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_made_is_one_line(encoder_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache_dir .*file/cache: Not a directory; choose another folder"):
        load(encoder_folder, tmp_path / "file" / "cache")


def test_one_forward_pass_serves_all_folds_and_heads(notes_file, tmp_path, encoder_folder, computed, caplog):
    # fmt: off
    arguments = [
        "--model", str(encoder_folder), "--dataset", str(notes_file), "--folds", "2", "--seeds", "0", "1",
        "--max_length", "48", "--num_train_epochs", "1", "--use_cpu", "--cache_dir", str(tmp_path / "features"),
        "--keep_model", "False",
    ]
    # fmt: on
    assert train.main([*arguments, "--features_only", "--output_dir", str(tmp_path / "none")]) == 0
    assert computed() == 1 and "*` deletes them" in caplog.text and not list(tmp_path.rglob("result.json"))
    for head in ("linear", "grn"):
        assert train.main([*arguments, "--head", head, "--output_dir", str(tmp_path / head)]) == 0
    assert computed() == 1
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == 8 and len({result["cost"]["feature_hours"] for result in results}) == 1
    assert results[0]["cost"]["feature_hours"] > 0 and "cache_dir" not in results[0]["arguments"]["model"]


def test_features_only_is_for_frozen_encoders(notes_file, tmp_path, capsys):
    assert train.main(["--model", "tfidf", "--dataset", str(notes_file), "--features_only"]) == 1
    assert "--features_only: tfidf has no frozen encoder." in capsys.readouterr().err
