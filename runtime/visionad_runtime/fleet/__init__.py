"""Beyond one machine: archives in shards, models and banks of many stations, results of all of them."""
