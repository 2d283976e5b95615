"""MovieLens, from its public address or a local copy."""

from __future__ import annotations

import io
import logging
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_file
from recsys.data.sources.files import Tables, build_once, find_tables, fingerprint

log = logging.getLogger("recsys")

Variant = Literal["ml-100k", "ml-1m"]
ADDRESS = "https://files.grouplens.org/datasets/movielens"
_VERSION = 1
_FILES = {"ml-100k": ("u.data", "u.item", "u.user"), "ml-1m": ("ratings.dat", "movies.dat", "users.dat")}
# fmt: off
_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


@dataclass(frozen=True)
class MovieLens:
    """Source: MovieLens 100K or 1M (research use, no redistribution).

    Attributes:
        variant: ml-100k or ml-1m.
        root: local copy: the zip file, the unpacked folder, or a folder that holds either. Null downloads the data.
        min_rating: lowest rating that counts as an event; 4 keeps the items that users liked.
    """

    variant: Variant
    root: str | None = None
    min_rating: int = 0

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise UserError(f"data.variant={self.variant}: no such variant{nearest(self.variant, get_args(Variant))}")

    def tables(self, cache: Path) -> Tables:
        """Return the three tables as Parquet.

        Raises:
            UserError: If there is no copy, or the public address cannot be reached.
        """
        contents = self._contents(cache)
        name = fingerprint([_VERSION, self.variant, self.min_rating, contents])

        def build(aside: Path) -> None:
            ratings, items, users = (_readers[self.variant])(contents)
            ratings = ratings.filter(pc.field("rating") >= self.min_rating)
            for owner, table in {"interactions": ratings, "items": items, "users": users}.items():
                pq.write_table(table, aside / f"{owner}.parquet")

        folder = cache / f"{self.variant}-{name}"
        build_once(folder, build)
        return find_tables(str(folder), [".parquet"])

    def _contents(self, cache: Path) -> list[bytes]:
        names = _FILES[self.variant]
        root = Path(self.root) if self.root is not None else self._download(cache)
        for place in (root, root / self.variant):
            if all((place / name).is_file() for name in names):
                return [(place / name).read_bytes() for name in names]
        packed = root if root.is_file() else root / f"{self.variant}.zip"
        try:
            with zipfile.ZipFile(packed) as opened:
                return [opened.read(f"{self.variant}/{name}") for name in names]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{root}: no copy of {self.variant} ({error}); expected {self.variant}.zip or a folder with "
                f"{', '.join(names)}"
            ) from error

    def _download(self, cache: Path) -> Path:
        file = cache / f"{self.variant}.zip"
        if file.exists():
            return file
        address = f"{ADDRESS}/{self.variant}.zip"
        cache.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s", address)
        try:
            with (
                urllib.request.urlopen(address, timeout=30) as answer,
                atomic_file(file) as aside,
                aside.open("wb") as opened,
            ):
                shutil.copyfileobj(answer, opened)
        except OSError as error:
            raise UserError(
                f"{address}: cannot be downloaded ({error}); data.root=PATH reads a local copy of {self.variant}.zip"
            ) from error
        return file


def _read(content: bytes, separator: str, *, columns: dict[str, pa.DataType]) -> pa.Table:
    # The files are Latin-1 without quotes.
    text = content.decode("latin-1").encode()
    if len(separator) > 1:
        text = text.replace(separator.encode(), b"\x1f")
        separator = "\x1f"
    return pacsv.read_csv(
        io.BytesIO(text),
        read_options=pacsv.ReadOptions(column_names=list(columns)),
        parse_options=pacsv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pacsv.ConvertOptions(column_types=columns, strings_can_be_null=False),
    )


def _ratings(content: bytes, separator: str) -> pa.Table:
    whole = pa.int64()
    return _read(content, separator, columns={"user_id": whole, "item_id": whole, "rating": whole, "timestamp": whole})


def _year(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    found = pc.extract_regex(titles, r"\((?P<year>[0-9]{4})\)\s*$")
    return pc.struct_field(found, "year").cast(pa.int64())


def _read_100k(contents: list[bytes]) -> tuple[pa.Table, pa.Table, pa.Table]:
    text, whole = pa.string(), pa.int64()
    columns = {"item_id": whole, "title": text, "released": text, "video": text, "url": text}
    films = _read(contents[1], "|", columns=columns | dict.fromkeys(_GENRES, whole))
    flags = list(zip(*(films[genre].to_pylist() for genre in _GENRES), strict=True))
    genres = [[genre for genre, flag in zip(_GENRES, row, strict=True) if flag] for row in flags]
    items = pa.table(
        {"item_id": films["item_id"], "title": films["title"], "year": _year(films["title"]), "genres": genres}
    )
    columns = {"user_id": whole, "age": whole, "gender": text, "occupation": text, "zip_code": text}
    users = _read(contents[2], "|", columns=columns)
    return _ratings(contents[0], "\t"), items, users


def _read_1m(contents: list[bytes]) -> tuple[pa.Table, pa.Table, pa.Table]:
    text, whole = pa.string(), pa.int64()
    films = _read(contents[1], "::", columns={"item_id": whole, "title": text, "genres": text})
    items = pa.table(
        {
            "item_id": films["item_id"],
            "title": films["title"],
            "year": _year(films["title"]),
            "genres": pc.split_pattern(films["genres"], "|"),
        }
    )
    columns = {"user_id": whole, "gender": text, "age": whole, "occupation": text, "zip_code": text}
    users = _read(contents[2], "::", columns=columns)
    return _ratings(contents[0], "::"), items, users


_readers = {"ml-100k": _read_100k, "ml-1m": _read_1m}
