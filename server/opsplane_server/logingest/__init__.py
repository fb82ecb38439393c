"""Log ingestion: batches of records by COPY into day partitions, found and followed again."""
