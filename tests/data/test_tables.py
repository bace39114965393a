"""Tables in files: each row is read, or an error names the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from raykd.data.table import Dialect, Table, check_dialect, check_table, read_table

ROWS = [("it was good", "yes"), ("a, b", "no"), ('she said "no"', "no"), ("two\nlines", "yes")]
PLAIN = [("it was good", "yes"), ("not at all", "no"), ("fine", "yes")]


def read(file: Path, **dialect: Any) -> Table:
    (table,) = read_table(file, ["text", "label"], Dialect(**dialect))
    return table


def rows_of(table: Table) -> list[tuple[Any, Any]]:
    return [*zip(table.columns["text"], table.columns["label"], strict=True)]


def write_bytes(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def lines(rows: list[tuple[str, str]], delimiter: str = ",", end: str = "\n") -> str:
    return "".join(delimiter.join(row) + end for row in [("text", "label"), *rows])


def quoted(rows: list[tuple[str, str]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("text", "label"), *rows])
    return stream.getvalue()


class TestQuotes:
    def test_quotes_enclose_fields(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", quoted(ROWS)))
        assert rows_of(table) == ROWS
        assert [table.place(row) for row in range(4)] == ["line 2", "line 3", "line 4", "line 5"]
        assert table.notes == ()

    def test_lines_after_field_of_several_lines(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", quoted([ROWS[3], ROWS[0]])))
        assert [table.place(row) for row in range(2)] == ["line 2", "line 4"]

    @pytest.mark.parametrize(
        "text", ['"it was', '"it" was', 'it was 5" long', '""it was', '"it was"', 'it "was" good']
    )
    def test_quotes_as_plain_characters(self, text: str, tmp_path: Path) -> None:
        rows = [(text, "yes"), ("fine", "no"), ('"so', "no"), ("so", "yes")]
        table = read(write_bytes(tmp_path / "a.tsv", lines(rows, "\t")))
        assert rows_of(table) == rows
        assert table.notes == ("a.tsv: quotes are read as plain characters (data.quoting: none)",)

    def test_unclosed_quote_does_not_swallow_rows(self, tmp_path: Path) -> None:
        rows = [('"it was', "yes"), *PLAIN, ('the end"', "no")]
        assert rows_of(read(write_bytes(tmp_path / "a.tsv", lines(rows, "\t")))) == rows
        file = write_bytes(tmp_path / "a.csv", lines(rows))
        with pytest.raises(
            ValueError, match=r"a\.csv: the quote that opens in line 2 encloses 5 lines that look"
        ):
            read(file)
        assert rows_of(read(file, quoting="none")) == rows
        assert len(read(file, quoting="double")) == 1

    def test_escaped_quotes(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", 'text,label\n"he said \\"a, b\\"",yes\n"c, d",no\n')
        table = read(file)
        assert rows_of(table) == [('he said "a, b"', "yes"), ("c, d", "no")]
        assert table.notes == (
            "a.csv: quotes inside fields are escaped by backslashes (data.quoting: backslash)",
        )
        assert rows_of(read(file, quoting="backslash")) == rows_of(table)

    def test_inconsistent_quotes_raise(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines([*PLAIN, ('"so" it, was', "no")]))
        with pytest.raises(
            ValueError, match=r"a\.csv: the record that begins in line 5 has mismatched quotes"
        ):
            read(file)

    def test_line_breaks_in_text_do_not_start_rows(self, tmp_path: Path) -> None:
        rows = [("well, so\nit was", "yes"), ("fine", "no"), ("a\nb, c", "yes"), ("d", "yes")]
        assert rows_of(read(write_bytes(tmp_path / "a.csv", quoted(rows)))) == rows

    def test_swallowed_rows_between_quoted_rows(self, tmp_path: Path) -> None:
        content = quoted(ROWS) + '"it was,yes\nfine,no\nso,no\ndone",yes\n"a, b",no\n'
        file = write_bytes(tmp_path / "a.csv", content)
        with pytest.raises(ValueError, match="opens in line 7 encloses 4 lines that look like"):
            read(file)
        assert len(read(file, quoting="double")) == 6

    def test_quotes_doubled_or_escaped(self, tmp_path: Path) -> None:
        content = 'text,label\n"5\\"",yes\nplain,no\n'
        file = write_bytes(tmp_path / "a.csv", content + '"b, c",no\n')
        rows = [('5"', "yes"), ("plain", "no"), ("b, c", "no")]
        assert rows_of(read(file)) == rows_of(read(file, quoting="backslash")) == rows
        file = write_bytes(tmp_path / "b.csv", content + 'last",no\n')
        with pytest.raises(
            ValueError, match=r"2 records if quotes .* doubled, and 4 if .* escaped"
        ):
            read(file)

    def test_repeated_header(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines(PLAIN) + lines(PLAIN))
        with pytest.raises(ValueError, match="line 5 repeats the header"):
            read(file)

    @pytest.mark.parametrize("header", ["\ufefftext,label", "Text, LABEL ", '\ufeff"text","label"'])
    def test_repeated_header_in_another_form(self, header: str, tmp_path: Path) -> None:
        second = lines(PLAIN).replace("text,label", header)
        file = write_bytes(tmp_path / "a.csv", lines(PLAIN) + second)
        with pytest.raises(ValueError, match="line 5 repeats the header"):
            read(file)

    def test_concatenated_files(self, tmp_path: Path) -> None:
        joined = lines(PLAIN) + "\ufeff" + lines(PLAIN).removeprefix("text,label\n")
        table = read(write_bytes(tmp_path / "a.csv", joined))
        assert rows_of(table) == PLAIN * 2
        assert table.notes == (
            "a.csv: byte order mark between lines removed; were files concatenated?",
        )

    def test_option_overrides_detection(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.tsv", lines([('"good"', "yes"), ("bad", "no")], "\t"))
        assert read(file, quoting="none").columns["text"] == ['"good"', "bad"]
        assert read(file, quoting="double").columns["text"] == ["good", "bad"]


class TestFields:
    @pytest.mark.parametrize(
        ("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
    )
    def test_delimiter_is_taken_from_header(
        self, delimiter: str, name: str, tmp_path: Path
    ) -> None:
        file = write_bytes(tmp_path / "a.csv", lines(PLAIN, delimiter))
        assert rows_of(read(file)) == PLAIN
        assert read(file).notes == (f"a.csv: fields are separated by {name}",)
        assert read(file, delimiter=delimiter).notes == ()

    def test_delimiter_is_not_guessed_from_texts(self, tmp_path: Path) -> None:
        rows = [("a; b; c", "yes"), ("d; e; f", "no")]
        assert rows_of(read(write_bytes(tmp_path / "a.csv", lines(rows)))) == rows
        file = write_bytes(tmp_path / "b.csv", lines(rows, "^"))
        with pytest.raises(ValueError, match=r"no column 'text'; it has text\^label.*delimiter"):
            read(file)
        assert rows_of(read(file, delimiter="^")) == rows

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_line_ends(self, end: str, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", lines(PLAIN, end=end)))
        assert rows_of(table) == PLAIN
        assert table.place(2) == "line 4"

    def test_blank_lines(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", lines(PLAIN) + "\n\n  \n,\n"))
        assert rows_of(table) == PLAIN and table.notes == ()
        table = read(write_bytes(tmp_path / "a.csv", lines(PLAIN) + "\nso,no\n"))
        assert len(table) == 4 and table.place(3) == "line 6"
        assert table.notes == ("a.csv: 1 blank line between rows skipped",)

    @pytest.mark.parametrize(
        ("row", "fields"),
        [("a, b,yes", "3 fields"), ("only text", "1 field"), ("a,yes,", "3 fields")],
    )
    def test_rows_of_unequal_width(self, row: str, fields: str, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines(PLAIN) + row + "\n")
        with pytest.raises(ValueError, match=f"line 5 has {fields}, the header 2"):
            read(file)

    def test_missing_unused_fields(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", "text,label,comment\na,yes\nb,no,so\n"))
        assert rows_of(table) == [("a", "yes"), ("b", "no")]
        assert table.notes == ("a.csv: 1 row without the last fields",)

    def test_row_names_of_r(self, tmp_path: Path) -> None:
        content = "text\tlabel\n1\ta\tyes\n2\tb\tno\n"
        table = read(write_bytes(tmp_path / "a.tsv", content))
        assert rows_of(table) == [("a", "yes"), ("b", "no")]
        assert "row numbers" in table.notes[0]
        file = write_bytes(tmp_path / "a.csv", "text,label\na, b,yes\nc, d,no\n")
        with pytest.raises(ValueError, match="line 2 has 3 fields"):
            read(file)

    def test_long_field(self, tmp_path: Path) -> None:
        rows = [("x" * 200_000, "yes"), ("b", "no")]
        before = csv.field_size_limit()
        assert rows_of(read(write_bytes(tmp_path / "a.csv", lines(rows)))) == rows
        assert csv.field_size_limit() == before


class TestColumns:
    def test_column_names_ignore_case_and_whitespace(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", "Text, label \na,yes\n"))
        assert rows_of(table) == [("a", "yes")]
        assert table.notes == (
            "a.csv: column 'Text' is used for 'text'",
            "a.csv: column ' label ' is used for 'label'",
        )

    @pytest.mark.parametrize("header", ["text,text,label", "Text,TEXT,label"])
    def test_duplicate_column_name(self, header: str, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", header + "\na,b,yes\n")
        with pytest.raises(ValueError, match="2 columns for 'text'"):
            read(file)

    def test_exact_name_takes_precedence(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.csv", "Text,text,label\nA,a,yes\n"))
        assert rows_of(table) == [("a", "yes")] and table.notes == ()

    def test_without_header(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", "yes,it was good\nno,so so\n")
        with pytest.raises(ValueError, match=r"no column 'text'; it has yes, it was good.*columns"):
            read(file)
        table = read(file, columns=("label", "text"))
        assert rows_of(table) == [("it was good", "yes"), ("so so", "no")]
        assert table.place(0) == "line 1"
        file = write_bytes(tmp_path / "b.csv", lines(PLAIN))
        with pytest.raises(ValueError, match=r"leave out data\.columns"):
            read(file, columns=("text", "label"))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "is empty"),
            (" \n\n", "is empty"),
            ("text,label\n", "no rows"),
            (",,\n", "is empty"),
            ('""\n', "is empty"),
        ],
    )
    def test_files_without_rows(self, content: str, words: str, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", content)
        with pytest.raises(ValueError, match=words):
            read(file)


class TestEncodings:
    ROWS = (("café", "yes"), ("naïve", "no"))

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    def test_byte_order_marks(self, encoding: str, suffix: str, tmp_path: Path) -> None:
        text = lines([*self.ROWS]) if suffix == ".csv" else jsonl([*self.ROWS])
        table = read(write_bytes(tmp_path / f"a{suffix}", text.encode(encoding)))
        assert rows_of(table) == [*self.ROWS]

    def test_other_encodings_are_named(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines([*self.ROWS]).encode("cp1252"))
        with pytest.raises(
            ValueError, match=r"line 2 is not UTF-8 \(byte 0xe9; .*'café'.*encoding"
        ):
            read(file)
        table = read(file, encoding="cp1252")
        assert rows_of(table) == [*self.ROWS]
        assert table.notes == ("a.csv is read as cp1252",)

    def test_utf16_without_mark(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines([*self.ROWS]).encode("utf-16-le"))
        with pytest.raises(ValueError, match=r"set data\.encoding to utf-16-le"):
            read(file)
        assert rows_of(read(file, encoding="utf-16-le")) == [*self.ROWS]

    def test_suspicious_characters(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.csv", lines([*self.ROWS]))
        (warning,) = read(file, encoding="latin-1").warnings
        assert "is valid UTF-8, but read as latin-1" in warning
        file = write_bytes(tmp_path / "b.csv", lines([("caf\ufffd", "yes")]))
        (warning,) = read(file).warnings
        assert "1 replacement characters (U+FFFD)" in warning

    @pytest.mark.parametrize(
        ("content", "kind"),
        [(gzip.compress(b"text,label", mtime=0), "gzip"), (b"PK\x03\x04\x14\0", "Excel")],
    )
    def test_binary_files(self, content: bytes, kind: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"a\.csv is a .*{kind} file, not \.csv text"):
            read(write_bytes(tmp_path / "a.csv", content))

    @pytest.mark.parametrize("encoding", ["klingon", "base64", "rot13"])
    def test_unknown_encodings(self, encoding: str) -> None:
        with pytest.raises(ValueError, match=f"unknown encoding '{encoding}'"):
            check_dialect(Dialect(encoding=encoding))

    @pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "\\"])
    def test_delimiters(self, delimiter: str) -> None:
        check_dialect(Dialect(delimiter="\\t"))
        with pytest.raises(ValueError, match="it must be one character"):
            check_dialect(Dialect(delimiter=delimiter))


def jsonl(rows: list[tuple[Any, Any]]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


class TestJson:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
    def test_lines(self, end: str, tmp_path: Path) -> None:
        rows = [("a", 1), ("b", "x"), ("c", None), ("d", [1]), ("e", True), ("f", 0.5)]
        table = read(write_bytes(tmp_path / "a.jsonl", jsonl(rows).replace("\n", end)))
        assert rows_of(table) == rows and table.typed
        assert table.place(2) == ("line 5" if end == "\n\n" else "line 3")

    @pytest.mark.parametrize("indent", [None, 2])
    def test_documents(self, indent: int | None, tmp_path: Path) -> None:
        rows = [{"text": text, "label": label} for text, label in PLAIN]
        columns = {key: [row[key] for row in rows] for key in ("text", "label")}
        numbered = {key: dict(enumerate(values)) for key, values in columns.items()}
        for document in (rows, columns, numbered):
            file = write_bytes(tmp_path / "a.json", json.dumps(document, indent=indent))
            assert rows_of(read(file)) == PLAIN
            assert read(file).place(0) == "row 1"

    def test_columns_by_row_name_in_different_orders(self, tmp_path: Path) -> None:
        columns = {"text": {"0": "a", "1": "b"}, "label": {"1": "of b", "0": "of a"}}
        file = write_bytes(tmp_path / "a.json", json.dumps(columns))
        assert rows_of(read(file)) == [("a", "of a"), ("b", "of b")]
        columns["label"]["2"] = columns["label"].pop("0")
        file = write_bytes(tmp_path / "a.json", json.dumps(columns))
        with pytest.raises(ValueError, match="'text' and 'label' have values for different rows"):
            read(file)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (jsonl([("a", "b")]) + '{"text": "a",\n', "line 2: Expecting property name"),
            ('{"text": "a", "text": "b", "label": "c"}\n', "'text' appears twice"),
            ('"a"\n"b"\n', "line 1 holds 'a'; it must be an object"),
            ('{"data": [{"text": "a"}]}', "no column 'text'; it has data"),
            ('{"text": ["a", "b"], "label": ["c"]}', "not columns of equal length"),
            ("[" * 100_000, "cannot be read as JSON"),
        ],
    )
    def test_invalid_json_raises(self, content: str, words: str, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a.json", content)
        with pytest.raises(ValueError, match=words):
            read(file)

    def test_missing_keys(self, tmp_path: Path) -> None:
        table = read(write_bytes(tmp_path / "a.jsonl", jsonl([("a", "b")]) + '{"text": "c"}\n'))
        assert rows_of(table) == [("a", "b"), ("c", None)]


class TestArrow:
    def test_kinds_of_text(self, tmp_path: Path) -> None:
        texts, labels = ["a", "b", None], ["x", "y", "x"]
        for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
            columns = {"text": pa.array(texts).cast(kind), "label": pa.array(labels).cast(kind)}
            parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
            table = read(tmp_path / "a.parquet")
            assert rows_of(table) == [*zip(texts, labels, strict=True)]
            assert table.place(2) == "row 3"

    @pytest.mark.parametrize("column", ["text", "number"])
    def test_tables_that_unpack_to_any_size(
        self, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raykd.data.table.MAX_UNPACKED", 1 << 20)
        value = {"text": "a" * 100, "number": 0}[column]
        rows = pa.repeat(pa.scalar(value), 2_000_000)
        parquet.write_table(pa.table({"text": rows, "label": rows}), tmp_path / "bomb.parquet")
        assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
        with pytest.raises(ValueError, match=r"bomb\.parquet .*unpacks to more than \d+ MiB"):
            read(tmp_path / "bomb.parquet")

    @pytest.mark.parametrize("form", ["file", "stream"])
    def test_compressed_arrow_files_that_unpack_to_any_size(
        self, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raykd.data.table.MAX_UNPACKED", 1 << 20)
        rows = pa.repeat(pa.scalar(0), 100_000)
        part = pa.record_batch({"text": rows, "label": rows})
        write = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with write(str(tmp_path / "bomb.arrow"), part.schema, options=options) as writer:
            for _ in range(10):
                writer.write_batch(part)
        assert (tmp_path / "bomb.arrow").stat().st_size < 20_000
        with pytest.raises(ValueError, match=r"bomb\.arrow .*unpacks to more than \d+ MiB"):
            read(tmp_path / "bomb.arrow")

    @pytest.mark.parametrize("form", ["file", "stream", "folder"])
    @pytest.mark.parametrize("compression", ["zstd", "lz4"])
    def test_compressed_batch_is_refused_before_it_is_unpacked(
        self, form: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raykd.data.table.MAX_UNPACKED", 1 << 20)
        rows = pa.array(np.zeros(20_000_000))
        part = pa.record_batch({"text": rows, "label": rows})
        file = tmp_path / "bomb.arrow"
        if form == "folder":
            import datasets

            datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]}).save_to_disk(str(tmp_path))
            (file,) = tmp_path.glob("*.arrow")
        write = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with write(str(file), part.schema, options=options) as writer:
            writer.write_batch(part)
        assert file.stat().st_size < part.nbytes / 200
        del rows, part
        before = pa.total_allocated_bytes()
        monkeypatch.setattr("pyarrow.ipc.open_file", None)
        monkeypatch.setattr("pyarrow.ipc.open_stream", None)
        with pytest.raises(ValueError, match=r"unpacks to more than \d+ MiB"):
            read(tmp_path if form == "folder" else file)
        assert pa.total_allocated_bytes() - before < 1 << 20

    def test_compressed_arrow_file_that_is_not_too_large(self, tmp_path: Path) -> None:
        table = pa.table({"text": ["a", "b"], "label": pa.array(["x", "y"]).dictionary_encode()})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema, options=options) as writer:
            writer.write_table(table)
        assert rows_of(read(tmp_path / "a.arrow")) == [("a", "x"), ("b", "y")]

    def test_large_values_that_every_row_repeats(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One batch of all rows would take 2 GB."""
        monkeypatch.setattr("raykd.data.table.MAX_UNPACKED", 1 << 20)
        codes = pa.repeat(pa.scalar(0, pa.int32()), 65_536)
        rows = pa.DictionaryArray.from_arrays(codes, ["a" * 32_000])
        parquet.write_table(pa.table({"text": rows, "label": codes}), tmp_path / "bomb.parquet")
        pool = pa.default_memory_pool()
        with pytest.raises(ValueError, match=r"bomb\.parquet .*unpacks to more than \d+ MiB"):
            read(tmp_path / "bomb.parquet")
        assert (pool.max_memory() or 0) < 1 << 30

    def test_class_numbers_with_names(self, tmp_path: Path) -> None:
        import datasets

        label = datasets.ClassLabel(names=["late", "early"])
        features = datasets.Features({"text": datasets.Value("string"), "label": label})
        rows = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(tmp_path / "a.parquet"))
        table.save_to_disk(str(tmp_path / "folder"))
        for file in (tmp_path / "a.parquet", tmp_path / "folder"):
            assert read(file).columns["label"] == ["late", "early", None]


class TestFiles:
    def test_pattern_for_several_files(self, tmp_path: Path) -> None:
        for number, row in enumerate(PLAIN):
            write_bytes(tmp_path / f"train-{number}.csv", lines([row]))
        tables = [*read_table(tmp_path / "train-*.csv", ["text", "label"], Dialect())]
        assert [row for table in tables for row in rows_of(table)] == PLAIN
        assert tables[2].file.name == "train-2.csv"
        with pytest.raises(ValueError, match=r"there is no .*val-\*\.csv"):
            check_table(tmp_path / "val-*.csv")

    def test_name_that_looks_like_pattern(self, tmp_path: Path) -> None:
        file = write_bytes(tmp_path / "a[1].csv", lines(PLAIN))
        assert rows_of(read(file)) == PLAIN

    def test_suffixes_of_any_case(self, tmp_path: Path) -> None:
        assert rows_of(read(write_bytes(tmp_path / "A.CSV", lines(PLAIN)))) == PLAIN

    def test_folder_of_files(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "a.csv", lines(PLAIN))
        with pytest.raises(ValueError, match=r"is a folder.*it holds a\.csv: name one of them"):
            check_table(tmp_path)
