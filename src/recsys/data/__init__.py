"""Raw tables -> prepared data set -> batches."""
