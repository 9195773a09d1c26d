"""What watches a Trainer: the clock across an interruption, the lines, the early end."""

import logging
import re
import time
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from callbacks import EarlyStopping, EpochLine, EvaluateEvery, PretrainingLine, StopAfterEpoch, TrainingClock


def test_the_clock_goes_on_after_a_checkpoint():
    clock = TrainingClock()
    clock.on_train_begin(None, None, None)
    time.sleep(0.02)
    saved = clock.state()["args"]["seconds"]
    resumed = TrainingClock(**clock.state()["args"])
    assert resumed.seconds >= saved >= 0.02
    resumed.on_train_begin(None, None, None)
    time.sleep(0.02)
    resumed.on_train_end(None, None, None)
    total = resumed.seconds
    time.sleep(0.02)
    assert resumed.seconds == total >= saved + 0.02


@pytest.mark.parametrize(("epoch", "stops"), [(1.0, False), (2.0, True)])
def test_training_stops_after_the_epoch(epoch, stops):
    control = TrainerControl(should_save=True)
    StopAfterEpoch(2).on_epoch_end(None, TrainerState(epoch=epoch), control)
    assert control.should_training_stop == stops != control.should_save
    for within in (False, True):
        control = TrainerControl(should_save=True)
        StopAfterEpoch(2, within).on_step_end(None, TrainerState(epoch=epoch), control)
        assert control.should_training_stop == (stops and within) != control.should_save
    resumed = TrainerControl()  # from a checkpoint of that step
    StopAfterEpoch(2).on_train_begin(None, TrainerState(epoch=epoch), resumed)
    assert resumed.should_training_stop == stops


@pytest.mark.parametrize("length", [dict(num_train_epochs=4), dict(max_steps=40)])
def test_the_line_of_an_epoch_after_a_resume(tmp_path, caplog, length):
    """With --eval_on_start the first look comes before anything was trained, of which no time can be told."""
    caplog.set_level(logging.INFO)
    given = TrainingArguments(output_dir=str(tmp_path), metric_for_best_model="f1", **length)
    state = TrainerState(epoch=2.0, global_step=20, max_steps=40, num_train_epochs=4, is_world_process_zero=True)
    line = EpochLine()
    line.on_train_begin(given, state, None)
    line.on_evaluate(given, state, None, metrics={"eval_f1": 0.5})
    assert not caplog.text
    state.epoch, state.global_step, line.started = 3.0, 30, line.started - 600
    line.on_evaluate(given, state, None, metrics={"eval_f1": 0.5})
    assert re.search(r"epoch 3/4  loss -  validation f1 0.5000  60\d\.\d s an epoch, at most 10\.\d min", caplog.text)


@pytest.mark.parametrize(("worse", "stops"), [(1, False), (2, True)])
def test_what_was_stopped_early_stays_so(tmp_path, worse, stops):
    how = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="f1")
    stopping, control = EarlyStopping(2), TrainerControl()
    stopping.early_stopping_patience_counter = worse
    stopping.on_train_begin(TrainingArguments(output_dir=str(tmp_path), **how), TrainerState(), control)
    assert control.should_training_stop == stops


def test_a_checkpoint_looked_at_again_counts_once(tmp_path):
    """With --eval_on_start a resumed training looks at the checkpoint's weights, whose score is in the count."""
    how = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="f1")
    given, control = TrainingArguments(output_dir=str(tmp_path), **how), TrainerControl()
    stopping, state = EarlyStopping(3), TrainerState(global_step=9, best_metric=0.9)
    stopping.early_stopping_patience_counter = 1
    stopping.on_train_begin(given, state, control)
    counted = []
    for step, score in ((9, 0.8), (18, 0.8), (27, 0.95)):
        state.global_step = step
        stopping.on_evaluate(given, state, control, {"eval_f1": score})
        counted.append(stopping.early_stopping_patience_counter)
    assert counted == [1, 2, 0]


def test_pretraining_tells_step_losses_and_time_left(caplog):
    line, state = PretrainingLine(), TrainerState(max_steps=100, is_world_process_zero=True)
    line.on_evaluate(None, state, TrainerControl(), {"eval_loss": 9.0})  # before training: nothing to tell
    line.on_train_begin(None, state, TrainerControl())
    line.started -= 60  # 60 seconds for the first 25 steps leave three minutes
    state.global_step = 25
    with caplog.at_level(logging.INFO):
        line.on_evaluate(None, state, TrainerControl(), {"eval_loss": 5.0})  # no loss is logged yet
        line.on_log(None, state, TrainerControl(), {"loss": 4.5})
        line.on_evaluate(None, state, TrainerControl(), {"eval_loss": 4.25})
        line.on_evaluate(None, state, SimpleNamespace(should_training_stop=True), {"eval_loss": 4.25})
    assert [record.message.strip() for record in caplog.records] == [
        "step 25/100  loss -  held-out loss 5.000  at most 3.0 min left",
        "step 25/100  loss 4.500  held-out loss 4.250  at most 3.0 min left",
    ]


@pytest.mark.parametrize("epochs, evaluated", [(6, [3, 6]), (7, [3, 7]), (8, [3, 6, 8])])
def test_many_short_epochs_are_not_all_evaluated(epochs, evaluated):
    told = []
    for epoch in range(1, epochs + 1):
        control = TrainerControl(should_evaluate=True, should_save=True)
        state = TrainerState(epoch=float(epoch), global_step=10 * epoch, max_steps=10 * epochs)
        EvaluateEvery(3).on_epoch_end(None, state, control)
        assert control.should_save == control.should_evaluate
        if control.should_evaluate:
            told.append(epoch)
    assert told == evaluated  # the last, too, and not the sixth of seven
