"""A trained model on new notes.

    python predict.py runs/drbert-grn-frozen/model --dataset new_notes.csv --output predictions.csv

Takes any model folder that train.py left, or a Hub id of one that it pushed, and writes one row a note: `id`;
`predicted` (of two classes by the tuned threshold, of several the most probable, of labels all past theirs, joined
by `|`); and `probability_CLASS` for each class. Never the text, and never over a file that is there. Many notes are
predicted a part at a time: a command that was killed goes on, when it is given again, where it was.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

# These two register their models with the Auto classes: no remote code is run to load our own.
import heads  # noqa: F401
import scratch_model  # noqa: F401
from backbones import Backbone, encoder_fingerprint, is_of_tokenizers, knows_words
from baseline import TfidfClassifier
from batches import WindowCollator, tokenize_notes
from data import READERS, DataArguments, DataError, read_unlabeled
from machine import keep_to_available_cores, memory_ran_out
from metrics import decide, probabilities_from_logits
from results import MODEL_FACTS, RESULT_FILE, SCHEMA_VERSION

logger = logging.getLogger("predict")

DAMAGE = (OSError, ValueError, TypeError, KeyError, SafetensorError, BadZipFile)  # what reading a model ends in
PART_NOTES = 500  # predicted at a time: batches of like length are found among so many
SECONDS_A_LINE = 30


class ModelError(ValueError):
    """Not a model of ours, or not for what was asked; the message is one line for the user."""


def read_facts(model: str, revision: str | None = None) -> tuple[dict, str | None]:
    """Task, classes, threshold and input length, as train.py stored them beside the model; and of a model on the Hub
    the commit that they are of, since the branch may have another tomorrow."""
    folder = Path(model)
    if revision is not None and folder.is_dir():
        raise ModelError(f"--model_revision {revision}: {model} is a folder, which has none; leave it out.")
    if not (folder / MODEL_FACTS).is_file():
        # of an id of the Hub not the working folder, in which it is no path
        around = [folder, *(parent for parent in folder.parents[:2] if folder.is_dir() or parent != Path("."))]
        for run in around:
            if (run / "model" / MODEL_FACTS).is_file():
                raise ModelError(f"{model}: a run; its model is {run / 'model'}.")
        for run in around:  # as a grid's, which keeps no model
            if any(
                path.is_file() for path in (*run.glob(f"fold-*/{RESULT_FILE}"), *run.glob(f"seed-*/*/{RESULT_FILE}"))
            ):
                raise ModelError(
                    f"{model}: a run that kept no model; give its train.py command again with --keep_model True, "
                    "which trains no finished fold again."
                )
    try:
        path = folder / MODEL_FACTS if folder.is_dir() else hf_hub_download(model, MODEL_FACTS, revision=revision)
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"{model}: no {MODEL_FACTS} there ({type(error).__name__}); give the model folder of a run of train.py, "
            "or a Hub id that it pushed to."
        ) from error
    if facts.get("schema_version") != SCHEMA_VERSION:  # the same weights might mean something else by now
        raise ModelError(
            f"{model}: of schema version {facts.get('schema_version')}, and this code reads {SCHEMA_VERSION}; use the "
            "code that it was trained with, or train it again."
        )
    return facts, None if folder.is_dir() else Path(path).parent.name  # snapshots/COMMIT/FILE of the Hub's cache


def check_threshold(threshold: float, task: str) -> float:
    if task != "binary":
        raise ModelError(f"--threshold {threshold:g}: for two classes, and this model is {task}; leave it out.")
    if not 0 <= threshold <= 1:
        raise ModelError(f"--threshold {threshold:g}: give a probability, from 0 to 1.")
    return threshold


def load_model(model: str, revision: str | None, facts: dict, batch_size: int) -> tuple[Callable, str]:
    """What makes of texts their probabilities (notes, classes), and whether each was over `max_length` tokens; and
    what tells this model from any other."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        if facts["kind"] == "baseline":
            classifier = TfidfClassifier.load(Path(model), facts["task"], facts["class_names"])
            network = None
        else:
            network = AutoModelForSequenceClassification.from_pretrained(model, revision=revision).to(device)
            tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            if tokenizer.pad_token_id is None or not knows_words(tokenizer):
                raise ValueError("half a tokenizer")
        fingerprint = encoder_fingerprint(Backbone(model, revision))
    except Exception as error:
        if not isinstance(error, DAMAGE) and not is_of_tokenizers(error):
            raise
        raise ModelError(
            f"{model}: files of it are missing or damaged ({type(error).__name__}); copy the whole folder again, or "
            "see to the network if it is on the Hub."
        ) from error
    arguments = replace(
        DataArguments(), **{name: facts[name] for name in ("max_length", "long_notes", "window_stride")}
    )

    def predict(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if network is None:
            return classifier.predict_probabilities(texts), np.zeros(len(texts), dtype=bool)
        logits, too_long = classify(network, tokenizer, texts, arguments, batch_size)
        return probabilities_from_logits(logits, facts["task"]), too_long

    return predict, fingerprint


def predict_in_parts(predict: Callable, texts: list[str], folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `predict` says of all the texts, `size` at a time; parts that are in `folder` by now are not predicted
    again, and the others are left there.

    Raises:
        DataError: they cannot be written.
    """
    # The longest first: if any are too large it is those, and what is left takes no longer than what was done. Texts
    # of like length stand together, so that there is little padding in a part.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts, begun, told, predicted = [], time.perf_counter(), time.perf_counter(), 0
    for start in range(0, len(texts), size):
        rows, path = order[start : start + size], folder / f"{start}-{size}.npz"
        with suppress(*DAMAGE, EOFError):  # not there yet, or of a machine that lost its power
            with np.load(path) as kept:
                parts.append((kept["probabilities"], kept["too_long"]))
            continue
        parts.append(predict([texts[row] for row in rows]))
        partial = path.with_suffix(".partial.npz")
        try:
            np.savez(partial, probabilities=parts[-1][0], too_long=parts[-1][1])
            os.replace(partial, path)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}); make room, and go on.") from error
        predicted, now = predicted + len(rows), time.perf_counter()
        if now - told >= SECONDS_A_LINE:
            told, left = now, (now - begun) / predicted * (len(texts) - start - len(rows))
            logger.info("  %d of %d notes, at most %.1f min left", start + len(rows), len(texts), left / 60)
    return tuple(np.concatenate(each)[np.argsort(order)] for each in zip(*parts, strict=True))


@contextmanager
def parts_folder(output: Path, key: str) -> Iterator[Path]:
    """The folder beside `output` where the parts of these predictions are kept, for its owner alone, until all of them
    are there and written; if the work ends sooner, it says where they are.

    Raises:
        DataError: it cannot be made, or another process is at work in it.
    """
    folder = output.with_name(f"{output.name}.{key}.parts")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"--output {output}: another command is predicting the same; wait for it.") from None
    except OSError as error:
        raise DataError(f"--output {output}: cannot be written ({error.strerror}); choose another place.") from error
    try:
        yield folder
    except BaseException:
        if any(folder.glob("*[0-9].npz")):  # parts that are whole
            print(f"what is predicted is kept in {folder}, for the same command to go on from", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


@torch.inference_mode()
def classify(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    arguments: DataArguments,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (notes, classes), in the order of `texts`, and for each note whether it is over `max_length` tokens."""
    network.eval()
    encoded, too_long = tokenize_notes(texts, None, tokenizer, arguments)
    # Batches of similar length waste little on padding; the longest come first: if any is too large it is those.
    by_length = np.argsort(encoded["length"], kind="stable")[::-1]
    loader = DataLoader(encoded.select(by_length), batch_size, collate_fn=WindowCollator(tokenizer))
    batches = ({name: tensor.to(network.device) for name, tensor in batch.items()} for batch in loader)
    logits = torch.cat([network(**batch).logits.float().cpu() for batch in batches])
    return logits.numpy()[np.argsort(by_length)], too_long


def label_notes(probabilities: np.ndarray, facts: dict) -> list[str]:
    """The predicted class of each note; of a multi-label model all its classes, joined by '|'."""
    predicted, names = decide(probabilities, facts["task"], facts["thresholds"]), facts["class_names"]
    if facts["task"] == "multi-label":
        return ["|".join(name for name, yes in zip(names, row, strict=True) if yes) for row in predicted]
    return [names[index] for index in predicted]


def write_csv(table: pd.DataFrame, output: Path):
    """All of it or nothing.

    Raises:
        DataError: it cannot be written, as on a full disk.
    """
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")  # another command may write there too
    try:
        table.to_csv(partial, index=False)
        if output.exists():
            partial.unlink()
            raise DataError(f"--output {output}: exists by now; choose another file.")
        os.replace(partial, output)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError(f"--output {output}: cannot be written ({error.strerror}); make room, and go on.") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder of a run, or Hub id")
    parser.add_argument("--model_revision", "--model-revision", help="commit, branch or tag of a model on the Hub")
    parser.add_argument("--dataset", required=True, help="notes, as for train.py; labels are not needed")
    parser.add_argument("--text_column", "--text-column", default="text", help="column with the note")
    parser.add_argument("--id_column", "--id-column", help="column with a unique note id (default: id or note_id)")
    parser.add_argument("--output", default="predictions.csv", help="CSV file to write, a new one (predictions.csv)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="for two classes, the probability from which a note is called positive, as one of the report that keeps "
        "a recall (default: the one tuned on validation)",
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, default=32, help="notes at a time")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else each request of the Hub's client is a line
    transformers_logging.disable_progress_bar()
    keep_to_available_cores()
    try:
        if arguments.batch_size < 1:
            raise DataError(f"--batch_size {arguments.batch_size}: give 1 or more.")
        output = Path(arguments.output)
        if output.suffix.lower() in READERS and output.suffix.lower() != ".csv":
            raise DataError(f"--output {output}: what is written is CSV; name it {output.stem}.csv.")
        if output.is_dir():
            raise DataError(f"--output {output}: a folder; give the name of the file too.")
        if output.exists():
            raise DataError(f"--output {output}: exists already; choose another file.")
        folder = output.absolute().parent
        if not folder.is_dir():
            raise DataError(f"--output {output}: no such folder.")
        if not os.access(folder, os.W_OK):  # known before the work is done
            raise DataError(f"--output {output}: the folder cannot be written; choose another.")
        facts, commit = read_facts(arguments.model, arguments.model_revision)
        if arguments.threshold is not None:
            facts["thresholds"] = [check_threshold(arguments.threshold, facts["task"])]
        asked = DataArguments(
            dataset=arguments.dataset,
            text_column=arguments.text_column,
            id_column=arguments.id_column,
            split_column="none",
        )
        notes = read_unlabeled(asked)
        try:
            predict, of_model = load_model(arguments.model, commit, facts, arguments.batch_size)
            key = hashlib.sha256(json.dumps([of_model, notes.fingerprint()]).encode()).hexdigest()[:16]
            with parts_folder(output, key) as folder:
                size = max(PART_NOTES, arguments.batch_size)
                probabilities, too_long = predict_in_parts(predict, notes.texts, folder, size)
                columns = {"id": notes.ids, "predicted": label_notes(probabilities, facts)}
                for name, column in zip(facts["class_names"], probabilities.T, strict=True):
                    columns[f"probability_{name}"] = column
                write_csv(pd.DataFrame(columns), output)
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            raise DataError(f"--batch_size {arguments.batch_size}: out of memory; give a smaller one.") from None
    except (DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {output} was not written", file=sys.stderr)
        return 130
    except Exception as error:  # its message may quote a note: only the frames and the type are shown, as in train.py
        print("".join(traceback.format_tb(error.__traceback__)), file=sys.stderr)
        print(f"error: {type(error).__name__} (message withheld: it may quote a note)", file=sys.stderr)
        return 1
    of_long = f", {too_long.sum()} of them over {facts['max_length']} tokens" if too_long.any() else ""
    logger.info("%d notes%s: %s", len(notes), of_long, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
