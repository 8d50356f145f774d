"""From a table to batches: read_table -> Schema.guess -> split_rows -> Schema.fit -> Rows.scan -> Rows.batch."""
