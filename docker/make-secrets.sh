#!/bin/sh
# Make the files with the secrets, those that are missing: ./make-secrets.sh
#
# The bot's token is taken from DISCORD_TOKEN, or asked for. Passwords are random letters and digits: two of them become
# a part of a URL.
set -eu
cd "$(dirname "$0")"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
write() { if [ ! -s "secrets/$1" ]; then printf '%s' "$2" > "secrets/$1" && echo "made secrets/$1"; fi; }

# The folder is closed to everybody else. The files are not: a container reads them as a user of its own.
umask 022
mkdir -p secrets
chmod 700 secrets

write redis_password "$(random)"
write flower_redis_password "$(random)"
write postgres_password "$(random)" # PostgreSQL takes it when it makes its volume, and not again
write flower_basic_auth "admin:$(random)"
if [ ! -s secrets/discord_token ]; then
    token=${DISCORD_TOKEN:-}
    if [ -z "$token" ]; then
        printf 'Token of the bot (Discord Developer Portal > your application > Bot > Reset Token): ' >&2
        read -r token
    fi
    [ -n "$token" ] || { echo "Without a token the bot cannot log in." >&2 && exit 1; }
    write discord_token "$token"
fi
