"""Notes: read and check.

First stage of the pipeline; knows no model. A corpus is a table with a text column and a label column, from a CSV,
TSV, JSONL or Parquet file, a folder of split files (`train.csv`, `validation.csv`, `test.csv`), a Hub data set, or
the built-in `synthetic` corpus. Local files are read straight into memory: nothing is copied into a cache.

No message holds note text: they carry row numbers (counted from 1, header excluded), ids and counts.
"""

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, load_dataset
from datasets.features import List
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.utils import logging as datasets_logging
from sklearn.preprocessing import MultiLabelBinarizer

import synthetic

logger = logging.getLogger(__name__)

SPLIT_ALIASES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLIT_ALIASES |= {"val": "validation", "dev": "validation", "test": "test"}
# Pairs of labels whose second member is the positive class.
POSITIVE_PAIRS = [("0", "1"), ("false", "true"), ("no", "yes"), ("non", "oui"), ("negative", "positive")]
POSITIVE_PAIRS += [("neg", "pos"), ("négatif", "positif"), ("absent", "present"), ("absent", "présent")]
FEW_LABELS = 5  # of more, if most are on a single note, nothing could be learned: it will be text (ours)
ROW_ID = "row-{}"
ID_COLUMNS = ["id", "note_id"]  # unless --id_column names another
ROWS_NAMED = 5  # how many rows an error message names before it only counts
MOST_SUBGROUPS = 50  # values of a column that scores are broken down by
COLUMN_NAME = re.compile(r"[^\W\d][\w.-]{0,39}")
NAME_LENGTH = 80  # a label or a header of more characters is taken for the text of a note, which no message may show


class DataError(ValueError):
    """The notes cannot be used as asked; the message is one line for the user and carries no note text."""


class NoNotesError(DataError):
    """There is no such file or folder: whatever was asked, it was nothing that a run could be of."""


@dataclass
class DataArguments:
    """Which notes, and how they are split."""

    dataset: str = field(
        default="synthetic",
        metadata={
            "help": "Notes to train on: a CSV, TSV, JSONL or Parquet file, a folder of split files, a Hub data set "
            "id, or 'synthetic' (built in; 'synthetic:1200' for fewer notes, 'synthetic:1200:7' for another seed)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit or tag of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column with the note."})
    label_column: str = field(default="label", metadata={"help": "Column with the label, or a list of labels."})
    label_separator: str | None = field(
        default=None, metadata={"help": "Multi-label notes written as one string: what separates the labels."}
    )
    positive_label: str | None = field(
        default=None,
        metadata={
            "help": "Binary task: the positive class. Default: of 0 and 1, no and yes, non and oui and the like the "
            "latter, else the rarer label."
        },
    )
    id_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with a unique note id; 'none': row numbers. Default: 'id' or 'note_id', else row numbers."
        },
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Column with the patient or document: never on both sides of a split."}
    )
    subgroup_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns, such as ward or year, by whose values the report breaks the scores down."},
    )
    split_column: str = field(
        default="split",
        metadata={"help": "Column with train, validation, test, used if there is one; 'none' draws splits anyway."},
    )
    folds: int = field(
        default=5,
        metadata={
            "help": "Cross-validation folds (five are ours), 1 for a single split; splits given by the data go first."
        },
    )
    repeats: int = field(
        default=1,
        metadata={
            "help": "Draw the folds so many times, each time others; where the data gives the splits, so many "
            "training parts of --train_size."
        },
    )
    validation_fraction: float = field(
        default=0.15, metadata={"help": "Fraction of the notes outside the test part that is kept for validation."}
    )
    train_size: int | None = field(
        default=None,
        metadata={
            "help": "Train on about so many notes of each training part, for a learning curve: whole groups, classes "
            "in proportion as far as groups allow, smaller sizes within larger ones. Default: all of them."
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits, apart from the seed of training."})
    allow_leaks: bool = field(
        default=False, metadata={"help": "Accept given splits whose test part repeats texts of the training part."}
    )
    max_length: int = field(default=256, metadata={"help": "Longest input in tokens (the paper's limit: 256)."})
    long_notes: str = field(
        default="truncate",
        metadata={
            "help": "Notes over max_length: 'truncate' them, or cut them into 'windows' whose logits are averaged "
            "(a small Transformer trains on one of them at a time).",
            "choices": ["truncate", "windows"],
        },
    )
    window_stride: int | None = field(
        default=None,
        metadata={"help": "Tokens that neighbouring windows share. Default: a quarter of --max_length (ours)."},
    )

    def __post_init__(self):
        if self.folds < 1:
            raise DataError(f"--folds {self.folds}: give 1 for a single split, or 2 and more for cross-validation.")
        if self.repeats < 1:
            raise DataError(f"--repeats {self.repeats}: give 1 or more.")
        if not 0 < self.validation_fraction < 0.5:
            raise DataError(f"--validation_fraction {self.validation_fraction}: give a fraction between 0 and 0.5.")
        if not 0 <= self.split_seed < 2**31:
            raise DataError(f"--split_seed {self.split_seed}: give 0 or more, below 2^31.")
        if self.train_size is not None and self.train_size < 2:
            raise DataError(f"--train_size {self.train_size}: give at least 2 notes, or leave it out for all.")
        if self.label_separator == "":
            raise DataError("--label_separator: give at least one character.")
        if self.id_column == self.text_column:
            raise DataError(f"--id_column {self.id_column}: that is the text; give another, or none for row numbers.")
        for flag, columns in (("group_column", [self.group_column]), ("subgroup_columns", self.subgroup_columns)):
            if self.text_column in columns:  # the report shows values of subgroups
                raise DataError(f"--{flag} {self.text_column}: that is the text; give another, or leave it out.")
        if self.label_column in (self.id_column, self.group_column):
            raise DataError(f"--label_column {self.label_column}: that names notes or patients; give the labels.")
        if self.id_column in self.subgroup_columns:
            raise DataError(f"--subgroup_columns {self.id_column}: that names notes; give another, or leave it out.")
        if self.max_length < 8:
            raise DataError(f"--max_length {self.max_length}: give at least 8 tokens.")
        self.check_windows()

    @property
    def stride(self) -> int:
        """Tokens that neighbouring windows share; 0 where notes are truncated."""
        if self.long_notes != "windows":
            return 0
        return self.max_length // 4 if self.window_stride is None else self.window_stride

    def check_windows(self):
        """Also for whoever changes `max_length`.

        Raises:
            DataError: windows that share half of their tokens or more.
        """
        if not 0 <= self.stride < self.max_length // 2:
            raise DataError(
                f"--window_stride {self.window_stride}: give less than half of --max_length, {self.max_length}."
            )


@dataclass(eq=False)  # one corpus is not another's equal: so what is derived from it can be kept
class Notes:
    """A checked corpus. `labels` is (notes,) with class indices, or (notes, classes) with 0 and 1 if multi-label."""

    name: str
    task: str  # "binary", "multi-class" or "multi-label"
    class_names: list[str]  # binary: negative, positive
    ids: np.ndarray
    texts: list[str]
    labels: np.ndarray
    groups: np.ndarray | None
    given_splits: np.ndarray | None  # "train", "validation" or "test" for each note
    subgroups: dict[str, np.ndarray] = field(default_factory=dict)  # column -> a value for each note

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids_are_rows(self) -> bool:
        """Whether the ids are row numbers, for want of a column: those of another table mean nothing here."""
        return self.ids[0] == ROW_ID.format(1)

    def fingerprint(self) -> str:
        """SHA-256 over everything that a result can depend on: ids, texts, labels, groups, given splits."""
        digest = hashlib.sha256(json.dumps([self.task, self.class_names]).encode())
        for column in (self.ids, self.texts, self.labels.tolist(), self.groups, self.given_splits):
            digest.update(json.dumps([] if column is None else list(map(str, column))).encode())
        return digest.hexdigest()[:16]

    def select(self, rows: np.ndarray) -> "Notes":
        """These notes alone, in this order."""
        texts = [self.texts[row] for row in rows]
        groups, given = (None if column is None else column[rows] for column in (self.groups, self.given_splits))
        subgroups = {name: column[rows] for name, column in self.subgroups.items()}
        return Notes(
            self.name, self.task, self.class_names, self.ids[rows], texts, self.labels[rows], groups, given, subgroups
        )

    def count_labels(self, indices: np.ndarray) -> dict[str, int]:
        """Notes per class among `indices`; a multi-label note counts once for each of its labels."""
        if self.task == "multi-label":
            counts = self.labels[indices].sum(axis=0)
        else:
            counts = np.bincount(self.labels[indices], minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}


# ---- reading -------------------------------------------------------------------------------------------------------


def name_rows(rows: np.ndarray) -> str:
    """Rows as a user counts them, from 1: '3 rows (4, 8, 15)'."""
    named = ", ".join(str(int(row) + 1) for row in rows[:ROWS_NAMED])
    return f"{len(rows)} row{'s' if len(rows) > 1 else ''} ({named}{', ...' if len(rows) > ROWS_NAMED else ''})"


def local_path(source: str) -> Path:
    """What a user gave as a file or a folder, whether there is one or not; `~` is the home folder.

    Raises:
        DataError: nobody may look at it, or a name is too long for one.
    """
    path = Path(os.path.expanduser(source))  # that of Path fails where no user has the name
    try:
        if path.is_dir():
            os.listdir(os.path.join(path, "."))  # which also asks whether the folder may be entered
    except OSError as error:
        raise DataError(f"{source}: cannot be opened ({error.strerror}).") from None
    return path


def _check_records(path: Path, separator: str) -> list[int]:
    """What pandas takes without a word: of a quotation mark that is not doubled it makes one note of several.

    And it completes a record with fewer fields than the header. Some spreadsheets leave out empty cells at the end,
    but a note that an unquoted end of line cut in two looks alike: so it is told.

    Returns:
        In which line of the file each record begins: notes may have several.

    Raises:
        csv.Error: with the number of the line in which the record begins, of a quotation mark too many or too few.
    """
    csv.field_size_limit(2**31 - 1)  # of long notes
    widths, lines = [], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        records = csv.reader(file, delimiter=separator, strict=True)
        while True:
            begins = records.line_num + 1
            try:
                record = next(records, None)
            except csv.Error:
                raise csv.Error(f"{begins} (fields parted by {separator!r})") from None
            if record is None:
                break
            lines.append(begins)
            if not widths:  # names of columns; without the last ones where they are empty
                record = record[: max((place for place, name in enumerate(record, 1) if name), default=0)]
                _check_header(path, record)
            if len(record) > 1 or any(map(str.strip, record)):  # else a blank line, which pandas passes over
                widths.append(len(record))
    short = np.flatnonzero(np.array(widths[1:]) < widths[0]) if widths else []
    if len(short):
        logger.warning("%s: fewer fields than the header in %s; read as empty", path.name, name_rows(short))
    return lines


def _check_header(path: Path, names: list[str]):
    places = {}
    for place, name in enumerate(map(str.strip, names), 1):
        if name and places.setdefault(name, place) != place:
            # by their places: where a header is missing, the first note stands in its place
            raise DataError(f"{path}: columns {places[name]} and {place} have the same name; give each its own.")


def _read_delimited(path: Path, separator: str = "\t") -> pd.DataFrame:
    lines = _check_records(path, separator)
    options = dict(sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    # of a table of one column a blank line is an empty note, but at the end of the file
    has_more = len(pd.read_csv(path, nrows=0, **options).columns) > 1
    try:
        frame = pd.read_csv(path, skip_blank_lines=has_more, **options)
    except pd.errors.ParserError as error:
        record = re.search(r"line (\d+)", str(error))  # what pandas calls a line is a record
        raise ValueError(f"line {lines[min(int(record[1]), len(lines)) - 1]}" if record else "") from None
    if not has_more:
        filled = np.flatnonzero(~frame.isin(["", np.nan]).all(axis=1))
        frame = frame.iloc[: filled[-1] + 1 if len(filled) else 0]
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first column for names of the rows
        raise ValueError("more fields than the header in line 2")
    return frame.rename(columns=str.strip)


def _find_separator(path: Path) -> str:
    """The one by which the header has names, and the first records as many fields; of equals the comma.

    Spreadsheets in French and German locales write ';' where others write ','. Some leave out empty cells at the end:
    records with fewer fields count by half (ours).
    """
    csv.field_size_limit(2**31 - 1)

    def fit(separator: str) -> tuple[float, int]:
        with open(path, encoding="utf-8-sig", newline="") as file:
            records = [*filter(None, islice(csv.reader(file, delimiter=separator), 100))]
        if not records or len(header := records[0]) == 1:
            return 0.0, 0
        names = np.mean([COLUMN_NAME.fullmatch(name.strip()) is not None for name in header])
        # a separator that cuts through a quoted field leaves half of its marks on either side
        whole = [record for record in records[1:] if not any(field.count('"') % 2 for field in record)]
        widths = np.array([len(record) for record in whole])
        fitting = (widths == len(header)).sum() + ((widths > 1) & (widths < len(header))).sum() / 2
        return names + fitting / max(len(records) - 1, 1), len(header)

    return max(",;\t|", key=fit)


def _read_csv(path: Path) -> pd.DataFrame:
    return _read_delimited(path, _find_separator(path))


def _read_jsonl(path: Path) -> pd.DataFrame:
    as_it_is = dict(dtype=False, convert_dates=False, convert_axes=False)
    return pd.read_json(path, lines=True, encoding="utf-8-sig", **as_it_is)


def _read_parquet(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    # a table that pandas wrote may have its ids there; of what names no row, nothing was meant
    if frame.index.nlevels > 1 or not frame.index.is_unique or frame.index.name in (None, *frame.columns):
        return frame
    return frame.reset_index()


# A table as it is, by the suffix of its file; strings stay strings, so that a label 'NA' or '01' survives.
# A ValueError says that the file is damaged; of its message only the number of a line is shown.
READERS = {".csv": _read_csv, ".tsv": _read_delimited, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _read_file(path: Path) -> pd.DataFrame:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(READERS)}.")
    try:
        if path.stat().st_size:
            return read(path)
        problem = "is empty"
    except DataError:
        raise
    except UnicodeDecodeError:
        problem = f"is not UTF-8 text (byte {_first_byte_of_none(path)}); save it as UTF-8"
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or type(error).__name__})"
    except csv.Error as error:
        problem = f"has a quotation mark too many or too few in the row that begins in line {error}; double the marks "
        problem += 'within a note ("") and put one at either end of it'
    except (ValueError, TypeError) as error:  # the latter of a line of JSON that is no object
        # A parser's message may quote the line it failed on: keep its numbers, not its words.
        line = re.search(r"line (\d+)|Row #(\d+)", str(error))
        kind = path.suffix.lower().removeprefix(".")
        problem = f"is not a readable {kind} file" + (f" (line {line[1] or line[2]})" if line else "")
    raise DataError(f"{path} {problem}.")


def _first_byte_of_none(path: Path) -> int:
    """Where the file stops being UTF-8: readers that take it piece by piece count from the piece's beginning."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        return error.start


def _read_table(arguments: DataArguments, needed: list[str]) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Every row of the corpus in one frame, and class names by column where the source declares them.

    Splits that come as separate files or Hub splits are put into a column named `arguments.split_column`, unless that
    is 'none'. Of the `needed` columns each is to be in all of them, or in none.
    """
    source = arguments.dataset
    if not source.strip():
        raise NoNotesError("--dataset is empty; give a file, a folder or the id of a data set on the Hub.")
    path = local_path(source)
    of_hub = arguments.dataset_config or arguments.dataset_revision
    if of_hub and (source.split(":")[0] == "synthetic" or path.exists()):
        raise DataError(f"--dataset_config and --dataset_revision are for data sets of the Hub; {source} is none.")
    if source.split(":")[0] == "synthetic":
        if not re.fullmatch(r"synthetic(:-?\d+){0,2}", source):
            raise DataError(f"--dataset {source}: write synthetic, synthetic:NOTES or synthetic:NOTES:SEED.")
        try:
            return synthetic.generate_notes(*map(int, source.split(":")[1:])), {}
        except ValueError as error:
            raise DataError(f"--dataset {source}: {error}") from None
    if path.is_file():
        return _read_file(path), {}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
        splits = {file: SPLIT_ALIASES.get(file.stem.lower()) for file in files}
        if len(files) == 1:
            return _read_file(files[0]), {}
        if not files or not all(splits.values()) or len(set(splits.values())) < len(files):
            found = [file.name for file in files if splits[file]]
            if len(found) < len(files):  # whose names may be patients'
                found.append(f"{len(files) - len(found)} of other names")
            found = ", ".join(found) or "none"
            if not files and next(path.rglob("*.txt"), None):
                found = "text files: put them in one table, a row a note, with the columns text and label"
            raise DataError(
                f"{path}: expected one data file, or one file a split named train, validation, test "
                f"({', '.join(READERS)}); found: {found}."
            )
        frames = {split: _read_file(file) for file, split in splits.items()}
        _name_places({file.name: frame for file, frame in zip(files, frames.values(), strict=True)})
    else:
        if path.suffix.lower() in READERS or source.startswith((".", "/", "~")):
            raise NoNotesError(f"--dataset {source}: no such file or folder.")
        if source in _PACKAGED_DATASETS_MODULES:  # by which `datasets` would read, and copy, what lies around
            raise NoNotesError(f"--dataset {source}: no such file or folder, and a format's name; give a path.")
        told = datasets_logging.get_verbosity()
        datasets_logging.set_verbosity(logging.CRITICAL)  # its readers log the very cell that they choke on
        try:
            loaded = load_dataset(source, arguments.dataset_config, revision=arguments.dataset_revision)
        except Exception as error:  # every way in which a remote data set can fail: offline, unknown, gated, a script
            raise DataError(
                f"--dataset {source}: neither a file or folder here nor a data set that the Hub gave "
                f"({type(error).__name__}). Give a path, check the id and the network, or use 'synthetic'."
            ) from None
        finally:
            datasets_logging.set_verbosity(told)
        frames = {}
        for split, part in loaded.items():
            name = split if arguments.split_column == "none" else SPLIT_ALIASES.get(split)
            if name is None:
                raise DataError(
                    f"--dataset {source}: split {split!r} is none of {', '.join(SPLIT_ALIASES)}; with --split_column "
                    "none all its splits are one corpus."
                )
            if name in frames:
                raise DataError(f"--dataset {source}: split {split!r} is there twice, under two names.")
            frames[name] = part.to_pandas()
        features = next(iter(loaded.values())).features
        names = {}
        for column, feature in features.items():
            feature = feature.feature if isinstance(feature, List) else feature
            if isinstance(feature, ClassLabel):
                names[column] = feature.names
        if set(frames) == {"train"}:  # the Hub's way of saying: no splits
            return frames["train"], names
        _name_places(frames)
        return _join_splits(frames, arguments, needed), names
    return _join_splits(frames, arguments, needed), {}


def _name_places(frames: dict[str, pd.DataFrame]):
    """Which rows of all come from where, since messages count over all."""
    ends = np.cumsum([len(frame) for frame in frames.values()])
    begins = ends - [len(frame) for frame in frames.values()] + 1
    places = (f"{name} {first} to {last}" for name, first, last in zip(frames, begins, ends, strict=True))
    logger.info("rows, as messages count them: %s", ", ".join(places))


def _join_splits(frames: dict[str, pd.DataFrame], arguments: DataArguments, needed: list[str]) -> pd.DataFrame:
    found = {column for frame in frames.values() for column in frame.columns}
    ids = ID_COLUMNS if arguments.id_column is None else [arguments.id_column]
    ids = [name for name in ids if name in found][:1]
    for column in [*needed, *ids, *arguments.subgroup_columns]:
        lacking = [split for split, frame in frames.items() if column not in frame.columns]
        if column in arguments.subgroup_columns:  # by which the scores on the test part alone are broken down
            lacking = [split for split in lacking if split == "test"]
        if lacking and column in found:  # else what needs it says so
            remedy = "; add it, or give --id_column none" if column in ids else ""
            raise DataError(f"--dataset {arguments.dataset}: no column {column} in the {lacking[0]} part{remedy}.")
    if (split_column := arguments.split_column) != "none":
        frames = {split: frame.assign(**{split_column: split}) for split, frame in frames.items()}
    return pd.concat(frames.values(), ignore_index=True)


def _require_column(frame: pd.DataFrame, column: str, flag: str):
    if column not in frame.columns:
        # Of a file without a header line these are a note, a patient's number or name: none is shown unless all look
        # like names of columns.
        names = [*map(str, frame)]
        found = f"found: {', '.join(names)}."
        if not all(COLUMN_NAME.fullmatch(name) for name in names):
            found = f"found {len(names)} that are not all named as columns are: is the header line missing?"
        raise DataError(f"--{flag} {column}: no such column; {found}")


def _is_list(value) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_list_as_text(label: str, separator: str | None) -> bool:
    """As ['a', 'b'], and not [J45], which may be a label of several."""
    if separator is None:
        return re.fullmatch(r"\s*\[.*\]\s*", label, re.DOTALL) is not None
    inside = re.fullmatch(r"\s*\[([^\[\]]*)\]\s*", label)
    return inside is not None and any(mark in inside[1] for mark in ("'", '"', separator))


def _is_missing(value) -> bool:
    """None, NaN or an empty string; an empty list is a multi-label note without labels, which is an answer."""
    return not _is_list(value) and (pd.isna(value) or str(value).strip() == "")


def _complete_column(frame: pd.DataFrame, column: str, flag: str) -> np.ndarray:
    """The values, as strings, of a column that every row must fill."""
    _require_column(frame, column, flag)
    missing = np.flatnonzero([_is_missing(value) for value in frame[column]])
    if len(missing):
        raise DataError(f"Column {column} is empty in {name_rows(missing)}: complete it, or give another --{flag}.")
    return np.array(_as_texts(frame[column]), dtype=object)


def _as_texts(values: Iterable) -> list[str]:
    """Labels, ids, groups or subgroups as text: 1, 1.0 and ' 1' are the same, whatever table they come from.

    So is '1.0', where all of the column are whole numbers; among others it may be a code, as 250.0 and 250.00 are.
    """
    values = [*values]
    texts = [str(value).strip() for value in values]
    all_whole = all(re.fullmatch(r"-?\d+(\.0)?", text) for text in texts)
    return [
        text.removesuffix(".0") if all_whole or isinstance(value, float | np.floating) else text
        for text, value in zip(texts, values, strict=True)
    ]


def _check_texts(column: pd.Series) -> list[str]:
    bad = np.flatnonzero([not isinstance(text, str) or not text.strip() for text in column])
    if len(bad):
        raise DataError(f"Empty or non-text notes in {name_rows(bad)}: complete or remove them.")
    return column.tolist()


def _name_labels(values: Iterable, names: list[str] | None) -> list[str]:
    """The labels as text; a class index becomes the name its source declares."""
    return [names[int(value)] for value in values] if names else _as_texts(values)


def _order_classes(found: set[str], names: list[str] | None, column: str) -> list[str]:
    """The classes that have notes, in the order declared, since of another there is nothing to learn; undeclared ones
    numbers by value, '2' before '10', then words by alphabet."""
    if names is None:
        return sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    unused = [name for name in names if name not in found]
    if unused:
        logger.warning("Column %s: no note has the class %s; left out", column, ", ".join(unused))
    return [name for name in names if name in found]


def _encode_labels(
    column: pd.Series, arguments: DataArguments, names: list[str] | None
) -> tuple[str, list[str], np.ndarray]:
    """Task, class names in order, and labels as indices or as 0/1 rows."""
    lists = np.array([_is_list(value) for value in column])
    objects = np.flatnonzero([isinstance(value, dict | bytes) for value in column])
    if len(objects):
        raise DataError(f"Column {arguments.label_column} holds objects or bytes in {name_rows(objects)}: give names.")
    multi_label = arguments.label_separator is not None or lists.any()
    if multi_label and arguments.positive_label is not None:
        raise DataError(f"--positive_label {arguments.positive_label}: a note may have several labels here.")
    if any(isinstance(value, str) and _is_list_as_text(value, arguments.label_separator) for value in column):
        raise DataError(
            f"Column {arguments.label_column} holds lists written as text: use JSONL or Parquet for lists, or one "
            "string a note without brackets and quotation marks, with --label_separator."
        )
    if names:  # -1 is how a Hub data set writes a label that it withholds
        each = [value if _is_list(value) else [value] for value in column]
        column = column.mask([any(not _is_missing(label) and label < 0 for label in labels) for labels in each])
    if arguments.label_separator is None:
        unlabeled = np.flatnonzero([_is_missing(value) for value in column])
        if len(unlabeled):
            raise DataError(f"Unlabeled notes in {name_rows(unlabeled)}: label or remove them.")
    if multi_label:
        wrong = np.flatnonzero(lists == (arguments.label_separator is not None))
        if len(wrong):
            kind = "a list" if lists[wrong[0]] else "no list"
            raise DataError(
                f"Column {arguments.label_column} holds {kind} in {name_rows(wrong)}: write the labels of all notes "
                "as lists, or those of all notes as strings with --label_separator."
            )
        if arguments.label_separator is not None:
            separated = column.astype(str).str.contains(arguments.label_separator, regex=False)
            if not separated.any() and not any(map(_is_missing, column)):
                raise DataError(
                    f"--label_separator {arguments.label_separator}: in no label of column {arguments.label_column}; "
                    "give what stands between two labels, or leave it out if each note has one."
                )
            column = [
                str(value).split(arguments.label_separator) if not _is_missing(value) else [] for value in column
            ]
        given = [[label for label in labels if not _is_missing(label)] for labels in column]
        named = iter(_name_labels(chain.from_iterable(given), names))
        rows = [[*islice(named, len(labels))] for labels in given]
        found = {label for row in rows for label in row}
        are_flags = {name.lower() for name in found} in ({"0", "1"}, {"true", "false"})
        if are_flags and (any(len(set(row)) < len(row) for row in rows) or all(set(row) == found for row in rows)):
            raise DataError(
                f"Column {arguments.label_column} holds rows of 0 and 1, or of true and false: write the names of a "
                "note's labels instead."
            )
        encoder = MultiLabelBinarizer(classes=_order_classes(found, names, arguments.label_column))
        labels = encoder.fit_transform(rows).astype(np.int64)
        class_names = list(encoder.classes_)
        _refuse_text(Counter(label for row in rows for label in row), arguments)
        if len(class_names) < 2:
            raise DataError(f"Multi-label notes with {len(class_names)} distinct label: at least 2 are needed.")
        if labels.all():
            raise DataError(f"All {len(rows)} notes carry all {len(class_names)} labels: there is nothing to learn.")
        return "multi-label", class_names, labels

    values = _name_labels(column, names)
    class_names = _order_classes(set(values), names, arguments.label_column)
    _refuse_text(Counter(values), arguments)
    if len(set(values)) < 2:
        raise DataError(f"All {len(values)} notes carry the same label: a classifier needs at least 2 classes.")
    if len(class_names) == 2:
        class_names = _order_binary(class_names, values, arguments.positive_label)
    elif arguments.positive_label is not None:
        raise DataError(
            f"--positive_label {arguments.positive_label}: the data has {len(class_names)} classes, not 2."
        )
    index = {name: number for number, name in enumerate(class_names)}
    labels = np.array([index[value] for value in values])
    return "binary" if len(class_names) == 2 else "multi-class", class_names, labels


def _refuse_text(counts: Counter, arguments: DataArguments):
    """Before any message or log line names a class: it must not be a note, or a piece of one."""
    if arguments.label_column == arguments.text_column or max(map(len, counts), default=0) > NAME_LENGTH:
        raise DataError(f"--label_column {arguments.label_column}: holds text, not labels.")
    if len(counts) > FEW_LABELS and 2 * sum(count == 1 for count in counts.values()) > len(counts):
        raise DataError(
            f"--label_column {arguments.label_column}: {len(counts)} different labels, most of them on one note only: "
            "is that a column of text?"
        )


def _order_binary(class_names: list[str], values: list[str], positive_label: str | None) -> list[str]:
    if positive_label is not None:
        if positive_label not in class_names:
            (positive_label,) = _as_texts([positive_label])
        if positive_label not in class_names:
            raise DataError(f"--positive_label {positive_label}: the labels are {' and '.join(class_names)}.")
        positive = positive_label
    else:
        lowered = {name.lower(): name for name in class_names}
        known = [pair for pair in POSITIVE_PAIRS if set(pair) == set(lowered)]
        positive = lowered[known[0][1]] if known else min(class_names, key=values.count)
    return sorted(class_names, key=lambda name: name == positive)


def _note_ids(frame: pd.DataFrame, id_column: str | None, unique: bool = True) -> np.ndarray:
    id_column = id_column or next((name for name in ID_COLUMNS if name in frame.columns), "none")
    if id_column == "none":
        return np.array([ROW_ID.format(row + 1) for row in range(len(frame))])
    ids = _complete_column(frame, id_column, "id_column")
    if max(map(len, ids)) > NAME_LENGTH:  # predictions and the list of hard notes show them
        raise DataError(f"--id_column {id_column}: holds text, not ids; give another, or none for row numbers.")
    repeated = np.flatnonzero(pd.Series(ids).duplicated())
    if len(repeated) and unique:
        raise DataError(
            f"Column {id_column} repeats ids in {name_rows(repeated)}: ids must be unique; give another --id_column, "
            "or none for row numbers."
        )
    return ids


def _read_rows(arguments: DataArguments, *needed: str) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """As `_read_table`, of which there is something to read; beside texts, ids and groups the columns are `needed`."""
    groups = [] if arguments.group_column is None else [arguments.group_column]
    frame, declared = _read_table(arguments, [arguments.text_column, *groups, *needed])
    if frame.empty:
        raise DataError(f"--dataset {arguments.dataset}: no rows.")
    _require_column(frame, arguments.text_column, "text_column")
    return frame, declared


def _group_column(arguments: DataArguments) -> str | None:
    is_synthetic = arguments.dataset.split(":")[0] == "synthetic"
    return arguments.group_column or ("patient_id" if is_synthetic else None)


def _subgroup(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Values to break scores down by, "-" where there is none; reports show them, so a column of text is refused."""
    _require_column(frame, column, "subgroup_columns")
    missing = np.array([_is_missing(value) for value in frame[column]])
    values = np.full(len(frame), "-", dtype=object)
    values[~missing] = _as_texts(frame.loc[~missing, column])
    distinct = len(set(values))
    if distinct > MOST_SUBGROUPS or max(map(len, values)) > NAME_LENGTH:
        raise DataError(
            f"--subgroup_columns {column}: {distinct} different values; at most {MOST_SUBGROUPS} short ones make "
            "sense in a table. Is that a column of text or of ids?"
        )
    return values


def _given_splits(frame: pd.DataFrame, arguments: DataArguments) -> np.ndarray | None:
    name = arguments.split_column
    if name == "none" or (name == DataArguments.split_column and name not in frame.columns):
        return None
    _require_column(frame, name, "split_column")
    words = frame[arguments.split_column].map(lambda word: SPLIT_ALIASES.get(str(word).strip().lower()))
    unknown = np.flatnonzero(words.isna())
    if len(unknown):
        raise DataError(
            f"Column {arguments.split_column} is none of {', '.join(SPLIT_ALIASES)} in {name_rows(unknown)}: "
            "correct it, or draw the splits with --split_column none."
        )
    return words.to_numpy(dtype=str)


def load_notes(arguments: DataArguments) -> Notes:
    """Read and check a corpus.

    Raises:
        DataError: on anything that would make a result wrong; nothing is dropped or repaired silently.
    """
    frame, declared = _read_rows(arguments, arguments.label_column)
    _require_column(frame, arguments.label_column, "label_column")
    texts = _check_texts(frame[arguments.text_column])
    task, class_names, labels = _encode_labels(
        frame[arguments.label_column], arguments, declared.get(arguments.label_column)
    )

    ids = _note_ids(frame, arguments.id_column)
    group_column = _group_column(arguments)
    groups = None if group_column is None else _complete_column(frame, group_column, "group_column")
    given_splits = _given_splits(frame, arguments)
    subgroups = {name: _subgroup(frame, name) for name in arguments.subgroup_columns}
    notes = Notes(arguments.dataset, task, class_names, ids, texts, labels, groups, given_splits, subgroups)
    spellings = Counter(name.casefold() for name in class_names)
    if alike := [name for name in class_names if spellings[name.casefold()] > 1]:
        logger.warning("Classes that differ in capitals alone: %s; are they one?", ", ".join(alike))
    logger.info(
        "%s: %d notes%s, %s, %s",
        notes.name,
        len(notes),
        "" if groups is None else f" of {len(set(groups))} groups",
        task,
        ", ".join(f"{name} {count}" for name, count in notes.count_labels(np.arange(len(notes))).items())
        + (f" (positive: {class_names[1]})" if task == "binary" else ""),
    )
    return notes


def read_unlabeled(arguments: DataArguments, is_further_text: bool = False) -> Notes:
    """Every note, whether it has a label or not, with ids, groups and given splits: `task` is "none", no labels.

    A table of further text may lack the columns of ids and groups, and several of its rows may have one id.
    """
    frame, _ = _read_rows(arguments)
    texts = _check_texts(frame[arguments.text_column])
    id_column, group_column = arguments.id_column, _group_column(arguments)
    if is_further_text:
        id_column = id_column if id_column in ("none", *frame.columns) else None
        group_column = group_column if group_column in frame.columns else None
    ids = _note_ids(frame, id_column, unique=not is_further_text)
    groups = None if group_column is None else _complete_column(frame, group_column, "group_column")
    no_labels = np.zeros(len(texts), dtype=np.int64)
    return Notes(arguments.dataset, "none", [], ids, texts, no_labels, groups, _given_splits(frame, arguments))
