"""Small generated files in the native form of public data sets, and the settings that read them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 24, 18, 400
BEGIN = datetime.datetime(2015, 1, 1, tzinfo=datetime.UTC)


class Draw(NamedTuple):
    """Users, items and moments of events, in the order of time."""

    users: list[int]
    items: list[int]
    moments: list[datetime.datetime]
    numbers: np.random.Generator


def draw() -> Draw:
    """Return the same events every time."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, NUM_USERS, NUM_EVENTS)
    items = (users * 5 + rng.integers(0, 6, NUM_EVENTS)) % NUM_ITEMS
    hours = np.sort(rng.integers(0, 24 * 300, NUM_EVENTS))
    moments = [BEGIN + datetime.timedelta(hours=int(hour)) for hour in hours]
    return Draw(users.tolist(), items.tolist(), moments, rng)


def _write(file: Path, rows: list[list[object]], separator: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(separator.join(map(str, row)) + "\r\n" for row in rows).encode(encoding))


def groceries(root: Path) -> list[str]:
    """A CSV file of baskets: dates are DD-MM-YYYY, items are their names, users have numbers."""
    drawn = draw()
    rows: list[list[object]] = [["Member_number", "Date", "itemDescription"]]
    for user, item, moment in zip(drawn.users, drawn.items, drawn.moments, strict=True):
        rows.append([1000 + user, moment.strftime("%d-%m-%Y"), f"fruit/vegetable {item}"])
    _write(root / "Groceries_dataset.csv", rows, ",")
    return [
        "data=csv",
        f"data.root={root}",
        "data.files.interactions=Groceries_dataset.csv",
        "data.columns.user_id=Member_number",
        "data.columns.item_id=itemDescription",
        "data.columns.timestamp=Date",
        "data.time=day",
    ]


def hetrec_lastfm(root: Path) -> list[str]:
    """Tab-separated files of counts without times; the id of an artist has another name in its own file."""
    drawn = draw()
    pairs = sorted({*zip(drawn.users, drawn.items, strict=True)})
    counts = drawn.numbers.integers(1, 30_000, len(pairs))
    rows: list[list[object]] = [["userID", "artistID", "weight"]]
    rows += [[user + 2, item + 51, count] for (user, item), count in zip(pairs, counts, strict=True)]
    artists: list[list[object]] = [["id", "name", "url", "pictureURL"]]
    artists += [
        [item + 51, f'Änders "{item}" Band', f"http://www.last.fm/music/{item}", f"http://x/{item}.jpg"]
        for item in range(NUM_ITEMS)
    ]
    _write(root / "user_artists.dat", rows, "\t")
    _write(root / "artists.dat", artists, "\t")
    return [
        "data=csv",
        f"data.root={root}",
        "data.files.interactions=user_artists.dat",
        "data.files.items=artists.dat",
        "data.quote=null",
        "data.columns.user_id=userID",
        "data.columns.item_id=artistID",
        "data.columns.items.item_id=id",
        "data.weight=weight",
        "split=random",
    ]


def uci_restaurants(root: Path) -> list[str]:
    """Latin-1 CSV files without times: ratings of 0 to 2, and a question mark for what is not known."""
    drawn = draw()
    rows: list[list[object]] = [["userID", "placeID", "rating", "food_rating", "service_rating"]]
    for user, item in zip(drawn.users, drawn.items, strict=True):
        rows.append([f"U1{user:03}", 132_560 + item, *drawn.numbers.choice(3, 3, p=[0.1, 0.3, 0.6])])
    places: list[list[object]] = [["placeID", "latitude", "longitude", "name", "address", "city", "alcohol", "zip"]]
    for item in range(NUM_ITEMS):
        city, code = ("San Luis Potosí", 78_000 + item) if item % 2 else ("?", "?")
        places.append(
            [132_560 + item, 22.1 + item / 100, -100.9, f"Café «{item}»", f'"Av. Año, {item}"', city, "No", code]
        )
    _write(root / "rating_final.csv", rows, ",")
    _write(root / "geoplaces2.csv", places, ",", "latin-1")
    return [
        "data=csv",
        f"data.root={root}",
        "data.files.interactions=rating_final.csv",
        "data.files.items=geoplaces2.csv",
        "data.encoding=latin-1",
        "data.missing=['?']",
        "data.columns.user_id=userID",
        "data.columns.item_id=placeID",
        "data.engaged.column=rating",
        "data.engaged.min=1",
        "split=random",
    ]


def recbole(root: Path) -> list[str]:
    """Atomic files, whose headers name the type of each column."""
    drawn = draw()
    rows: list[list[object]] = [["user_id:token", "item_id:token", "rating:float", "timestamp:float"]]
    for user, item, moment in zip(drawn.users, drawn.items, drawn.moments, strict=True):
        rows.append([user + 1, item + 1, float(drawn.numbers.integers(1, 6)), moment.timestamp()])
    films: list[list[object]] = [["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]]
    films += [
        [item + 1, f"Film Number {item}", 1990 + item % 5, "Action Comedy"[: 6 + item % 2 * 7]] for item in range(18)
    ]
    people: list[list[object]] = [["user_id:token", "age:float", "gender:token"]]
    people += [[user + 1, 20 + user, "MF"[user % 2]] for user in range(NUM_USERS)]
    for ending, table in {"inter": rows, "item": films, "user": people}.items():
        _write(root / f"ml-tiny.{ending}", table, "\t")
    return [
        "data=csv",
        f"data.root={root}",
        "data.files.interactions=ml-tiny.inter",
        "data.files.items=ml-tiny.item",
        "data.files.users=ml-tiny.user",
    ]


def transformers4rec_tabular(root: Path) -> list[str]:
    """One Parquet row for each click; sessions in the place of users, and times in milliseconds."""
    drawn = draw()
    millis = [round(moment.timestamp() * 1000) for moment in drawn.moments]
    columns = {
        "session_id": pa.array(drawn.users, pa.int32()),
        "item_id": drawn.items,
        "category": [f"c{item % 4}" for item in drawn.items],
        "event_time_ts": millis,
    }
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / "clicks.parquet")
    return [
        "data=parquet",
        f"data.root={root}",
        "data.files.interactions=clicks.parquet",
        "data.columns.user_id=session_id",
        "data.columns.timestamp=event_time_ts",
        "data.time_unit=ms",
        "data.features.interactions.category.role=event",
    ]


def transformers4rec_lists(root: Path) -> list[str]:
    """One Parquet row for each session, with a list in each column and no time of the clicks."""
    drawn = draw()
    of_session = [
        [item for user, item in zip(drawn.users, drawn.items, strict=True) if user == u] for u in range(NUM_USERS)
    ]
    columns = {
        "session_id": list(range(NUM_USERS)),
        "item_id-list": of_session,
        "category-list": [[f"c{item % 4}" for item in items] for items in of_session],
        "day-first": [1] * NUM_USERS,
    }
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / "sessions.parquet")
    return [
        "data=parquet",
        f"data.root={root}",
        "data.files.interactions=sessions.parquet",
        "data.columns.user_id=session_id",
        "data.columns.item_id=item_id-list",
        "data.features.interactions.category-list.role=event",
        "data.time=order",
        "split=leave_last_out",
    ]


KINDS: dict[str, Callable[[Path], list[str]]] = {
    "groceries": groceries,
    "hetrec_lastfm": hetrec_lastfm,
    "uci_restaurants": uci_restaurants,
    "recbole": recbole,
    "transformers4rec_tabular": transformers4rec_tabular,
    "transformers4rec_lists": transformers4rec_lists,
}
