"""Delimited text and JSON Lines: what the file holds is read, or refused by file, line and setting."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import SMALL, histories
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.core.instantiate import instantiate
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.from_config import with_root
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import LeaveLastOutSplit
from recsys.data.sources import Tables, TextFolder, TextFormat
from recsys.data.sources.tables import inspect

CONF = Path(__file__).parents[3] / "conf"
HEAD = "user_id,item_id,timestamp\n"
Content = dict[str, str | bytes]


def converted(root: Path, content: Content, format: Any = "csv", **settings: Any) -> Tables:
    """Convert files. Settings are those of the source, or else of the text format."""
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    of_text = {key: settings.pop(key) for key in [*settings] if key in TextFormat.__dataclass_fields__}
    return TextFolder(str(root), format, text=TextFormat(**of_text), **settings).tables(root.parent / "cache")


def columns(file: str) -> dict[str, list[Any]]:
    return dict(pq.ParquetFile(file).read().to_pydict())


def events_of(root: Path, text: str | bytes, name: str = "interactions.csv", **settings: Any) -> dict[str, list[Any]]:
    return columns(converted(root, {name: text}, **settings).interactions[0])


ONE_EVENT = {"user_id": [1], "item_id": [2], "timestamp": [3]}


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "1,2,3,\n",
        "user_id,item_id,timestamp,\n1,2,3,\n",
        "user_id,item_id,timestamp,\n1,2,3\n",
        ",user_id,item_id,timestamp\n0,1,2,3\n",
        "\ufeff" + HEAD + "1,2,3",
        "user_id,item_id,timestamp\r\n\r\n1,2,3\r\n",
        "user_id\titem_id\ttimestamp\n1\t2\t3\n",
        "user_id;item_id;timestamp\n1;2;3\n",
        "user_id|item_id|timestamp\n1|2|3\n",
        '"user_id","item_id","timestamp"\n"1","2","3"\n',
        HEAD + "1,2,3.0\n",
    ],
)
def test_one_event_in_many_forms(tmp_path: Path, text: str) -> None:
    assert events_of(tmp_path / "data", text) == ONE_EVENT


def test_rows_of_one_column_that_end_in_a_delimiter(tmp_path: Path) -> None:
    content: Content = {"interactions.csv": HEAD + "1,7,3\n", "items.csv": "item_id\n7;\n8;\n"}
    assert columns(converted(tmp_path / "data", content).items[0]) == {"item_id": [7, 8]}
    with pytest.raises(UserError, match=r"items\.csv: line 3: found 1 fields, expected 2 as in the first row"):
        converted(tmp_path / "other", content | {"items.csv": "item_id\na;\nb\n"})


def test_words_for_missing_values_are_text(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,country\nNone,NA,1,NA\nnan,null,2,\nnull,n/a,3,nan\n"
    assert events_of(tmp_path / "data", text) == {
        "user_id": ["None", "nan", "null"],
        "item_id": ["NA", "null", "n/a"],
        "timestamp": [1, 2, 3],
        "country": ["NA", None, "nan"],
    }
    given = events_of(tmp_path / "again", HEAD + "1,2,3\n1,7,NA\n", missing=["NA"])
    assert given["timestamp"] == [3, None]


@pytest.mark.parametrize("odd", ["B7", "007", "12345678901234567890"])
def test_one_id_that_is_no_number_makes_it_text_in_all_tables(tmp_path: Path, odd: str) -> None:
    tables = converted(tmp_path / "data", {"interactions.csv": HEAD + "1,7,3\n", "items.csv": f"item_id\n7\n{odd}\n"})
    assert columns(tables.interactions[0])["item_id"] == ["7"]
    assert columns(tables.items[0])["item_id"] == ["7", odd]
    assert columns(tables.interactions[0])["user_id"] == [1]


def test_quotes_delimiters_and_line_breaks_in_fields(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp\n1,"a ""b"", c\r\nd",3\n2,5" pipe,4\n'
    assert events_of(tmp_path / "a", text)["item_id"] == ['a "b", c\r\nd', '5" pipe']
    text = 'user_id\titem_id\ttimestamp\n1\t"Weird" Al\t3\n'
    assert events_of(tmp_path / "b", text, quote=None)["item_id"] == ['"Weird" Al']


def test_encodings_and_decimal_commas(tmp_path: Path) -> None:
    text = "user_id;item_id;timestamp;price\nJosé;2;3;1,5\n"
    expected = {"user_id": ["José"], "item_id": [2], "timestamp": [3], "price": [1.5]}
    for number, encoding in enumerate(("utf-8", "latin-1", "utf-16")):
        found = events_of(tmp_path / str(number), text.encode(encoding), encoding=encoding, decimal="comma")
        assert found == expected


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files(tmp_path: Path, ending: str, pack: Any) -> None:
    packed = pack((HEAD + "1,2,3\n").encode())
    assert events_of(tmp_path / "a", packed, f"interactions.tsv{ending}") == ONE_EVENT
    with pytest.raises(UserError, match=rf"interactions\.csv\{ending}: cannot be read"):
        events_of(tmp_path / "b", packed[:-9], f"interactions.csv{ending}")


def test_content_decides_about_compression_and_byte_order_marks(tmp_path: Path) -> None:
    text = (HEAD + "1,2,3\n").encode()
    assert events_of(tmp_path / "a/data", gzip.compress(text)) == ONE_EVENT
    assert events_of(tmp_path / "b/data", text, "interactions.csv.gz") == ONE_EVENT
    assert events_of(tmp_path / "c/data", b"\xef\xbb\xbf" + text, encoding="latin-1") == ONE_EVENT


def test_arrow_packs_and_unpacks_zstandard(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write((HEAD + "1,2,3\n").encode())
    assert events_of(tmp_path / "data", sink.getvalue().to_pybytes(), "interactions.csv.zst") == ONE_EVENT


def test_files_without_a_header_and_with_long_delimiters(tmp_path: Path) -> None:
    header = {"interactions": ["user_id", "item_id", "rating", "timestamp"]}
    found = events_of(tmp_path / "data", "1::2::5::3\n", "interactions.dat", delimiter="::", quote=None, header=header)
    assert found == ONE_EVENT | {"rating": [5]}


def test_files_and_ids_with_names_of_their_own(tmp_path: Path) -> None:
    content: Content = {"plays.dat": "userID\tartistID\tw\n2\t51\t9\n", "artists.dat": "id\tname\n51\tDuran Duran\n"}
    names = {"user_id": "userID", "item_id": "artistID", "items": {"item_id": "id"}}
    files = {"interactions": "plays.dat", "items": "artists.dat"}
    tables = converted(tmp_path / "data", content, files=files, columns=names)
    assert columns(tables.items[0]) == {"id": [51], "name": ["Duran Duran"]}
    assert tables.shown("items") == (str(tmp_path / "data/artists.dat"),)


def test_typed_headers_of_recbole(tmp_path: Path) -> None:
    tables = converted(
        tmp_path / "data",
        {
            "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t7\t4\t881250949.0\n",
            "ml.item": "item_id:token\tgenre:token_seq\tzip:token\tlook:float_seq\n7\ta b\t1.5\t1 2.5\n8\t\t2\t\n",
        },
    )
    assert columns(tables.interactions[0]) == {
        "user_id": ["u1"],
        "item_id": [7],
        "rating": [4.0],
        "timestamp": [881250949],
    }
    assert columns(tables.items[0]) == {
        "item_id": [7, 8],
        "genre": [["a", "b"], None],
        "zip": ["1.5", "2"],
        "look": [[1.0, 2.5], None],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "1,2,3\n4,5,6,7\n", r"line 3: found 4 fields, expected 3 as in the header"),
        (HEAD + "1,2,3,\n4,5,6,7\n", r"line 3: found 4 fields, expected 4 as in the first row, the last one empty"),
        (HEAD + '1,"a\nb",3\n4,5\n', r"line 4: found 2 fields"),
        (HEAD + '1,"2,3\n', r'line 2: the quote " is never closed; data\.quote=none'),
        (HEAD + '1,"Weird" Al,3\n', r"line 2: text after the closing quote"),
        (HEAD.encode() + b"1,2,3\nJos\xe9,2,3\n", r"line 3: the byte 0xe9 is not utf-8; data\.encoding=latin-1"),
        (HEAD.encode("utf-16"), r"found UTF-16; data\.encoding=utf-16"),
        (
            "a,b;c\n1,2;3\n",
            r"line 1 can be split in several ways \(a,b;c\); data\.delimiter=comma or",
        ),
        ("", "no rows"),
        ("1::2::3\n", r"line 1 has no comma, tab, semicolon or pipe \(1::2::3\); data\.delimiter=\.\.\. names another"),
        (b"PK\x03\x04\x14\x00", r"found an archive or a workbook \(zip, xlsx\), expected text"),
        (
            "user_id \titem_id\ttimestamp\n1\t2\t3\n",
            r"column 'user_id' is missing; did you mean 'user_id '\?.*columns\.user_id",
        ),
        ("User\u200bID,item_id,timestamp\n1,2,3\n", r"column 'user_id' is missing; did you mean 'User\\u200bID'\?"),
        (HEAD + "17.0,2,3\n", r"column 'user_id' holds double, expected integers or strings; .*Int64"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"data/interactions\.csv: " + message):
        inspect(converted(tmp_path / "data", {"interactions.csv": text}), {}, split_needs="timestamp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "utf-88"}, "data.encoding=utf-88: no such encoding"),
        ({"decimal": ";"}, "data.decimal=;: expected point or comma"),
        ({"quote": "''"}, "data.quote='': expected one character"),
        ({"delimiter": "::"}, "data.quote=none"),
        ({"files": {"item": "a.csv"}}, "data.files.item: no such table; did you mean 'items'"),
        ({"files": {"items": "a.csv"}}, "data/a.csv: no such file or folder"),
        ({"columns": {"items": {"id": "x"}}}, "data.columns.items.id: no such key"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        converted(tmp_path / "data", {"interactions.csv": HEAD + "1,2,3\n"}, **settings)


def test_two_files_for_one_table(tmp_path: Path) -> None:
    content: Content = {"interactions.csv": HEAD + "1,2,3\n", "interactions.tsv": HEAD + "1,2,3\n"}
    with pytest.raises(UserError, match=r"data\.files\.interactions=interactions\.csv chooses one"):
        converted(tmp_path / "data", content)
    files = {"interactions": ["interactions.tsv", "interactions.csv"]}
    assert len(converted(tmp_path / "data", content, files=files).interactions) == 2


def prepared(tables: Content, root: Path, format: Any = "csv", **settings: Any) -> PreparedDataset:
    converted(root, tables, format)
    source = TextFolder(str(root), format)
    return prepare(
        source, LeaveLastOutSplit(), settings=DataSettings(**settings), cache=root.parent / "cache", engine=SMALL
    )


EVENTS = HEAD + "".join(f"1,{item},{item}\n" for item in range(4))


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ("inf", "holds numbers, but 'inf' in line 3; expected a number or an empty field; data.missing=[inf]"),
        ("NA", "data.missing=[NA] reads it as missing, data.features.items.price.kind=categorical keeps its text"),
        ("3,5", "data.decimal=comma"),
        ("1,234.5", "without marks for thousands"),
        ("1e400", "which is no finite number, in line 3"),
    ],
)
def test_one_word_does_not_make_prices_a_category(tmp_path: Path, price: str, message: str) -> None:
    items: Content = {"interactions.csv": EVENTS, "items.csv": f'item_id,price\n1,1.5\n2,"{price}"\n'}
    with pytest.raises(UserError, match=r"data/items\.csv: column 'price' .*" + re.escape(message)):
        prepared(items, tmp_path / "data")
    kept = prepared(items, tmp_path / "data", features={"items": {"price": {"kind": "categorical"}}})
    assert [feature.kind for feature in kept.schema.features] == ["categorical"]
    assert not prepared(items, tmp_path / "data", features={"items": {"price": {"ignore": True}}}).schema.features


def test_blanks_around_numbers(tmp_path: Path) -> None:
    """They belong to an id, but not to a number."""
    text = "user_id,item_id,timestamp,price,year\n 1,2,3 , 1.5,1999 \n1,2, 4,2, 2000\n"
    assert events_of(tmp_path / "data", text) == {
        "user_id": [" 1", "1"],
        "item_id": [2, 2],
        "timestamp": [3, 4],
        "price": [1.5, 2.0],
        "year": [1999, 2000],
    }


def test_settings_of_features_are_no_advice_for_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'timestamp' holds numbers, but 'NA' in line 3; .* as missing$"):
        prepared({"interactions.csv": HEAD + "1,2,3.5\n1,2,NA\n"}, tmp_path / "csv")
    text = lines(EVENT, EVENT | {"user_id": "2"})
    with pytest.raises(UserError, match=r"'user_id' holds .* in line 2; expected one type$"):
        prepared({"interactions.jsonl": text}, tmp_path / "json", "jsonl")
    items = lines({"item_id": 1, "x": 1}, {"item_id": 2, "x": "a"})
    with pytest.raises(UserError, match=r"one type, data\.features\.items\.x\.ignore=true leaves it out$"):
        prepared({"interactions.jsonl": lines(EVENT), "items.jsonl": items}, tmp_path / "items", "jsonl")


def test_messages_name_the_file_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/interactions\.csv: column 'user_id' has 1 null"):
        prepared({"interactions.csv": EVENTS + ",1,9\n"}, tmp_path / "data")
    parts: Content = {"interactions.csv/more/1.csv": EVENTS, "interactions.csv/more/2.csv": HEAD + ",1,9\n"}
    with pytest.raises(UserError, match=r"more/2\.csv: column 'user_id' has 1 null"):
        prepared(parts, tmp_path / "shards")
    with pytest.raises(UserError, match=r"interactions\.csv: column 'item_id' occurs twice in line 1"):
        prepared({"interactions.csv": "user_id,item_id,item_id,timestamp\n1,2,3,4\n"}, tmp_path / "twice")


def test_another_folder_is_read_in_the_same_format(tmp_path: Path) -> None:
    config = OmegaConf.create({"data": OmegaConf.load(CONF / "data/csv.yaml")})
    config.data.merge_with({"root": str(tmp_path / "one"), "cache": str(tmp_path / "cache"), "encoding": "latin-1"})
    (tmp_path / "two").mkdir()
    (tmp_path / "two/interactions.tsv").write_text("user_id\titem_id\ttimestamp\nJosé\t2\t3\n", encoding="latin-1")
    source = instantiate(with_root(config, str(tmp_path / "two")).data.source)
    assert columns(source.tables(tmp_path / "cache").interactions[0])["user_id"] == ["José"]


EVENT = {"user_id": 1, "item_id": 1, "timestamp": 1}


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    rows = [
        {"user_id": "2024-01-01", "item_id": 2**53 + 1, "timestamp": "2024-01-01", "ok": True, "x": 1, "tags": []},
        {"user_id": "007", "item_id": -(2**63), "timestamp": None, "x": 2.5, "tags": ["a"], "": 7},
    ]
    tables = converted(tmp_path / "data", {"interactions.jsonl": lines(*rows) + "\n\n"}, "jsonl")
    found = columns(tables.interactions[0])
    assert found["user_id"] == ["2024-01-01", "007"]
    assert found["item_id"] == [2**53 + 1, -(2**63)]
    assert (found["ok"], found["x"], found["tags"]) == ([True, None], [1.0, 2.5], [[], ["a"]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "line 1: not a JSON object .*'a' occurs twice"),
        ('{"a": 1}\n{"a": ', "line 2: not a JSON object"),
        ('[{"a": 1}]', r"line 1: found list, expected one JSON object per line; jq -c '\.\[\]' writes"),
        ('[\n{"a": 1}]', r"line 1: not a JSON object .*; jq -c '\.\[\]' writes a line for each object"),
        ('{\n"a": 1}', r"line 1: not a JSON object .*; jq -c \. writes each object in one line"),
        ("{'a': 1}", r"line 1: not a JSON object .*; single quotes are Python: json\.dumps"),
        (
            lines({"user_id": 1, "timestamp": 1, "item_id": 2**63}),
            r"column 'item_id' holds 9223372036854775808 in line 1; expected",
        ),
        (
            lines(EVENT, {"item_id": "1"}),
            r"column 'item_id' holds integers and strings, .* line 2",
        ),
        (
            lines(EVENT | {"item_id": "\ud800"}),
            r"column 'item_id' holds half of a surrogate pair in line 1",
        ),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=r"interactions\.jsonl: " + message):
        prepared({"interactions.jsonl": text}, tmp_path / "data", "jsonl")


def test_json_objects_are_left_out(tmp_path: Path) -> None:
    events = lines(*({"user_id": 1, "item_id": item, "timestamp": item} for item in range(3)))
    items = lines({"item_id": 0, "made": {"in": 1}}, {"item_id": 1, "color": "red"})
    dataset = prepared({"interactions.jsonl": events, "items.jsonl": items}, tmp_path / "data", "jsonl")
    assert histories(dataset) == {1: ([0], [1], [2])}
    assert [feature.key for feature in dataset.schema.features] == ["items.color"]
