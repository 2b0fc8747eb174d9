"""Beyond one machine: archives in shards (extra ``batch``), models and banks of many stations (extra ``fleet``), and their results."""
