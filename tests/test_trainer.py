"""The loss by hand, accumulation, the order of predictions, the clock, the choice of checkpoint."""

import math
import time
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import invent_notes
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

import pretrain
import trainer
from baseline import Settings, TfidfClassifier
from batches import tokenize_notes
from data import DataArguments, DataError, load_notes
from energy import Reading
from memory import MemoryPlan
from models import ModelArguments
from naive_bayes import POWERS
from pretrain import ArgumentError
from scratch_model import ScratchConfig, ScratchForSequenceClassification
from splits import Split, draw_splits
from tokenization import train_tokenizer
from train import parse_arguments
from trainer import BatchesOfLikeLength, Member, NoteTrainer, Run, epochs_to_train, train_network, weighted_loss

TOKENIZER = train_tokenizer(invent_notes(40)["text"].tolist(), family="bpe", vocab_size=300, max_length=64)


def test_weighted_loss_by_hand():
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]), torch.tensor([1, 0])
    first, second = math.log(2), math.log(4 / 3)
    assert weighted_loss(logits, labels, None).item() == pytest.approx((first + second) / 2)
    assert weighted_loss(logits, labels, torch.tensor([0.5, 2.0])).item() == pytest.approx(
        (2 * first + second / 2) / 2
    )
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    weights = torch.tensor([3.0, 1.0])
    expected = F.binary_cross_entropy_with_logits(logits, several, pos_weight=weights)
    assert weighted_loss(logits, several, weights) == expected
    smoothed = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9, 0.1], [0.9, 0.9]]), pos_weight=weights)
    torch.testing.assert_close(weighted_loss(logits, several, weights, label_smoothing=0.2), smoothed)


def test_two_halves_give_the_weighted_loss_of_the_whole():
    """Dividing by the sum of the weights, as torch does, would not: that is why the loss is our own."""
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(8, 3), torch.arange(8) % 3, torch.tensor([0.3, 1.0, 4.0])
    halves = [weighted_loss(logits[part], labels[part], weights) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, weighted_loss(logits, labels, weights))


def test_the_loss_weighs_smooths_and_keeps_experts_evenly_used(tmp_path):
    sizes = dict(vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=32, dropout=0.0)
    model = ScratchForSequenceClassification(ScratchConfig(**sizes, num_labels=2, num_experts=2)).train()
    weights, labels = torch.tensor([0.5, 3.0]), torch.tensor([0, 1, 1, 0])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
    its = NoteTrainer(model=model, args=arguments, class_weights=weights)
    its.notes_in_step = 4
    inputs = {"input_ids": torch.randint(5, 40, (4, 12)), "labels": labels}
    loss, outputs = its.compute_loss(model, inputs, return_outputs=True)
    each = F.cross_entropy(outputs.logits, labels, reduction="none", label_smoothing=0.1)
    assert outputs["auxiliary_loss"] > 0
    torch.testing.assert_close(loss, (each * weights[labels]).mean() + outputs["auxiliary_loss"])


@pytest.mark.parametrize("asked", ["balanced", "none"])
def test_classes_weigh_as_asked(notes_file, tmp_path, monkeypatch, asked):
    told = []

    def watched(logits, labels, class_weights, *more):
        told.append(class_weights)
        return weighted_loss(logits, labels, class_weights, *more)

    monkeypatch.setattr(trainer, "weighted_loss", watched)
    run, split = run_for(notes_file, tmp_path, "--max_steps", "1", "--class_weights", asked)
    train_network(run, split, 0, tmp_path / "fold")
    if asked == "none":
        assert told and told == [None] * len(told)
    else:  # a third of the notes is positive
        rare, common = max(told[0].tolist()), min(told[0].tolist())
        assert 1.5 < rare / common < 2.5


def test_many_epochs_are_looked_at_as_often_as_few(notes_file, tmp_path):
    looked = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            looked.append(state.epoch)

    run, split = run_for(notes_file, tmp_path, "--min_steps", "16", "--early_stopping_patience", "0")
    train_network(run, split, 0, tmp_path / "fold", callbacks=[Watch()])
    epochs = epochs_to_train(run.model_args, run.training_args, len(split.train))
    assert epochs > 2 and looked == [epochs / 2, epochs]


def weights_after_training(tmp_path, notes, batch_size, accumulation):
    torch.manual_seed(0)
    model = ScratchForSequenceClassification(
        ScratchConfig(
            vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=32, dropout=0.0, num_labels=2
        )
    )
    data = [{"input_ids": torch.randint(5, 40, (12,)), "labels": n % 2} for n in range(notes)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / f"{batch_size}x{accumulation}"),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=4,
        learning_rate=1e-2,
        optim="sgd",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = NoteTrainer(model=model, args=arguments, train_dataset=data, class_weights=torch.tensor([0.5, 3.0]))
    before = model.classifier.weight.detach().clone()
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)
    return model.state_dict()


@pytest.mark.parametrize(("notes", "parts"), [(16, (2, 4)), (14, (4, 2))])
def test_one_times_eight_equals_four_times_two(tmp_path, notes, parts):
    """Of 14 notes the second step has six: four and two, each of which counts the same."""
    whole = weights_after_training(tmp_path, notes, 8, 1)
    parts = weights_after_training(tmp_path, notes, *parts)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def run_for(notes_file, tmp_path, *more):
    # fmt: off
    arguments = parse_arguments([
        "--model", "transformer", "--dataset", str(notes_file), "--output_dir", str(tmp_path / "run"), "--folds", "1",
        "--max_length", "64", "--vocab_size", "400", "--num_train_epochs", "2", "--use_cpu", *more,
    ])
    # fmt: on
    notes = load_notes(arguments[1])
    return Run(*arguments, notes), draw_splits(notes, arguments[1])[0]


def test_predictions_come_in_the_order_of_the_notes(notes_file, tmp_path):
    """Notes of very different length, so that any grouping by length would permute them."""
    frame = invent_notes(90)
    frame["text"] = [text + " Stable." * (number * 7 % 23) for number, text in enumerate(frame["text"])]
    frame.to_csv(notes_file, index=False)
    # in float32: bfloat16 rounds otherwise in batches of other shapes
    run, split = run_for(notes_file, tmp_path, "--bf16", "False")
    trained = train_network(run, split, 0, tmp_path / "fold")
    together = trained.predict(split.test)
    alone = np.concatenate([trained.predict(split.test[[n]]) for n in range(len(split.test))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_probabilities(notes_file, tmp_path, seed):
    run, split = run_for(notes_file, tmp_path, "--model", "moe-transformer")

    def probabilities(seed, folder):
        return train_network(run, split, seed, tmp_path / folder).predict(split.test)

    first = probabilities(seed, "a")
    assert np.array_equal(first, probabilities(seed, "b"))
    assert not np.allclose(first, probabilities(seed + 2, "c"))


def test_seeds_share_the_ngrams_of_a_fold(notes_file, tmp_path, monkeypatch):
    """The second seed has the probabilities that it has alone, and says that its n-grams took as long."""
    options = ["--ngram_branch", "True", "--seeds", "0", "1"]
    run, split = run_for(notes_file, tmp_path, *options)
    alone = train_network(run, split, 1, tmp_path / "alone").predict(split.test)
    run, split = run_for(notes_file, tmp_path, *options)
    train_network(run, split, 0, tmp_path / "first")
    monkeypatch.setattr("trainer.fit_ngrams", None)
    (fitted,) = run.ngrams.values()
    run.ngrams = {key: fitted._replace(seconds=3600.0) for key in run.ngrams}
    second = train_network(run, split, 1, tmp_path / "second")
    assert np.array_equal(second.predict(split.test), alone) and 1 < second.cost["training_hours"] < 1.1
    monkeypatch.undo()
    other, _ = run_for(notes_file, tmp_path, *options[:2])
    train_network(other, split, 0, tmp_path / "other")
    assert not other.ngrams  # nothing is kept for nobody


@pytest.mark.parametrize("more", [["--early_stopping_patience", "0"], ["--eval_strategy", "no"]])
def test_the_epoch_that_is_kept_is_the_last_where_none_is_selected(notes_file, tmp_path, more):
    """Without a look at validation nothing can stop early either."""
    options = [*"--load_best_model_at_end False --num_train_epochs 3".split(), *more]
    run, split = run_for(notes_file, tmp_path, *options, "--learning_rate", "1e-9")  # the first is as good as any
    assert train_network(run, split, 0, tmp_path / "fold").cost["best_epoch"] == 3


def test_muon_has_the_layers_and_a_learning_rate_of_its_own(notes_file, tmp_path, monkeypatch):
    made = []
    create = trainer.create_muon
    monkeypatch.setattr(trainer, "create_muon", lambda *given: made.append((given[1], create(*given))) or made[-1][1])
    options = "--muon_learning_rate 0.004 --learning_rate 0.001 --ngram_branch True --num_train_epochs 1".split()
    run, split = run_for(notes_file, tmp_path, *options)
    train_network(run, split, 0, tmp_path / "fold")
    ((model, optimizer),) = made
    matrices, decayed, others = optimizer.param_groups
    assert matrices["muon"] and not decayed["muon"] and not others["muon"]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.004, 0.001, 0.001]
    assert len(matrices["params"]) == 4 * model.config.num_hidden_layers
    assert any(parameter is model.classifier.weight for parameter in decayed["params"])
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("ngrams.")}
    run, split = run_for(notes_file, tmp_path, *options[2:])
    train_network(run, split, 0, tmp_path / "plain")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model camembert-bio --muon_learning_rate 0.001", "camembert-bio-grn-frozen is no small Transformer"),
        ("--model transformer --muon_learning_rate -1", "--muon_learning_rate -1: give 0 or more"),
        ("--model transformer --lr_scheduler_type cosine_with_min_lr", "cosine_with_min_lr: One of min_lr or"),
        ("--model drbert --lr_scheduler_type warmup_stable_decay", "num_decay_steps.; --lr_scheduler_kwargs takes"),
        ("--model transformer-pretrained --optim sgd", "--optim sgd: Muon leaves .*; give one of these, or --muon"),
        ("--model transformer --dropout 1", "--dropout 1: give 0, or more but less than 1"),
        ("--model transformer --memory_gb 0", "--memory_gb 0: give more than 0"),
        ("--model transformer --learning_rate -1", "--learning_rate -1: give more than 0"),
        ("--model transformer --early_stopping_patience -1", "--early_stopping_patience -1: give 0 or more"),
        ("--model transformer --seeds 0 -1", "--seeds -1: give 0 or more, below 2"),
        ("--model tfidf --seed 4294967296", "--seed 4294967296: give 0 or more, below 2"),
        ("--model drbert --data_seed -3", "--data_seed -3: give 0 or more, below 2"),
        ("--model drbert --lora_r 0", "--lora_r 0: give 1 or more"),
        ("--model drbert --head_size -4", "--head_size -4: give 0 or more"),
        ("--model tfidf --per_device_train_batch_size 0", "--per_device_train_batch_size 0: give 1 or more"),
        ("--model transformer --gradient_checkpointing True", "--gradient_checkpointing: transformer has none"),
        ("--model drbert --neftune_noise_alpha 5", "--neftune_noise_alpha: drbert-grn-frozen trains no embeddings"),
        ("--model drbert --lr_scheduler_type reduce_lr_on_plateau", "waits for a lower score, where a higher one is"),
        ("--model transformer --lr_scheduler_type greedy", "greedy: waits for a lower score, where a higher"),
        ("--model drbert --dataloader_drop_last True", "--dataloader_drop_last: would drop held-out text too"),
        ("--model drbert --enable_jit_checkpoint True", "--enable_jit_checkpoint: what a signal cut off would count"),
        (
            "--model drbert --auto_find_batch_size True",
            "--auto_find_batch_size: would go on with half-trained weights",
        ),
        ("--model drbert --fp16 True --use_cpu", "--fp16: a CPU would go on in float32"),
        ("--model drbert --dataloader_persistent_workers True", "--dataloader_persistent_workers: there are none"),
        (
            "--model drbert --remove_unused_columns True",
            "--remove_unused_columns, --label_names: name nothing of your",
        ),
        ("--model drbert --label_names label", "--remove_unused_columns, --label_names: name nothing of your"),
        ("--model drbert --include_for_metrics inputs", "--include_for_metrics: scores are of labels and predictions"),
        ("--model drbert --train_sampling_strategy batch_rebalance", "--train_sampling_strategy batch_rebalance: not"),
        ("--model drbert --prediction_loss_only True", "--prediction_loss_only: there would be nothing to score"),
        ("--model drbert --batch_eval_metrics True", "--batch_eval_metrics, --eval_do_concat_batches: scores are of"),
        ("--model drbert --eval_do_concat_batches False", "--eval_do_concat_batches: scores are of all notes"),
        ("--model transformer --label_smoothing_factor 1.5", "--label_smoothing_factor 1.5: give 0, or more but less"),
        ("--model transformer --adam_beta2 1", "--adam_beta2 1: give 0, or more but less than 1"),
        ("--model transformer --weight_decay -0.1", "--weight_decay -0.1: give 0 or more"),
        ("--model drbert --optim_args x", "--optim adamw_torch_fused with --optim_args x: not enough values"),
        (
            "--model transformer --eval_strategy steps --save_strategy steps --eval_steps 50 --save_steps 100",
            "--eval_steps 50 and --save_steps 100: give the same",
        ),
        ("--model transformer --resume_from_checkpoint x", "--resume_from_checkpoint: a run goes on by itself"),
    ],
)
def test_what_cannot_be_is_refused_before_a_note_is_read(notes_file, options, message):
    with pytest.raises(ArgumentError, match=message):
        parse_arguments(["--dataset", str(notes_file), *options.split()])


def test_an_optimizer_that_is_not_installed_is_told_before_a_note_is_read(notes_file, monkeypatch):
    def lacks(arguments):
        raise ImportError("Please install x")

    monkeypatch.setattr(pretrain.Trainer, "get_optimizer_cls_and_kwargs", lacks)
    with pytest.raises(ArgumentError, match="--optim adamw_8bit: Please install x"):
        parse_arguments(["--dataset", str(notes_file), "--model", "drbert", "--optim", "adamw_8bit"])


def test_a_configuration_of_accelerate_does_not_say_the_precision(notes_file, monkeypatch):
    """As `accelerate launch` exports one; "no" is said on the command line, or where bfloat16 is slow."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    alone = ["--dataset", str(notes_file), "--use_cpu", "--load_best_model_at_end", "False", "--eval_strategy", "no"]
    for asked, precision in (("False", "no"), ("True", "bf16")):
        _, _, given = parse_arguments(["--model", "transformer", "--bf16", asked, *alone])
        trainer = NoteTrainer(model=torch.nn.Linear(1, 1), args=given)
        assert trainer.accelerator.mixed_precision == precision
        assert trainer.accelerator.state.dynamo_plugin.backend == "NO"


@pytest.mark.parametrize("by", ["accelerate", "machine"])
def test_the_device_is_what_accelerate_or_the_machine_says(notes_file, monkeypatch, by):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: by == "accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(by == "accelerate"))
    _, _, given = parse_arguments(["--model", "transformer", "--dataset", str(notes_file)])
    assert given.use_cpu and given.device.type == "cpu"


def test_schedules_with_arguments_of_their_own(notes_file):
    given = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 0.0001}']
    _, _, training_args = parse_arguments(["--model", "tfidf", "--dataset", str(notes_file), *given])
    assert training_args.lr_scheduler_kwargs == {"min_lr": 0.0001}


def test_no_token_in_a_checkpoint(notes_file, tmp_path):
    run, split = run_for(notes_file, tmp_path, *"--hub_token hf_secret --num_train_epochs 1".split())
    train_network(run, split, 0, tmp_path / "checkpoints")
    saved = list((tmp_path / "checkpoints").glob("*/training_args.bin"))
    assert saved and not any(b"hf_secret" in path.read_bytes() for path in saved)
    assert run.training_args.hub_token == "hf_secret"  # which the model will be pushed with


def test_batches_are_of_like_length_and_come_in_any_order(tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    lengths = np.random.default_rng(0).integers(1, 1000, 803)
    sampler = BatchesOfLikeLength(arguments, Dataset.from_dict({"length": lengths}))
    order = list(sampler)
    assert sorted(order) == list(range(803)) and list(sampler) != order
    batches = [lengths[order[start : start + 8]] for start in range(0, 803, 8)]
    assert [len(batch) for batch in batches] == [8] * 100 + [3]
    assert np.mean([np.ptp(batch) for batch in batches]) < 60  # drawn at random: about 780
    means = [batch.mean() for batch in batches[:-1]]
    assert 35 < sum(later > earlier for earlier, later in pairwise(means)) < 65  # sorted: as good as never


def test_a_resumed_epoch_of_several_processes_has_the_order_it_had(notes_file, tmp_path):
    """There the sampler is wrapped once more than the library looks when it tells it the epoch."""
    run, split = run_for(notes_file, tmp_path)
    data, _ = tokenize_notes([run.notes.texts[row] for row in split.train], None, TOKENIZER, run.data_args)
    run.training_args.eval_strategy, run.training_args.load_best_model_at_end = "no", False
    its_trainer = NoteTrainer(model=torch.nn.Linear(1, 1), args=run.training_args, train_dataset=data)
    loader = its_trainer.get_train_dataloader()
    its_trainer.control.should_training_stop = True  # nothing is trained
    orders = []
    for epoch in (0, 1, 0):
        its_trainer._run_epoch(epoch=epoch, train_dataloader=loader)
        orders.append(list(its_trainer.batches))
    assert orders[0] == orders[2] != orders[1]


def test_training_that_diverged_unseen_is_told(notes_file, tmp_path):
    """Of the model for use, and without a look at validation, no score would say so."""
    unseen = "--eval_strategy no --save_strategy no --load_best_model_at_end False --learning_rate 1e30".split()
    run, split = run_for(notes_file, tmp_path, *unseen, "--max_grad_norm", "0")
    with pytest.raises(ArgumentError, match="Training diverged: its logits are no numbers any more; give a lower"):
        train_network(run, split, 0, tmp_path / "fold")


@pytest.mark.parametrize(("by", "ends"), [("steps", 0.5), ("epoch", 1)])
def test_the_model_for_use_stops_where_the_folds_chose(notes_file, tmp_path, by, ends):
    every = ["--eval_strategy", by, "--save_strategy", by, "--eval_steps", "2", "--save_steps", "2"]
    run, split = run_for(notes_file, tmp_path, *every, "--per_device_train_batch_size", "16")
    assert len(split.train) > 48  # four steps an epoch
    assert train_network(run, split, 0, tmp_path / "fold", epochs=0.5).cost["epochs"] == ends


def test_logs_for_tensorboard_outlive_the_checkpoints(notes_file, tmp_path):
    class Watch(TensorBoardCallback):
        def __init__(self):
            self.logging_dir, self.tb_writer, self._SummaryWriter = None, None, None

    run, split = run_for(notes_file, tmp_path, "--num_train_epochs", "1")
    train_network(run, split, 0, tmp_path / "fold-0" / "checkpoints", callbacks=[watch := Watch()])
    assert watch.logging_dir == str(tmp_path / "fold-0" / "tensorboard")


def test_the_order_of_the_notes_has_a_seed_of_its_own(notes_file, tmp_path):
    def orders(*more):
        run, split = run_for(notes_file, tmp_path, *more)
        data, _ = tokenize_notes([run.notes.texts[row] for row in split.train], None, TOKENIZER, run.data_args)
        run.training_args.eval_strategy, run.training_args.load_best_model_at_end = "no", False
        its_trainer = NoteTrainer(model=torch.nn.Linear(1, 1), args=run.training_args, train_dataset=data)
        sampler = its_trainer._get_train_sampler()
        epochs = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            torch.rand(3)  # other random numbers do not matter
            epochs.append(list(sampler))
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(split.train))) and epochs[0] != epochs[1]
        return epochs

    assert orders("--seed", "3") == orders("--seed", "3") == orders("--seed", "4", "--data_seed", "3")
    assert orders("--seed", "3") != orders("--seed", "3", "--data_seed", "4")
    assert orders("--seed", "3")[1] != orders("--seed", "4")[0]  # nor do seeds share theirs, an epoch apart


def test_frozen_checkpoints_hold_the_head_alone(notes_file, tmp_path, encoder_folder):
    run, split = run_for(notes_file, tmp_path, "--model", str(encoder_folder), "--head", "adapter")
    trained = train_network(run, split, 0, tmp_path / "fold")
    from safetensors.torch import load_file

    checkpoint = next((tmp_path / "fold").glob("checkpoint-*/model.safetensors"))
    assert {name.split(".")[0] for name in load_file(checkpoint)} == {"head", "classifier"}
    trained.save(tmp_path / "kept", [0.5])
    kept = {name.split(".")[0] for name in load_file(tmp_path / "kept" / "model.safetensors")}
    assert kept == {"encoder", "head", "classifier"}
    assert str(encoder_folder) not in (tmp_path / "kept" / "config.json").read_text()


def test_a_run_killed_after_early_stopping_trains_no_further(notes_file, tmp_path, monkeypatch):
    """Where a fourth epoch would have been the best one."""
    scores = iter([0.5, 0.4, 0.3, 0.9, 0.9])
    monkeypatch.setattr(trainer, "score_validation", lambda *_: {"f1_positive": next(scores)})
    options = "--num_train_epochs 5 --early_stopping_patience 2 --metric_for_best_model f1_positive".split()
    run, split = run_for(notes_file, tmp_path, *options)
    with monkeypatch.context() as patch:
        patch.setattr(NoteTrainer, "_load_best_model", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_network(run, split, 0, tmp_path / "fold")
    for _ in range(2):  # killed before the best weights were back, and before the result was written
        trained = train_network(run, split, 0, tmp_path / "fold")
        assert (trained.cost["epochs"], trained.cost["best_epoch"]) == (3, 1)
    assert next(scores) == 0.9


def test_a_memory_budget_changes_the_micro_batch_and_not_the_steps(notes_file, tmp_path, caplog):
    caplog.set_level("INFO")
    steps = {}
    for budget in ("100", "0.03"):
        run, split = run_for(notes_file, tmp_path, "--memory_gb", budget, "--save_total_limit", "9")
        trained = train_network(run, split, 0, tmp_path / budget)
        assert len(trained.predict(split.test)) == len(split.test)
        steps[budget] = {int(path.name.split("-")[1]) for path in (tmp_path / budget).glob("checkpoint-*")}
    assert steps["100"] == steps["0.03"] != set()
    assert "memory: 32 notes at a time, 1 times a step" in caplog.text
    smaller = int(caplog.text.split("memory: ")[2].split(" notes")[0])
    assert smaller < 32 and f"{32 // smaller} times a step" in caplog.text


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_what_the_memory_plan_says_is_done(notes_file, tmp_path, encoder_folder, monkeypatch, tuning, checkpointing):
    class Watch(TrainerCallback):
        seen = []

        def on_substep_end(self, args, state, control, model, **kwargs):
            self.seen.append(any(getattr(module, "gradient_checkpointing", False) for module in model.modules()))

    copies = []

    def plan(*given):
        *_, waiting, processes = given
        assert processes == 1
        copies.append(waiting)
        return MemoryPlan(2, 4, checkpointing, 0.1)

    monkeypatch.setattr(trainer, "plan_memory", plan)
    options = ["--model", str(encoder_folder), "--head", "linear", "--tuning", tuning, "--memory_gb", "1"]
    run, split = run_for(notes_file, tmp_path, *options)
    train_network(run, split, 0, tmp_path / "fold", epochs=1, callbacks=[Watch()])
    assert set(Watch.seen) == {checkpointing} and copies == [0]
    if tuning == "full":  # the start of the second member waits beside the first
        run.model_args.ensemble = 2
        train_network(run, split, 0, tmp_path / "ensemble", epochs=1)
        assert copies == [0, 1]


def test_few_notes_are_seen_more_often(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), num_train_epochs=6, per_device_train_batch_size=16)
    few = ModelArguments(model="transformer-pretrained", min_steps=400)
    assert epochs_to_train(few, arguments, 250) == 25  # of 16 steps
    assert epochs_to_train(few, arguments, 4000) == 6
    assert epochs_to_train(ModelArguments(model="transformer"), arguments, 250) == 6
    arguments.max_steps = 40
    assert epochs_to_train(few, arguments, 250) == 6  # validation is looked at after each


def test_the_start_of_the_meter_is_no_training_of_the_baseline(notes_file, tmp_path, monkeypatch):
    @contextmanager
    def slow_meter(country):
        time.sleep(1)
        yield Reading()

    monkeypatch.setattr(trainer, "measure_power", slow_meter)
    run, split = run_for(notes_file, tmp_path, "--model", "tfidf")
    started = time.perf_counter()
    trained = trainer.train_baseline(run, split)
    assert 0 < trained.cost["training_hours"] * 3600 <= time.perf_counter() - started - 1


def test_the_two_baselines_are_two_models(notes_file, tmp_path, monkeypatch):
    asked, select = [], TfidfClassifier.fit_and_select
    monkeypatch.setattr(TfidfClassifier, "fit_and_select", lambda *given: (asked.append(given[-2]), select(*given))[1])
    for model in ("tfidf", "tfidf-nb"):
        run, split = run_for(notes_file, tmp_path, "--model", model)
        assert trainer.train_baseline(run, split).model["naive_bayes_power"] in asked[-1]
    assert asked == [(0,), POWERS]
    plain, weighed = (trainer.train_baseline(run, split, Settings(1.0, None, power)) for power in (0, 2))
    assert np.abs(plain.predict(split.test) - weighed.predict(split.test)).max() > 1e-3


def test_kinds_of_model():
    assert ModelArguments(model="tfidf").kind == ModelArguments(model="tfidf-nb").kind == "baseline"
    assert ModelArguments(model="moe-transformer").kind == "scratch"
    assert ModelArguments(model="moe-transformer-pretrained").kind == "in-house"
    assert ModelArguments(model="drbert", tuning="lora").kind == "lora"
    assert DataArguments().max_length == 256  # the paper's limit


def test_an_ensemble_is_the_mean_of_its_members(notes_file, tmp_path, encoder_folder):
    """Members begin alike and see the notes in other orders; one that is done is not trained again."""
    asked = ["--model", str(encoder_folder), "--tuning", "full", "--head", "linear", "--learning_rate", "1e-3"]
    run, split = run_for(notes_file, tmp_path, *asked, "--ensemble", "2", "--early_stopping_patience", "0")
    folder = tmp_path / "fold"
    trained = train_network(run, split, 0, folder)
    assert trained.cost["epochs"] == 4  # two epochs each
    probabilities = trained.predict(split.test)
    other = Member.load(folder / "member-1")
    assert other.epochs == 2 and other.seconds > 0 and not (folder / "member-2").exists()
    assert not [*folder.glob("member-1/checkpoint-*")] and [*folder.glob("checkpoint-*")]
    alone, _ = run_for(notes_file, tmp_path, *asked, "--early_stopping_patience", "0")
    single = train_network(alone, split, 0, tmp_path / "single")
    assert not np.allclose(probabilities, single.predict(split.test))
    # the mean of the two weights, where one of them is put in by hand
    weights = folder / "member-1" / "member.safetensors"
    save_file({name: torch.zeros_like(weight) for name, weight in load_file(weights).items()}, weights)
    again = train_network(run, split, 0, folder)
    again.save(tmp_path / "kept", None)
    single.save(tmp_path / "kept-single", None)
    halved, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "kept-single"))
    torch.testing.assert_close(halved["classifier.weight"], whole["classifier.weight"] / 2)


def test_a_country_that_nobody_knows(notes_file):
    with pytest.raises(ArgumentError, match="--country_iso_code FR: not known; give three letters, as FRA"):
        parse_arguments(["--model", "tfidf", "--dataset", str(notes_file), "--country_iso_code", "FR"])


def test_a_training_that_diverged_is_one_line(notes_file, tmp_path):
    run, split = run_for(notes_file, tmp_path, "--model", "transformer")
    run.training_args.learning_rate, run.training_args.max_grad_norm = 1e30, 0.0
    with pytest.raises(ArgumentError, match="Training diverged: its logits are no numbers any more; give a lower"):
        train_network(run, split, 0, tmp_path / "fold")


def test_a_score_that_is_not_defined_on_validation_is_one_line(notes_file, tmp_path):
    run, split = run_for(notes_file, tmp_path, "--model", "transformer", "--metric_for_best_model", "auroc")
    negative = split.validation[run.notes.labels[split.validation] == 0]
    with pytest.raises(DataError, match="--metric_for_best_model auroc: not defined on a validation part with one cl"):
        train_network(run, Split(split.train, negative, split.test), 0, tmp_path / "fold")


def test_a_tokenizer_that_was_cut_off_is_made_again(notes_file, tmp_path):
    run, split = run_for(notes_file, tmp_path, "--model", "transformer")
    partial = tmp_path / "fold" / "tokenizer.partial"
    partial.mkdir(parents=True)
    (partial / "tokenizer_config.json").write_text("{", encoding="utf-8")
    train_network(run, split, 0, tmp_path / "fold")
    assert not partial.exists() and (tmp_path / "fold" / "tokenizer" / "tokenizer.json").is_file()


def test_only_models_that_begin_pretrained_have_an_ensemble(notes_file):
    with pytest.raises(ArgumentError, match="--ensemble 2 with transformer: give 1, or more with a model that begins"):
        parse_arguments(["--model", "transformer", "--dataset", str(notes_file), "--ensemble", "2"])
