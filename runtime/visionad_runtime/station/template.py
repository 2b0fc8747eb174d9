"""The commented station file that ``visionad station init`` writes."""

TEMPLATE = """\
# A VisionAD station: cameras in, verdicts out. Check it with `visionad station FILE --check`, try it with `--simulate`.
# Paths are relative to this file. This is quality inspection, no safety function: the PLC keeps its own timer, and rejects a part
# without an answer.
station: station-1                 # name in messages, topics and records
model: model                       # from `visionad export`
bank: bank                         # from `visionad bank add`
deadline_ms: 500                   # from trigger to result; a later result is "not decidable"
ack_ms: 2000                       # how long a result waits for its acknowledgement
trigger: line                      # line: a sink triggers; hardware: the camera is triggered by a light barrier; free: each frame

cameras:
  top:
    kind: folder                   # folder | arrivals | http | stream | gige | pylon
    path: images                   # a folder camera simulates: one image a trigger, by name
  # side: {kind: gige, address: 10.0.0.7, exposure_us: 800, simulate: images}

recipes:
  1:
    name: part
    class: part                    # class of the bank; leave it out to recognize the class
    # cameras: [top]               # default: all
    # bank_version: 7              # default: the newest
    # code: {kind: datamatrix, must: match}

sinks:
  - {kind: tcp, host: 127.0.0.1, port: 5020}
  # - {kind: modbus, host: 10.0.1.5, port: 502, heartbeat_s: 1}
  # - {kind: mqtt, host: broker, topic: plant/line1/station-1, password: !env MQTT_PASSWORD}
  # - {kind: files, folder: results}

records: records.sqlite            # one row a part, events, audit
# retention_days: 365
# log: station.log                 # bounded; default: stdout
checks: {light: alarm, rejects_in_a_row: 5}
shifts: {zone: UTC, start: ["06:00", "14:00", "22:00"]}
archive: {folder: archive, keep: {not_ok: all, ok: 1 of 200}, days: 30, max_gb: 100, min_free_gb: 5}
web: {host: 127.0.0.1, port: 8000}
"""
