"""Text for pretraining: what is read from which source, and that nothing held out gets through."""

import os
import unicodedata

import numpy as np
import pandas as pd
import pytest

from corpus import Corpus, Removed, find_leaking, of_notes, read_corpus, remove_held_out, split_words
from data import DataArguments, DataError, load_notes

WORDS = "le patient de la chambre douze présente une fièvre élevée avec toux sèche depuis trois jours".split()
WORDS += ["sans", "frissons"]
NOTE = " ".join(WORDS)  # 18 words: 11 shingles of 8
OTHER = (
    "une radiographie du thorax montre un foyer de la base droite que le traitement antibiotique a fait disparaître"
)


def test_a_held_out_passage_is_found_within_a_long_document():
    document = f"{OTHER}. {NOTE.upper().replace(' ', '  ')} ! {OTHER}"  # other case, spacing and punctuation
    assert find_leaking([document, OTHER, NOTE], [NOTE]).tolist() == [True, False, True]


@pytest.mark.parametrize("length", [16, 18, 24, 100])
def test_half_of_a_note_makes_a_document_a_copy(length):
    note = [f"mot{number}" for number in range(length)]
    long = [f"rien{number}" for number in range(100)]
    for words, leaks in ((length // 2 - 1, False), (length // 2, True)):
        parts = (note[:words], note[-words:], note[3 : words + 3])
        documents = [" ".join([*long, *part, *long]) for part in parts]
        assert find_leaking(documents, [OTHER[:40], " ".join(note)]).tolist() == [leaks] * 3
        # of the document likewise: a piece of a longer note, and words of its own
        piece = " ".join([*note[:words], *(f"autre{number}" for number in range(length - words))])
        assert find_leaking([piece], [" ".join(note) + f" {OTHER}" * 9]).tolist() == [leaks]


@pytest.mark.parametrize("length", [17, 20, 24, 40])
def test_a_copy_with_a_name_taken_out_is_one(length):
    note = [f"mot{number}" for number in range(length)]
    copy = [*note[: length // 2], "XXX", *note[length // 2 + 1 :]]
    assert find_leaking([" ".join(copy)], [" ".join(note)]).all()


def test_a_note_that_repeats_itself():
    """Ten times the same nine words say no more than once."""
    note = " ".join(WORDS[:9] * 10)
    once, less = (f"{OTHER} {' '.join(WORDS[:words])} {OTHER}" for words in (9, 6))
    assert find_leaking([once, less], [note]).tolist() == [True, False]


@pytest.mark.parametrize(("every", "leaks"), [(12, True), (18, True), (9, True), (8, False)])
def test_a_note_whose_names_were_taken_out_is_a_copy(every, leaks):
    """Of de-identified notes the archive has the originals; of runs of seven words nothing is left to be known by."""
    note = [f"mot{number}" for number in range(20 * every)]
    anonymous = ["NOM" if number % every == 0 else word for number, word in enumerate(note)]
    archive = [" ".join([*OTHER.split() * 40, *note])]
    assert find_leaking(archive, [" ".join(anonymous)]).tolist() == [leaks]
    assert find_leaking([" ".join(anonymous)], [" ".join(note)]).tolist() == [leaks]


def test_pieces_of_a_note_count_together_those_of_several_notes_do_not():
    note, other = ([f"{name}{number}" for number in range(60)] for name in ("mot", "rien"))
    document = [*note[:12], *other, *note[20:32], *other, *note[40:52]]
    assert find_leaking([" ".join(document)], [" ".join(note)]).all()  # 36 of 60 words
    notes = [" ".join([*note[:12], *other[:24]]), " ".join([*note[20:32], *other[24:48]])]
    assert not find_leaking([" ".join([*note[:12], "x", *note[20:32], *OTHER.split()])], notes).any()


@pytest.mark.parametrize("change", [
    lambda text: text.replace("e", "e\u00ad"),  # soft hyphens
    lambda text: text.replace("e", "e\ufeff"),
    lambda text: text.replace("tr", "t-\nr"),
    lambda text: text.replace(" ", "_"),
    lambda text: text.replace("oe", "œ"),
])  # fmt: skip
def test_signs_that_a_copy_may_lack_do_not_hide_it(change):
    note = NOTE + " oedème des membres"
    assert change(note) != note and split_words(change(note)) == split_words(note)
    assert find_leaking([change(note)], [note]).all()


def test_a_patients_number_and_name_are_the_same_however_they_are_written():
    held_out = Corpus([NOTE, OTHER], [("n1", "7", "Zoé"), ("n2", "P00", "0")])
    same = [("7.0",), ("007",), ("0/",), ("00/",), ("p00",), (unicodedata.normalize("NFD", "ZOÉ"),)]
    others = [("7.00",), ("70",), ("p0",)]
    corpus = Corpus([f"text {number}" for number in range(9)], same + others)
    assert remove_held_out(corpus, held_out)[0].names == others


def test_each_folder_may_be_a_source(tmp_path):
    """As the shell writes letters/p*."""
    for name in ("p1/one", "p1/two", "p2/one", "p3/one"):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"un texte, {name}", encoding="utf-8")
    corpus = read_corpus([str(tmp_path / name) for name in ("p1", "p2", "p3")], group_column="who")
    assert corpus.groups == ["p1", "p1", "p2", "p3"]
    assert remove_held_out(corpus, Corpus([NOTE], [("n", "p1")]))[1] == Removed(by_name=2)


def test_other_accents_and_pieces_are_found():
    assert find_leaking([unicodedata.normalize("NFD", NOTE)], [NOTE]).all()
    pieces = [" ".join(WORDS[:9]), " ".join(WORDS[9:])]
    assert find_leaking(pieces, [f"{NOTE} {OTHER}"]).all()


def test_training_notes_are_not_taken_for_patients():
    """Note 1 is of patient 3, patient 1 is held out."""
    corpus, held_out = Corpus([OTHER, OTHER + " bis"], [("1", "3"), ("1",)]), Corpus([NOTE], [("2", "1")])
    kept, removed, left = remove_held_out(corpus, held_out, training=1)
    assert left == 1
    assert kept.texts == [OTHER] and removed == Removed(by_name=1)


def test_patients_of_further_tables_are_not_taken_for_notes(tmp_path):
    """Note 2 of patient 1 is held out: of the further letters that of patient 1 goes, that of patient 2 stays."""
    path = tmp_path / "archive.csv"
    letters = [f"{OTHER} {number}" for number in range(3)]
    pd.DataFrame({"id": [8, 9, 1], "patient": [1.0, 2.0, 5.0], "text": letters}).to_csv(path, index=False)
    further = read_corpus([str(path)], group_column="patient", id_column="id")
    kept, removed, _ = remove_held_out(further, Corpus([NOTE], [("2", "1")]))
    assert kept.texts == [letters[1]]  # and an id may be a patient's number
    assert removed == Removed(by_name=2)


def test_words_in_another_order_are_no_copy():
    assert not find_leaking([" ".join(reversed(WORDS))], [NOTE]).any()


def test_short_notes_are_compared_as_a_whole():
    assert find_leaking(["Pas de fièvre.", f"Pas de fièvre. {OTHER}"], ["pas de fièvre"]).tolist() == [True, False]


def test_counts_by_reason():
    corpus = Corpus(
        [NOTE, OTHER, OTHER.upper(), NOTE + " " + OTHER, "autre"], [("a",), ("b",), (), (), ("x", "patient 1")]
    )
    kept, removed, _ = remove_held_out(corpus, Corpus([NOTE], [("a", "patient 1")]))
    assert kept.texts == [OTHER] and kept.names == [("b",)]
    assert removed == Removed(by_name=2, by_content=1, copies=1)
    assert str(removed) == "2 by id or group, 1 by content, 1 copies"
    everything, nothing, _ = remove_held_out(corpus, Corpus([], []))
    assert len(everything) == 4 and nothing == Removed(copies=1)


def test_row_numbers_are_no_names(tmp_path):
    """Two tables without ids both have a row-1: that says nothing."""
    for name, texts in (("notes.csv", [NOTE, OTHER]), ("more.csv", ["un texte", "deux textes"])):
        pd.DataFrame({"text": texts, "label": [0, 1]}).to_csv(tmp_path / name, index=False)
    notes = load_notes(DataArguments(dataset=str(tmp_path / "notes.csv")))
    more = read_corpus([str(tmp_path / "more.csv")])
    assert len(remove_held_out(more, of_notes(notes, np.arange(2)))[0]) == 2


def test_notes_go_by_id_and_patient(tmp_path):
    path = tmp_path / "notes.csv"
    pd.DataFrame({"id": ["n1", "n2"], "text": [NOTE, OTHER], "label": [0, 1], "who": [7, 8]}).to_csv(path, index=False)
    notes = load_notes(DataArguments(dataset=str(path), group_column="who"))
    assert of_notes(notes, np.array([1])).names == [("n2", "8")]
    assert of_notes(notes, np.array([1, 0])).groups == ["8", "7"]


def test_ids_are_looked_up_where_a_table_has_them(tmp_path):
    ours = tmp_path / "ours.csv"
    pd.DataFrame({"key": ["n1", "n2"], "text": [NOTE, OTHER]}).to_csv(ours, index=False)
    theirs = tmp_path / "theirs.csv"
    pd.DataFrame({"id": ["x"], "text": ["un texte"]}).to_csv(theirs, index=False)
    assert read_corpus([str(ours), str(theirs)], id_column="key").names == [("n1",), ("n2",), ("x",)]
    assert read_corpus([str(ours)]).names == [(), ()]


def test_a_table_that_names_no_patients_is_told(tmp_path, caplog):
    for name, column in (("ours", "who"), ("theirs", "patient")):
        pd.DataFrame({column: [7], "text": [f"un texte de {name}"]}).to_csv(tmp_path / f"{name}.csv", index=False)
    corpus = read_corpus([str(tmp_path / f"{name}.csv") for name in ("ours", "theirs")], group_column="who")
    assert corpus.names == [("7/",), ()]
    (warning,) = caplog.messages
    assert "theirs.csv: no column who; other letters of held-out patients are not known where nothing names" in warning


def test_text_files_that_name_no_patients_are_told(tmp_path, caplog):
    (tmp_path / "letters").mkdir()
    for path in (tmp_path / "lines.txt", tmp_path / "letters" / "p7_1.txt"):
        path.write_text("un texte", encoding="utf-8")
    sources = [str(tmp_path / "lines.txt"), str(tmp_path / "letters")]
    read_corpus(sources)
    assert not caplog.messages
    read_corpus(sources, group_column="who")
    lines, letters = caplog.messages
    assert "lines.txt: no line names its patient; other letters" in lines
    assert "letters: patients go by the names of files and folders alone; other letters" in letters


def test_folders_may_be_patients(tmp_path):
    for name in ("p1/letter", "p2/letter", "p2/other", "2023/p7", "2024/p7", "2024/p8", "2024/p9"):
        path = tmp_path / ("by patient" if name[0] == "p" else "by year") / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"un texte, {name}", encoding="utf-8")
    (tmp_path / "by patient" / "p3").mkdir()
    (tmp_path / "by patient" / "p3" / "letter.txt").write_text("un texte", encoding="utf-8")
    by_patient, by_year = (str(tmp_path / name) for name in ("by patient", "by year"))
    assert read_corpus([by_patient]).groups == ["p1", "p2", "p2", "p3"]
    assert read_corpus([by_year]).groups == ["p7", "p7", "p8", "p9"]
    # a folder is looked for among the held-out patients, not among the ids of notes, which may well be years
    held_out = Corpus([NOTE], [("2024", "p2")])
    kept, removed, _ = remove_held_out(read_corpus([by_patient], group_column="who"), held_out)
    assert kept.groups == ["p1", "p3"] and removed == Removed(by_name=2)
    for group_column in (None, "who"):
        assert len(remove_held_out(read_corpus([by_year], group_column=group_column), held_out)[0]) == 4
    assert len(remove_held_out(read_corpus([by_patient]), Corpus([NOTE], [("p2",)]))[0]) == 4  # the id of a note


def test_a_page_break_ends_no_document(tmp_path):
    (tmp_path / "lines.txt").write_bytes("page une\fpage deux\u2028suite\r\nautre".encode())
    assert read_corpus([str(tmp_path / "lines.txt")]).texts == ["page une\fpage deux\u2028suite", "autre"]


@pytest.mark.parametrize(
    ("note", "other"),
    [
        (
            "患者因反复咳嗽伴低热两周入院，胸片示右下肺炎，予抗生素治疗后好转。",
            "既往高血压病史十年，长期口服药物控制。",
        ),
        (
            "三日前からの発熱と咳嗽を主訴に来院し、胸部Ｘ線で肺炎と診断された。",
            "高血圧のため内服治療を続けている患者。",
        ),
        ("ผู้ป่วยมีไข้และไอมาสามวันแพทย์ตรวจพบปอดอักเสบ", "ความดันโลหิตสูงรับประทานยาสม่ำเสมอ"),
    ],
)
def test_scripts_without_spaces_are_looked_for_too(note, other):
    assert find_leaking([f"{other}{note}{other}", note[:20], other], [note]).tolist() == [True, True, False]


def test_training_notes_are_no_reason_to_doubt_the_further_text(caplog):
    notes = [f"{NOTE} {number}" for number in range(3)]
    further = ["un texte", "deux textes"]
    remove_held_out(Corpus([*notes, *further], [()] * 5), Corpus([NOTE], [()]), training=3)
    assert not caplog.messages
    remove_held_out(Corpus([*further, *notes], [()] * 5), Corpus([NOTE], [()]), training=1)
    assert "3 of the 4 --unlabeled documents belong to held-out notes or hold one" in caplog.messages[0]


def test_folders_that_cannot_be_entered_or_are_links_are_told(tmp_path, monkeypatch, caplog):
    archive, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    for folder in (archive / "ward-a", archive / "ward-b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "letter.txt").write_text(f"lettre de {folder.name}", encoding="utf-8")
    (archive / "ward-c").symlink_to(elsewhere)
    assert read_corpus([str(archive)]).texts == ["lettre de ward-a", "lettre de ward-b"]
    assert any("ward-c: a link to a folder, not followed" in message for message in caplog.messages)
    list_folder = os.listdir

    def refuse(path):  # tests run as root may enter every folder
        if "ward-b" in str(path):
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert read_corpus([str(archive)]).texts == ["lettre de ward-a"]
    assert caplog.messages[-1].endswith("ward-b: cannot be opened (Permission denied); left out")


@pytest.mark.parametrize("sources", [[""], ["lines.txt", " "]])
def test_an_empty_source_is_not_the_current_folder(sources):
    with pytest.raises(DataError, match="--unlabeled is empty; give files or folders"):
        read_corpus(sources)


def test_each_kind_of_source(tmp_path):
    (tmp_path / "lines.txt").write_text("un\n\n deux\n", encoding="utf-8")
    tables = tmp_path / "tables"
    tables.mkdir()
    pd.DataFrame({"id": ["a", "b"], "text": ["trois", "quatre"], "split": ["whatever", "x"]}).to_json(
        tables / "data.jsonl", orient="records", lines=True
    )
    (tables / "README.txt").write_text("no document", encoding="utf-8")
    documents = tmp_path / "documents" / "2024"
    documents.mkdir(parents=True)
    (documents / "p7.txt").write_text("cinq\nsix", encoding="utf-8")
    corpus = read_corpus([str(tmp_path / name) for name in ("lines.txt", "tables", "documents")])
    assert corpus.texts == ["un", " deux", "trois", "quatre", "cinq\nsix"]
    assert corpus.names == [(), (), ("a",), ("b",), ("p7",)]
    assert corpus.groups[2:] == ["a", "b", "p7"] and len(set(corpus.groups)) == 5
    assert corpus.fingerprint() != corpus.select([1, 0, 2, 3, 4]).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n\n", "empty.txt: no text in it"),
        ("latin.txt", "é".encode("latin-1"), "latin.txt is not UTF-8 text"),
        ("note.csv", b"note\nfi\xc3\xa8vre", r"note\.csv: --text_column text: no such column; found: note"),
        ("blank.csv", b"text,id\nfi\xc3\xa8vre,1\n,2", r"blank\.csv: Empty or non-text notes in 1 row \(2\)"),
        ("header.csv", b"text,id\n", r"^--unlabeled \S*header\.csv: no rows"),
        ("absent.txt", None, "absent.txt cannot be opened"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_corpus([str(tmp_path / name)])
    assert "fièvre" not in str(caught.value)
