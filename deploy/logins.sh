# Makes the logins of the stack, or gives them the rights and the passwords that they should have now.
# A password is the value of NAME, or the first line of the file that NAME_FILE names.
set -eu

secret() {
    eval "value=\${$1:-} file=\${$1_FILE:-}"
    if [ -z "$value" ] && [ -n "$file" ]; then
        [ -r "$file" ] || { echo "$file cannot be read: it must be readable for user $(id -u)" >&2; exit 2; }
        IFS= read -r value < "$file" || [ -n "$value" ] || { echo "$file is empty" >&2; exit 2; }
    fi
    printf '%s' "$value"
}

PGPASSWORD=$(secret PGPASSWORD)
SONA_USER_PASSWORD=$(secret SONA_USER_PASSWORD)
SONA_GRAFANA_PASSWORD=$(secret SONA_GRAFANA_PASSWORD)
[ -n "$PGPASSWORD" ] || { echo "set SONA_DB_PASSWORD to the superuser's password" >&2; exit 2; }
[ -n "$SONA_USER_PASSWORD" ] || { echo "set SONA_USER_PASSWORD to a password of your own" >&2; exit 2; }
export PGPASSWORD SONA_USER_PASSWORD SONA_GRAFANA_PASSWORD
exec psql --no-psqlrc --quiet --tuples-only --set ON_ERROR_STOP=1 --file "$(dirname "$0")/logins.sql"
