#!/bin/sh
# Makes what the services know each other by, at the first start; later ones keep it.
#   sh keys.sh        what is missing, and the users' rights as users.acl says now
#   sh keys.sh new    new passwords and a new token
# Each service has a volume of its own and sees no other's: /keys/redis, /keys/worker, /keys/caller.
set -eu
cd "$(dirname "$0")"
keys=${KEYS:-/keys}

if [ "${1:-}" = new ]; then
    rm -f "$keys"/redis/admin "$keys"/redis/health "$keys"/*/password "$keys/caller/api_token"
fi

secret() { # secret FILE: 256 random bits in it, unless something is there
    [ -s "$1" ] || { head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$1.new" && mv "$1.new" "$1"; }
}
hash() { printf '#%s' "$(tr -d '\n' <"$1" | sha256sum | cut -d ' ' -f 1)"; }

secret "$keys/redis/admin"
secret "$keys/redis/health"
for user in worker caller; do
    secret "$keys/$user/password"
    printf 'redis://%s:%s@redis:6379/0\n' "$user" "$(cat "$keys/$user/password")" >"$keys/$user/url"
done
# A token of your own (API_TOKEN in .env), or a random one.
if [ -n "${API_TOKEN:-}" ]; then printf '%s\n' "$API_TOKEN" >"$keys/caller/api_token"; else secret "$keys/caller/api_token"; fi

# The queues: what DEFAULT_QUEUE, QUEUES and ALLOWED_QUEUES name (a=3,b=1), or config.yml where they are not set.
setting() { sed -n "s/^$1: *\[*\([^]#]*\).*/\1/p" config.yml | tr -d "\"' "; }
default=${DEFAULT_QUEUE:-$(setting default_queue)}
queues="${default:-machinery_tasks},${QUEUES:-$(setting queues)},${ALLOWED_QUEUES:-$(setting allowed_queues)}"

awk -v queues="$queues" -v delayed="${REDIS_DELAYED_TASKS_KEY:-delayed_tasks}" \
    -v worker="$(hash "$keys/worker/password")" -v caller="$(hash "$keys/caller/password")" \
    -v admin="$(hash "$keys/redis/admin")" -v health="$(hash "$keys/redis/health")" '
    BEGIN {
        hashes["worker"] = worker; hashes["caller"] = caller; hashes["admin"] = admin; hashes["health"] = health
        gsub(/=[^,]*|[ \t]/, "", queues)
        count = split(queues, names, ",")
    }
    /^user / {
        line = ""
        for (i = 1; i <= NF; i++) {
            if ($i == "PASSWORD") line = line " " hashes[$2]
            else if (sub(/delayed_tasks$/, delayed, $i)) line = line " " $i
            else if (index($i, "QUEUE"))
                for (n = 1; n <= count; n++) { if (names[n] == "") continue; word = $i; gsub("QUEUE", names[n], word); line = line " " word }
            else line = line " " $i
        }
        print substr(line, 2)
    }' users.acl >"$keys/redis/users.acl.new"
mv "$keys/redis/users.acl.new" "$keys/redis/users.acl"
echo "keys: ready for the queues $(echo "$queues" | tr -s ',' ' ')"
