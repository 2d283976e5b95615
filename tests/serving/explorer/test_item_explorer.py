"""Names, pictures and reasons of hand-made items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from publishing import Published

from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.query_encoder import load_known_items
from recsys.serving.explorer.item_explorer import ItemExplorer
from recsys.serving.explorer.messages import ExplainedItem, ItemCard, NameMatch, PastItem, Reason

EMBEDDINGS = np.array([[1, 0], [3, 4], [0, 2], [-1, 0], [0, 0]], np.float32)


def explorer(**columns: Any) -> ItemExplorer:
    """Five items, 10 to 50, the most frequent first."""
    table = pa.table({"item_id": [10, 20, 30, 40, 50], "item_idx": [1, 2, 3, 4, 5], **columns})
    return ItemExplorer(table, EMBEDDINGS, rows=IdMap(table["item_id"].combine_chunks()).rows)


@pytest.fixture
def films() -> ItemExplorer:
    return explorer(
        Title=["Star Wars", "A Star Is Born", "Starship", "star wars", None],
        image_url=["https://p.test/1.jpg", None, "javascript:alert(1)", "", "http://p.test/5"],
        year=[1977, None, 1999, 2000, 2001],
        genres=[["Action", "Sci-Fi"], [], None, ["a", "b", "c", "d", "e"], ["x"]],
    )


def test_cards_say_what_the_columns_hold(films: ItemExplorer) -> None:
    assert films.cards([10, 20, 999, 40]) == [
        ItemCard(10, "Star Wars", "https://p.test/1.jpg", {"year": "1977", "genres": "Action, Sci-Fi"}),
        ItemCard(20, "A Star Is Born"),
        ItemCard(999),
        ItemCard(40, "star wars", None, {"year": "2000", "genres": "a, b, c, d, …"}),
    ]


def test_details_are_dates_and_short_numbers() -> None:
    dated = explorer(
        born=[1_703_980_800, None, 1_700_000_000, 1_710_000_000, 946_684_800],
        price=[0.3333333333, 1234567.891, None, -2.0, 1e-7],
        seen=pa.array([0, 86_400, None, 1, 2], pa.timestamp("s")),
    )
    assert dated.card(10).details == {"born": "2023-12-31", "price": "0.333", "seen": "1970-01-01"}
    assert dated.card(20).details == {"price": "1234568", "seen": "1970-01-02"}
    assert dated.card(50).details["price"] == "1e-07"


def test_integers_that_are_not_all_times_stay_integers() -> None:
    assert explorer(stock=[1_703_980_800, 5, 6, 7, 8]).card(10).details == {"stock": "1703980800"}


def test_only_addresses_are_pictures(films: ItemExplorer) -> None:
    assert [card.picture for card in films.cards([30, 50])] == [None, "http://p.test/5"]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("url", "https://shop.test/item/1", None),
        ("url", "https://shop.test/1.PNG?w=80", "url"),
        ("picture", "no address", None),
        ("Image", "https://shop.test/item/1", "Image"),
    ],
)
def test_the_column_of_pictures_is_detected(column: str, value: str, expected: str | None) -> None:
    assert explorer(**{column: [None, value, None, None, None]}).picture_column == expected


def test_search_ranks_beginnings_before_words_before_parts(films: ItemExplorer) -> None:
    assert [card.item_id for card in films.search("STAR")] == [10, 30, 40, 20]
    assert [card.item_id for card in films.search("wars star")] == [10, 40]
    assert [card.item_id for card in films.search("star", limit=1)] == [10]
    assert [card.item_id for card in films.search("hip")] == [30]
    assert films.search("(") == []
    assert films.search("  ") == []


def test_search_finds_ids_by_their_beginning(films: ItemExplorer) -> None:
    assert [card.item_id for card in films.search("3")] == [30]


def test_find_items_by_pasted_names(films: ItemExplorer) -> None:
    star_wars = films.card(10)
    assert films.find(" 10 ") == NameMatch("10", star_wars, 1)
    assert films.find("star wars") == NameMatch("star wars", star_wars, 2)
    assert films.find("Born") == NameMatch("Born", films.card(20), 1)
    assert films.find("99999999999999999999999") == NameMatch("99999999999999999999999", None, 0)
    assert films.find("nothing") == NameMatch("nothing", None, 0)


def test_ids_are_found_where_items_have_no_titles() -> None:
    table = pa.table({"item_id": ["b7", "a1"]})
    bare = ItemExplorer(table, EMBEDDINGS[:2], rows=IdMap(table["item_id"].combine_chunks()).rows)
    assert bare.find("a1") == NameMatch("a1", ItemCard("a1"), 1)
    assert bare.search("B") == [ItemCard("b7")]
    assert bare.find("a") == NameMatch("a", None, 0)


def test_the_nearest_items_of_the_history_explain_an_item() -> None:
    # cos(10, 20) = 3/5, cos(10, 30) = 0, cos(10, 40) = -1, cos(20, 30) = 4/5; item 50 is zeros.
    explained = explorer().explain([40, 30, 999, 10, 30, 50], [20, 10, 999, 50], num_reasons=2)
    assert [(item.item_id, item.reasons) for item in explained] == [
        (20, [Reason(30, 0.8), Reason(10, 0.6)]),
        (10, []),
        (999, []),
        (50, []),
    ]
    (one,) = explorer().explain([30, 10], [20], num_reasons=1)
    assert one == ExplainedItem(20, reasons=[Reason(30, 0.8)])


def test_nothing_explains_without_a_history() -> None:
    assert explorer().explain([], [10]) == [ExplainedItem(10)]
    assert explorer().explain([10], []) == []


def test_a_history_keeps_its_times(films: ItemExplorer) -> None:
    past = films.past([20, 999], [5, None])
    assert past == [PastItem(20, "A Star Is Born", None, {}, 5), PastItem(999)]


def test_a_release_keeps_titles_that_are_no_feature(published: Published) -> None:
    """Nearly distinct strings are left out of the towers, and are still there to be shown."""
    folder = published.store / published.versions[0]
    titles = {row["item_id"]: row["title"] for row in pq.read_table(published.root / "items.parquet").to_pylist()}
    opened = ItemExplorer.open(folder, load_known_items(folder, Manifest.load(folder)))
    assert opened.title_column == "title"
    for item_id in pq.read_table(folder / "items.parquet")["item_id"].to_pylist():
        assert opened.card(item_id).title == titles.get(item_id)
    title = titles["i000"] if "i000" in titles else next(iter(titles.values()))
    assert opened.find(title).item is not None
