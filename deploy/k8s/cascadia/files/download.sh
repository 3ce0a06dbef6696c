#!/bin/sh
# Downloads a model's files into $FOLDER with a line of progress every ten seconds. A file has its name only when it is
# whole, and .complete says that all are there: a pod that finds it has nothing to do, one that was cut goes on.
set -eu
mkdir -p "$FOLDER"
# Pods that share the cache take turns: the first downloads, the others find it done.
exec 9> "$FOLDER/.lock"
flock -n 9 || { echo "another pod is downloading $REPOSITORY; waiting for it"; flock 9; }
[ -e "$FOLDER/.complete" ] && { echo "$REPOSITORY is in the cache"; exit 0; }
from="$ENDPOINT/$REPOSITORY/resolve/$REVISION"

get() { # FILE: into the folder, resumed where it was cut
  [ -e "$FOLDER/$1" ] && return 0
  # A header from the environment of curl's standard input: a token on the command line would be seen by others.
  printf '%s' "${TOKEN:+header = \"Authorization: Bearer $TOKEN\"}" |
    curl -K - -fsSL --retry 5 --retry-delay 2 --connect-timeout 20 -C - -o "$FOLDER/$1.part" "$from/$1" &
  curl=$!
  while sleep 1; do
    kill -0 "$curl" 2>/dev/null || break
    seconds=$((${seconds:-0} + 1))
    [ $((seconds % 10)) -eq 0 ] && echo "$1: $(($(wc -c < "$FOLDER/$1.part" 2>/dev/null || echo 0) / 1048576)) MiB"
  done
  wait "$curl" || {
    # 22: the server refuses. What is there may be whole already, or not what it sends now: next time from the start.
    [ $? -ne 22 ] || rm -f "$FOLDER/$1.part"
    echo "cannot get $from/$1" >&2
    return 1
  }
  mv "$FOLDER/$1.part" "$FOLDER/$1"
  echo "$1: $(wc -c < "$FOLDER/$1") bytes"
}

get config.json
get tokenizer.json
for optional in tokenizer_config.json generation_config.json; do
  get "$optional" || echo "$REPOSITORY has no $optional; going on without it"
done
if get model.safetensors.index.json; then
  shards=$(grep -o '"[^"]*\.safetensors"' "$FOLDER/model.safetensors.index.json" | tr -d '"' | sort -u)
else
  echo "$REPOSITORY has no index of shards; it must be one file"
  shards=model.safetensors
fi
for shard in $shards; do get "$shard"; done
: > "$FOLDER/.complete"
echo "$REPOSITORY is complete"
