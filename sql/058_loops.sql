-- When the loops learn in a space: schedules, and cycles that are asked for.

CREATE OR REPLACE FUNCTION sona._loop_key(space_id bigint, loop text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN hashtextextended(format('sona.loop %s %s', space_id, loop), 0);
COMMENT ON FUNCTION sona._loop_key IS 'Key of the advisory lock by which one worker at a time runs a loop in a space.';

CREATE OR REPLACE FUNCTION sona._loop_backend(space_id bigint, loop text) RETURNS integer
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN (SELECT k.pid FROM pg_locks k
        WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 1 AND k.mode = 'ExclusiveLock'
          AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND (k.classid::bigint << 32) | k.objid::bigint = sona._loop_key(space_id, loop));
COMMENT ON FUNCTION sona._loop_backend IS 'Process id of the server backend that has the lock of a loop in a space; NULL if none.';

CREATE OR REPLACE FUNCTION sona._in_windows(windows text[], time_zone text, moment timestamptz) RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
-- A window that ends before it begins goes over midnight.
RETURN cardinality(windows) = 0 OR EXISTS (
    SELECT FROM unnest(windows) w,
        LATERAL (SELECT split_part(w, '-', 1)::time, split_part(w, '-', 2)::time,
                        (moment AT TIME ZONE time_zone)::time) t (opens, closes, at)
    WHERE CASE WHEN t.opens <= t.closes THEN t.at >= t.opens AND t.at < t.closes
               ELSE t.at >= t.opens OR t.at < t.closes END);
COMMENT ON FUNCTION sona._in_windows IS 'Whether a moment lies in one of the windows of a day; in any, if there are none.';

CREATE OR REPLACE FUNCTION sona._check_loop(loop text) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    -- Others are known by the schedules that their workers have made.
    IF coalesce(loop IN ('background', 'deep') OR EXISTS (SELECT FROM sona.loop_schedule s WHERE s.loop = _check_loop.loop),
                false) THEN
        RETURN;
    END IF;
    PERFORM sona._refuse('SN008', format('there is no loop %L', loop), CASE loop
        WHEN 'instant' THEN 'the instant worker learns whatever waits at once: background and deep have cycles'
        ELSE 'expected background or deep, or a loop that a worker has run here' END);
END $$;
COMMENT ON FUNCTION sona._check_loop IS 'Raises SN008 unless there is such a loop.';

CREATE OR REPLACE FUNCTION sona.set_schedule(
    space text, loop text, every interval DEFAULT NULL, cron text DEFAULT NULL, amount bigint DEFAULT NULL,
    windows text[] DEFAULT '{}', time_zone text DEFAULT 'UTC', first_at timestamptz DEFAULT NULL,
    enabled boolean DEFAULT true
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
    seconds double precision := extract(epoch FROM every);
    wrong text;
BEGIN
    PERFORM sona._check_loop(loop);
    IF every IS NOT NULL AND cron IS NOT NULL THEN
        PERFORM sona._refuse('SN004', 'a schedule has an interval and a cron expression', 'give one of the two');
    END IF;
    IF seconds < 1 OR seconds > 366 * 86400 THEN
        PERFORM sona._refuse('SN004', format('a cycle every %s seconds', seconds), 'expected 1 second to 366 days');
    END IF;
    -- What the fields may say in detail, the worker checks, and sets the loop aside where they say nothing.
    IF cron !~ '^\s*([-0-9*,/]|[A-Za-z#?])+(\s+([-0-9*,/]|[A-Za-z#?])+){4}\s*$' THEN
        PERFORM sona._refuse('SN004', format('the cron expression %L', cron),
                             'expected five fields, as in 0 3 * * 0 for Sundays at three');
    END IF;
    IF amount < 1 THEN
        PERFORM sona._refuse('SN004', format('a cycle after %s ledger entries', amount), 'expected 1 or more');
    END IF;
    IF enabled IS NULL OR windows IS NULL THEN
        PERFORM sona._refuse('SN004', 'enabled or windows is NULL', 'leave them out, or give them');
    END IF;
    SELECT w INTO wrong FROM unnest(windows) w
    WHERE coalesce(w !~ '^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$' OR split_part(w, '-', 1) = split_part(w, '-', 2),
                   true) LIMIT 1;
    IF FOUND THEN
        PERFORM sona._refuse('SN004', format('the window %L', wrong), 'expected two times of a day, as in 22:00-06:00');
    END IF;
    IF NOT EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = time_zone) THEN
        PERFORM sona._refuse('SN004', format('there is no time zone %L', time_zone), 'expected one like Europe/Berlin');
    END IF;
    IF first_at < clock_timestamp() THEN
        PERFORM sona._refuse('SN004', format('the first cycle at %s lies in the past', first_at),
                             'give a time to come, or leave it out');
    END IF;
    IF NOT isfinite(first_at) THEN
        PERFORM sona._refuse('SN004', 'the first cycle is never', 'give a time to come, or disable the schedule');
    END IF;
    -- Before the space, as drop_space does and a cycle that writes: in another order each might wait for the other.
    PERFORM FROM sona.loop_schedule x JOIN sona.space p USING (space_id)
    WHERE p.name = set_schedule.space AND x.loop = set_schedule.loop FOR NO KEY UPDATE OF x;
    s := sona._changeable_space(space);
    INSERT INTO sona.loop_schedule AS x
        (space_id, loop, every_seconds, cron, time_zone, amount, windows, is_enabled, next_at, planned_at)
    VALUES (s.space_id, loop, seconds, cron, time_zone, amount, windows, enabled, first_at,
            CASE WHEN first_at IS NOT NULL THEN clock_timestamp() END)
    ON CONFLICT ON CONSTRAINT loop_schedule_pkey DO UPDATE
    SET every_seconds = excluded.every_seconds, cron = excluded.cron, time_zone = excluded.time_zone,
        amount = excluded.amount, windows = excluded.windows, is_enabled = excluded.is_enabled,
        next_at = excluded.next_at, planned_at = excluded.planned_at, failures = 0, retry_at = NULL, set_aside_at = NULL;
    PERFORM pg_notify('sona_loop', loop);
END $$;
COMMENT ON FUNCTION sona.set_schedule IS
    'Sets when a loop learns in a space: every so often or by a cron expression, after an amount of new ledger entries, '
    'within windows of the day; what is not given is not in force. A loop that was set aside is tried again.';

CREATE OR REPLACE FUNCTION sona.run_cycle(space text, loop text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
    made bigint;
BEGIN
    PERFORM sona._check_loop(loop);
    s := sona._changeable_space(space);
    INSERT INTO sona.loop_run AS r (space_id, loop, cause, state, requested_by)
    VALUES (s.space_id, loop, 'manual', 'requested', session_user)
    ON CONFLICT DO NOTHING RETURNING r.run_id INTO made;
    IF made IS NULL THEN
        SELECT r.run_id INTO made FROM sona.loop_run r
        WHERE r.space_id = s.space_id AND r.loop = run_cycle.loop AND r.state = 'requested';
    END IF;
    PERFORM pg_notify('sona_loop', loop);
    RETURN made;
END $$;
COMMENT ON FUNCTION sona.run_cycle IS
    'Asks the workers of a loop for a cycle now, also where it is disabled, outside of its windows or set aside; gives its '
    'run_id in sona.runs, where the result is. One that waits already is that one.';
