#!/bin/sh
# Ask over HTTP with curl alone: `lora-router serve`, then
# usage: examples/curl.sh [URL] [TEXT]      TOKEN=lrk_... where the server asks who calls
set -eu
url="${1:-http://127.0.0.1:8000/v1}"
text="${2:-Which ICD-10-CM chapter does Beard ringworm belong to?}"
token="${TOKEN:-none}"
messages="[{\"role\": \"user\", \"content\": \"$text\"}]"

call() { # a path and what else curl wants
  path="$1"
  shift
  curl -sS --fail-with-body -H "Authorization: Bearer $token" -H 'Content-Type: application/json' "$@" "$url$path"
  echo
}

# Who may be asked: auto, base, every adapter, every version.
call /models

# Routed; the headers tell who answered and how sure routing was.
call /chat/completions -i -d "{\"model\": \"auto\", \"messages\": $messages}"

# The same as it is written: events, the last of which is [DONE].
call /chat/completions -N -d "{\"model\": \"auto\", \"stream\": true, \"messages\": $messages}"

# An answer that is one of two words, from any adapter.
call /chat/completions -d "{\"model\": \"base\", \"choice\": [\"yes\", \"no\"], \"messages\": $messages}"
