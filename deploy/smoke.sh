#!/bin/sh
# Does what deploy/build.sh made serve, as a container runs it? Another user, an empty environment but for what the image
# sets, no compiler, nothing writable but the state folder: a request is answered, and SIGTERM ends it with 0.
#
#   deploy/smoke.sh FOLDER     prints the server's first lines and its answer; fails with its log
set -eu

folder=${1:?usage: deploy/smoke.sh FOLDER}
python=$folder/venv/bin/python
grpc=127.0.0.1:${GRPC_PORT:-50051}
http=127.0.0.1:${HTTP_PORT:-9464}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -KILL "$server" 2> /dev/null || true; rm -rf "$work"' EXIT
as_nobody=
if [ "$(id -u)" = 0 ]; then
  chown 65534:65534 "$work"
  as_nobody="$(command -v setpriv) --reuid 65534 --regid 65534 --clear-groups"
fi
env=$(command -v env)

run() { # ends the shell that calls it: in the background, or in parentheses
  cd "$work"
  # shellcheck disable=SC2086  # a command and its options
  exec "$env" -i PATH=/nowhere HOME="$work" TMPDIR="$work" XDG_STATE_HOME="$work/state" XDG_CACHE_HOME="$folder/cache" \
    HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 LORA_ROUTER_NATIVE_DIR="$folder/native" \
    LORA_ROUTER_LISTEN="$grpc" LORA_ROUTER_METRICS_LISTEN="$http" $as_nobody "$python" -m router.cli "$@"
}

status_of() {
  "$python" -c '
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("none")' "http://$http$1"
}

fail() {
  cat "$work/out" "$work/log" >&2
  echo "smoke: $1" >&2
  exit 1
}

run serve > "$work/out" 2> "$work/log" &
server=$!
waited=0
until [ "$(status_of /readyz)" = 200 ]; do
  kill -0 "$server" 2> /dev/null || fail "the server ended"
  [ "$waited" -lt "${SECONDS_TO_START:-180}" ] || fail "the server does not get ready"
  waited=$((waited + 1))
  sleep 1
done
[ "$(status_of /healthz)" = 200 ] || fail "/healthz does not say 200"
cat "$work/out"
grep -q "^kernels .*native (" "$work/out" || fail "it serves without the native operations"
(run ask -n 8 "Which ICD-10-CM chapter does Beard ringworm belong to?") || fail "no answer"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ "$code" = 0 ] || fail "it ended with $code"
echo "smoke: good"
