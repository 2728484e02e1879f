-- Roles: what a login may do, by membership in one of three. In which spaces, the policies decide by sona.space_grant.
--   sona_reader  sees what was recorded and learned, adapts and recalls
--   sona_app     a reader that records and scores
--   sona_worker  an app that learns, and creates, fills, grants and drops spaces
-- Roles belong to the cluster, the schema to a database: they are made where they are missing, and never dropped.

CREATE OR REPLACE FUNCTION sona.grant_space(space text, role name, may_write boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    found_space bigint;
BEGIN
    SELECT s.space_id INTO found_space FROM sona.space s WHERE s.name = grant_space.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(grant_space.space); END IF;
    IF grant_space.role IS NULL OR to_regrole(quote_ident(grant_space.role)) IS NULL THEN
        PERFORM sona._refuse('SN003', format('there is no role %L', grant_space.role), 'create it, or name another one');
    END IF;
    INSERT INTO sona.space_grant (space_id, role_name, may_write)
    VALUES (found_space, grant_space.role, coalesce(grant_space.may_write, true))
    ON CONFLICT (space_id, role_name) DO UPDATE SET may_write = excluded.may_write;
END $$;
COMMENT ON FUNCTION sona.grant_space IS
    'Lets a role and its members use a space, or only read it. For those who may write the space themselves.';

CREATE OR REPLACE FUNCTION sona.revoke_space(space text, role name) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found_space bigint;
BEGIN
    SELECT s.space_id INTO found_space FROM sona.space s WHERE s.name = revoke_space.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(revoke_space.space); END IF;
    -- The policy would hide the row, and the caller would take that for "had none".
    IF NOT sona._may_grant(found_space, current_user) THEN
        PERFORM sona._refuse('42501', format('permission denied for space %L', revoke_space.space),
                             'only who may write a space may revoke it');
    END IF;
    DELETE FROM sona.space_grant g WHERE g.space_id = found_space AND g.role_name = revoke_space.role;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION sona.revoke_space IS
    'Takes a space from a role; false if it had none. For those who may write the space. What a member of the role has '
    'by another role stays.';

DO $$
DECLARE
    made text;
    step record;
BEGIN
    FOREACH made IN ARRAY ARRAY['sona_reader', 'sona_app', 'sona_worker'] LOOP
        CONTINUE WHEN to_regrole(made) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', made);
        EXCEPTION
            -- Another database of the cluster was migrated at the same moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'there is no role %, and % may not create it: only the owner can use schema sona', made,
                    current_user
                    USING HINT = 'run as superuser: CREATE ROLE sona_reader; CREATE ROLE sona_app IN ROLE sona_reader; '
                        'CREATE ROLE sona_worker IN ROLE sona_app; then run ''sona migrate'' again';
        END;
    END LOOP;
    FOR step IN SELECT * FROM (VALUES ('sona_reader', 'sona_app'), ('sona_app', 'sona_worker')) m (lesser, greater)
                WHERE to_regrole(lesser) IS NOT NULL AND to_regrole(greater) IS NOT NULL
    LOOP
        CONTINUE WHEN pg_has_role(step.greater, step.lesser, 'MEMBER');
        BEGIN
            EXECUTE format('GRANT %I TO %I', step.lesser, step.greater);
        EXCEPTION
            WHEN unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING '% is no member of %, and % may not make it one', step.greater, step.lesser, current_user
                    USING HINT = format('run as superuser: GRANT %I TO %I', step.lesser, step.greater);
        END;
    END LOOP;
END $$;

DO $$
DECLARE
    part record;
BEGIN
    REVOKE ALL ON ALL ROUTINES IN SCHEMA sona FROM PUBLIC;
    -- Taken and given anew, so that what an earlier version gave goes.
    FOR part IN SELECT r FROM unnest(ARRAY['sona_reader', 'sona_app', 'sona_worker']) r WHERE to_regrole(r) IS NOT NULL
    LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA sona FROM %I', part.r);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA sona FROM %I', part.r);
        EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA sona FROM %I', part.r);
        EXECUTE format('GRANT USAGE ON SCHEMA sona TO %I', part.r);
    END LOOP;

    IF to_regrole('sona_reader') IS NOT NULL THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA sona TO sona_reader;
        -- Whoever reads a digest can try user ids until one fits. Only who learns asks it.
        REVOKE SELECT ON sona.forgotten_user FROM sona_reader;
        -- What is not VOLATILE cannot write; of the others, these do not.
        FOR part IN SELECT p.oid::regprocedure AS name FROM pg_proc p
                    WHERE p.pronamespace = 'sona'::regnamespace
                      AND (p.provolatile <> 'v' OR p.proname IN ('new_trajectory_id', '_widen_search', '_nearest_items',
                                                               '_search_items', '_near_events', '_score_items', '_related_items', '_answer'))
        LOOP
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO sona_reader', part.name);
        END LOOP;
    END IF;

    IF to_regrole('sona_app') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION sona.record, sona.record_batch, sona.score, sona.score_batch,
            sona._count_accesses TO sona_app;
        -- Column by column: times, order of arrival and what the learner notes down are not for an application to say.
        GRANT INSERT (space_id, trajectory_id, query, quality, latency_us, user_id, session_id, metadata, arm, version,
                      strategy, propensity) ON sona.trajectory TO sona_app;
        GRANT INSERT ON sona.trajectory_step TO sona_app;
        GRANT INSERT (space_id, score_id, trajectory_id, item_id, name, value) ON sona.score TO sona_app;
        GRANT INSERT (space_id, trajectory_id) ON sona.pending_trajectory TO sona_app;
        GRANT INSERT, UPDATE (access_count, last_accessed) ON sona.pattern_access TO sona_app;
    END IF;

    IF to_regrole('sona_worker') IS NOT NULL THEN
        GRANT EXECUTE ON ALL ROUTINES IN SCHEMA sona TO sona_worker;
        FOR part IN SELECT c.oid::regclass AS name FROM pg_class c
                    WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p')
                      AND c.relname NOT IN ('alembic_version', 'deployment')
        LOOP
            EXECUTE format('GRANT INSERT, DELETE ON %s TO sona_worker', part.name);
        END LOOP;
        -- The audit trail only grows, and who did it and when is not for them to say. It goes with its space.
        GRANT INSERT (space_id, action, before, after, reason) ON sona.deployment TO sona_worker;
        GRANT SELECT ON sona.forgotten_user TO sona_worker;
        -- No row of what is recorded or published is changed. Rows may be deleted, for retention, to forget a user and to
        -- drop a space; the ledger is made dense again then: in its own spaces, a worker is trusted with it.
        GRANT UPDATE ON sona.learner, sona.served_row, sona.memory_edge, sona.item_source, sona.strategist,
            sona.strategy_evidence, sona.strategy_region, sona.item_outcome, sona.answer_outcome, sona.loop_schedule,
            sona.loop_run, sona.pattern, sona.pattern_access, sona.pattern_state, sona.verdict, sona.base_state,
            sona.fisher_snapshot, sona.memory_node, sona.memory_node_state, sona.memory_state TO sona_worker;
        GRANT UPDATE (strategy, frozen_from, control_share, embedder, trajectory_retention, step_retention,
                      steps_deleted_before, steps_lost_before, may_transfer, name, standby_of, replaced_at)
            ON sona.space TO sona_worker;
        GRANT UPDATE (may_write) ON sona.space_grant TO sona_worker;
        GRANT UPDATE (revision) ON sona.score TO sona_worker;
        -- What was merged into a node that is merged, too.
        GRANT UPDATE (into_id) ON sona.memory_archive TO sona_worker;
        GRANT UPDATE (ordinal, learned) ON sona.learning_event TO sona_worker;
        GRANT UPDATE (events, learned) ON sona.learning_cycle TO sona_worker;
        GRANT UPDATE (forgotten_at) ON sona.forgotten_user TO sona_worker;
        GRANT UPDATE (admitted, helped, rewards, unhelpful) ON sona.remembered_query TO sona_worker;
        -- FOR UPDATE asks for the right to change at least one column.
        GRANT UPDATE (created_at) ON sona.pending_trajectory TO sona_worker;
        -- USAGE draws ids, of new spaces and of runs that come from a file; it does not turn the sequence back to others.
        FOR part IN SELECT * FROM (VALUES ('sona.space', 'space_id'), ('sona.loop_run', 'run_id')) d (named, drawn) LOOP
            EXECUTE format('GRANT USAGE ON SEQUENCE %s TO sona_worker', pg_get_serial_sequence(part.named, part.drawn));
        END LOOP;
    END IF;
END $$;
