"""Further text for pretraining, and the check that no held-out note is in it.

Text needs no label to help a model: one that was pretrained on the text of a test note knows that note. So before any
text reaches a model or its tokenizer, whatever belongs to a validation or test note is taken out of it:

- by name: a document whose id, or whose group, is that of a held-out note or of a held-out patient or document;
- by content: a document that holds a held-out note or half of it, word for word, or half of which is of such a note,
  as where one was stored in pieces. Notes are compared by runs of SHINGLE_WORDS words (shingles, Broder 1997),
  whatever their case, punctuation and spacing, so that a passage is found within a long document. A note of fewer
  words is too common to be looked for within others: it is compared as a whole.

Knows no model. Text leaves this file as text, for pretrain.py; messages carry file names, ids and counts.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data import READERS, DataArguments, DataError, Notes, read_unlabeled
from tokenization import WORD

logger = logging.getLogger(__name__)

SHINGLE_WORDS = 8
LEAKING_SHARE = 0.5  # of a note's words: a run of so many makes a document a copy of it (ours)


@dataclass
class Corpus:
    """Documents to pretrain on. `names` are the ids and groups that each goes by, a folder's with a slash at its end.

    `owners`: whose each is, None where nobody knows. Default: the last name.
    """

    texts: list[str]
    names: list[tuple[str, ...]]
    owners: list[str | None] | None = None

    def __post_init__(self):
        if self.owners is None:
            self.owners = [names[-1] if names else None for names in self.names]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Iterable[int]) -> "Corpus":
        rows = list(rows)
        return Corpus(*([column[row] for row in rows] for column in (self.texts, self.names, self.owners)))

    def __add__(self, other: "Corpus") -> "Corpus":
        return Corpus(self.texts + other.texts, self.names + other.names, self.owners + other.owners)

    @property
    def groups(self) -> list[str]:
        """Whose each document is, for counting in how many documents a word occurs (tokenization.py)."""
        return [owner or f"document {number}" for number, owner in enumerate(self.owners)]

    def fingerprint(self) -> str:
        digest = blake2b(digest_size=8)
        for text, group in zip(self.texts, self.groups, strict=True):
            digest.update(json.dumps([text, group]).encode())  # the vocabulary depends on whose the documents are
        return digest.hexdigest()

    def identity(self) -> str:
        """Which documents these are, by text and all names, in whatever order."""
        documents = sorted(json.dumps(document) for document in zip(self.texts, self.names, strict=True))
        return blake2b("\n".join(documents).encode(), digest_size=8).hexdigest()


def of_notes(notes: Notes, rows: np.ndarray) -> Corpus:
    """These notes of a checked corpus, as documents."""
    names: list[tuple[str, ...]] = [() if notes.ids_are_rows else (str(notes.ids[row]),) for row in rows]
    if notes.groups is not None:
        names = [(*name, str(notes.groups[row])) for name, row in zip(names, rows, strict=True)]
    return Corpus([notes.texts[row] for row in rows], names)


def read_corpus(
    sources: Sequence[str], text_column: str = "text", group_column: str | None = None, id_column: str | None = None
) -> Corpus:
    """Every document of the sources, in their order; a table may lack the columns of groups and ids.

    A source is a UTF-8 text file with one document a line; a table as for `--dataset` (CSV, TSV, JSONL, Parquet, a Hub
    data set or synthetic), all of it whatever its splits; a folder of tables, whose `.txt` files do not count; or a
    folder of `.txt` files that are a document each.

    Raises:
        DataError: a source cannot be read or holds no text.
    """
    columns = dict(text_column=text_column, group_column=group_column, id_column=id_column)
    corpus = Corpus([], [])
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            tables = [file for file in files if file.suffix.lower() in READERS]
            files = [file for file in files if file.suffix.lower() == ".txt"]
            if tables and files:
                logger.info("%s: tables read; beside them %d .txt files are not", source, len(files))
                files = []
            found = Corpus([_read_text(file) for file in files], *_name_files(files, path, group_column is not None))
            for table in tables:
                found = found + _read_table(str(table), columns)
        elif path.suffix.lower() == ".txt":
            # (splitlines would cut at the page breaks of a PDF too)
            lines = [line for line in _read_text(path).split("\n") if line.strip()]
            found = Corpus(lines, [()] * len(lines))
        else:
            found = _read_table(source, columns)
        if group_column and path.suffix.lower() == ".txt":
            _warn_of_unnamed(source, "no line names its patient")
        elif group_column and path.is_dir() and not tables:
            _warn_of_unnamed(source, "patients go by the names of files and folders alone")
        found = found.select(row for row, text in enumerate(found.texts) if text.strip())
        if not len(found):
            raise DataError(f"--unlabeled {source}: no text in it; give text files, tables with text, or folders.")
        corpus = corpus + found
    return corpus


def _name_files(files: list[Path], folder: Path, has_groups: bool) -> tuple[list[tuple[str, ...]], list[str]]:
    """Names and owners of documents that are a file each: the file's name and, of groups, the folders' around it.

    The owner is the folder where there are more folders than names of files, as in patient7/letter.txt, else the file,
    as in 2024/p7.txt (ours).
    """
    around, stems = [file.parent.relative_to(folder) for file in files], [file.stem for file in files]
    names = [
        (*(f"{part}/" for part in folders.parts if has_groups), stem)
        for folders, stem in zip(around, stems, strict=True)
    ]
    return names, [*map(str, around)] if len(set(around)) > len(set(stems)) else stems


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--unlabeled {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"--unlabeled {path} cannot be opened ({error.strerror}).") from error


def _read_table(source: str, columns: dict[str, str | None]) -> Corpus:
    try:
        notes = read_unlabeled(DataArguments(dataset=source, split_column="none", **columns), is_further_text=True)
    except DataError as error:
        named = f"{source}: {error}" if source not in str(error) else str(error).removeprefix("--dataset ")
        raise DataError(f"--unlabeled {named}") from None
    if columns["group_column"] and notes.groups is None:
        _warn_of_unnamed(source, f"no column {columns['group_column']}")
    return of_notes(notes, np.arange(len(notes)))


def _warn_of_unnamed(source: str, why: str):
    logger.warning(
        "--unlabeled %s: %s; other letters of held-out patients are not known where nothing names them, and a name "
        "that is in five letters of one patient may come into the vocabulary",
        source, why,
    )  # fmt: skip


# ---- the check -----------------------------------------------------------------------------------------------------


@dataclass
class Removed:
    """How many documents were taken out, and why; goes into the result file."""

    by_name: int = 0  # of a held-out note, patient or document
    by_content: int = 0  # holding a held-out note, or half of it
    copies: int = 0  # of another document of the corpus

    def __str__(self) -> str:
        return f"{self.by_name} by id or group, {self.by_content} by content, {self.copies} copies"


def remove_held_out(corpus: Corpus, held_out: Corpus, training: int = 0) -> tuple[Corpus, Removed]:
    """The documents that have nothing of the held-out notes, each once.

    The first `training` of them are training notes: the splits already keep their ids and patients apart, and the id
    of one may well be the patient number of another.
    """
    names = {name for of_note in held_out.names for name in of_note}
    names |= {f"{owner}/" for owner in held_out.owners}  # a folder may be a patient's; the ids of notes may be years
    named = np.array([not names.isdisjoint(of_document) for of_document in corpus.names], dtype=bool)
    named[:training] = False
    leaking = find_leaking(corpus.texts, held_out.texts) & ~named
    seen, kept = set(), []
    for row in np.flatnonzero(~named & ~leaking):
        key = " ".join(split_words(corpus.texts[row]))
        if key not in seen:
            seen.add(key)
            kept.append(int(row))
    copies = len(corpus) - int(named.sum()) - int(leaking.sum()) - len(kept)
    further, gone = len(corpus) - training, int((named | leaking)[training:].sum())
    if gone > further / 2:
        logger.warning(
            "  %d of the %d --unlabeled documents belong to held-out notes or hold one: are they what a document is, "
            "as a letter? (of a folder, each .txt file is one)",
            gone, further,
        )  # fmt: skip
    return corpus.select(kept), Removed(int(named.sum()), int(leaking.sum()), copies)


def find_leaking(texts: Sequence[str], held_out: Sequence[str]) -> np.ndarray:
    """For each text whether it holds LEAKING_SHARE of a held-out one or is made of one to that share; (texts,)."""
    hashes: dict[str, np.uint64] = {}
    owner, shingles, whole, needed = [], [], set(), np.zeros(len(held_out))
    for number, note in enumerate(held_out):
        words = split_words(note)
        if len(words) < SHINGLE_WORDS:
            whole.add(" ".join(words))
        else:
            of_note = np.unique(_hash_shingles(words, hashes))
            shingles.append(of_note)
            needed[number] = _shingles_of_share(words, of_note)
            owner.append(np.full(len(of_note), number))
    leaking = np.zeros(len(texts), dtype=bool)
    if shingles:
        shingles, owner = np.concatenate(shingles), np.concatenate(owner)
        order = np.argsort(shingles, kind="stable")
        shingles, owner = shingles[order], owner[order]
    for row, text in enumerate(texts):
        words = split_words(text)
        if len(words) < SHINGLE_WORDS:
            leaking[row] = " ".join(words) in whole
        elif len(shingles):
            of_text = np.unique(_hash_shingles(words, hashes))
            first, last = np.searchsorted(shingles, of_text, "left"), np.searchsorted(shingles, of_text, "right")
            shared = first < last  # a shingle may be of several notes
            if shared.any():
                places = np.concatenate([np.arange(a, b) for a, b in zip(first[shared], last[shared], strict=True)])
                count = np.bincount(owner[places], minlength=len(held_out))
                enough = np.minimum(needed, _shingles_of_share(words, of_text))  # or half of the text is of the note
                leaking[row] = bool(((count > 0) & (count >= enough)).any())
    return leaking


def _shingles_of_share(words: list[str], shingles: np.ndarray) -> float:
    """How many shingles a run of LEAKING_SHARE of the words has; where words repeat, of those that are different."""
    in_a_row = LEAKING_SHARE * len(words) - SHINGLE_WORDS + 1
    return max(1.0, min(in_a_row, LEAKING_SHARE * len(shingles)))


def split_words(text: str) -> list[str]:
    """In lower case and without punctuation: what two copies of a note share however they were stored."""
    # NFKC: an accent may be stored as a character of its own, at which \w+ would end a word
    return re.findall(WORD, unicodedata.normalize("NFKC", text).casefold())


def _hash_shingles(words: list[str], hashes: dict[str, np.uint64]) -> np.ndarray:
    """A 64-bit number for every run of SHINGLE_WORDS words; `hashes` remembers the words'."""
    for word in set(words).difference(hashes):
        hashes[word] = np.uint64(int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little"))
    numbers = np.array([hashes[word] for word in words], dtype=np.uint64)
    count, total = len(numbers) - SHINGLE_WORDS + 1, np.uint64(0)
    with np.errstate(over="ignore"):
        for place in range(SHINGLE_WORDS):  # a polynomial in an odd number, modulo 2^64
            total = total * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + count]
    return total
