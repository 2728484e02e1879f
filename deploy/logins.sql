-- sona_user     what workers and applications connect as: it learns, creates spaces and tables of its own
-- sona_grafana  what dashboards connect as: it reads all spaces, where it has a password; else it cannot log in
-- Both are made where they are missing; passwords follow the environment, so that they can be changed.
\getenv user_password SONA_USER_PASSWORD
\getenv grafana_password SONA_GRAFANA_PASSWORD

-- No password in the server's log, whatever fails.
SET log_min_error_statement = panic;
SET log_statement = none;
SET log_min_duration_statement = -1;

BEGIN;
SELECT pg_advisory_xact_lock(hashtextextended('sona.logins', 0)) IS NULL \g /dev/null
SELECT format('CREATE ROLE %I', missing) FROM unnest(ARRAY['sona_user', 'sona_grafana']) missing
WHERE to_regrole(missing) IS NULL
\gexec
ALTER ROLE sona_user LOGIN PASSWORD :'user_password';
GRANT sona_worker TO sona_user;
SELECT format('GRANT CREATE, TEMPORARY ON DATABASE %I TO sona_user', current_database())
\gexec
GRANT CREATE, USAGE ON SCHEMA public TO sona_user;

-- All spaces: a reader's grants would have to be given again for every new one.
ALTER ROLE sona_grafana BYPASSRLS CONNECTION LIMIT 10;
ALTER ROLE sona_grafana SET default_transaction_read_only = on;
ALTER ROLE sona_grafana SET statement_timeout = '30s';
GRANT sona_reader TO sona_grafana;
SELECT CASE WHEN :'grafana_password' = '' THEN 'ALTER ROLE sona_grafana NOLOGIN PASSWORD NULL'
            ELSE format('ALTER ROLE sona_grafana LOGIN PASSWORD %L', :'grafana_password') END
\gexec
COMMIT;
