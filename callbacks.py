"""What watches a Trainer: a clock that survives an interruption, a line of progress with an estimate, an early end.

And the Trainer that obeys it, where a resumed training has reached that end already.
"""

import logging
import time
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

logger = logging.getLogger("train")


class TrainingClock(TrainerCallback, ExportableState):
    """Counts the seconds of training; its count is saved with every checkpoint and goes on from there."""

    def __init__(self, seconds: float = 0.0):
        self.earlier = seconds
        self.started = None
        self.stopped = None

    @classmethod
    def of(cls, trainer: Trainer) -> "TrainingClock":
        """The trainer's clock, looked up: restoring a checkpoint replaces the callbacks."""
        return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, cls))

    @property
    def seconds(self) -> float:
        if self.started is None:
            return self.earlier
        return self.earlier + (self.stopped or time.perf_counter()) - self.started

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.stopped = time.perf_counter()

    def state(self) -> dict:
        return {"args": {"seconds": self.seconds}, "attributes": {}}


class StepClock(TrainerCallback):
    """Seconds of each step with its batch, without what comes between two: for a few steps to tell of many."""

    def __init__(self):
        self.seconds = []

    def begin(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    on_train_begin = on_evaluate = on_save = on_log = begin

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.mark)
        self.mark = time.perf_counter()


class ProgressLine(TrainerCallback):
    """Remembers the last training loss for the line that a subclass logs."""

    loss = None  # nothing is logged yet

    def loss_as_text(self, decimals: int) -> str:
        return "-" if self.loss is None else f"{self.loss:.{decimals}f}"

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.loss = float(logs["loss"])


class EpochLine(ProgressLine):
    """One line an epoch: loss, validation score, the best so far, and how long it may still take."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_epoch = time.perf_counter(), state.epoch or 0.0

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not state.is_world_process_zero or metrics is None or state.epoch <= self.first_epoch:
            return  # with --eval_on_start nothing has been trained yet
        name = args.metric_for_best_model.removeprefix("eval_")
        seconds = (time.perf_counter() - self.started) / (state.epoch - self.first_epoch)
        left = seconds * (state.max_steps - state.global_step) / max(state.global_step, 1) * state.epoch
        logger.info(
            "  epoch %g/%g  loss %s  validation %s %.4f  %.1f s an epoch, at most %.1f min left",
            round(state.epoch, 2),
            args.num_train_epochs if args.max_steps < 0 else state.num_train_epochs,
            self.loss_as_text(4),
            name,
            metrics[f"eval_{name}"],
            seconds,
            (seconds * (args.num_train_epochs - state.epoch) if args.max_steps < 0 else left) / 60,
        )


class EarlyStopping(EarlyStoppingCallback):
    """Also keeps a training from going on that had stopped, and was killed before it had its best weights back."""

    begun_at: int | None = None  # step

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.begun_at = state.global_step
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # with --eval_on_start a resumed training looks at its checkpoint, which has been looked at
        if not state.global_step or state.global_step != self.begun_at:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class ObedientTrainer(Trainer):
    """A Trainer that trains no step where there is none to train; the library's looks after one whether it is to stop.

    So it is for a resumed training that a callback had stopped, or that had all its `--max_steps`.
    """

    def _run_epoch(self, *args, **kwargs):
        if not self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def log_to(self, folder: Path):
        """Where TensorBoard's logs go, unless its own variable says so: else beside the checkpoints, which go."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(folder)


class StopAfterEpoch(TrainerCallback):
    """Stops at the end of epoch `last`, on the learning-rate schedule of the whole run: for the model kept for use.

    With `within`, where the folds chose among steps or all have as many, in the middle of an epoch too.
    """

    def __init__(self, last: float, within: bool = False):
        self.last, self.within = last, within

    def on_train_begin(self, args, state, control, **kwargs):
        if state.epoch and state.epoch >= self.last - 1e-6:  # a checkpoint of a last step, by --save_steps
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.within:
            self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.epoch >= self.last - 1e-6:
            control.should_training_stop = True
            control.should_save = False  # resumed from there it would train for one more epoch before it could stop


class EvaluateEvery(TrainerCallback):
    """Evaluates and saves after every so many epochs only, where epochs are short and many, and after the last.

    That takes the place of the one before if less than half as many epochs lie between.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        left = state.epoch * (state.max_steps / state.global_step - 1)
        if left > 0 and (round(state.epoch) % self.epochs or left < self.epochs / 2):
            control.should_evaluate = control.should_save = False


class PretrainingLine(ProgressLine):
    """One line an evaluation: steps, loss, held-out loss, and how long it may still take."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        done = state.global_step - getattr(self, "first_step", state.global_step)
        if done > 0 and state.is_world_process_zero and not control.should_training_stop:
            left = (time.perf_counter() - self.started) / done * (state.max_steps - state.global_step)
            logger.info(
                "  step %d/%d  loss %s  held-out loss %.3f  at most %.1f min left",
                state.global_step, state.max_steps, self.loss_as_text(3), metrics["eval_loss"], left / 60,
            )  # fmt: skip
