#!/bin/sh
# Runs a test program under Oclgrind with its race detector on; whatever Oclgrind has to say is a failure.
command -v oclgrind >/dev/null || { echo "skipped: oclgrind is not installed"; exit 77; }
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
oclgrind --data-races --max-errors 20 --log "$log" "$@"
status=$?
if [ -s "$log" ]; then
    echo "Oclgrind says:"
    head -n 60 "$log"
    [ "$status" -ne 0 ] || status=1
fi
exit $status
