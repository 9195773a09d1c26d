"""Pretraining end to end on invented sentences: what it learns, what it leaves behind, what it refuses."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    MobileBertConfig,
    ModernBertConfig,
    XLNetConfig,
)

import data
import pretrain
from backbones import find_backbone, load_config_and_tokenizer, longest_input
from data import DataError
from locks import only_run_in
from pretrain import hold_out
from tokenization import train_tokenizer

ROOT = Path(__file__).parent.parent
SUBJECTS = ["L'enfant", "Le nourrisson", "La patiente", "Le garçon", "La fillette"]
FINDINGS = ["une fièvre élevée", "un œdème pulmonaire", "une toux sèche", "un galop gauche", "une dyspnée sévère"]
TREATMENTS = ["du furosémide", "de l'oxygène", "du paracétamol", "une antibiothérapie", "de la milrinone"]
TINY = (
    "--hidden_size 16 --num_hidden_layers 1 --intermediate_size 32 --vocab_size 400 --max_length 32 --use_cpu".split()
)
SECRET = "Zwiebelkopf"  # the name in one text only


def invent_texts(count: int = 120) -> list[str]:
    draw = random.Random(0)
    choose = draw.choice
    texts = [
        f"{choose(SUBJECTS)} présente {choose(FINDINGS)} depuis {number} jours et reçoit {choose(TREATMENTS)}."
        for number in range(count)
    ]
    return [*texts, f"{SECRET} présente une toux sèche."]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join(invent_texts()), encoding="utf-8")
    return path


def run(*options) -> int:
    return pretrain.main([*map(str, options)])


def train_tiny(text_file: Path, output: Path, *options) -> dict:
    """Three steps unless told otherwise; what pretrain.json says."""
    assert run(*TINY, "--max_steps", 3, "--unlabeled", text_file, "--output_dir", output, *options) == 0
    return json.loads((output / "pretrain.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def camembert(text_file, tmp_path_factory) -> tuple[Path, dict]:
    """A mini CamemBERT trained long enough to have learned something."""
    output = tmp_path_factory.mktemp("models") / "mini"
    options = "--architecture camembert --stand_in_for camembert-bio --max_steps 8 --learning_rate 5e-3".split()
    return output, train_tiny(text_file, output, *options)


@pytest.mark.parametrize("architecture", ["camembert", "roberta", "bert"])
def test_each_architecture_loads_as_encoder_and_tokenizer(architecture, text_file, tmp_path):
    report = train_tiny(text_file, tmp_path, "--architecture", architecture)
    assert report["arguments"]["tokenizer"] == pretrain.ARCHITECTURES[architecture]
    config, tokenizer = load_config_and_tokenizer(find_backbone(str(tmp_path)))  # checks padding and vocabulary
    assert config.model_type == architecture and longest_input(config) == 32
    for name in ("pad", "bos", "eos"):
        assert getattr(config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id")

    texts = ["L'enfant présente un œdème pulmonaire.", "La fillette tousse. " * 20]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 32) and int(batch["input_ids"].max()) < config.vocab_size
    assert tokenizer.unk_token_id not in tokenizer("œdème sévère")["input_ids"]
    encoder = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert encoder(**batch).last_hidden_state.isfinite().all()
    stored = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float32}


def test_tokenizer_is_as_in_training(text_file, tmp_path, monkeypatch):
    used = []
    collator = pretrain.DataCollatorForLanguageModeling
    monkeypatch.setattr(
        pretrain,
        "DataCollatorForLanguageModeling",
        lambda tokenizer, **kwargs: used.append(tokenizer) or collator(tokenizer, **kwargs),
    )
    train_tiny(text_file, tmp_path, "--architecture", "roberta", "--tokenizer", "unigram")
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved(invent_texts())["input_ids"] == used[0](invent_texts())["input_ids"]
    assert not any(SECRET[:5] in token for token in saved.get_vocab())


def test_held_out_loss_falls(camembert):
    _, report = camembert
    held_out = report["held_out"]
    assert held_out["loss"] < held_out["loss_before"] - 0.1
    assert held_out["perplexity"] == pytest.approx(2.718281828 ** held_out["loss"])
    assert (report["documents"], report["held_out_documents"], report["removed"]) == (121, 6, None)


def test_same_seed_same_weights(text_file, tmp_path):
    def weights(name: str, seed: int) -> torch.Tensor:
        train_tiny(text_file, tmp_path / name, "--architecture", "bert", "--seed", seed)
        return load_file(tmp_path / name / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"]

    first = weights("a", 0)
    assert torch.equal(first, weights("b", 0))
    assert not torch.equal(first, weights("c", 1))


def test_what_is_left_behind(camembert, text_file):
    output, report = camembert
    files = {path.name for path in output.rglob("*") if path.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert files == {".lock", "config.json", "model.safetensors", "pretrain.json", *tokenizer}
    assert json.loads((output / "config.json").read_text())["stand_in_for"] == "camembert-bio"
    assert AutoModel.from_pretrained(output).config.stand_in_for == "camembert-bio"
    written = (output / "pretrain.json").read_text(encoding="utf-8")
    assert not [word for word in (SECRET, "œdème", "furosémide", "fillette") if word in written]
    assert str(text_file.parent) not in written and report["arguments"]["unlabeled"] == ["corpus.txt"]


def test_output_shows_no_text(text_file, tmp_path, capfd, caplog):
    train_tiny(text_file, tmp_path, "--architecture", "camembert")
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "held-out loss" in shown
    assert not [word for word in (SECRET, "œdème", "furosémide", "fillette") if word in shown]


def test_continued_pretraining_keeps_tokenizer_and_lowers_loss(camembert, text_file, tmp_path):
    source, first = camembert
    options = "--max_steps 20 --learning_rate 1e-2 --max_length 64 --use_cpu".split()
    assert run("--model", source, "--unlabeled", text_file, "--output_dir", tmp_path, *options) == 0
    report = json.loads((tmp_path / "pretrain.json").read_text(encoding="utf-8"))
    assert report["arguments"]["max_length"] == 32  # all that the encoder takes
    assert report["held_out"]["loss_before"] == pytest.approx(first["held_out"]["loss"], abs=1e-4)
    assert report["held_out"]["loss"] < report["held_out"]["loss_before"]
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path))
    assert before(invent_texts())["input_ids"] == after(invent_texts())["input_ids"]
    assert str(source) not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_interrupted_run_resumes(text_file, tmp_path, monkeypatch):
    options = "--architecture roberta --max_steps 6 --save_steps 2 --eval_steps 2".split()
    whole = train_tiny(text_file, tmp_path / "whole", *options)

    class Killed(BaseException):
        pass

    def die(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("transformers.trainer_callback.DefaultFlowCallback.on_step_begin", die, raising=False)
        train_tiny(text_file, tmp_path / "killed", *options)
    checkpoints = tmp_path / "killed" / "checkpoints"
    (checkpoints / "checkpoint-5").mkdir()  # one that was cut off
    trained, step = [], pretrain.StepClock.on_step_end
    with monkeypatch.context() as patch:
        patch.setattr(
            pretrain.StepClock, "on_step_end", lambda *given, **more: trained.append(1) or step(*given, **more)
        )
        report = train_tiny(text_file, tmp_path / "killed", *options)
    assert len(trained) == 2 and report["cost"]["steps"] == 6 and not checkpoints.exists()
    # Not to the bit: which tokens are masked is drawn a batch ahead of the step that is restored.
    assert report["held_out"]["loss"] == pytest.approx(whole["held_out"]["loss"], abs=5e-3)
    assert report["held_out"]["loss"] < report["held_out"]["loss_before"] - 0.01


def test_the_commit_of_the_encoder_is_written_down(camembert, text_file, tmp_path, monkeypatch):
    """Else a run that is resumed would go on with the tokenizer of a newer one."""
    told, resolve = [], pretrain.resolve_settings
    monkeypatch.setattr(pretrain, "resolve_commit", lambda backbone: "c0ffee")
    monkeypatch.setattr(pretrain, "load_existing", kill)
    monkeypatch.setattr(pretrain, "resolve_settings", lambda *given: told.append(resolve(*given)) or told[-1])
    with pytest.raises(Killed):
        run("--model", camembert[0], "--unlabeled", text_file, "--output_dir", tmp_path, "--use_cpu")
    assert told[0]["arguments"]["model_revision"] == "c0ffee"


@pytest.mark.parametrize(
    ("options", "end"), [("--max_steps 12 --learning_rate 0.3", range(4, 12)), ("--max_steps 3", range(3, 4))]
)
def test_a_run_killed_after_its_end_trains_no_further(text_file, tmp_path, monkeypatch, options, end):
    """Whether it stopped early or had all its steps, in the middle of an epoch."""
    options = f"--architecture roberta --save_steps 1 --eval_steps 1 {options}".split()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pretrain.describe_environment", kill)
        train_tiny(text_file, tmp_path, *options)
    last = max(int(path.name.split("-")[1]) for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert last in end
    report = train_tiny(text_file, tmp_path, *options)
    assert report["cost"]["steps"] == last and not (tmp_path / "checkpoints").exists()
    assert report["cost"]["seconds_a_step"] is None  # none was left to train


class Killed(BaseException):
    """As sudden as a signal: nothing of ours catches it."""


def kill(*_):
    raise Killed


def test_checkpoints_of_another_trainer_are_no_leave_to_overwrite(text_file, tmp_path, caplog, capsys):
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    options = ["--architecture", "roberta", "--unlabeled", text_file, "--output_dir", tmp_path, "--use_cpu"]
    for given in ([], ["--overwrite"]):
        assert run(*options, *given) == 1
        assert "checkpoints is not of this script: choose another --output_dir" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert run(*options) == 1
    assert "already holds a model" in capsys.readouterr().err
    (tmp_path / "pretrain.json").write_text("{}")  # of an earlier model of ours beside another's checkpoints
    assert run(*options, "--overwrite") == 1
    assert (tmp_path / "checkpoints" / "checkpoint-5").is_dir()


@pytest.mark.parametrize("loss", [pretrain.LARGEST_LOSS, float("nan")])
def test_a_training_that_diverged_is_one_line(text_file, tmp_path, monkeypatch, capsys, loss):
    def evaluate(trainer, *args, **kwargs):
        return {"eval_loss": loss if trainer.state.global_step else 9.0}

    monkeypatch.setattr(pretrain.MaskedLanguageModelTrainer, "evaluate", evaluate)
    options = ["--architecture", "bert", "--unlabeled", text_file, "--output_dir", tmp_path, "--max_steps", 1]
    assert run(*TINY, *options) == 1
    assert ": training diverged; give a lower --learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "pretrain.json").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (XLNetConfig(vocab_size=300, pad_token_id=1), "of xlnet there is no masked language model; give a BERT-like"),
        (MobileBertConfig(vocab_size=300, pad_token_id=1), "its masked language model does not score tokens one by"),
        (ModernBertConfig(vocab_size=300, pad_token_id=1, sparse_prediction=True), "does not score tokens one by one"),
    ],
    ids=lambda given: getattr(given, "model_type", ""),
)
def test_an_encoder_without_a_usual_masked_language_model_is_one_line(config, message, text_file, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    train_tokenizer(invent_texts(), "unigram", vocab_size=300, max_length=64).save_pretrained(tmp_path)
    assert run("--model", tmp_path, "--unlabeled", text_file, "--output_dir", tmp_path / "out", "--use_cpu") == 1
    assert message in capsys.readouterr().err


def test_a_full_disk_is_one_line(text_file, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pretrain.PreTrainedModel, "save_pretrained", full)
    options = ["--architecture", "bert", "--unlabeled", text_file, "--output_dir", tmp_path, "--max_steps", 1]
    assert run(*TINY, *options) == 1
    assert capsys.readouterr().err.endswith("is the disk full, or a checkpoint damaged?\n")


@pytest.mark.parametrize("options", ["--max_length 21", "--load_best_model_at_end False --eval_strategy no"])
def test_what_does_not_go_with_the_recipe(text_file, tmp_path, options):
    """All positions of a block that is no multiple of eight; nothing to select by."""
    report = train_tiny(text_file, tmp_path, "--architecture", "bert", "--max_steps", "2", *options.split())
    assert report["cost"]["steps"] == 2


def test_much_of_the_text_is_not_held_out():
    texts = ["un"] * 40
    train, held_out = hold_out(texts, 0.05, seed=0)
    assert len(held_out) == 5 and sorted([*train, *held_out]) == list(range(40))
    long = [text * (20_000 if number == held_out[0] else 1) for number, text in enumerate(texts)]
    others, instead = hold_out(long, 0.05, seed=0)
    assert held_out[0] in others and len(instead) == 5 and sorted([*others, *instead]) == list(range(40))
    assert np.array_equal(
        hold_out(["un"] * 4000, 0.05, 0)[1], np.sort(np.random.default_rng(0).permutation(4000)[:100])
    )


def test_blocks_hold_every_token(camembert):
    tokenizer = AutoTokenizer.from_pretrained(camembert[0])
    texts = invent_texts()
    blocks = pretrain.pack_blocks(texts, tokenizer, 32)
    assert {len(block["input_ids"]) for block in blocks} == {32}
    expected = [token for text in texts for token in tokenizer(text)["input_ids"][1:]][:-1]  # text </s> text </s> text
    ids = [token for block in blocks[:-1] for token in block["input_ids"][1:-1].tolist()]
    assert ids == expected[: len(ids)] and blocks[-1]["input_ids"][1:-1].tolist() == expected[-30:]
    assert len(expected) - len(ids) <= 30
    (short,) = pretrain.pack_blocks(texts[:1], tokenizer, 64)
    assert short["input_ids"].tolist() == tokenizer(texts[0])["input_ids"]
    for block in blocks:
        assert (block["input_ids"][0], block["input_ids"][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert block["special_tokens_mask"].tolist() == [int(token < 5) for token in block["input_ids"]]


def test_scores_at_masked_tokens_alone_give_the_same_loss(camembert, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(camembert[0]).eval()
    trainer = pretrain.MaskedLanguageModelTrainer(
        model=model, args=pretrain.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    )
    torch.manual_seed(0)
    input_ids = torch.randint(5, model.config.vocab_size, (8, 30))
    labels = input_ids.masked_fill(torch.rand(8, 30) > 0.3, -100)
    inputs = {"input_ids": input_ids, "labels": labels}
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    assert loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)
    # and of as many others as make the rows a multiple of 64
    masked = int((labels != -100).sum())
    assert masked % 64 and outputs.logits.shape == (64 * math.ceil(masked / 64), model.config.vocab_size)
    assert len(outputs.logits) < 8 * 30
    nothing = inputs | {"labels": torch.full_like(labels, -100)}  # as chance may mask of a short block
    assert trainer.compute_loss(model.train(), nothing).isfinite()


def test_a_look_at_held_out_text_leaves_the_random_numbers_of_training(camembert, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(camembert[0])
    tokenizer = AutoTokenizer.from_pretrained(camembert[0])
    arguments = pretrain.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False, disable_tqdm=True
    )
    trainer = pretrain.MaskedLanguageModelTrainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        eval_dataset=pretrain.pack_blocks(invent_texts()[:20], tokenizer, 30),
    )
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = trainer.evaluate()["eval_loss"]
    assert torch.equal(torch.rand(4), expected)
    assert trainer.evaluate()["eval_loss"] == first  # the same tokens masked


WATCHED = """
import sys, pretrain
from accelerate.utils import gather_object
class Watched(pretrain.MaskedLanguageModelTrainer):
    def train(self, *args, **kwargs):
        super().train(*args, **kwargs)
        weights = [each.detach().sum().item() for each in self.model.parameters()]
        told = gather_object([(type(self.model_wrapped).__name__, weights)])
        assert told[0] == told[1] and len(told) == 2, "each process went its own way"
        if self.is_world_process_zero():
            print("in step:", told[0][0])
pretrain.MaskedLanguageModelTrainer = Watched
sys.exit(pretrain.main())
"""


def test_two_processes_train_one_model(text_file, tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--architecture", "transformer", "--max_steps", "3", "--load_best_model_at_end", "False"]
    options += ["--unlabeled", str(text_file), "--output_dir", str(tmp_path / "encoder"), *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(tmp_path / "watched.py"), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in step: DistributedDataParallel") == 1


def test_accumulation_does_not_change_the_loss(tmp_path):
    """ModernBERT's loss takes what the Trainer counts, and would be divided by the micro-batches once more."""
    sizes = dict(vocab_size=100, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model("modernbert", **sizes, pad_token_id=0, attn_implementation="sdpa")
    )
    ids = torch.randint(5, 100, (8, 16))
    blocks = [{"input_ids": row, "labels": row} for row in ids]
    args = pretrain.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, logging_steps=1, save_strategy="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=4, learning_rate=0.0, disable_tqdm=True,
    )  # fmt: skip
    trainer = pretrain.MaskedLanguageModelTrainer(model=model, args=args, train_dataset=blocks)
    trainer.train()
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, labels=ids).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_code_that_trains_is_part_of_what_an_encoder_is(tmp_path, monkeypatch):
    for name in pretrain.CODE:
        shutil.copy(Path(pretrain.__file__).with_name(name), tmp_path)
    found = [pretrain.code_fingerprint()]
    monkeypatch.setattr(pretrain, "__file__", str(tmp_path / "pretrain.py"))
    assert pretrain.code_fingerprint() == found[0]
    for name in pretrain.CODE:
        (tmp_path / name).write_text("# another")
        found.append(pretrain.code_fingerprint())
    monkeypatch.setattr(pretrain.transformers, "__version__", "4.0")
    found.append(pretrain.code_fingerprint())
    assert len(set(found)) == len(pretrain.CODE) + 2


def test_layers_are_trained_by_muon_where_it_is_asked_for(camembert, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(camembert[0])
    args = pretrain.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", weight_decay=0.1)
    plain = pretrain.MaskedLanguageModelTrainer(model=model, args=args).create_optimizer()
    assert type(plain) is torch.optim.AdamW
    optimizer = pretrain.MaskedLanguageModelTrainer(model=model, args=args, muon=True).create_optimizer()
    matrices, decayed, others = optimizer.param_groups
    assert matrices["muon"] and [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layer = {names[id(p)].split(".layer.0.")[1] for p in matrices["params"] if ".layer.0." in names[id(p)]}
    assert layer == {
        *(f"attention.{part}.weight" for part in ("self.query", "self.key", "self.value", "output.dense")),
        *("intermediate.dense.weight", "output.dense.weight"),
    }
    assert any(parameter is model.get_input_embeddings().weight for parameter in decayed["params"])
    # each parameter in one group
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_layers_that_muon_does_not_find_are_told(tmp_path):
    sizes = dict(vocab_size=30, embedding_size=8, hidden_size=8, num_attention_heads=1, intermediate_size=8)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("albert", **sizes))
    args = pretrain.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(pretrain.ArgumentError, match="--muon: the layers of albert are not found by their names"):
        pretrain.MaskedLanguageModelTrainer(model=model, args=args, muon=True).create_optimizer()


def test_training_part_alone_is_read(tmp_path, capsys):
    """Test documents must not leak into pretraining: of these notes 19 are left."""
    parts = ["train"] * 19 + ["validation"] + ["test"] * 101
    rows = [f"{text},{part}" for text, part in zip(invent_texts(), parts, strict=True)]
    notes = tmp_path / "notes.csv"
    notes.write_text("\n".join(["note,split", *rows]), encoding="utf-8")
    options = ("--architecture", "bert", "--dataset", notes, "--text_column", "note", "--output_dir", tmp_path / "out")
    assert run(*options) == 1
    assert "19 different documents to pretrain on; at least 20 are needed" in capsys.readouterr().err
    # the same notes once more as unlabelled text: the held-out ones are found by what they say
    assert run(*options, "--unlabeled", notes) == 1
    assert "0 by id or group, 102 by content, 19 copies" in capsys.readouterr().err
    assert run(*options, *TINY, "--max_steps", 1, "--transductive") == 0
    report = json.loads((tmp_path / "out" / "pretrain.json").read_text(encoding="utf-8"))
    assert report["documents"] == report["training_notes"] == 121 and report["transductive"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["transductive"]


def test_notes_without_splits_are_all_held_out(tmp_path, capsys):
    notes = tmp_path / "notes.csv"
    notes.write_text("\n".join(["text", *invent_texts()]), encoding="utf-8")
    options = ("--architecture", "bert", "--dataset", notes, "--output_dir", tmp_path / "out")
    assert run(*options) == 1
    assert "each of its notes is in some fold's test part" in capsys.readouterr().err
    others = tmp_path / "others.txt"
    others.write_text("\n".join(f"Autre texte, le numéro {n}." for n in range(30)), encoding="utf-8")
    assert run(*options, "--unlabeled", others, notes, *TINY, "--max_steps", 1) == 0
    report = json.loads((tmp_path / "out" / "pretrain.json").read_text(encoding="utf-8"))
    assert (report["documents"], report["training_notes"]) == (30, 0)
    assert report["removed"] == {"by_name": 0, "by_content": 121, "copies": 0}


def test_what_was_kept_out_stays_so_when_pretraining_goes_on(tmp_path, caplog):
    """Of an encoder pretrained here with the same notes kept out; on any other, nobody knows."""
    rows = [f"{text},{part}" for text, part in zip(invent_texts(), ["train", "validation", "test"] * 40, strict=False)]
    notes, others = tmp_path / "notes.csv", tmp_path / "others.txt"
    notes.write_text("\n".join(["text,split", *rows]), encoding="utf-8")
    others.write_text("\n".join(f"Autre texte, le numéro {n}." for n in range(30)), encoding="utf-8")

    def kept_out(name, *options):
        assert run(*options, "--output_dir", tmp_path / name, "--max_steps", 1, "--use_cpu") == 0
        return json.loads((tmp_path / name / "pretrain.json").read_text(encoding="utf-8"))["kept_out"]

    checked = kept_out("checked", "--architecture", "bert", *TINY, "--dataset", notes)
    assert checked is not None
    assert "no --dataset" not in caplog.text
    assert kept_out("unchecked", "--architecture", "bert", *TINY, "--unlabeled", others) is None
    assert "no --dataset: no notes are kept out of the text" in caplog.text
    assert kept_out("on", "--model", tmp_path / "checked", "--dataset", notes) == checked
    assert kept_out("on-unchecked", "--model", tmp_path / "unchecked", "--dataset", notes) is None
    assert "what is made of it will count as transductive" in caplog.text
    assert kept_out("on-all", "--model", tmp_path / "checked", "--dataset", notes, "--transductive") is None


def test_dataset_of_the_hub(tmp_path, monkeypatch):
    """Which of its configurations and which commit of it is meant, goes to the library and into the report."""
    rows = [{"text": text} for text in invent_texts()]
    parts = datasets.DatasetDict(
        {
            part: datasets.Dataset.from_list(rows[start::3])
            for start, part in enumerate(("train", "validation", "test"))
        }
    )
    asked = []

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return parts

    monkeypatch.setattr(data, "load_dataset", load_dataset)
    options = ("--dataset", "nobody/notes", "--dataset_config", "french", "--dataset_revision", "v2")
    assert run("--architecture", "bert", *TINY, *options, "--max_steps", 1, "--output_dir", tmp_path) == 0
    assert asked == [("nobody/notes", "french", "v2")]
    report = json.loads((tmp_path / "pretrain.json").read_text(encoding="utf-8"))
    assert report["training_notes"] == len(parts["train"])
    assert (report["arguments"]["dataset_config"], report["arguments"]["dataset_revision"]) == ("french", "v2")


def test_notes_without_a_validation_part_are_refused(tmp_path, capsys):
    """train.py would draw one from the training part, which the model knows by then."""
    notes = tmp_path / "notes.csv"
    rows = [f"{text},{'train' if number < 100 else 'test'}" for number, text in enumerate(invent_texts())]
    notes.write_text("\n".join(["text,split", *rows]), encoding="utf-8")
    options = ("--architecture", "bert", "--dataset", notes, "--output_dir", tmp_path / "out")
    assert run(*options) == 1
    assert "has no validation part: train.py would draw it from the training part" in capsys.readouterr().err
    assert run(*options, *TINY, "--max_steps", 1, "--transductive") == 0


@pytest.mark.parametrize("experts", ["transformer", "moe-transformer"])
def test_small_transformers_learn_and_become_classifiers(experts, text_file, tmp_path):
    options = ("--architecture", experts, "--whole_word_mask", "--max_length", 30, "--learning_rate", 5e-3)
    options += ("--num_hidden_layers", 2)
    report = train_tiny(text_file, tmp_path, *options, "--max_steps", 8)
    assert report["held_out"]["loss"] < report["held_out"]["loss_before"] - 0.1
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(model.decoder.weight, model.encoder.token_embedding.weight)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    kept, stored = classifier.encoder.state_dict(), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], stored[f"encoder.{name}"]) for name in kept)
    assert classifier.config.num_experts == (4 if experts == "moe-transformer" else 0)
    assert any("up_weight" in name for name in kept) == (experts == "moe-transformer")


@pytest.mark.parametrize("family", ["bpe", "unigram", "wordpiece"])
def test_whole_words_are_masked_together(family):
    """And no more than words: byte-level BPE's own places in the text run on from word to word."""
    tokenizer = train_tokenizer(invent_texts(), family, vocab_size=300, max_length=64)
    text = "tachycardie " * 40
    (block, *_) = pretrain.pack_blocks([text], tokenizer, 64, whole_words=True)
    collator = pretrain.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.5, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0
    )
    torch.manual_seed(0)
    masked = (collator([block])["labels"][0] != -100).tolist()[1:-1]  # without the special tokens
    of_word = {}
    for word, hidden in zip(tokenizer(text, add_special_tokens=False).word_ids(), masked, strict=False):
        of_word.setdefault(word, []).append(hidden)
    assert len(of_word[1]) > 3 and all(len(set(hidden)) == 1 for hidden in of_word.values())
    assert {hidden[0] for hidden in of_word.values()} == {True, False}


def test_copies_count_once(tmp_path):
    path = tmp_path / "copies.txt"
    path.write_text("\n".join(["La même phrase."] * 50), encoding="utf-8")
    arguments = pretrain.PretrainArguments(architecture="bert", unlabeled=[str(path)])
    with pytest.raises(DataError, match="1 different documents to pretrain on"):
        pretrain.read_text(arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--unlabeled a.txt", "Give either --architecture for a new encoder or --model"),
        (
            "--architecture bert --model drbert --unlabeled a.txt",
            "Give either --architecture for a new encoder or --model",
        ),
        ("--architecture bert", "Give --unlabeled, --dataset or both"),
        (
            "--architecture gpt2 --unlabeled a.txt",
            "--architecture gpt2: choose from camembert, roberta, bert, transformer, moe-transformer",
        ),
        ("--architecture bert --tokenizer bytes --unlabeled a.txt", "choose from unigram, bpe, wordpiece"),
        ("--architecture bert --unlabeled a.txt --hidden_size 100 --num_attention_heads 3", "must be a multiple of"),
        ("--architecture bert --unlabeled no-such-file.txt", "no-such-file.txt cannot be opened"),
        ("--architecture bert --dataset no-such-file.csv", "no-such-file.csv: no such file"),
        (
            "--architecture bert --unlabeled {text} --dataset_config a",
            "--dataset_config and --dataset_revision are of",
        ),
        ("--architecture bert --dataset synthetic:40 --dataset_revision a", "are for data sets of the Hub; synthetic"),
        (
            "--architecture bert --dataset synthetic:40 --group_column pateint",
            "--group_column pateint: no such column",
        ),
        ("--architecture bert --unlabeled a.txt --mlm_probability 15", "a fraction between 0 and 1"),
        ("--architecture bert --unlabeled a.txt --push_to_hub", "--push_to_hub"),
        ("--architecture bert --unlabeled a.txt --label_smoothing_factor 0.1", "the held-out loss would be another"),
        (
            "--architecture moe-transformer --num_hidden_layers 1 --unlabeled a.txt",
            "--num_hidden_layers 1: the experts of a moe-transformer are in every second layer; give 2 or more",
        ),
        ("--architecture bert --unlabeled a.txt --eval_steps 0.01", "--eval_steps 0.01 and --save_steps 0.05: give"),
        ("--architecture bert --unlabeled a.txt --metric_for_best_model f1", "f1: there is the held-out loss alone"),
        (
            "--architecture moe-transformer --unlabeled a.txt --gradient_checkpointing True",
            "--gradient_checkpointing: a moe-transformer has none",
        ),
        (
            "--architecture bert --unlabeled a.txt --lr_scheduler_type cosine_with_min_lr",
            "One of min_lr or min_lr_rate",
        ),
        ("--architecture transformer --unlabeled a.txt --optim adafactor", "adamw_torch_fused; give one of these, or"),
        ("--model drbert --unlabeled a.txt --vocab_size 9", "--vocab_size: an existing encoder keeps"),
        ("--model ./no-such-folder --unlabeled {text}", "no-such-folder"),
        ("--architecture bert --unlabeled {text} --vocab_size 20", "--vocab_size 20: single characters"),
        ("--architecture bert --unlabeled a.txt --num_attention_heads 0", "--num_attention_heads 0: give 1 or more"),
        ("--architecture bert --unlabeled a.txt --hidden_size -32", "--hidden_size -32: give 1 or more"),
        ("--architecture bert --unlabeled a.txt --max_steps 0", "--max_steps 0: give 1 or more, or -1"),
        ("--architecture bert --unlabeled a.txt --learning_rate 0", "--learning_rate 0: give more than 0"),
        (
            "--architecture bert --unlabeled {text} --mlm_probability 1e-9 --hidden_size 8 --vocab_size 200",
            "is nan before training: of so little text give a higher --mlm_probability",
        ),
    ],
)
def test_mistakes_get_one_line(options, message, text_file, tmp_path, capsys):
    status = run(*options.format(text=text_file).split(), "--output_dir", tmp_path / "out", "--use_cpu")
    error = capsys.readouterr().err
    assert status == 1
    line = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and message in line[0]
    assert "Traceback" not in error and not (tmp_path / "out" / "pretrain.json").exists()


def test_finished_model_is_not_replaced_by_accident(text_file, tmp_path, capsys):
    train_tiny(text_file, tmp_path, "--architecture", "bert")
    options = (*TINY, "--max_steps", 1, "--unlabeled", text_file, "--output_dir", tmp_path)
    assert run("--architecture", "roberta", *options) == 1
    assert "already holds a model" in capsys.readouterr().err
    assert run("--model", tmp_path, "--unlabeled", text_file, "--output_dir", tmp_path, "--overwrite") == 1
    assert "--model and --output_dir are both" in capsys.readouterr().err
    assert run("--architecture", "roberta", *options, "--unlabeled", "no-such-file.txt", "--overwrite") == 1
    assert (tmp_path / "pretrain.json").is_file()  # nothing is lost by a command that is refused
    assert run("--architecture", "roberta", *options, "--overwrite") == 0
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "roberta"


def test_one_run_in_a_folder(text_file, tmp_path, capsys):
    output = tmp_path / "out"
    with only_run_in(output):
        assert run(*TINY, "--architecture", "bert", "--unlabeled", text_file, "--output_dir", output) == 1
    assert f"--output_dir {output}: another run is at work there; wait for it, or" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [".lock"]


def test_no_token_in_a_checkpoint(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "write_json", kill)
    monkeypatch.setattr(pretrain.shutil, "rmtree", lambda *_, **__: None)
    options = ["--architecture", "bert", "--hub_token", SECRET, "--max_steps", "2"]
    with pytest.raises(Killed):
        run(*TINY, *options, "--unlabeled", text_file, "--output_dir", tmp_path / "out")
    saved = list((tmp_path / "out" / "checkpoints").glob("*/training_args.bin"))
    assert saved and not any(SECRET.encode() in path.read_bytes() for path in saved)
