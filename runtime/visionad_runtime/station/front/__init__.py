"""Front process: trigger cycle, supervision of the worker, sinks, alarms."""
