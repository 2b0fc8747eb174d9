"""Beyond one machine: archives in shards (extra ``batch``), models and banks for many stations (extra ``fleet``), central results."""
