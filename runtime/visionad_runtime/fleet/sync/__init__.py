"""Records of stations, brought together: PostgreSQL or Parquet. Needs the extra ``sql``."""
