-- How long a space keeps what was recorded. What was learned from it stays: weights, edges and the ledger, which keeps a
-- deleted id from being learned a second time.

CREATE OR REPLACE FUNCTION sona._check_retention(kept interval, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- Every field of its own: '1 month -29 days' compares as positive and lies in the future in February.
    IF kept IS NOT NULL AND NOT coalesce(
        isfinite(kept) AND kept > '0' AND kept <= '1000 years'
        AND least(extract(year FROM kept), extract(month FROM kept), extract(day FROM kept), extract(hour FROM kept),
                  extract(minute FROM kept), extract(second FROM kept)) >= 0, false) THEN
        PERFORM sona._refuse('SN003', format('the retention of %s is %s, expected above 0, up to 1000 years', what, kept),
                             'give an interval like ''90 days''; NULL keeps them');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_retention IS 'Raises SN003 unless a retention is NULL or a positive interval.';

CREATE OR REPLACE FUNCTION sona.set_retention(
    space text, trajectories interval DEFAULT NULL, steps interval DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    PERFORM sona._check_retention(trajectories, 'trajectories');
    PERFORM sona._check_retention(steps, 'steps');
    IF steps > trajectories THEN
        PERFORM sona._refuse('SN003', format('steps are to be kept for %s, their trajectories for %s', steps, trajectories),
                             'a step goes with its trajectory: keep trajectories as long, or leave steps out');
    END IF;
    -- Whatever was put behind what is done, by an import say, is looked at once more.
    UPDATE sona.space s SET trajectory_retention = set_retention.trajectories, step_retention = set_retention.steps,
                            steps_deleted_before = NULL
    WHERE s.name = set_retention.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(set_retention.space); END IF;
END $$;
COMMENT ON FUNCTION sona.set_retention IS
    'Sets how long a space keeps trajectories, and how long their steps; what is left out is kept for ever. '
    'sona worker instant applies it.';

CREATE OR REPLACE FUNCTION sona._learned_trajectories(
    space_id bigint, since timestamptz, before timestamptz, with_steps boolean, batch integer
) RETURNS uuid[]
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    weighed bigint := (SELECT g.ordinal FROM sona.strategist g WHERE g.space_id = _learned_trajectories.space_id);
BEGIN
    RETURN ARRAY(
        SELECT t.trajectory_id FROM sona.trajectory t
        WHERE t.space_id = _learned_trajectories.space_id AND t.created_at >= since AND t.created_at < before
          AND (NOT with_steps OR EXISTS (SELECT FROM sona.trajectory_step x
                                         WHERE x.space_id = t.space_id AND x.trajectory_id = t.trajectory_id))
          -- What waits in pending_trajectory is not in the ledger yet, or has such a score. OFFSET 0 keeps the planner
          -- from joining: few scores wait, and to find them it would read all.
          AND EXISTS (SELECT FROM sona.learning_event e
                      WHERE e.space_id = t.space_id AND e.loop = 'instant' AND e.trajectory_id = t.trajectory_id OFFSET 0)
          -- Nor what the strategist has not taken in.
          AND NOT EXISTS (SELECT FROM sona.learning_event e
                          WHERE e.space_id = t.space_id AND e.loop = 'instant' AND e.trajectory_id = t.trajectory_id
                            AND e.ordinal >= weighed OFFSET 0)
          AND NOT EXISTS (SELECT FROM sona.score c WHERE c.space_id = t.space_id
                          AND c.trajectory_id = t.trajectory_id AND c.revision IS NULL OFFSET 0)
        ORDER BY t.created_at LIMIT batch);
END $$;
COMMENT ON FUNCTION sona._learned_trajectories IS
    'The oldest trajectories of a time, and only those with steps if so asked, from which nothing is left to learn.';

CREATE OR REPLACE FUNCTION sona._lock_learner(space_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    PERFORM FROM sona.learner l WHERE l.space_id = _lock_learner.space_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'the space is gone, or this role may only read it',
                              HINT = 'ask for a grant in sona.space_grant that may write';
    END IF;
END $$;
COMMENT ON FUNCTION sona._lock_learner IS 'Waits for the flush in flight, and keeps the next one out until the transaction ends.';

CREATE OR REPLACE FUNCTION sona._delete_trajectories(space_id bigint, before timestamptz, batch integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    -- Chosen before the lock is taken: flushes need not wait for the search.
    gone uuid[] := sona._learned_trajectories(space_id, '-infinity', before, false, batch);
BEGIN
    IF cardinality(gone) = 0 THEN RETURN 0; END IF;
    PERFORM sona._lock_learner(space_id);
    WITH deleted AS (
        DELETE FROM sona.trajectory t WHERE t.space_id = _delete_trajectories.space_id AND t.trajectory_id = ANY (gone)
        -- An SQL client may have scored it since.
        AND NOT EXISTS (SELECT FROM sona.score c WHERE c.space_id = t.space_id
                        AND c.trajectory_id = t.trajectory_id AND c.revision IS NULL OFFSET 0)
        -- And that may have been learned since: the strategist, who waits for no lock, would remember it once more.
        AND NOT EXISTS (SELECT FROM sona.learning_event e
                        WHERE e.space_id = t.space_id AND e.loop = 'instant' AND e.trajectory_id = t.trajectory_id
                          AND e.ordinal >= (SELECT g.ordinal FROM sona.strategist g WHERE g.space_id = t.space_id) OFFSET 0)
        RETURNING t.trajectory_id)
    SELECT coalesce(array_agg(d.trajectory_id), '{}') INTO gone FROM deleted d;
    DELETE FROM sona.trajectory_step t
    WHERE t.space_id = _delete_trajectories.space_id AND t.trajectory_id = ANY (gone);
    DELETE FROM sona.score c WHERE c.space_id = _delete_trajectories.space_id AND c.trajectory_id = ANY (gone);
    DELETE FROM sona.remembered_query r
    WHERE r.space_id = _delete_trajectories.space_id AND r.trajectory_id = ANY (gone);
    RETURN cardinality(gone);
END $$;
COMMENT ON FUNCTION sona._delete_trajectories IS
    'Deletes up to a batch of trajectories that were learned, with all that belongs to them; returns how many.';

CREATE OR REPLACE FUNCTION sona._delete_orphan_scores(space_id bigint, before timestamptz, batch integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    somewhere uuid := gen_random_uuid();
    orphans uuid[];
    deleted bigint;
BEGIN
    -- Two windows into the index over trajectories. Ids in order of time: orphans past their retention come before all
    -- that is kept, and the first window has them. Random ids: the second one meets every orphan sooner or later.
    orphans := ARRAY(
        SELECT DISTINCT c.trajectory_id FROM (
            (SELECT x.trajectory_id, x.created_at FROM sona.score x
             WHERE x.space_id = _delete_orphan_scores.space_id ORDER BY x.trajectory_id LIMIT batch)
            UNION ALL
            (SELECT x.trajectory_id, x.created_at FROM sona.score x
             WHERE x.space_id = _delete_orphan_scores.space_id AND x.trajectory_id >= somewhere
             ORDER BY x.trajectory_id LIMIT batch)) c
        WHERE c.created_at < before
          AND NOT EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = _delete_orphan_scores.space_id
                                                          AND t.trajectory_id = c.trajectory_id)
        LIMIT batch);
    IF cardinality(orphans) = 0 THEN RETURN 0; END IF;
    PERFORM sona._lock_learner(space_id);
    WITH gone AS (
        DELETE FROM sona.score c
        WHERE c.space_id = _delete_orphan_scores.space_id AND c.trajectory_id = ANY (orphans) AND c.created_at < before
        AND NOT EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = c.space_id AND t.trajectory_id = c.trajectory_id)
        RETURNING c.trajectory_id)
    SELECT count(DISTINCT g.trajectory_id) INTO deleted FROM gone g;
    RETURN deleted;
END $$;
COMMENT ON FUNCTION sona._delete_orphan_scores IS
    'Deletes old scores of trajectories that never came, or that are gone; returns of how many trajectories.';

CREATE OR REPLACE FUNCTION sona._delete_steps(
    space_id bigint, since timestamptz, before timestamptz, batch integer, OUT treated bigint, OUT reached timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    bare uuid[] := sona._learned_trajectories(space_id, since, before, true, batch);
BEGIN
    treated := cardinality(bare);
    reached := before;
    IF treated > 0 THEN
        PERFORM sona._lock_learner(space_id);
        DELETE FROM sona.trajectory_step x
        WHERE x.space_id = _delete_steps.space_id AND x.trajectory_id = ANY (bare)
        -- A late score may have been learned since, which the strategist has not taken in.
        AND NOT EXISTS (SELECT FROM sona.learning_event e
                        WHERE e.space_id = x.space_id AND e.loop = 'instant' AND e.trajectory_id = x.trajectory_id
                          AND e.ordinal >= (SELECT g.ordinal FROM sona.strategist g WHERE g.space_id = x.space_id) OFFSET 0);
        IF treated >= batch THEN
            SELECT t.created_at INTO reached FROM sona.trajectory t
            WHERE t.space_id = _delete_steps.space_id AND t.trajectory_id = bare[treated];
        END IF;
    END IF;
    -- Not beyond what still has its steps because it waits to be learned.
    reached := greatest(since, coalesce(
        (SELECT t.created_at FROM sona.trajectory t
         WHERE t.space_id = _delete_steps.space_id AND t.created_at >= since AND t.created_at < reached
           AND EXISTS (SELECT FROM sona.trajectory_step x
                       WHERE x.space_id = t.space_id AND x.trajectory_id = t.trajectory_id)
         ORDER BY t.created_at LIMIT 1), reached));
END $$;
COMMENT ON FUNCTION sona._delete_steps IS
    'Deletes the steps of up to a batch of trajectories that were learned; says of how many, and up to which time no '
    'trajectory has steps any more.';

CREATE OR REPLACE FUNCTION sona.apply_retention(space text, batch integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE;
    before timestamptz;
    reached timestamptz;
    after timestamptz;
    treated bigint := 0;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = apply_retention.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(apply_retention.space); END IF;
    IF batch IS NULL OR batch NOT BETWEEN 1 AND 100000 THEN
        PERFORM sona._refuse('SN003', format('batch is %s, expected 1 to 100000', coalesce(batch::text, 'NULL')),
                             'call it again until it returns 0');
    END IF;
    -- One at a time, so that the count is right; always taken before the learner's row, which a flush locks.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.apply_retention', s.space_id));
    -- The steps of what was recorded before are gone: the next call begins there.
    reached := coalesce(s.steps_deleted_before, 'epoch');
    after := reached;
    IF s.trajectory_retention IS NOT NULL THEN
        before := now() - s.trajectory_retention;
        treated := sona._delete_trajectories(s.space_id, before, batch);
        IF treated < batch THEN
            treated := treated + sona._delete_orphan_scores(s.space_id, before, (batch - treated)::integer);
        END IF;
    END IF;
    IF treated = 0 AND s.step_retention IS NOT NULL THEN
        SELECT d.treated, d.reached INTO treated, after
        FROM sona._delete_steps(s.space_id, reached, now() - s.step_retention, batch) d;
        IF treated > 0 THEN
            -- Never lowered, whatever the retention is set to: what had steps cannot be told from what never had any.
            UPDATE sona.space x SET steps_lost_before = greatest(x.steps_lost_before, now() - s.step_retention)
            WHERE x.space_id = s.space_id;
        END IF;
    END IF;
    IF after > reached THEN
        UPDATE sona.space x SET steps_deleted_before = after WHERE x.space_id = s.space_id;
    END IF;
    RETURN treated;
END $$;
COMMENT ON FUNCTION sona.apply_retention IS
    'Deletes at most batch trajectories past their retention, or else the steps of as many; returns of how many '
    'trajectories, 0 when nothing is left. Whatever has something left to learn stays. Call it in autocommit until it '
    'returns 0; sona worker instant does.';
