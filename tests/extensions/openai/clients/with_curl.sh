#!/bin/sh
# curl: `with_curl.sh URL`; prints what comes, headers among it, with a line of dashes between the answers.
set -eu
messages='[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a medical question"}]'

ask() {
	curl -sSN -H 'Content-Type: application/json' "$@"
	printf '\n----\n'
}

ask -i "$1/chat/completions" -d "{\"model\": \"auto\", \"user\": \"anna\", \"messages\": $messages}"
ask "$1/chat/completions" -d "{\"model\": \"auto\", \"user\": \"anna\", \"stream\": true, \"messages\": $messages}"
ask "$1/chat/completions" -d "{\"model\": \"nobody\", \"messages\": $messages}"
ask "$1/models"
