"""Dates and times as text: recognised from all values, or refused with the format to give."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from recsys.core.errors import UserError
from recsys.data.preparation.date_formats import FORMATS, BadDateError, FormatSearch, named_format

EPOCH = datetime.datetime(1970, 1, 1)


def read(texts: list[str], named: str | None = None, pieces: int = 1) -> list[str]:
    """Moments of all texts, which arrive in pieces."""
    search = FormatSearch(FORMATS if named is None else (named_format(named),))
    for piece in range(pieces):
        search.add(pa.array(texts[piece::pieces]))
    micros = search.result().parse(pa.array(texts)).micros
    return [(EPOCH + datetime.timedelta(microseconds=int(value))).isoformat() for value in micros]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2015-04-27", "2015-04-27T00:00:00"),
        (" 2015-04-27 ", "2015-04-27T00:00:00"),
        ("2015/4/7", "2015-04-07T00:00:00"),
        ("2015-04-27T13:05", "2015-04-27T13:05:00"),
        ("2015-04-27 13:05:59.123456789", "2015-04-27T13:05:59.123456"),
        ("2015-04-27 13:05:59,5", "2015-04-27T13:05:59.500000"),
        ("2015-04-27T13:05:59Z", "2015-04-27T13:05:59"),
        ("2015-04-27T13:05:59+05:30", "2015-04-27T07:35:59"),
        ("2015-04-27 13:05:59 -0200", "2015-04-27T15:05:59"),
        ("2015-04-27 13:05:59 UTC", "2015-04-27T13:05:59"),
        ("27-04-2015", "2015-04-27T00:00:00"),
        ("27.4.2015 9:05", "2015-04-27T09:05:00"),
        ("04/27/2015 13:05", "2015-04-27T13:05:00"),
        ("4/27/15 1:05 PM", "2015-04-27T13:05:00"),
        ("4/27/2015, 12:05:00 a.m.", "2015-04-27T00:05:00"),
        ("20150427", "2015-04-27T00:00:00"),
        ("20150427130559", "2015-04-27T13:05:59"),
        ("20150427T1305Z", "2015-04-27T13:05:00"),
        ("27 April 2015", "2015-04-27T00:00:00"),
        ("27-Apr-15", "2015-04-27T00:00:00"),
        ("April 27th, 2015 13:05", "2015-04-27T13:05:00"),
        ("Mon, 27 Apr 2015 13:05:59 +0100", "2015-04-27T12:05:59"),
        ("Mon Apr 27 13:05:59 +0000 2015", "2015-04-27T13:05:59"),
        ("1969-12-31 23:59:59.5", "1969-12-31T23:59:59.500000"),
        ("2016-02-29", "2016-02-29T00:00:00"),
        ("01/01/2015", "2015-01-01T00:00:00"),
    ],
)
def test_recognised_forms(text: str, expected: str) -> None:
    assert read([text]) == [expected]


def test_one_value_of_many_decides() -> None:
    texts = [f"{day:02}/03/2015" for day in range(1, 14)]
    assert read(texts, pieces=3)[0] == "2015-03-01T00:00:00"
    other = [f"03/{day:02}/2015" for day in range(1, 14)]
    assert read(other, pieces=3)[1] == "2015-03-02T00:00:00"


def test_dates_with_and_without_a_time_of_day() -> None:
    assert read(["2015-04-27", "2015-04-28 10:00", "2015-04-28 10:00:00.5"])[2] == "2015-04-28T10:00:00.500000"


@pytest.mark.parametrize(
    ("texts", "shown", "message"),
    [
        (
            ["01/02/2015 10:00"],
            "01/02/2015 10:00",
            r"time_format=%d/%m/%Y %H:%M' or 'data.time_format=%m/%d/%Y %H",
        ),
        (["12.11.2010"], "12.11.2010", "cannot be told apart"),
        (["10-11-12"], "10-11-12", "cannot be told apart"),
        (["27.04.2015", "28.04.2015", "04.27.2015"], "04.27.2015", "not a date in the format of '27.04.2015'"),
        (["2015-04-27", "2015-04-28", "2015-02-30"], "2015-02-30", r"\(%Y-%m-%d\), as most rows are"),
        (["2015-04-27", "2015-04-28", ""], "", "not a date in the format"),
        (
            ["2015-04-27 10:00Z", "2015-04-27 10:00"],
            "2015-04-27 10:00",
            "no time zone, but '2015-04-27 10:00Z'",
        ),
        (["2015-04-27 10:61"], "2015-04-27 10:61", "expected seconds since 1970, or dates such as"),
        (["2015-04-27 10:00 PDT"], "2015-04-27 10:00 PDT", "data.time_format names another format"),
        (["yesterday"], "yesterday", "expected seconds since 1970, or dates"),
    ],
)
def test_refusals(texts: list[str], shown: str, message: str) -> None:
    with pytest.raises(BadDateError, match=message) as caught:
        read(texts, pieces=min(2, len(texts)))
    assert caught.value.text == shown


@pytest.mark.parametrize(
    ("named", "text", "expected"),
    [
        ("%d/%m/%Y", "01/02/2015", "2015-02-01T00:00:00"),
        ("%m/%d/%Y", "01/02/2015", "2015-01-02T00:00:00"),
        # The order of the date counts; its time of day may differ.
        ("%d/%m/%Y %H:%M", "01/02/2015 10:00:05", "2015-02-01T10:00:05"),
        ("%y%m%d", "150427", "2015-04-27T00:00:00"),
        ("%Y.%d.%m", "2015.01.02", "2015-02-01T00:00:00"),
        ("%d%b%Y:%H:%M:%S", "27apr2015:13:05:59", "2015-04-27T13:05:59"),
        ("%FT%T%z", "2015-04-27T13:05:59+0100", "2015-04-27T12:05:59"),
        ("%-d.%-m.%Y um %H Uhr", "7.4.2015 um 13 Uhr", "2015-04-07T13:00:00"),
    ],
)
def test_named_formats(named: str, text: str, expected: str) -> None:
    assert read([text], named) == [expected]


@pytest.mark.parametrize("named", ["%Q", "%d.%m", "%d.%d.%m.%Y", "dd.mm.yyyy", ""])
def test_formats_that_name_no_date(named: str) -> None:
    with pytest.raises(UserError, match=f"data.time_format={named}: "):
        named_format(named)
