"""Rows from every source, as they are, or an error that names the row and the way out."""

import gzip
import json
import re
import sys

import numpy as np
import pytest

from llmasos.core.errors import DataError, MissingExtraError, RemoteError, UsageError
from llmasos.data import arrow, dataset
from llmasos.data.dataset import read, split, stream
from llmasos.tasks.text_classification import TextClassificationTask

FIELDS = TextClassificationTask().fields
ROWS = [{"text": "works well", "label": "praise"}, {"text": "broke, twice", "label": "complaint"}]


def rows_of(data):
    return [row for batch in data.batches(1) for row in batch]


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def message(source, **options):
    with pytest.raises((DataError, UsageError)) as caught:
        read(source, FIELDS, **options)
    assert caught.value.hint
    return str(caught.value)


# -- sources ----------------------------------------------------------------------------------------


def write(path):
    """Write ROWS in the format that the name says."""
    kind = path.name.removesuffix(".gz").rsplit(".")[-1]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        path.write_text("".join(f'"{t}"{comma}{n}\n' for t, n in [("text", "label"), *map(dict.values, ROWS)]))
    else:
        path.write_text(json.dumps(ROWS, indent=1) if kind == "json" else "\n".join(map(json.dumps, ROWS)))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows_and_fingerprint(tmp_path, kind, packed):
    path = write(tmp_path / f"train.{kind}{packed}")
    data = read(str(path), FIELDS)
    assert rows_of(data) == ROWS
    assert data.name == path.name
    assert data.fingerprint() == read(ROWS, FIELDS).fingerprint()
    assert list(stream(path, FIELDS)) == [{"text": row["text"]} for row in ROWS]


def test_python_pandas_and_hugging_face_sources_give_the_same_rows():
    import datasets
    import pandas as pd

    columns = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    pairs = [tuple(row.values()) for row in ROWS]
    for source in (ROWS, columns, pairs, iter(pairs), pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)):
        assert rows_of(read(source, FIELDS)) == ROWS


def test_tuples_may_carry_a_second_text():
    expected = [{"text": "a", "text_pair": "b", "label": 1}]
    assert rows_of(read([("a", "b", 1)], FIELDS)) == expected
    assert rows_of(read([(("a", "b"), 1)], FIELDS)) == expected
    assert rows_of(read([("a", 1)], FIELDS)) == [{"text": "a", "label": 1}]


def test_a_list_of_texts_needs_no_labels_only_if_none_are_wanted():
    assert rows_of(read(["a", "b"], FIELDS, labelled=False)) == [{"text": "a"}, {"text": "b"}]
    assert rows_of(read([("a", 1)], FIELDS, labelled=False)) == [{"text": "a"}]
    assert "no column for label" in message(["a", "b"])


def test_json_lines_may_be_named_json_and_a_list_jsonl(tmp_path):
    assert rows_of(read(jsonl(tmp_path / "a.json", *ROWS), FIELDS)) == ROWS
    assert rows_of(read(jsonl(tmp_path / "a.jsonl", json.dumps(ROWS)), FIELDS)) == ROWS


def test_a_long_json_list_is_read_piece_by_piece(tmp_path):
    rows = [{"text": f'[{i}] {"x" * (i % 7000)} "}}', "label": i % 2} for i in range(1500)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=2))
    data = read(path, FIELDS)
    assert rows_of(data) == rows
    assert data.where(1000) == "a.json, row 1001 (line 4002)"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text("text,label\nhello,a\n", encoding="utf-8-sig")
    assert rows_of(read(path, FIELDS)) == [{"text": "hello", "label": "a"}]


def test_large_sources_are_mapped_from_a_cached_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(arrow, "IN_MEMORY", 0)
    monkeypatch.setattr("llmasos.data.origin.IN_MEMORY", 0)
    monkeypatch.setattr(dataset, "_MAPPED", 1)  # map afresh at every batch
    rows = [{"text": f"text {i}", "label": str(i % 3)} for i in range(2500)]
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    first, second = read(path, FIELDS), read(path, FIELDS)
    expected = [{**row, "label": int(row["label"])} for row in rows]
    assert [row for batch in first.batches(700) for row in batch] == rows_of(second) == expected
    assert len(list((tmp_path / "home" / "datasets").iterdir())) == 1
    path.write_text("text,label\nnew,1\n")
    assert rows_of(read(path, FIELDS)) == [{"text": "new", "label": 1}]


def test_a_large_hugging_face_dataset_is_cached_by_its_content(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    monkeypatch.setattr("llmasos.data.origin.IN_MEMORY", 0)
    source = datasets.Dataset.from_list(ROWS)
    assert rows_of(read(source, FIELDS)) == rows_of(read(source, FIELDS)) == ROWS
    assert rows_of(read(source.select([1]), FIELDS)) == ROWS[1:]
    assert len(list((tmp_path / "datasets").iterdir())) == 2


def test_wrong_rows_leave_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("llmasos.data.origin.IN_MEMORY", 0)
    good = [{"text": "a", "label": 1}] * 1500
    assert "row 1501" in message(jsonl(tmp_path / "a.jsonl", *good, {"text": 5, "label": 1}))
    assert list((tmp_path / "home" / "datasets").iterdir()) == []


# -- values -----------------------------------------------------------------------------------------


def test_words_for_nothing_and_numbers_stay_texts_in_csv(tmp_path):
    path = tmp_path / "a.csv"
    texts = ["NA", "null", "None", "nan", "42", "2020-01-01", "", " x "]
    path.write_text("text,label\n" + "".join(f"{text},NA\n" for text in texts))
    assert [row["text"] for row in rows_of(read(path, FIELDS))] == texts
    assert {row["label"] for row in rows_of(read(path, FIELDS))} == {"NA"}


def test_dates_and_numbers_stay_texts_in_json(tmp_path):
    rows = [{"text": "2020-01-01", "label": "01"}, {"text": "42", "label": "2020-01-01"}]
    assert rows_of(read(jsonl(tmp_path / "a.jsonl", *rows), FIELDS)) == rows


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["0", "1"], [0, 1]), (["-1", "10"], [-1, 10]), (["01", "1"], ["01", "1"]), (["1", "b"], ["1", "b"])],
)
def test_csv_labels_are_integers_only_if_all_are(tmp_path, labels, expected):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"some text,{label}\n" for label in labels))
    assert [row["label"] for row in rows_of(read(path, FIELDS))] == expected


def test_a_text_that_is_a_number_is_a_wrong_row(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "a", "label": 1}, "", {"text": 123, "label": 1})
    assert "a.jsonl, row 2 (line 3), field text: found int 123, expected a string" in message(path)


def test_mixed_labels_are_named_wherever_they_come(tmp_path):
    rows = [{"text": "a", "label": 0}] * 1200 + [{"text": "a", "label": "spam"}, {"text": "a", "label": 1.5}]
    text = message(jsonl(tmp_path / "a.jsonl", *rows))
    assert "row 1201 (line 1201), field label: found str 'spam', expected an integer as in other rows" in text
    assert "row 1202 (line 1202), field label: found float 1.5, expected an integer" in text


def test_only_ten_wrong_rows_are_listed_but_all_are_counted():
    with pytest.raises(DataError) as caught:
        read([(5, "a")] * 25, FIELDS)
    assert len(caught.value.problems) == 10
    assert caught.value.count == 25
    assert "... and 15 more" in str(caught.value)


def test_numpy_values_become_pythons_own():
    data = read([(np.str_("a"), np.int64(1)), ("b", np.int32(0))], FIELDS)
    values = [value for row in rows_of(data) for value in row.values()]
    assert [type(value) for value in values] == [str, int, str, int]
    assert rows_of(read({"text": np.array(["a", "b"]), "label": np.array([0, 1])}, FIELDS))[1]["label"] == 1


def test_gaps_in_pandas_are_nothing_and_do_not_turn_integers_into_floats():
    import pandas as pd

    frame = pd.DataFrame({"text": ["a", None, "c"], "label": [1, 0, None]})
    assert rows_of(read(frame, FIELDS)) == [
        {"text": "a", "label": 1},
        {"text": None, "label": 0},
        {"text": "c", "label": None},
    ]


def test_class_labels_of_hugging_face_become_their_names():
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    source = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    assert [row["label"] for row in rows_of(read(source, FIELDS))] == ["yes", "no", None]


def test_lists_of_labels_are_kept():
    labels = [["a", "b"], [], ["b"]]
    data = read([{"text": "t", "labels": value} for value in labels], FIELDS)
    assert [row["label"] for row in rows_of(data)] == labels
    assert "found str 'a', expected a list" in message([("t", ["a"]), ("t", "a")])


def test_half_characters_are_named():
    assert "row 2, field text: found str '\\ud800'" in message([("a", 1), ("\ud800", 1)])


def test_the_source_is_never_changed():
    source = [{"text": "a", "label": np.int64(1), "more": [1]}, {"text": "b", "label": 2}]
    before = [dict(row) for row in source]
    read(source, FIELDS).rows([0])[0]["text"] = "changed"
    assert source == before


# -- columns ----------------------------------------------------------------------------------------


def test_columns_are_found_by_alias_in_order_and_then_without_case():
    data = read([{"Review": "a", "sentence": "b", "LABEL": 1}], FIELDS)
    assert data.columns == {"text": "sentence", "label": "LABEL"}
    assert read([{"Review": "a", "intent": "x"}], FIELDS).columns == {"text": "Review", "label": "intent"}


def test_columns_can_be_mapped():
    data = read([{"text": "a", "remark": "b", "stars": 1}], FIELDS, columns={"text": "remark", "label": "stars"})
    assert rows_of(data) == [{"text": "b", "label": 1}]


def test_a_missing_column_lists_the_columns_and_the_way_out():
    text = message([{"txet": "a", "label": 1}])
    assert "no column for text (the text to classify); columns found: txet, label" in text
    assert "did you mean 'txet'?" in text
    assert 'columns={"text": "txet"} (--columns text=txet)' in text


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "texts"}, "has no column 'texts'.*\nhint: did you mean 'text'\\? columns: text, label"),
        ({"txt": "body"}, "'txt', which is no field.*\nhint: did you mean 'text'"),
        ({"review": "text"}, "write the field first"),
        ({"text": "label", "label": "label"}, "'label' to two fields"),
    ],
)
def test_a_wrong_mapping_is_explained(columns, expected):
    assert re.search(expected, message([{"text": "a", "label": 1}], columns=columns))


def test_two_columns_that_differ_in_case_only_are_ambiguous():
    assert "several columns for text: Text, TEXT" in message([{"Text": "a", "TEXT": "b", "label": 1}])


def test_a_wrong_separator_is_recognised(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text;label\nhello;1\n")
    assert "separated by ';'" in message(path)


# -- files that cannot be read ----------------------------------------------------------------------


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    jsonl(tmp_path / "train.jsonl", *ROWS)
    assert "did you mean train.jsonl?" in message(tmp_path / "trian.jsonl")
    assert "does not exist either" in message(tmp_path / "no" / "train.jsonl")
    assert "no such file" in message("a text that is no path " * 100)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.docx", b"hello", "not known.*\nhint: one of .jsonl, .json, .csv, .tsv, .parquet"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "all its lines are blank"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"text,label\nok,1\ncaf\xe9,1\n", "line 3, byte 4: 0xe9 is not UTF-8\nhint: save the file as UTF-8"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16"),
        ("a.json", b'{\n"data": [1]}', "top level is an object"),
        ("a.json", b'"data"', "top level is no list"),
        ("a.json", b'[{"text": "a", "label": 1}\n{"text"', "line 2: found '{', expected ','"),
        ("a.json", b'[{"text": "a", "label": 1},\n{"text"', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n[1]\n', "line 2: found list .1., expected an object"),
        ("a.csv", b"text,label\na,b,1\n", r"line 2: found 3 fields, expected 2 \(text, label\)"),
        ("a.csv", b'text,label\n"open,1\nb,1\n', "from line 2: a double quote is opened and never closed"),
        ("a.csv", b'text,label\n"he "said" so",1\n', "from line 2: ',' expected after"),
        ("a.csv", b"text,text\na,1\n", "two columns named 'text'"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n' * 99, mtime=0)[:-12], "not a complete gzip"),
        ("a.jsonl.gz", b"plain", "not a complete gzip"),
        ("a.parquet", b"PAR1 and no more", "not a readable parquet"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_is_wrong(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    assert re.search(expected, message(path))


# -- several files, and URLs --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_a_folder_a_glob_and_urls_give_the_rows_of_all_files_in_the_order_of_their_names(tmp_path, kind):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        path = write(tmp_path / f"part-{name}.{kind}")
        memory.pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.md").write_text("left out")
    glob, url = f"{tmp_path}/part-*.{kind}", f"memory://{tmp_path.name}"
    sources = [tmp_path, glob, f"file://{tmp_path}", f"file://{glob}", url, f"{url}/*.{kind}"]
    found = [read(source, FIELDS) for source in sources]
    assert all(rows_of(data) == ROWS * 2 for data in found)
    assert len({data.fingerprint() for data in found}) == 1
    assert read(f"file://{tmp_path}/part-a.{kind}", FIELDS).fingerprint() == read(ROWS, FIELDS).fingerprint()
    assert [dict(row) for row in stream(url, FIELDS)] == [{"text": row["text"]} for row in ROWS * 2]
    line = {"parquet": "", "csv": ", line 3"}.get(kind, ", line 2")
    where = f"row 4 (part-b.{kind}{line})"
    assert [data.where(3).partition(", ")[2] for data in found] == [where] * len(found)


def test_wrong_rows_of_several_files_name_the_file(tmp_path):
    jsonl(tmp_path / "a.jsonl", *ROWS)
    jsonl(tmp_path / "b.jsonl", "{broken", {"text": 5, "label": "praise"})
    text = message(tmp_path)
    assert "b.jsonl, line 1: not JSON" in text
    assert f"{tmp_path.name}, row 3 (b.jsonl, line 2), field text: found int 5" in text


def test_rows_before_a_wrong_file_are_streamed(tmp_path):
    jsonl(tmp_path / "a.jsonl", *ROWS)
    jsonl(tmp_path / "b.jsonl", ROWS[0], "{broken")
    rows = stream(tmp_path, FIELDS)
    assert [next(rows)["text"] for _ in ROWS] == [row["text"] for row in ROWS]
    with pytest.raises(DataError, match=r"b\.jsonl, line 2"):
        next(rows)


def test_large_data_in_several_files_is_kept_mapped_and_knows_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("llmasos.data.origin.IN_MEMORY", 10)
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", *ROWS)
    for data in (read(tmp_path, FIELDS), read(tmp_path, FIELDS)):  # the second comes from the cache
        assert data.where(2).endswith("row 3 (b.jsonl, line 1)")
    jsonl(tmp_path / "b.jsonl", ROWS[0])
    assert len(read(tmp_path, FIELDS)) == 3


@pytest.mark.parametrize(("files", "source", "expected"), [
    ({"notes.md": ""}, "", "is a folder without data files"),
    ({}, "/*.jsonl", "matches no file"),
    ({"a.jsonl": "{}", "b.csv": "text"}, "", "a.jsonl is .jsonl, b.csv is .csv"),
    ({"a.csv": "text,label\na,b\n", "b.csv": "text,class\na,b\n"}, "", "b.csv has the columns text, class"),
    ({"a.jsonl": '{"text": "a", "label": "b"}', "b.jsonl": ""}, "", "b.jsonl is empty"),
])  # fmt: skip
def test_files_that_are_no_data_set_together_are_refused(tmp_path, files, source, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert expected in message(f"{tmp_path}{source}")


def test_urls_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    assert "no such file" in message(f"file://{tmp_path}/nothing.jsonl")
    assert "Protocol not known" in message("nosuch://bucket/train.jsonl")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match="pip install s3fs"):
        read("s3://bucket/train.jsonl", FIELDS)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", lambda *_, **__: 1 / 0)
    with pytest.raises(RemoteError, match="cannot be reached: ZeroDivisionError"):
        read(f"file://{tmp_path}/nothing.jsonl", FIELDS)


def test_broken_json_lines_are_listed_and_counted(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *ROWS, *["{broken"] * 12, *ROWS)
    text = message(path)
    assert text.startswith("a.jsonl: 12 rows cannot be read\n  a.jsonl, line 3: not JSON: ")
    assert "... and 2 more" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "<list> has no rows"),
        ({}, "<dict> has no rows"),
        (5, "data is int 5"),
        ([("a", 1), 5], "row 2: found int 5, expected a text"),
        ({"text": ["a"], "label": [1, 2]}, "different lengths: text 1, label 2"),
        ({"text": "a", "label": 1}, "column 'text': found str 'a', expected a list"),
    ],
)
def test_a_wrong_value_is_explained(source, expected):
    assert expected in message(source)


def test_a_dataset_dict_asks_for_one_of_its_splits():
    import datasets

    assert "data['train']" in message(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)))


# -- places, selections, streams --------------------------------------------------------------------


def test_where_gives_the_line_with_blank_lines_and_quoted_line_breaks(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "", ROWS[0], "", ROWS[1])
    assert read(path, FIELDS).where(1) == "a.jsonl, row 2 (line 4)"
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",1\nthree,0\n')
    assert [read(path, FIELDS).where(i) for i in (0, 1)] == ["a.csv, row 1 (line 2)", "a.csv, row 2 (line 4)"]
    assert read(ROWS, FIELDS).where(0) == "<list>, row 1"


def test_a_selection_keeps_the_numbers_of_its_rows():
    data = read([(f"text {i}", i) for i in range(100)], FIELDS)
    part = data.select(np.array([90, 3, 50])).select([2, 0])
    assert [row["label"] for row in part.rows([1, 0])] == [90, 50]
    assert [row["label"] for row in rows_of(part)] == [50, 90]
    assert part.where(1) == "<list>, row 91"
    assert part.numbers([0]).tolist() == [51]
    with pytest.raises(IndexError):
        part.rows([2])


def test_a_fingerprint_depends_on_values_and_order():
    prints = {read(rows, FIELDS).fingerprint() for rows in (ROWS, ROWS[::-1], ROWS[:1], [{**ROWS[0], "label": "x"}])}
    assert len(prints) == 4


def test_streaming_reads_an_iterator_no_further_than_needed():
    taken = []

    def texts():
        for i in range(5):
            taken.append(i)
            yield f"text {i}"

    rows = stream(texts(), FIELDS)
    assert next(rows) == {"text": "text 0"}
    assert len(taken) == 1
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(1, 5)]


def test_streaming_takes_dicts_tuples_and_nothing():
    assert list(stream(iter([{"review": "a", "label": 1}]), FIELDS)) == [{"text": "a"}]
    assert list(stream(iter([(("a", "b"), 1)]), FIELDS)) == [{"text": "a", "text_pair": "b"}]
    assert list(stream(iter([]), FIELDS)) == []


def test_streaming_stops_at_a_wrong_row():
    rows = stream(iter(["a", None]), FIELDS)
    assert next(rows) == {"text": "a"}
    with pytest.raises(DataError, match="row 2: found nothing"):
        next(rows)
    with pytest.raises(DataError, match="row 1, field text: found int 5, expected a string"):
        list(stream([{"text": 5}], FIELDS))


# -- split ------------------------------------------------------------------------------------------


def labels_of(data):
    return [row["label"] for row in rows_of(data)]


def test_a_split_keeps_the_shares_of_the_labels():
    data = read([("t", "a")] * 80 + [("t", "b")] * 20, FIELDS)
    train, held = split(data, 0.1, seed=0)
    assert (labels_of(held).count("a"), labels_of(held).count("b")) == (8, 2)
    assert len(train) == 90
    places = [part.where(i) for part in (train, held) for i in range(len(part))]
    assert len(set(places)) == 100


def test_a_split_depends_on_the_seed_alone():
    data = read([(f"t{i}", i % 3) for i in range(60)], FIELDS)
    first, again, other = (split(data, 0.2, seed=seed)[1].fingerprint() for seed in (1, 1, 2))
    assert first == again != other


def test_a_split_of_few_rows_empties_no_class_in_training():
    train, held = split(read([("t", "a"), ("t", "b"), ("t", "b")], FIELDS), 0.5, seed=0)
    assert sorted(labels_of(train)) == ["a", "b"]
    assert labels_of(held) == ["b"]
    train, held = split(read([("t", "a")] * 30 + [("t", "b")] * 2, FIELDS), 0.9, seed=0)
    assert set(labels_of(train)) == {"a", "b"}
    with pytest.raises(DataError, match="none of its 2 rows can be set aside"):
        split(read([("t", "a"), ("t", "b")], FIELDS), 0.5, seed=0)


def test_a_split_of_rows_with_lists_of_labels_works_where_no_list_occurs_twice():
    data = read([("t", [f"l{i}", "x"]) for i in range(10)], FIELDS)
    train, held = split(data, 0.2, seed=0)
    assert (len(train), len(held)) == (8, 2)


def test_a_split_needs_a_share():
    with pytest.raises(UsageError, match=r"share of 1\.0"):
        split(read(ROWS, FIELDS), 1.0, seed=0)
