#!/bin/sh
# Ask a running server with `buf curl`: no .proto at hand, the server's reflection tells the types.
# usage: examples/buf_curl.sh [HOST:PORT] [TEXT]
set -eu
server="http://${1:-127.0.0.1:50051}"
text="${2:-Which ICD-10-CM chapter does Beard ringworm belong to?}"
call() { buf curl --protocol grpc --http2-prior-knowledge "$@"; }

call --list-methods "$server"
call -d '{}' "$server/router.v1.AdapterService/ListAdapters"
call -d "{\"input\":{\"text\":\"$text\"}}" "$server/router.v1.InferenceService/Route"
call -d "{\"input\":{\"text\":\"$text\"},\"sampling\":{\"maxTokens\":32}}" \
  "$server/router.v1.InferenceService/StreamGenerate"
