"""Notes are read as they are written, or refused in one line that holds none of their text."""

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

import data
from data import DataArguments, DataError, load_notes, read_unlabeled

ROOT = Path(__file__).resolve().parent.parent
MARKER = "Zéphyrin"  # stands for what only a note says: in no message may it come back
TEXTS = ["Œdèmes des chevilles, FEVG à 25 %.", "Toux grasse ; « ça va » mieux.", "Galop à l’auscultation."]
TABLE = pd.DataFrame({"text": TEXTS, "label": ["oui", "non", "non"]})


def load(path, **options):
    return load_notes(DataArguments(dataset=str(path), **options))


@pytest.fixture
def write(tmp_path):
    """Writes columns, or a string as it is, to a file of the test's folder."""

    def write_file(content, name="notes.jsonl"):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
            return path
        table = pd.DataFrame(content)
        if path.suffix == ".parquet":
            table.to_parquet(path)
        elif path.suffix == ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
        return path

    return write_file


def assert_says_nothing(error: BaseException):
    """One line, and no word of a note in the message or in what a traceback would print."""
    assert "\n" not in str(error)
    assert MARKER not in "".join(traceback.format_exception(error))


# ---- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.csv", "notes.tsv", "NOTES.CSV", "notes.jsonl", "notes.parquet"])
def test_every_format_gives_the_same_notes(write, name):
    if name == "NOTES.CSV":
        path = write(TABLE.to_csv(index=False), name)
    else:
        path = write(TABLE, name)
    notes = load(path)
    assert notes.texts == TEXTS
    assert (notes.task, notes.class_names, notes.labels.tolist()) == ("binary", ["non", "oui"], [1, 0, 0])
    assert notes.ids.tolist() == ["row-1", "row-2", "row-3"]
    assert notes.groups is None and notes.given_splits is None


def test_csv_of_a_french_spreadsheet(tmp_path):
    path = tmp_path / "notes.csv"
    TABLE.to_csv(path, sep=";", index=False, encoding="utf-8-sig")
    assert load(path).texts == TEXTS


def test_byte_order_mark_of_jsonl(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text(TABLE.to_json(orient="records", lines=True), encoding="utf-8-sig")
    assert load(path).texts == TEXTS


def test_csv_cells_stay_text(write):
    notes = load(write("text,label\nNA,NA\n007,01\n1e3,1\n", "notes.csv"))
    assert notes.texts == ["NA", "007", "1e3"]
    assert set(notes.class_names) == {"NA", "01", "1"}


def test_folder_with_one_file(write):
    assert load(write(TABLE, "train.csv").parent).given_splits is None


def test_rows_of_split_files_can_be_found(write, caplog):
    caplog.set_level(logging.INFO)
    write(TABLE, "train.csv")
    with pytest.raises(DataError, match=r"Empty or non-text notes in 1 row \(2\)"):
        load(write(TABLE.assign(text=["a", " ", "c"]), "test.csv").parent)
    assert "rows, as messages count them: test.csv 1 to 3, train.csv 4 to 6" in caplog.text


def test_folder_of_split_files(write):
    folder = write(TABLE, "train.csv").parent
    write(TABLE.assign(text=[f"{text} Dev." for text in TEXTS]), "dev.tsv")
    write(TABLE.assign(text=[f"{text} Test." for text in TEXTS]), "Test.jsonl")
    notes = load(folder)
    for part, ending in (("train", ""), ("validation", " Dev."), ("test", " Test.")):
        assert [notes.texts[row] for row in np.flatnonzero(notes.given_splits == part)] == [t + ending for t in TEXTS]
    assert load(folder, split_column="none").given_splits is None


def test_split_column_and_its_words(write):
    table = {"text": [f"note {word}" for word in "abcdef"], "label": [0, 1] * 3}
    words = ["train", "Training ", "val", "dev", "valid", "TEST"]
    path = write(table | {"part": words}, "notes.csv")
    assert load(path).given_splits is None
    expected = ["train", "train", "validation", "validation", "validation", "test"]
    assert load(path, split_column="part").given_splits.tolist() == expected


def test_a_split_column_that_is_not_there(write):
    with pytest.raises(DataError, match="--split_column partition: no such column; found: "):
        load(write(TABLE.assign(part=["train", "train", "test"])), split_column="partition")


@pytest.mark.parametrize("notes", [6, 40])
def test_pieces_of_text_are_no_labels(write, caplog, notes):
    """They would be named in a log, in a result and on a card."""
    phrases = [f"toux depuis {day} jours, fièvre à {day} heures" for day in range(notes)]
    table = pd.DataFrame({"text": [f"Note {number}." for number in range(notes)], "label": phrases})
    with pytest.raises(
        DataError, match=f"{2 * notes} different labels, most of them on one note only: is that a column of text"
    ):
        load(write(table), label_separator=",")
    assert "toux" not in caplog.text


def test_split_column_none_ignores_the_splits(write):
    for column in ("split", "none"):  # which may be the name of a column too
        assert load(write(TABLE.assign(**{column: "anything"})), split_column="none").given_splits is None


def test_synthetic():
    notes = load("synthetic:300")
    assert len(notes) == 300 and notes.task == "binary"
    assert len(set(notes.groups)) < 300
    assert notes.count_labels(np.arange(300))[notes.class_names[1]] < 150  # positive: the rarer
    assert notes.fingerprint() == load("synthetic:300").fingerprint()
    assert notes.fingerprint() != load("synthetic:300:7").fingerprint()


@pytest.mark.parametrize("name", ["synthetic:many", "synthetic:300:0:1"])
def test_synthetic_misspelt(name):
    with pytest.raises(DataError, match=f"--dataset {name}: write synthetic"):
        load(name)


def test_synthetic_of_too_few_notes():
    with pytest.raises(DataError, match="--dataset synthetic:10: num_notes 10: too few to be split by patient"):
        load("synthetic:10")


def test_a_path_that_cannot_be_looked_at():
    """A name that is too long stands for a folder that may not be entered, which root always may."""
    with pytest.raises(DataError, match=r"^\./n{300}: cannot be opened \(File name too long\)"):
        load("./" + "n" * 300)
    with pytest.raises(DataError, match="--dataset ~nobody-of-this-name/notes.csv: no such file or folder"):
        load("~nobody-of-this-name/notes.csv")


def test_a_damaged_record_is_named_by_its_line(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(f'text,label\n"{MARKER}\n\ntousse",1\n"{MARKER}",0\n{MARKER}, fièvre,0\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a readable csv file \(line 6\)") as caught:
        load(path)
    assert_says_nothing(caught.value)


def test_the_byte_that_is_no_utf8_is_counted_from_the_beginning(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_bytes(b"text,label\n" + b"ok,1\n" * 10_000 + "é,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8 text \(byte 50011\); save it as UTF-8"):
        load(path)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def hub(monkeypatch, **splits):
    """A Hub data set of these splits, whose label is a class index with names."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ill", "healthy", "unclear"])}
    )
    parts = {
        split: datasets.Dataset.from_dict(
            {"text": [f"{split} {row}" for row in range(len(labels))], "label": labels}, features=features
        )
        for split, labels in splits.items()
    }
    monkeypatch.setattr(data, "load_dataset", lambda *arguments, **options: datasets.DatasetDict(parts))


def test_hub_unreachable_is_one_line():
    with pytest.raises(DataError, match="--dataset nobody/no-notes: neither a file or folder here nor") as caught:
        load("nobody/no-notes")
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_hub_names_its_classes(monkeypatch):
    hub(monkeypatch, train=[2, 0, 1, 1])
    notes = load("someone/notes")
    assert notes.class_names == ["ill", "healthy", "unclear"]  # the order declared, not the alphabet's by chance
    assert notes.labels.tolist() == [2, 0, 1, 1]
    assert notes.given_splits is None


def test_hub_splits(monkeypatch):
    hub(monkeypatch, train=[0, 1, 2], validation=[1], test=[2])
    notes = load("someone/notes")
    assert notes.given_splits.tolist() == ["train"] * 3 + ["validation", "test"]
    assert notes.class_names[notes.labels[-1]] == "unclear"
    assert load("someone/notes", split_column="none").given_splits is None


def test_hub_hidden_labels_are_not_the_last_class(monkeypatch):
    hub(monkeypatch, train=[0, 1, 2], test=[-1, -1])
    with pytest.raises(DataError, match=r"Unlabeled notes in 2 rows \(4, 5\)"):
        load("someone/notes")


def test_hub_hidden_lists_of_labels_are_not_the_last_class(monkeypatch):
    names = datasets.ClassLabel(names=["toux", "fièvre"])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(names)})
    labels = [[0], [], [1, 0], [-1, -1]]
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": labels}, features=features)
    parts = {"train": rows.select(range(3)), "test": rows.select([3])}
    monkeypatch.setattr(data, "load_dataset", lambda *arguments, **options: parts)
    with pytest.raises(DataError, match=r"Unlabeled notes in 1 row \(4\)"):
        load("someone/notes")
    parts["test"] = rows.select([0])
    assert load("someone/notes").labels.tolist() == [[1, 0], [0, 0], [1, 1], [1, 0]]


def test_a_declared_class_without_notes_is_left_out(monkeypatch, caplog):
    hub(monkeypatch, train=[2, 0, 0, 0], test=[0, 2])
    notes = load("someone/notes")
    assert notes.class_names == ["ill", "unclear"] and notes.labels.tolist() == [1, 0, 0, 0, 0, 1]
    assert "Column label: no note has the class healthy; left out" in caplog.text


def test_hub_unknown_split(monkeypatch):
    hub(monkeypatch, train=[0, 1, 2], unsupervised=[0])
    with pytest.raises(DataError, match="split 'unsupervised' is none of train, training, .* --split_column none all"):
        load("someone/notes")
    assert len(load("someone/notes", split_column="none")) == 4
    further = read_unlabeled(DataArguments(dataset="someone/notes", split_column="none"), is_further_text=True)
    assert further.texts[-1] == "unsupervised 0"


# ---- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "task", "class_names"),
    [
        (["10", "2", "1"], "multi-class", ["1", "2", "10"]),
        (["urgence", "bloc", "2"], "multi-class", ["2", "bloc", "urgence"]),
        ([1, 0, 1], "binary", ["0", "1"]),
        ([1.0, 0.0, 1.0], "binary", ["0", "1"]),
        (["1.0", "0.0", "1.0"], "binary", ["0", "1"]),
        ([True, False, True], "binary", ["False", "True"]),
        (["Oui", "Non", "Oui"], "binary", ["Non", "Oui"]),
        (["présent", "absent", "présent"], "binary", ["absent", "présent"]),
        (["fréquent", "fréquent", "rare"], "binary", ["fréquent", "rare"]),
        (["1", "2", "2"], "binary", ["2", "1"]),
        ([" a", "a ", "b"], "binary", ["a", "b"]),
        (["²", "1", "2"], "multi-class", ["1", "2", "²"]),
    ],
)
def test_class_order(write, values, task, class_names):
    notes = load(write({"text": TEXTS, "label": values}))
    assert (notes.task, notes.class_names) == (task, class_names)
    assert [class_names[label] for label in notes.labels] == [str(v).strip().removesuffix(".0") for v in values]


def test_codes_that_look_like_numbers_stay_what_they_are(write):
    """As ICD-9 has them: 250.0 and 250.00 are two diagnoses, 250 is a third."""
    codes = ["250.00", "250.0", "401.9", "250", "250.00", "250.0"]
    texts = [f"Note {number}." for number in range(len(codes))]
    notes = load(write({"text": texts, "label": codes}))
    assert [notes.class_names[label] for label in notes.labels] == codes
    several = load(write({"text": texts, "label": [f"{code};401.9" for code in codes]}), label_separator=";")
    assert set(several.class_names) == set(codes)


def test_a_blank_line_of_a_table_of_one_column_is_a_note_without_text(tmp_path):
    """Left out, as pandas does, all predictions after it would be of other rows."""
    path = tmp_path / "notes.csv"
    path.write_text("text\nnote a\n\nnote b\n\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Empty or non-text notes in 1 row \(2\)"):
        read_unlabeled(DataArguments(dataset=str(path)))
    path.write_text("text\nnote a\nnote b\n\n", encoding="utf-8")  # one at the end is none
    assert read_unlabeled(DataArguments(dataset=str(path))).texts == ["note a", "note b"]


def test_class_order_does_not_follow_the_rows(write):
    table = pd.DataFrame({"text": [f"note {row}" for row in range(8)], "label": list("dacbbcad")})
    assert load(write(table)).class_names == load(write(table[::-1], "backwards.csv")).class_names == list("abcd")


def test_positive_label(write):
    path = write(TABLE)
    notes = load(path, positive_label="non")
    assert notes.class_names == ["oui", "non"] and notes.labels.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="--positive_label 1: the labels are non and oui"):
        load(path, positive_label="1")


def test_positive_label_of_several_labels(write):
    with pytest.raises(DataError, match="--positive_label a: a note may have several labels here"):
        load(write({"text": TEXTS, "label": [["a"], ["b"], ["a", "b"]]}), positive_label="a")


@pytest.mark.parametrize("option", ["dataset_config", "dataset_revision"])
def test_options_of_the_hub(write, option):
    for source in (write(TABLE), "synthetic:40"):
        with pytest.raises(DataError, match="are for data sets of the Hub; .* is none"):
            load(source, **{option: "x"})


def test_positive_label_of_three_classes(write):
    with pytest.raises(DataError, match="--positive_label a: the data has 3 classes, not 2"):
        load(write({"text": TEXTS, "label": ["a", "b", "c"]}), positive_label="a")


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.parquet"])
def test_multi_label_lists(write, name):
    notes = load(write({"text": TEXTS, "label": [["fièvre", "toux"], [], ["toux"]]}, name))
    assert (notes.task, notes.class_names) == ("multi-label", ["fièvre", "toux"])
    assert notes.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert notes.count_labels(np.array([0, 2])) == {"fièvre": 1, "toux": 2}


def test_multi_label_separator(write):
    notes = load(write({"text": TEXTS, "label": ["10 | 2", "", "2"]}, "notes.csv"), label_separator="|")
    assert (notes.task, notes.class_names) == ("multi-label", ["2", "10"])
    assert notes.labels.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_a_separator_that_separates_nothing(write):
    path = write({"text": TEXTS, "label": ["10 | 2", "10", "2"]}, "notes.csv")
    with pytest.raises(DataError, match="--label_separator ;: in no label of column label; give what stands"):
        load(path, label_separator=";")
    # a note without a label needs the separator, even if none has two
    one_or_none = write({"text": TEXTS, "label": ["10", "", "2"]}, "notes.csv")
    assert load(one_or_none, label_separator=";").labels.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_multi_label_of_one_label(write):
    with pytest.raises(DataError, match="Multi-label notes with 1 distinct label: at least 2 are needed"):
        load(write({"text": TEXTS, "label": [["toux"], [], ["toux"]]}))


def test_lists_written_as_text(write):
    with pytest.raises(DataError, match="Column label holds lists written as text: use JSONL or Parquet"):
        load(write({"text": TEXTS, "label": [["a", "b"], ["a"], ["b"]]}, "notes.csv"))


def test_lists_written_as_text_with_a_separator(write):
    path = write({"text": TEXTS, "label": ["['a', 'b']", "['a']", "['b']"]}, "notes.csv")
    with pytest.raises(DataError, match="lists written as text: .* without brackets and quotation marks"):
        load(path, label_separator=",")
    in_brackets = write({"text": TEXTS, "label": ["[a];[b]", "[a]", "[b]"]}, "notes.csv")
    assert load(in_brackets, label_separator=";").class_names == ["[a]", "[b]"]


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 0], [1, 0, 0], [0, 1, 1]],
        [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
        [[0, 1], [1, 0], [0, 1]],  # one-hot, of two classes
        [[True, False, False], [False, True, False], [False, False, True]],
    ],
)
def test_rows_of_0_and_1_are_not_taken_for_names(write, rows):
    with pytest.raises(
        DataError, match="Column label holds rows of 0 and 1, or of true and false: write the names of a note's labels"
    ):
        load(write({"text": TEXTS, "label": rows}))


def test_notes_that_all_carry_all_labels(write):
    with pytest.raises(DataError, match="All 3 notes carry all 2 labels: there is nothing to learn"):
        load(write({"text": TEXTS, "label": [["a", "b"], ["b", "a"], ["a", "b"]]}))


def test_labels_named_0_and_1(write):
    notes = load(write({"text": TEXTS, "label": [["0"], ["1"], ["0", "1"]]}))
    assert notes.labels.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_a_word_among_lists_is_not_spelled_out(write):
    path = write('{"text": "x", "label": ["toux"]}\n{"text": "y", "label": "fièvre"}\n')
    with pytest.raises(DataError, match=r"Column label holds no list in 1 row \(2\)"):
        load(path)


def test_lists_with_a_separator(write):
    with pytest.raises(DataError, match=r"Column label holds a list in 2 rows \(1, 2\)"):
        load(write({"text": TEXTS[:2], "label": [["a", "b"], ["a"]]}), label_separator="|")


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.parquet"])
def test_objects_and_bytes_are_no_names(write, name):
    label = {"fièvre": 1} if name == "notes.jsonl" else b"oui"
    with pytest.raises(DataError, match=r"Column label holds objects or bytes in 1 row \(2\)") as caught:
        load(write({"text": TEXTS, "label": [None, label, None]}, name))
    assert "fièvre" not in str(caught.value)


def test_classes_that_differ_in_capitals_are_told(write, caplog):
    assert load(write(TABLE.assign(label=["oui", "Oui", "non"]))).class_names == ["Oui", "non", "oui"]
    assert "Classes that differ in capitals alone: Oui, oui; are they one?" in caplog.text
    caplog.clear()
    load(write(TABLE))
    assert "capitals" not in caplog.text


def test_one_class_only(write):
    with pytest.raises(DataError, match="All 3 notes carry the same label: a classifier needs at least 2 classes"):
        load(write({"text": TEXTS, "label": [1, 1, 1]}))


@pytest.mark.parametrize(("name", "empty"), [("notes.csv", ""), ("notes.jsonl", None), ("notes.parquet", None)])
def test_unlabeled_notes(write, name, empty):
    with pytest.raises(DataError, match=r"Unlabeled notes in 1 row \(2\): label or remove them"):
        load(write({"text": TEXTS, "label": ["a", empty, "b"]}, name))


# ---- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", ["text_column", "label_column", "id_column", "group_column"], ids=lambda option: option.split("_")[0]
)
def test_missing_column_lists_those_found(write, option):
    with pytest.raises(DataError, match=f"--{option} nope: no such column; found: text, label"):
        load(write(TABLE), **{option: "nope"})


def test_notes_are_not_taken_for_ids(write):
    notes = [f"{MARKER} a {age} ans et tousse{', beaucoup' * 9}." for age in (2, 3, 4)]
    with pytest.raises(DataError, match="--id_column letter: holds text, not ids") as caught:
        load(write(TABLE.assign(letter=notes)), id_column="letter")
    assert_says_nothing(caught.value)


def test_file_without_header(write):
    path = write(f'"{MARKER} tousse depuis {"long" * 20}temps.",1\nToux grasse.,0\n', "notes.csv")
    with pytest.raises(DataError, match="no such column; found 2 that are not all named") as caught:
        load(path)
    assert_says_nothing(caught.value)


@pytest.mark.parametrize("separator", ["\t", "|", " ; "])
def test_other_separators(write, separator):
    lines = [separator.join(["text", "label"]), separator.join(["Pas de fièvre, ni toux", "non"]), ""]
    frame = data.READERS[".csv"](write("\n".join(lines), "notes.csv"))
    assert [*frame] == ["text", "label"] and frame["text"][0].strip() == "Pas de fièvre, ni toux"


@pytest.mark.parametrize(
    ("content", "label_column"),
    [
        ('text;label;"age, sexe, service"\n"a, b, c";0;x\nok;1;y\n', "label"),
        ("text;label (oui, non, inconnu)\na, b, c;0\nok;1\n", "label (oui, non, inconnu)"),
        ("text,label\na; b; c,0\nok; fin,1\n", "label"),
        ('text,label,"ward;unit"\n"a; b, c",0\nok; fin,1\n', "label"),  # of which the last cells are left out
        ('label,text,ward;unit\n0,"a; b; c"\n1,"ok; fin"\n', "label"),
        ("label;text;codes, all\n0;a; b, c\n1;ok; fin\n", "label"),
    ],
)
def test_a_name_of_a_column_may_hold_another_separator(write, content, label_column):
    notes = load(write(content, "notes.csv"), label_column=label_column)
    assert notes.class_names == ["0", "1"] and notes.texts[0] in ("a, b, c", "a; b; c", "a; b, c", "a")


def test_a_column_that_one_part_lacks(write, tmp_path):
    table = TABLE.assign(id=["a", "b", "c"], patient=["p", "q", "r"], ward="x")
    options = dict(group_column="patient", subgroup_columns=["ward"])
    for column in table:
        write(table, "train.csv")
        write(table.rename(columns={column: "other"}), "test.csv")
        with pytest.raises(DataError, match=f"no column {column} in the test part"):
            load(tmp_path, **options)
    write(table.assign(id=["d", "e", "f"], note_id="x"), "train.csv")  # ids go by one column, scores by the test part
    write(table, "test.csv")
    assert len(load(tmp_path, **options)) == 6
    write(table.assign(id=["d", "e", "f"]).drop(columns="ward"), "train.csv")
    assert load(tmp_path, **options).subgroups["ward"].tolist() == ["x"] * 3 + ["-"] * 3  # test is read first
    write(table[["text"]].assign(id=["g", "h", "i"]), "test.csv")  # whose labels nobody needs for pretraining
    assert len(read_unlabeled(DataArguments(dataset=str(tmp_path)))) == 6


def test_an_empty_file(write):
    with pytest.raises(DataError, match="is empty.$"):
        load(write("", "notes.csv"))


def test_a_folder_of_text_files(write, tmp_path):
    (tmp_path / "oui").mkdir()
    path = write("Toux.", "oui/1.txt")
    with pytest.raises(DataError, match="found: text files: put them in one table, a row a note, with the columns"):
        load(path.parent.parent)


def test_file_without_header_names_no_patient(write):
    path = write(f'4711,{MARKER},"Toux, fièvre",1\n4712,Anna,Toux,0\n', "notes.csv")
    with pytest.raises(DataError, match="found 4 that are not all named as columns are: is the header") as caught:
        load(path)
    assert_says_nothing(caught.value)


@pytest.mark.parametrize("options", [{"label_column": "text"}, {"text_column": "label", "label_column": "text"}])
def test_notes_are_not_taken_for_labels(write, caplog, options):
    caplog.set_level(logging.DEBUG)
    path = write(TABLE.assign(text=[f"{MARKER} a {age} ans et tousse{', beaucoup' * 9}." for age in (2, 3, 4)]))
    with pytest.raises(DataError, match="--label_column text: holds text, not labels") as caught:
        load(path, **options)
    assert_says_nothing(caught.value)
    assert MARKER not in caplog.text


def test_short_notes_are_not_taken_for_labels(write, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DataError, match="--label_column text: holds text, not labels"):
        load(write(TABLE), label_column="text")
    assert "Toux" not in caplog.text


def test_empty_and_non_text_notes(write):
    path = write('{"text": "x", "label": 0}\n{"text": " ", "label": 1}\n{"text": 3, "label": 1}\n')
    with pytest.raises(DataError, match=r"Empty or non-text notes in 2 rows \(2, 3\): complete or remove them"):
        load(path)


def test_many_rows_are_counted_not_listed(write):
    table = {"text": ["x"] + [""] * 8, "label": [0, 1, 0] * 3}
    with pytest.raises(DataError, match=r"Empty or non-text notes in 8 rows \(2, 3, 4, 5, 6, \.\.\.\):"):
        load(write(table, "notes.csv"))


@pytest.mark.parametrize(("column", "options"), [("id", {}), ("note_id", {}), ("key", {"id_column": "key"})])
def test_ids(write, column, options):
    assert load(write(TABLE.assign(**{column: ["n1", "n2", "n3"]})), **options).ids.tolist() == ["n1", "n2", "n3"]


def test_ids_that_pandas_kept_as_an_index(write, tmp_path):
    TABLE.assign(note_id=["c", "a", "b"]).set_index("note_id").to_parquet(tmp_path / "notes.parquet")
    assert load(tmp_path / "notes.parquet").ids.tolist() == ["c", "a", "b"]
    TABLE.assign(note_id=["c", "a", "a"]).set_index("note_id").to_parquet(tmp_path / "notes.parquet")
    assert load(tmp_path / "notes.parquet").ids.tolist() == ["row-1", "row-2", "row-3"]


def test_duplicate_ids(write):
    path = write(TABLE.assign(id=["n1", "n2", "n1 "]))
    with pytest.raises(DataError, match=r"Column id repeats ids in 1 row \(3\): ids must be unique"):
        load(path)
    notes = load(path, id_column="none", group_column="id")  # the column of ids may be that of the patients
    assert notes.ids_are_rows and notes.groups.tolist() == ["n1", "n2", "n1"]


@pytest.mark.parametrize("option", ["id_column", "group_column"])
@pytest.mark.parametrize(("name", "empty"), [("notes.csv", ""), ("notes.jsonl", None)])
def test_missing_id_or_group(write, option, name, empty):
    path = write(TABLE.assign(key=["p1", empty, "p2"]), name)
    with pytest.raises(DataError, match=r"Column key is empty in 1 row \(2\)"):
        load(path, **{option: "key"})


@pytest.mark.parametrize(
    ("name", "patients"),
    [("notes.parquet", [7, 7, 12]), ("notes.parquet", [7.0, 7, 12]), ("notes.csv", ["7.0", "7 ", "12"])],
)
def test_a_patient_is_the_same_whatever_the_table_made_of_the_number(write, name, patients):
    notes = load(write(TABLE.assign(patient=patients), name), group_column="patient")
    assert notes.groups.tolist() == ["7", "7", "12"]


def test_unknown_split_word(write):
    path = write(TABLE.assign(split=["train", "hold-out", "test"]))
    with pytest.raises(DataError, match=r"Column split is none of train, .* in 1 row \(2\): correct it, or draw"):
        load(path)


# ---- files that cannot be read -------------------------------------------------------------------------------------


def test_unknown_suffix(write):
    with pytest.raises(DataError, match="cannot read .xlsx; give .csv, .tsv, .jsonl, .parquet"):
        load(write("x", "notes.xlsx"))


@pytest.mark.parametrize("name", ["notes.csv", "./notes", "~/no-such-folder/"])
def test_no_such_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"--dataset {name}: no such file or folder"):
        load(name)


def test_what_the_library_of_data_sets_logs_is_kept_back(monkeypatch, caplog, capsys):
    def choke(*_, **__):
        datasets.logging.get_logger("datasets.packaged_modules.csv.csv").error("Could not convert '%s'", MARKER)
        raise datasets.exceptions.DatasetGenerationError("An error occurred")

    told = datasets.logging.get_verbosity()
    monkeypatch.setattr(data, "load_dataset", choke)
    with pytest.raises(DataError, match="nor a data set that the Hub gave") as caught:
        load("someone/notes")
    assert_says_nothing(caught.value)
    assert MARKER not in caplog.text + "".join(capsys.readouterr())
    assert datasets.logging.get_verbosity() == told


def test_a_format_is_no_data_set(tmp_path, monkeypatch):
    """`datasets` would read the tables of the folder that it is called in, and keep a copy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load_dataset", None)
    for name in ("csv", "json", "text"):
        with pytest.raises(DataError, match=f"--dataset {name}: no such file or folder, and a format's name"):
            load(name)


def test_no_rows(write):
    with pytest.raises(DataError, match="notes.csv: no rows"):
        load(write("text,label\n", "notes.csv"))


def test_folder_of_unrelated_files(write):
    folder = write(TABLE, "ward-a.csv").parent
    write(TABLE, "ward-b.csv")
    with pytest.raises(DataError, match="expected one data file, or one file a split .* found: 2 of other names"):
        load(folder)


def test_folder_with_a_split_twice(write):
    folder = write(TABLE, "dev.csv").parent
    write(TABLE, "validation.csv")
    with pytest.raises(DataError, match="found: dev.csv, validation.csv"):
        load(folder)


def test_folder_without_data(write):
    with pytest.raises(DataError, match="found: none"):
        load(write("x", "README.md").parent)


@pytest.mark.parametrize("name", ["notes.csv", "notes.tsv", "notes.jsonl"])
def test_not_utf8(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(f'{{"text": "{MARKER} tousse", "label": 1}}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8 text \(byte \d+\); save it as UTF-8") as caught:
        load(path)
    assert_says_nothing(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.csv", f"text,label\nok,1\n{MARKER}, fièvre,0\n", r"not a readable csv file \(line 3\)"),
        ("notes.csv", f"text,label\n{MARKER}, fièvre,0\nok, toux,1\n", r"not a readable csv file \(line 2\)"),
        ("notes.csv", f'text,label\nok,1\n"{MARKER} tousse,1\nok,0\n', "line 3 .* ','.; double the marks"),
        # pandas would make one note of these two, of two patients
        ("notes.csv", f'text,label\n"{MARKER} tousse,0\n"Toux",1\nok,0\n', "quotation mark .* begins in line 2"),
        ("notes.tsv", f'text\tlabel\n"{MARKER}" dit-il\t0\nok\t1\n', "quotation mark .* begins in line 2"),
        ("notes.tsv", f"text\tlabel\nok\t1\n{MARKER}\tx\t0\n", r"not a readable tsv file \(line 3\)"),
        ("notes.jsonl", f'{{"text": "{MARKER}" "label": 1}}\n', "not a readable jsonl file"),
        ("notes.jsonl", f"{MARKER}\n", "not a readable jsonl file"),
        *(
            ("notes.jsonl", f'{{"text": "{MARKER}", "label": 1}}\n{line}\n', "not a readable jsonl file")
            for line in ("null", "5", "true", f'["{MARKER}"]', f'"{MARKER}"')
        ),
        ("notes.parquet", f"{MARKER}\n", "not a readable parquet file"),
        ("notes.csv", "", "notes.csv is empty"),
    ],
)
def test_malformed_file_is_refused_without_its_text(write, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(write(content, name))
    assert_says_nothing(caught.value)


def test_records_with_fewer_fields_are_told(write, caplog):
    """With a separator of labels, a note that was cut in two would pass for one without labels."""
    path = write(f"text,label,ward\nok,a|b,x\n{MARKER}\nokay,b\nfine,a,\n  \n", "notes.csv")
    notes = load(path, label_separator="|")
    assert notes.labels.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    assert "notes.csv: fewer fields than the header in 2 rows (2, 3); read as empty" in caplog.text
    assert MARKER not in caplog.text
    caplog.clear()
    assert load(write("text,label,\nok,a\nokay,b\n", "notes.csv")).texts == ["ok", "okay"]
    assert "fewer fields" not in caplog.text


@pytest.mark.parametrize("header", ["text, text,label", "label,text,label ", "text,label,label"])
def test_two_columns_of_one_name(write, header):
    with pytest.raises(DataError, match=r"notes.csv: columns [12] and [23] have the same name") as caught:
        load(write(f"{header}\n{MARKER},a,b\nok,c,d\n", "notes.csv"))
    assert_says_nothing(caught.value)
    assert load(write("text,,label,\nok,,a,\nokay,,b,\n", "notes.csv")).texts == ["ok", "okay"]  # of no name


def test_columns_named_by_numbers(write):
    path = write('{"0": "ok", "1": "01"}\n{"0": "okay", "1": "2"}\n', "notes.jsonl")
    notes = load(path, text_column="0", label_column="1")
    assert notes.texts == ["ok", "okay"] and set(notes.class_names) == {"01", "2"}


def test_quotation_marks_within_a_note(write):
    text = 'Il va "bien",\ndit-elle.'
    rows = f'text,label\n"{text.replace(chr(34), chr(34) * 2)}",1\ndit "mal" elle,0\n'
    assert load(write(rows, "notes.csv")).texts == [text, 'dit "mal" elle']


def test_log_holds_counts_and_no_text(write, caplog):
    caplog.set_level(logging.DEBUG)
    texts = [f"{MARKER} a {age} ans." for age in (2, 3, 4)]
    load(write(TABLE.assign(text=texts, patient=["p1", "p1", "p2"])), group_column="patient")
    assert "3 notes of 2 groups, binary, non 2, oui 1 (positive: oui)" in caplog.text
    assert MARKER not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 0}, "--folds 0: give 1"),
        ({"validation_fraction": 0.5}, "--validation_fraction 0.5: give a fraction between 0 and 0.5"),
        ({"split_seed": -1}, "--split_seed -1: give 0 or more"),
        ({"max_length": 4}, "--max_length 4: give at least 8"),
        ({"long_notes": "windows", "max_length": 64, "window_stride": 32}, "--window_stride 32: give less than half"),
        ({"id_column": "text"}, "--id_column text: that is the text; give another"),
        ({"group_column": "text"}, "--group_column text: that is the text; give another"),
        ({"subgroup_columns": ["ward", "note"], "text_column": "note"}, "--subgroup_columns note: that is the text"),
        ({"group_column": "patient", "label_column": "patient"}, "--label_column patient: that names notes or pat"),
        ({"id_column": "name", "label_column": "name"}, "--label_column name: that names notes or patients"),
        (
            {"id_column": "name", "subgroup_columns": ["ward", "name"]},
            "--subgroup_columns name: that names notes; giv",
        ),
        ({"label_separator": ""}, "--label_separator: give at least one character"),
    ],
)
def test_arguments_are_checked_before_any_file_is_read(options, message):
    with pytest.raises(DataError, match=message):
        DataArguments(**options)


def test_neighbouring_windows_share_a_quarter_unless_told_otherwise():
    arguments = DataArguments(max_length=64, long_notes="windows")
    assert arguments.stride == 16 and DataArguments(long_notes="windows", window_stride=0).stride == 0
    assert DataArguments(max_length=64).stride == 0  # truncated: there is one window
    arguments.max_length = 32  # as an encoder that takes no more may ask for
    assert arguments.stride == 8
    given = DataArguments(max_length=64, long_notes="windows", window_stride=20)
    given.max_length = 32
    with pytest.raises(DataError, match="--window_stride 20: give less than half of --max_length, 32"):
        given.check_windows()


# ---- notes without labels ------------------------------------------------------------------------------------------


def test_unlabeled_notes_need_nothing_but_a_text(write):
    path = write(TABLE.assign(split=["train", "dev", "test"], patient=[1, 1, 2])[["text", "split", "patient"]])
    notes = read_unlabeled(DataArguments(dataset=str(path), group_column="patient"))
    assert notes.texts == TEXTS and notes.ids.tolist() == ["row-1", "row-2", "row-3"] and notes.ids_are_rows
    assert notes.given_splits.tolist() == ["train", "validation", "test"] and notes.groups.tolist() == ["1", "1", "2"]
    other = write(TABLE.rename(columns={"text": "note"}).assign(id=["a", "b", "c"]), "all.csv")
    arguments = DataArguments(dataset=str(other), text_column="note", group_column="patient")
    with pytest.raises(DataError, match="--group_column patient: no such column; found: "):
        read_unlabeled(arguments)
    notes = read_unlabeled(arguments, is_further_text=True)
    assert notes.texts == TEXTS and notes.groups is None and notes.given_splits is None and not notes.ids_are_rows


def test_ids_of_further_text_may_repeat(write):
    """As an archive's, with several letters of one patient."""
    path = write(TABLE.assign(id=["p1", "p1", "p2"]))
    with pytest.raises(DataError, match="Column id repeats ids in 1 row"):
        read_unlabeled(DataArguments(dataset=str(path)))
    assert read_unlabeled(DataArguments(dataset=str(path)), is_further_text=True).ids.tolist() == ["p1", "p1", "p2"]
    unnamed = DataArguments(dataset=str(path), id_column="none", group_column="id")
    notes = read_unlabeled(unnamed, is_further_text=True)
    assert notes.ids_are_rows and notes.groups.tolist() == ["p1", "p1", "p2"]


# ---- fingerprint ---------------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_everything_a_result_depends_on(write):
    table = TABLE.assign(id=["a", "b", "c"], patient=["p1", "p2", "p3"], split=["train", "train", "test"])
    variants = [
        table,
        table.assign(text=[TEXTS[0] + " ", *TEXTS[1:]]),
        table.assign(label=["oui", "oui", "non"]),
        table.assign(id=["a", "b", "d"]),
        table.assign(patient=["p1", "p1", "p3"]),
        table.assign(split=["train", "test", "test"]),
    ]
    prints = [load(write(variant), group_column="patient").fingerprint() for variant in variants]
    prints.append(load(write(table)).fingerprint())  # without groups
    prints.append(load(write(table), group_column="patient", split_column="none").fingerprint())
    prints.append(load(write(table), group_column="patient", positive_label="non").fingerprint())
    assert len(set(prints)) == len(prints)


def test_fingerprint_does_not_change_with_the_file(write, tmp_path):
    assert load(write(TABLE, "a.csv")).fingerprint() == load(write(TABLE, "b.parquet")).fingerprint()


def test_fingerprint_is_the_same_in_every_process(write):
    path = write({"text": TEXTS, "label": [["fièvre", "toux"], ["galop"], ["toux"]]})
    code = (
        "import sys; from data import DataArguments, load_notes; "
        "notes = load_notes(DataArguments(dataset=sys.argv[1])); print(notes.fingerprint(), notes.class_names)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    printed = {process.communicate()[0].strip() for process in processes}
    notes = load(path)
    assert printed == {f"{notes.fingerprint()} {notes.class_names}"}
