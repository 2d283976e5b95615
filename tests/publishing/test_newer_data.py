"""An index of newer data than the run's: the same towers, new items by their features, counts and ages as of now."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save
from worlds import write_blend, write_run, write_world

from recsys.cli.main import main
from recsys.core.index_time import IndexTime
from recsys.data.dataset import PreparedDataset, Requests
from recsys.data.encoding import FeatureEncoder
from recsys.evaluation.ranking import encode_corpus
from recsys.experiments.trained_run import load_run
from recsys.models.blend import members_of
from recsys.publishing import new_items
from recsys.publishing.index_times import new_item_biases
from recsys.publishing.new_items import NewItems, embed_items
from recsys.publishing.newer_data import on_newer_data
from recsys.publishing.opened_release import OpenedRelease
from recsys.publishing.towers import Towers
from recsys.release.manifest import FileEntry
from recsys.release.runtime.retriever import Query, Retriever
from recsys.serving.host.additions import load_additions

DAY = 86_400
RISING = "i070"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    shift = "model.prior_shift={weight: 0.5, half_life_days: 1.0, power: 1.0}"
    users = ["user_tower.use_user_id=true", "user_tower.admission.capacity=20"]
    return write_run(root.parent / "run", root, *users, "split=temporal", shift)


@pytest.fixture(scope="module")
def newer(root: Path) -> Path:
    """Return the data of two more days: new items, new users, and a known item with many events."""
    folder = root.parent / "newer"
    folder.mkdir()
    events, items, users = (pq.read_table(root / f"{name}.parquet") for name in ("interactions", "items", "users"))
    begin = 10**6
    rows = [("u000", "new0"), ("u001", "new1"), ("newcomer", "new0"), *((f"u{n:03d}", RISING) for n in range(20, 50))]
    more = pa.table(
        {
            "user_id": [user for user, _ in rows],
            "item_id": [item for _, item in rows],
            "timestamp": begin + np.arange(len(rows)) * (2 * DAY // len(rows)),
            "surface": ["home"] * len(rows),
        }
    )
    pq.write_table(pa.concat_tables([events, more], promote_options="default"), folder / "interactions.parquet")
    new = items.slice(0, 3).set_column(0, "item_id", pa.array(["new0", "new1", "new2"]))
    # Another order of columns and rows, and a category that the towers do not know.
    new = new.set_column(2, "category", pa.array(["x", "never seen", None]))
    items = pa.concat_tables([new, items]).select(["visual", "price", "tags", "category", "title", "item_id"])
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(users, folder / "users.parquet")
    return folder


@pytest.fixture(scope="module")
def indexed(run: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    store = tmp_path_factory.mktemp("store")
    main(["index", f"run={run}", f"store={store}", "index=exact", f"data.root={newer}", "horizon_days=2"])
    return Retriever.load(store, "candidate")


def test_towers_stay_and_new_items_are_placed_by_their_features(
    run: Path, newer: Path, indexed: Retriever, tmp_path: Path
) -> None:
    trained = load_run(run)
    items, embeddings = indexed.items["item_id"].to_pylist(), np.load(indexed.folder / "item_embeddings.npy")
    place = {item: row for row, item in enumerate(items)}
    ids = trained.dataset.item_ids.take(pa.array(trained.corpus - 1)).to_pylist()
    assert {"new0", "new1", "new2"} == {*items} - {*ids}
    kept = [item in place for item in ids]
    before = encode_corpus(trained.model, torch.from_numpy(trained.corpus)).numpy()[kept]
    after = embeddings[[place[item] for item in ids if item in place]]
    np.testing.assert_allclose(after[:, :-1], before[:, :-1], atol=1e-6)
    assert indexed.manifest.num_trained == trained.dataset.num_trained
    assert indexed.manifest.refreshed["data"] == str(newer)
    newest = int(np.max(pq.read_table(newer / "interactions.parquet")["timestamp"]))
    assert indexed.manifest.index_time == {"now": newest + 1, "horizon_days": 2.0}
    # Two days in which one item had almost all events.
    gain = dict(zip([item for item in ids if item in place], (after - before)[:, -1], strict=True))
    assert max(gain, key=lambda item: gain[item]) == RISING
    assert gain[RISING] > 0.1 > np.median([*gain.values()])
    # The same embeddings as those of items that are added to the served index.
    new = pq.read_table(newer / "items.parquet").slice(0, 3)
    pq.write_table(new, tmp_path / "new.parquet")
    embed_items(indexed.folder.parent, indexed.version, items=tmp_path / "new.parquet", out=tmp_path / "out")
    added = load_additions(tmp_path / "out").embeddings
    rows = embeddings[[place[item] for item in ("new0", "new1", "new2")]]
    np.testing.assert_allclose(rows[:, :-1], added[:, :-1], atol=1e-6)
    # The bias too, unless the newer data has events of the item: two of the first, and one of the second.
    assert rows[2, -1] == pytest.approx(added[2, -1], abs=1e-6)
    assert rows[0, -1] != added[0, -1]
    assert rows[0, -1] > rows[1, -1]


def test_histories_and_users_of_newer_data_are_known(indexed: Retriever) -> None:
    lists = OpenedRelease(indexed, "own").recommend(["u000", "newcomer"], k=5)
    assert all(len(row) == 5 for row in lists["item_ids"].to_pylist())
    assert "new0" not in lists["item_ids"][0].as_py()
    assert (indexed.query_encoder.user_rows(pa.array(["u000", "newcomer"])) >= 0).all()


def test_a_release_gives_the_same_towers_as_its_run(run: Path, newer: Path, indexed: Retriever) -> None:
    of_run, of_release = Towers.of_run(load_run(run)), Towers.of_release(indexed.folder, indexed.manifest)
    # The release was made from newer data, so that it knows more items and users.
    assert len(of_release.codes.item_ids) > len(of_run.codes.item_ids)
    first, second = (
        on_newer_data(towers, towers.prepare(str(newer)), root=str(newer), index_time=IndexTime(12 * DAY, 1.0))
        for towers in (of_run, of_release)
    )
    assert first.dataset.item_ids.equals(second.dataset.item_ids)
    one, other = (encode_corpus(made.model, torch.from_numpy(made.corpus)) for made in (first, second))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    requests = Requests(np.arange(first.dataset.num_users), first.dataset.val_end)
    one, other = (made.model.encode_users(made.builder.requests(requests)) for made in (first, second))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_release_serves_users_without_a_row_like_unknown_ones(run: Path, indexed: Retriever) -> None:
    trained = load_run(run)
    rows = trained.model.user_tower.users.rows[:-1]
    names = trained.dataset.user_ids.to_pylist()
    admitted, evicted = ([names[user] for user in np.flatnonzero((rows > 0) == own)] for own in (True, False))
    assert len(admitted) == 20
    assert evicted
    history = [{"item_id": RISING, "timestamp": 10**6}]
    users = ["nobody", *evicted, *admitted]
    vectors = indexed.embed([Query(history=history, user_id=user) for user in users])
    same = np.isclose(vectors, vectors[:1], atol=1e-6).all(1)
    assert same.tolist() == [True] * (1 + len(evicted)) + [False] * 20


def test_counts_are_those_before_now(run: Path, newer: Path) -> None:
    towers = Towers.of_run(load_run(run))
    dataset = towers.prepare(str(newer))
    rising = dataset.item_ids.to_pylist().index(RISING) + 1
    bias = {}
    for now in (11 * DAY, int(dataset.time.max()) + 1):
        made = on_newer_data(towers, dataset, root=str(newer), index_time=IndexTime(now, 1.0))
        bias[now] = float(made.model.item_bias[rising])
        assert int(made.dataset.time.max()) < now
        # Events after `now` are neither history nor counted.
        assert made.dataset.meta.num_events == int((np.asarray(dataset.time) < now).sum())
        assert made.dataset.train_until <= towers.train_until
    early, late = bias.values()
    assert late > early + 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["now=yesterday"], "now: found 'yesterday', expected a date, a time or seconds since 1970"),
        (["now=newest", "horizon_days=0"], "horizon_days: found 0, expected a positive number of days"),
        (["horizon_days=2"], "horizon_days=2: expected now=DATE too"),
        (["now=1969-12-01"], "now=1969-12-01: the first event is at"),
    ],
)
def test_wrong_times_are_refused(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["index", f"run={run}", f"store={tmp_path}", *words])
    assert message in capsys.readouterr().err


def test_data_without_a_column_that_the_towers_read_is_refused(
    run: Path, newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for table in newer.iterdir():
        (tmp_path / table.name).write_bytes(table.read_bytes())
    pq.write_table(pq.read_table(newer / "items.parquet").drop_columns(["price"]), tmp_path / "items.parquet")
    with pytest.raises(SystemExit):
        main(["index", f"run={run}", f"store={tmp_path / 'store'}", f"data.root={tmp_path}"])
    error = capsys.readouterr().err
    assert "data.features.items.price" in error
    assert "no such column" in error


@pytest.mark.parametrize("is_blend", [False, True])
def test_new_items_get_the_age_of_their_day(is_blend: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_world(tmp_path / "data")
    items, now = pq.read_table(root / "items.parquet"), 12 * DAY
    events = (
        pq.read_table(root / "interactions.parquet").group_by("item_id").aggregate([("timestamp", "min")]).to_pydict()
    )
    first = dict(zip(events["item_id"], events["timestamp_min"], strict=True))
    drawn = np.random.default_rng(0).integers(0, 11, len(items)) * DAY
    born = pa.array(
        [min(day, first.get(name, day)) for day, name in zip(drawn, items["item_id"].to_pylist(), strict=True)]
    )
    pq.write_table(items.append_column("born", born), root / "items.parquet")
    priors = ["split=temporal", "data.columns.born=born", "model.priors={age: true, recency: true}"]
    shift = "model.prior_shift={weight: 0.5, half_life_days: 1.0, power: 1.5}"
    path = write_run(tmp_path / "run", root, *priors, *([] if is_blend else [shift]))
    if is_blend:
        other = write_run(tmp_path / "other", root, "model.similarity=dot", "split=temporal", "data.columns.born=born")
        path = write_blend(tmp_path / "blend", {"a": (path, 1.0), "b": (other, 0.5)}, shift_weight=0.5)
    run = load_run(path)
    for member in members_of(run.model):
        if member.model.priors is not None:
            for part in member.model.priors.parameters():
                torch.nn.init.normal_(part)
    towers = Towers.of_run(run)
    # An item that was born on the day of the index, in newer data and as an addition to the served index.
    new = items.slice(0, 1).set_column(0, "item_id", pa.array(["new0"])).append_column("born", pa.array([now]))
    pq.write_table(pa.concat_tables([items.append_column("born", born), new]), root / "items.parquet")
    newer = on_newer_data(towers, towers.prepare(str(root)), root=str(root), index_time=IndexTime(now, 2.0))
    place = newer.dataset.item_ids.to_pylist().index("new0") + 1
    expected = encode_corpus(newer.model, torch.tensor([place])).numpy()
    weights = save({n: w.clone() for n, w in newer.model.item_tower.state_dict().items()})
    (tmp_path / "item_tower.safetensors").write_bytes(weights)
    newer.dataset.schema.save(tmp_path / "schema.json")
    (tmp_path / "config.yaml").touch()
    names = ("item_tower.safetensors", "schema.json", "config.yaml")
    files = {name: (tmp_path / name).read_bytes() for name in names}
    manifest = SimpleNamespace(
        files={name: FileEntry(hashlib.sha256(file).hexdigest(), len(file)) for name, file in files.items()},
        new_item_biases=new_item_biases(newer.model),
        temperatures=tuple(member.model.temperature for member in members_of(newer.model)),
        temperature=newer.model.temperature,
        index_time={"now": now - 3 * DAY, "horizon_days": 2.0},
    )
    monkeypatch.setattr(new_items, "stored_config", lambda *_: newer.config)
    monkeypatch.setattr(NewItems, "_encoder", lambda self, name: _encoder(newer.dataset, name))  # noqa: ARG005
    found = NewItems(tmp_path, manifest).embed(new)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # The age counts: on a later day the item is older.
    later = NewItems(tmp_path, manifest, now=now + 20 * DAY).embed(new)
    assert np.abs(later - found).max() > 1e-3
    assert (np.abs(later - found) > 1e-6).sum() == len(members_of(newer.model))


def _encoder(dataset: PreparedDataset, name: str) -> FeatureEncoder:
    feature = next(f for f in dataset.schema.owned_by("items") if f.name == name)
    return FeatureEncoder(feature, dataset.vocabulary(feature))
