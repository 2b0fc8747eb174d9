#!/usr/bin/env bash
# Inspect images as they arrive and act on each verdict: bash folder_watch.sh MODEL BANK DIR
# The journal makes a restart safe: no image is lost or inspected twice. Stop with Ctrl-C.
set -euo pipefail
model=$1 bank=$2 dir=$3

visionad watch "$model" "$bank" "$dir" --journal "$dir.jsonl" --json |
while IFS= read -r line; do
  case $line in
    *'"verdict": "anomalous"'*) echo "REJECT $line" ;;  # set an output of your PLC here
    *'"verdict": "ok"'*) echo "ACCEPT $line" ;;
    *) echo "CHECK $line" ;;  # for review, unknown class, no threshold, or unreadable
  esac
done
