"""A data source for divot-lightning that reads videos and texts from Parquet files."""

from divot_source_parquet.source import ParquetSource

__all__ = ["ParquetSource"]
