-- sona_user     what workers and applications connect as: it learns, creates spaces, and tables in schemas of its own
-- sona_grafana  what dashboards connect as: it reads all spaces, where it has a password; else it cannot log in
-- Both are made where they are missing; passwords follow the environment, so that they can be changed.
\getenv user_password SONA_USER_PASSWORD
\getenv grafana_password SONA_GRAFANA_PASSWORD

-- First of all: in a schema that others may create in, a function of theirs may fit a call better than the server's.
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = warning;
-- No password in the server's log, whatever fails.
SET log_min_error_statement = panic;
SET log_statement = none;
SET log_min_duration_statement = -1;

BEGIN;
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('sona.logins', 0::bigint)) IS NULL \g /dev/null
SELECT pg_catalog.format('CREATE ROLE %I', missing) FROM pg_catalog.unnest(ARRAY['sona_user', 'sona_grafana']) missing
WHERE pg_catalog.to_regrole(missing) IS NULL
\gexec
ALTER ROLE sona_user LOGIN PASSWORD :'user_password';
GRANT sona_worker TO sona_user;
-- Whoever may create in public, or a schema of any name, can lay out look-alikes for those who have it in their path.
REVOKE CREATE ON SCHEMA public FROM PUBLIC, sona_user;
SELECT pg_catalog.format('REVOKE CREATE ON DATABASE %1$I FROM sona_user; REVOKE TEMPORARY ON DATABASE %1$I FROM PUBLIC;'
                         'GRANT TEMPORARY ON DATABASE %1$I TO sona_app, sona_worker', pg_catalog.current_database())
\gexec
CREATE SCHEMA IF NOT EXISTS sona_user AUTHORIZATION sona_user;
CREATE SCHEMA IF NOT EXISTS sona_demo AUTHORIZATION sona_user;

-- All spaces: a reader's grants would have to be given again for every new one.
ALTER ROLE sona_grafana BYPASSRLS CONNECTION LIMIT 10;
ALTER ROLE sona_grafana SET default_transaction_read_only = on;
ALTER ROLE sona_grafana SET statement_timeout = '30s';
GRANT sona_reader TO sona_grafana;
SELECT CASE WHEN :'grafana_password' = '' THEN 'ALTER ROLE sona_grafana NOLOGIN PASSWORD NULL'
            ELSE pg_catalog.format('ALTER ROLE sona_grafana LOGIN PASSWORD %L', :'grafana_password') END
\gexec
COMMIT;
