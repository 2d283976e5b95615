import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.index import HNSW, IVFSQ8, Auto, Effort, Exact, FaissFlat, IVFFlat, IVFPQFastScan, load_index, save_index

CONF = Path(__file__).parents[2] / "conf" / "index"
MAKE = {
    "Exact": Exact,
    "FaissFlat": FaissFlat,
    "HNSW": lambda: HNSW(m=8, ef_construction=20),
    "IVFFlat": lambda: IVFFlat(num_lists=16),
    "IVFSQ8": lambda: IVFSQ8(num_lists=16, seed=3),
    "IVFPQFastScan": lambda: IVFPQFastScan(num_codes=8),
}


@pytest.fixture(params=MAKE)
def saved(request, items, tmp_path):
    index = MAKE[request.param]()
    index.build(items[:2000])
    index.effort = Effort(5, 1, 20)
    names = save_index(index, tmp_path)
    np.save(tmp_path / "item_embeddings.npy", items[:2000])
    return request.param, index, names, tmp_path


def embeddings_of(folder):
    return np.load(folder / "item_embeddings.npy", mmap_mode="r", allow_pickle=False)


def test_loaded_index_answers_alike(saved, queries):
    name, index, names, folder = saved
    assert names == (["item_index.json"] if name == "Exact" else ["item_index.json", "item_index.faiss"])
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "item_embeddings.npy"])
    loaded = load_index(folder, embeddings_of(folder))
    assert type(loaded) is type(index)
    assert (loaded.num_items, loaded.dim, loaded.effort) == (2000, 32, Effort(5, 1, 20))
    assert loaded.parameters() == index.parameters()
    assert loaded.is_exact == index.is_exact
    allow = np.arange(2000) % 3 > 0
    for asked, k, mask in ((queries, 20, None), (queries, 20, allow), (queries[:1], 3, None)):
        for a, b in zip(index.search(asked, k, allow=mask), loaded.search(asked, k, allow=mask), strict=True):
            assert np.array_equal(a, b)


def test_auto_saves_its_choice(items, tmp_path):
    for exact_below, name in ((5000, Exact), (1000, IVFFlat)):
        auto = Auto(IVFFlat(), exact_below)
        auto.build(items[:2000])
        save_index(auto, tmp_path)
        assert type(load_index(tmp_path, items[:2000])) is name


def test_structure_that_fell_back_to_exact(items, queries, tmp_path):
    index = IVFPQFastScan()
    index.build(items[:50])
    assert save_index(index, tmp_path) == ["item_index.json"]
    loaded = load_index(tmp_path, items[:50])
    assert loaded.is_exact
    assert np.array_equal(loaded.search(queries, 60)[1], index.search(queries, 60)[1])


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "changed", "longer", "missing"])
def test_damaged_structure(saved, damage):
    name, _, _, folder = saved
    if name == "Exact":
        pytest.skip("has no structure")
    path = folder / "item_index.faiss"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    else:
        cut = {"cut": content[: len(content) // 2], "short": content[:-5], "empty": b"", "longer": content + b"x"}
        path.write_bytes(cut[damage])
    with pytest.raises(UserError, match=r"item_index\.faiss: (damaged|missing)"):
        load_index(folder, embeddings_of(folder))


def test_unreadable_structure_without_digest_check(saved):
    name, _, _, folder = saved
    if name == "Exact":
        pytest.skip("has no structure")
    path = folder / "item_index.faiss"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"item_index\.faiss: faiss cannot read it"):
        load_index(folder, embeddings_of(folder), verify=False)


def edit(folder, **changes):
    path = folder / "item_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_structure_of_another_index(items, tmp_path):
    IVFFlat(num_lists=4).build(items[:500])
    for index, name in ((IVFFlat(num_lists=4), "a"), (HNSW(m=8), "b")):
        index.build(items[:500])
        (tmp_path / name).mkdir()
        save_index(index, tmp_path / name)
    edit(tmp_path / "b", **{"class": "IVFFlat", "parameters": {}})
    with pytest.raises(UserError, match=r"item_index\.faiss: found \('IndexHNSWFlat', 500, 32, 0\)"):
        load_index(tmp_path / "b", items[:500])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "os.system"}, "unknown class 'os.system' of index; 'os' has no such class"),
        ({"class": "pathlib.Path"}, "class pathlib.Path does not implement recsys.index.Index; it lacks build, search"),
        (
            {"class": "no_such_package.Tree"},
            "is a no_such_package.Tree, which would run code of 'no_such_package'; if you trust",
        ),
        ({"class": "IVFFlatt"}, "did you mean 'IVFFlat'"),
        ({"class": None}, "unknown class None"),
        ({"class": ["x"]}, "unknown class"),
        ({"format": 2}, "format 2, expected 1"),
        ({"parameters": {"evil": 1}}, "damaged description"),
        ({"parameters": {"m": "x"}}, "damaged description|found"),
        ({"effort": {"breadth": "x", "refine": 1, "k": 1}}, "damaged description"),
        ({"effort": {"breadth": 4, "refine": 0, "k": 1}}, "effort.refine: found 0, expected 1 to 1024"),
        ({"files": []}, "damaged description"),
        ({"files": {}}, "item_index.faiss"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0"}}}, "a file '../x' outside its folder"),
        ({"num_items": 3}, r"item embeddings are float32 \[500, 32\]"),
    ],
)
def test_damaged_description(changes, message, items, tmp_path):
    index = HNSW(m=8)
    index.build(items[:500])
    save_index(index, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_index(tmp_path, items[:500])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00\xff"])
def test_unreadable_description(content, items, tmp_path):
    (tmp_path / "item_index.json").write_text(content)
    with pytest.raises(UserError, match=r"item_index\.json: "):
        load_index(tmp_path, items)


def test_missing_description_and_wrong_embeddings(saved, items):
    _, _, _, folder = saved
    with pytest.raises(UserError, match=r"item embeddings are float32 \[1999, 32\], but the index holds"):
        load_index(folder, items[:1999])
    with pytest.raises(UserError, match=r"item embeddings are float64"):
        load_index(folder, items[:2000].astype(np.float64))
    (folder / "item_index.json").unlink()
    with pytest.raises(UserError, match=r"item_index\.json: cannot be read \(No such file"):
        load_index(folder, items[:2000])


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml") if p.stem not in ("auto", "milvus")))
def test_configs_build(name, items):
    index = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    index.build(items[:1500])
    assert index.search(items[:2], 1)[1].tolist() == [[0], [1]]


def test_config_auto_composes(items):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        config = compose(overrides=["+index=auto", "index.exact_below=100", "index.approximate.num_lists=4"])
    index = instantiate(config.index)
    index.build(items[:1500])
    assert isinstance(index.chosen, IVFPQFastScan)
    assert index.max_breadth == 4


def test_config_milvus_composes(items):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        config = compose(overrides=["+index=milvus", "index@index.local=hnsw"])
    index = instantiate(config.index)
    index.build(items[:1500])
    assert index.search(items[:2], 1)[1].tolist() == [[0], [1]]
    assert type(index.local).__name__ == "HNSW"
    assert index.database.max_breadth(1500) == 76


def test_serving_needs_no_torch():
    code = "import recsys.index, sys; assert not {'torch', 'lightning', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
