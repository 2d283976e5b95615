"""Files of items and users have the types of the training data."""

from pathlib import Path

import pyarrow as pa

from recsys.publishing.table_files import read_table


def test_a_text_column_stays_text_though_this_file_has_numbers_alone(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("item_id,size,price\n7,1.50,1.50\n8,2.0,2.0\n")
    table = read_table(file, "items", id_type=pa.int64(), texts=["size"])
    assert table["item_id"].to_pylist() == [7, 8]
    assert table["size"].to_pylist() == ["1.50", "2.0"]
    assert table["price"].to_pylist() == [1.5, 2.0]
