#!/usr/bin/env bash
# All that a GPU can tell, in a bounded time: are the kernels right, the calibrated profile, how fast they are.
#
#   OUT=results studies/gpu_session.sh                      # leaves results/session.tar.gz and a log
#   FROM=session.tar.gz OUT=results studies/gpu_session.sh  # goes on where that one stopped
#   ROWS=kernel_moe.csv ...                                 # compares with the rows of a table (studies/kernel_speed.py)
#
# Needs torch and triton; pytest and hypothesis for the first step, pandas for the last. LIMIT: seconds in all.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${OUT:?set OUT to a folder for the results}
limit=${LIMIT:-470}
python=${PYTHON:-python3}
work=$(mktemp -d)
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=.
unset TRITON_INTERPRET
[ -n "${FROM:-}" ] && tar -xzf "$FROM" -C "$work"

left() { echo $((limit - SECONDS)); }
keep() { tar -czf "$out/session.tar.gz.part" -C "$work" . && mv "$out/session.tar.gz.part" "$out/session.tar.gz"; }
step() { # step NAME SECONDS COMMAND...: at most that long and that is left; what it printed is kept
    local name=$1 most=$2
    shift 2
    if [ -e "$work/$name.done" ]; then echo "== $name: done before"; return; fi
    if [ "$(left)" -lt 20 ]; then echo "== $name: no time left"; return; fi
    [ "$most" -gt "$(left)" ] && most=$(left)
    echo "== $name (at most $most s)"
    timeout --signal=INT --kill-after=15 "$most" "$@" 2>&1 | tee -a "$work/$name.log" | tail -n 40
    [ "${PIPESTATUS[0]}" -eq 0 ] && touch "$work/$name.done"
    keep
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw --format=csv 2>&1 | tee "$work/device.log"

step quick 120 "$python" -m moesim.calibrate --quick --out "$work/profiles" --json
step kernels 170 "$python" -m pytest tests/kernels -q -x --maxfail=20 -p no:cacheprovider -o addopts= -o filterwarnings=default \
    --ignore=tests/kernels/test_compile.py --ignore=tests/kernels/test_calibrate_points.py
for _ in 1 2 3; do # a point that ended the process is left out by the next one
    grep -qs '"ended": "done"' "$work/calibrate.log" && break
    rm -f "$work/calibrate.done"
    step calibrate "$(left)" "$python" -m moesim.calibrate --out "$work/profiles" --budget "$(($(left) - 10))" --json
done
step speed "$(left)" "$python" studies/kernel_speed.py --out "$work" ${ROWS:+--rows "$ROWS"}
step tune "$(left)" "$python" studies/kernel_speed.py --out "$work" --tune
keep
echo "== $SECONDS s; results: $out/session.tar.gz"
