"""Schema: the description of all columns that reach the towers.

A `Feature` has an owner (interactions, items or users), a kind, and a role, which for columns of interactions is the
moment from which the values are known. The `Schema` is stored with each prepared data set and in every release.
Training, batch retrieval and serving read the same schema.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

from recsys.core.errors import UserError, nearest
from recsys.core.strict_json import read_json

Owner = Literal["interactions", "items", "users"]
Kind = Literal["categorical", "multi_categorical", "numeric", "vector", "text", "image"]
# Content that an encoder turns into a vector.
EncoderKind = Literal["text", "image"]
Role = Literal["event", "request", "profile", "item"]

OWNERS: tuple[str, ...] = get_args(Owner)
KINDS: tuple[str, ...] = get_args(Kind)
# Keys of `data.features.OWNER.COLUMN`.
FEATURE_SETTINGS = ("kind", "role", "ignore", "buckets", "encoder")

# First codes of categorical values, bags and hashed words. An empty bag counts as missing, like a null.
MISSING, UNKNOWN, FIRST_CODE = 0, 1, 2

# item_idx of all items outside the vocabulary. Row 0 of every item array belongs to it.
UNKNOWN_ITEM = 0


def short_feature(place: str, found: Any) -> str:
    """Return the message for a feature whose settings are one value: what to type instead.

    Args:
        place: `data.features.OWNER.COLUMN`.
        found: the value.
    """
    if found is False:
        return f"{place}=false: expected settings of the feature. Type {place}.ignore=true"
    if found in KINDS:
        return f"{place}={found}: expected settings of the feature. Type {place}.kind={found}"
    shown = str(found).lower() if isinstance(found, bool) else found
    return f"{place}={shown}: expected a kind, such as {place}.kind={KINDS[0]}{nearest(str(found), KINDS)}"


class TimeResolution(StrEnum):
    """Precision of the timestamps of events: the values of the configuration key `data.time`.

    `ORDER` means that only the order of events counts, `NONE` that the data has no times.
    """

    SECONDS = "seconds"
    DAY = "day"
    ORDER = "order"
    NONE = "none"

    @classmethod
    def parse(cls, value: object) -> TimeResolution:
        """Return the resolution that a configuration names.

        Raises:
            UserError: If no resolution has that name.
        """
        try:
            return cls(str(value))
        except ValueError as error:
            raise UserError(f"data.time={value}: no such time resolution{nearest(str(value), cls)}") from error

    @property
    def has_clock(self) -> bool:
        """True if timestamps count seconds since 1970, so the days between events are known."""
        return self in (TimeResolution.SECONDS, TimeResolution.DAY)

    @property
    def has_order(self) -> bool:
        """True if the order of a user's events is known."""
        return self is not TimeResolution.NONE


@dataclass(frozen=True)
class Feature:
    """Column that reaches a tower.

    Attributes:
        name: name of the column, unique within its owner.
        owner: table that holds it.
        kind: how it is encoded and embedded.
        role: `event` (known after the event, so visible at past positions only), `request` (known before the answer,
            so part of the query and visible at past positions), `profile` (column of users) or `item` (column of
            items).
        size: number of codes, including `MISSING` and `UNKNOWN`, of categorical, multi_categorical and text features;
            width of a vector; 1 for numeric.
        mean, std: mean and standard deviation of numeric values in rows that occur in training events. Values are
            standardised with them.
        encoder: model whose vectors stand for a column (`recsys.data.content_encoders`); empty for none.
        encoder_digest: digest of that model.
        encoder_kind: what the column holds that the model reads: `text`, or `image` for paths of images.
    """

    name: str
    owner: Owner
    kind: Kind
    role: Role
    size: int
    mean: float = 0.0
    std: float = 1.0
    encoder: str = ""
    encoder_digest: str = ""
    encoder_kind: EncoderKind = "text"

    @property
    def key(self) -> str:
        """Name within the schema, such as `items.genres`."""
        return f"{self.owner}.{self.name}"

    @property
    def has_vocabulary(self) -> bool:
        """True if codes come from a vocabulary file. Text is hashed and has none."""
        return self.kind in ("categorical", "multi_categorical")

    @property
    def is_ragged(self) -> bool:
        """True if a row holds any number of codes (bags and text) instead of one value."""
        return self.kind in ("multi_categorical", "text")


@dataclass(frozen=True)
class Schema:
    """Features of a prepared data set, and the outside types of its ids (`int64` or `string`)."""

    features: tuple[Feature, ...]
    user_id_type: str = "int64"
    item_id_type: str = "int64"

    def owned_by(self, owner: Owner) -> tuple[Feature, ...]:
        """Return the features of one table."""
        return tuple(f for f in self.features if f.owner == owner)

    def with_role(self, *roles: Role) -> tuple[Feature, ...]:
        """Return the features with one of `roles`."""
        return tuple(f for f in self.features if f.role in roles)

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain containers."""
        content = asdict(self)
        for feature in content["features"]:
            if not feature["encoder"]:
                # The files of data sets and releases without encoders stay what they were.
                del feature["encoder"], feature["encoder_digest"]
            if feature["encoder_kind"] == "text":
                del feature["encoder_kind"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Schema:
        """Return the schema of containers from `to_json`."""
        features = tuple(Feature(**feature) for feature in content["features"])
        for one in features:
            if (
                one.owner not in OWNERS
                or one.kind not in KINDS
                or type(one.size) is not int
                or not 0 < one.size < 2**31
                or not all(isinstance(text, str) for text in (one.name, one.role, one.encoder, one.encoder_digest))
                or not all(isinstance(number, int | float) and math.isfinite(number) for number in (one.mean, one.std))
                or not one.std > 0
            ):
                raise ValueError(f"found {one!r:.120}, expected a feature with an owner, a kind and a size")
        return cls(features, content["user_id_type"], content["item_id_type"])

    def save(self, path: Path) -> None:
        """Write `schema.json`."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read `schema.json`.

        Raises:
            UserError: If the file is missing or is not a schema.
        """
        try:
            return cls.from_json(read_json(path))
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: not a schema of recsys ({error})") from error
