-- Versions: what was learned, as it was published, and the way back to it.

CREATE OR REPLACE FUNCTION sona._log_deployment(
    space_id bigint, action text, before text, after text, reason text
) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO sona.deployment (space_id, action, before, after, reason)
    SELECT s.space_id, _log_deployment.action, _log_deployment.before, _log_deployment.after, _log_deployment.reason
    FROM sona.space s WHERE s.space_id = _log_deployment.space_id AND _log_deployment.action IS NOT NULL;
END;
COMMENT ON FUNCTION sona._log_deployment IS 'An entry of the audit trail, by whoever has logged in.';

CREATE OR REPLACE FUNCTION sona._version_checksum(v sona.adapter_version, parts sona.version_row[]) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp
RETURN sha256(
    v.state || coalesce(v.evidence, '') || float8send(v.known) || float8send(v.strange) || float8send(v.unseen)
    || convert_to(format('%s %s %s %s %s %s %s', v.setting, v.in_force, v.is_sane, v.verdicts, v.gains, v.ordinal,
                         v.weighed), 'UTF8')
    || coalesce((SELECT string_agg(float8send(w), '' ORDER BY n) FROM unnest(v.weights) WITH ORDINALITY AS x (w, n)), '')
    || coalesce((SELECT string_agg(convert_to(p.tier || p.ordinal, 'UTF8') || @vector@.vector_send(p.down)
                                   || coalesce(@vector@.vector_send(p.up), ''), '' ORDER BY p.tier, p.ordinal)
                 FROM unnest(parts) p), ''));
COMMENT ON FUNCTION sona._version_checksum IS 'SHA-256 of everything that a deploy of a version brings back.';

CREATE OR REPLACE FUNCTION sona._version_rows(space_id bigint, version bigint) RETURNS sona.version_row[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ARRAY(SELECT r FROM sona.version_row r
             WHERE r.space_id = _version_rows.space_id AND r.version = _version_rows.version);
COMMENT ON FUNCTION sona._version_rows IS 'The served maps of a version, and its regions where one is an exception.';

CREATE OR REPLACE FUNCTION sona._publish(space_id bigint, cause text, state bytea DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    v sona.adapter_version%ROWTYPE;
    parts sona.version_row[];
    -- The number of one that was deleted is not given again.
    made bigint := 1 + greatest((SELECT max(x.version) FROM sona.adapter_version x
                                 WHERE x.space_id = _publish.space_id),
                                (SELECT l.version FROM sona.learner l WHERE l.space_id = _publish.space_id), 0);
BEGIN
    -- One statement, and so one snapshot: the strategist may be writing at this moment.
    WITH regions AS MATERIALIZED (
        SELECT r.region, r.centroid, r.verdict FROM sona.strategy_region r
        WHERE r.space_id = _publish.space_id
          AND EXISTS (SELECT FROM sona.strategy_region x WHERE x.space_id = _publish.space_id AND x.verdict <> 0)),
    answering AS (
        SELECT w.tier, w.ordinal, w.down, w.up
        FROM sona.served_row w JOIN sona.strategist g USING (space_id) JOIN sona.space s USING (space_id)
        WHERE w.space_id = _publish.space_id AND CASE w.tier
            -- What answers, and no more: each map is a fifth of the version.
            WHEN 'proven' THEN coalesce(s.frozen_from, s.strategy) IN ('fusion', 'familiar') OR g.in_force = 'fusion'
                               OR EXISTS (SELECT FROM regions r WHERE r.verdict = 1)
            WHEN 'careful' THEN coalesce(s.frozen_from, s.strategy) = 'stake' OR g.in_force = 'stake' ELSE true END
        UNION ALL
        SELECT 'region', r.region, r.centroid, NULL FROM regions r)
    SELECT l.space_id, made, nullif(l.version, 0), l.epoch, l.revision, l.events, cause, coalesce(_publish.state, l.state),
           NULL, now(), l.ordinal, coalesce(s.frozen_from, s.strategy), g.in_force, g.is_sane, g.known, g.strange,
           g.unseen, g.weights, (SELECT array_agg(r.verdict ORDER BY r.region) FROM regions r),
           coalesce((SELECT jsonb_object_agg(e.strategy, jsonb_build_array(e.events, e.gain, e.recent_gain))
                     FROM sona.strategy_evidence e WHERE e.space_id = l.space_id), '{}'),
           g.evidence, g.ordinal,
           ARRAY(SELECT ROW(l.space_id, made, a.tier, a.ordinal, a.down, a.up)::sona.version_row FROM answering a)
    INTO v.space_id, v.version, v.parent, v.epoch, v.revision, v.events, v.cause, v.state, v.checksum, v.created_at,
         v.ordinal, v.setting, v.in_force, v.is_sane, v.known, v.strange, v.unseen, v.weights, v.verdicts, v.gains,
         v.evidence, v.weighed, parts
    FROM sona.learner l JOIN sona.space s USING (space_id) JOIN sona.strategist g USING (space_id)
    WHERE l.space_id = _publish.space_id;
    IF v.state IS NULL OR cause IS NULL THEN
        PERFORM sona._refuse('SN005', 'the space is gone, or has learned nothing that could be published',
                             'record outcomes');
    END IF;
    v.checksum := sona._version_checksum(v, parts);
    INSERT INTO sona.adapter_version SELECT v.*;
    INSERT INTO sona.version_row SELECT p.* FROM unnest(parts) p;
    UPDATE sona.learner l SET version = made WHERE l.space_id = _publish.space_id;
    PERFORM sona._log_deployment(space_id, 'publish', v.parent::text, made::text, cause);
    RETURN made;
END $$;
COMMENT ON FUNCTION sona._publish IS
    'Publishes what a space has learned as a new version; for whoever holds the lock of its learner.';

CREATE OR REPLACE FUNCTION sona._is_published(space_id bigint) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT l.state IS NULL OR EXISTS (
            SELECT FROM sona.adapter_version v
            WHERE v.space_id = l.space_id AND v.version = l.version AND v.events = l.events AND v.ordinal = l.ordinal)
        FROM sona.learner l WHERE l.space_id = _is_published.space_id);
COMMENT ON FUNCTION sona._is_published IS 'Whether there is a version of all that a space has learned by now.';

CREATE OR REPLACE FUNCTION sona._version(space_id bigint, what text) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    current bigint := (SELECT l.version FROM sona.learner l WHERE l.space_id = _version.space_id);
    newest bigint := (SELECT max(v.version) FROM sona.adapter_version v WHERE v.space_id = _version.space_id);
    wanted bigint;
BEGIN
    IF NOT coalesce(what IN ('latest', 'rollback') OR what ~ '^[0-9]{1,18}$', false) THEN
        PERFORM sona._refuse('SN003', format('there is no version %L', left(what, 100)),
                             'use a number of sona.versions(space), rollback, latest or frozen');
    ELSIF newest IS NULL THEN
        PERFORM sona._refuse('SN005', 'the space has published no version yet',
                             'deploy ''frozen'' answers by the embedding as it is');
    ELSIF what = 'latest' THEN
        -- Not the newest: that may be what was learned beside it, before a rollback was taken back.
        RETURN (SELECT v.version FROM sona.adapter_version v WHERE v.space_id = _version.space_id
                ORDER BY v.events DESC, v.version DESC LIMIT 1);
    ELSIF what = 'rollback' THEN
        SELECT v.parent INTO wanted FROM sona.adapter_version v
        WHERE v.space_id = _version.space_id AND v.version = current;
        IF wanted IS NULL THEN
            PERFORM sona._refuse('SN005', format('there is nothing before version %s', current),
                                 format('deploy ''%s'' drops what was learned since, ''frozen'' answers by the '
                                        'embedding as it is', current));
        END IF;
    ELSE
        wanted := what::bigint;
    END IF;
    IF NOT EXISTS (SELECT FROM sona.adapter_version v WHERE v.space_id = _version.space_id AND v.version = wanted) THEN
        IF EXISTS (SELECT FROM sona.adapter_version v WHERE v.version = wanted AND v.space_id = (
                   SELECT p.space_id FROM sona.space p
                   WHERE p.standby_of = _version.space_id AND p.replaced_at IS NOT NULL)) THEN
            PERFORM sona._refuse('SN005', format('version %s is of the embedder before', wanted),
                                 'sona space re-embed SPACE --abort goes back to that embedder as a whole');
        END IF;
        PERFORM sona._refuse(
            'SN005', CASE WHEN wanted BETWEEN 1 AND newest
                          THEN format('version %s was deleted: it was pruned, or held what was to be forgotten', wanted)
                          ELSE format('there is no version %s, the newest is %s', wanted, newest) END,
            'use one of sona.versions(space)');
    END IF;
    RETURN wanted;
END $$;
COMMENT ON FUNCTION sona._version IS 'The version that a deploy means. Raises SN005 if there is none.';

CREATE OR REPLACE FUNCTION sona.deploy(space text, what text, reason text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
    l sona.learner%ROWTYPE;
    v sona.adapter_version%ROWTYPE;
    is_published boolean;
    setting text;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = deploy.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(deploy.space); END IF;
    -- A flush in flight ends before, or finds another epoch and learns its events on what is deployed here.
    PERFORM sona._lock_learner(s.space_id);
    PERFORM FROM sona.strategist g WHERE g.space_id = s.space_id FOR UPDATE;
    SELECT * INTO s FROM sona.space x WHERE x.space_id = s.space_id;
    SELECT * INTO l FROM sona.learner x WHERE x.space_id = s.space_id;
    PERFORM sona._check_reason(reason);
    setting := s.frozen_from;
    IF what = 'frozen' THEN
        PERFORM sona._freeze(s.space_id, coalesce(reason, 'deployed by hand'));
        RETURN l.version;
    END IF;
    is_published := sona._is_published(s.space_id);
    -- What is learned at present is the latest already: a version of it may know less of the evidence weighed since.
    IF what = 'latest' AND setting IS NOT NULL AND is_published AND l.version = coalesce(
        (SELECT x.version FROM sona.adapter_version x WHERE x.space_id = s.space_id
         ORDER BY x.events DESC, x.version DESC LIMIT 1), l.version) THEN
        PERFORM sona.set_strategy(s.name, setting);
        PERFORM sona._log_deployment(s.space_id, 'deploy', nullif(l.version, 0)::text, nullif(l.version, 0)::text, reason);
        RETURN l.version;
    END IF;
    IF what = 'latest' AND NOT is_published AND l.events > coalesce(
        (SELECT max(x.events) FROM sona.adapter_version x WHERE x.space_id = s.space_id), 0) THEN
        PERFORM sona._publish(s.space_id, 'deployed as the latest');
        is_published := true;
        SELECT * INTO l FROM sona.learner x WHERE x.space_id = s.space_id;
    END IF;
    SELECT * INTO v FROM sona.adapter_version x
    WHERE x.space_id = s.space_id AND x.version = (SELECT sona._version(s.space_id, what));
    IF sona._version_checksum(v, sona._version_rows(s.space_id, v.version)) <> v.checksum THEN
        PERFORM sona._refuse('SN006', format('version %s is damaged: its checksum differs', v.version),
                             'deploy another version');
    END IF;
    -- What was learned since the last publication must have a way back, too.
    IF NOT is_published THEN
        PERFORM sona._publish(s.space_id, format('before version %s was deployed', v.version));
        SELECT * INTO l FROM sona.learner x WHERE x.space_id = s.space_id;
    END IF;
    UPDATE sona.learner x
    SET epoch = x.epoch + 1, version = v.version, restored = v.version, state = NULL, events = v.events
    WHERE x.space_id = s.space_id;
    DELETE FROM sona.served_row w WHERE w.space_id = s.space_id;
    INSERT INTO sona.served_row (space_id, tier, ordinal, down, up)
    SELECT r.space_id, r.tier, r.ordinal, r.down, r.up FROM sona.version_row r
    WHERE r.space_id = s.space_id AND r.version = v.version AND r.tier <> 'region';
    UPDATE sona.strategist g
    SET epoch = g.epoch + 1, restored = v.version, in_force = v.in_force, is_sane = v.is_sane, known = v.known,
        strange = v.strange, unseen = v.unseen, weights = v.weights, evidence = v.evidence, suspected_share = 0,
        changed_at = clock_timestamp(), remembered_until = v.weighed,
        -- A base that was published before is part of this version, or is given up by it.
        base_version = (SELECT b.version FROM sona.base_state b WHERE b.space_id = s.space_id)
    WHERE g.space_id = s.space_id;
    -- The regions go on moving; where one was an exception, all of them are as they were.
    UPDATE sona.strategy_region r SET verdict = 0 WHERE r.space_id = s.space_id AND r.verdict <> 0;
    UPDATE sona.strategy_region r SET centroid = w.down, verdict = v.verdicts[r.region + 1], pattern_id = NULL
    FROM sona.version_row w
    WHERE r.space_id = s.space_id AND w.space_id = s.space_id AND w.version = v.version AND w.tier = 'region'
      AND w.ordinal = r.region;
    -- A shadow stays one: whoever set it wants no answer to change. And what was frozen thaws to what it was.
    setting := CASE WHEN s.strategy = 'shadow' THEN 'shadow' WHEN what = 'latest' AND setting IS NOT NULL THEN setting
                    ELSE v.setting END;
    UPDATE sona.space x SET strategy = setting, frozen_from = NULL WHERE x.space_id = s.space_id;
    IF setting <> s.strategy THEN
        PERFORM sona._log_deployment(s.space_id, 'strategy', s.strategy, setting,
                                     format('version %s was deployed', v.version));
    END IF;
    PERFORM sona._log_deployment(s.space_id, 'deploy', nullif(l.version, 0)::text, v.version::text, reason);
    RETURN v.version;
END $$;
COMMENT ON FUNCTION sona.deploy(text, text, text) IS
    'Answers, and goes on learning, from a version: its number; rollback for the one before; latest for what has learned '
    'from most events; or frozen for the embedding as it is, while learning goes on. What was learned since the last '
    'version is published first. What is remembered stays. Returns the version in force.';

CREATE OR REPLACE FUNCTION sona.deploy(space text, version bigint, reason text DEFAULT NULL) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN sona.deploy(deploy.space, deploy.version::text, deploy.reason);
COMMENT ON FUNCTION sona.deploy(text, bigint, text) IS 'sona.deploy for the number of a version.';

CREATE OR REPLACE FUNCTION sona._freeze(space_id bigint, reason text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    was text;
BEGIN
    SELECT s.strategy INTO was FROM sona.space s WHERE s.space_id = _freeze.space_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM sona._refuse('42501', 'the space is gone, or this role may only read it',
                             'ask for a grant in sona.space_grant that may write');
    END IF;
    UPDATE sona.space s SET frozen_from = CASE was WHEN 'frozen' THEN s.frozen_from ELSE was END, strategy = 'frozen'
    WHERE s.space_id = _freeze.space_id;
    UPDATE sona.strategist g SET epoch = g.epoch + 1, changed_at = clock_timestamp(), suspected_share = 0
    WHERE g.space_id = _freeze.space_id;
    PERFORM sona._log_deployment(space_id, 'freeze', was, 'frozen', reason);
END $$;
COMMENT ON FUNCTION sona._freeze IS 'Answers by the embedding as it is, until a version is deployed or a strategy set.';

CREATE OR REPLACE FUNCTION sona.versions(space text) RETURNS TABLE (
    version bigint, parent bigint, created_at timestamptz, cause text, events bigint, setting text, strategy text,
    in_force boolean, bytes bigint
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    key bigint := (SELECT s.space_id FROM sona.space s WHERE s.name = versions.space);
BEGIN
    IF key IS NULL THEN PERFORM sona._unknown_space(versions.space); END IF;
    RETURN QUERY
    SELECT v.version, v.parent, v.created_at, v.cause, v.events, v.setting, v.in_force, v.version = l.version,
           octet_length(v.state) + coalesce(octet_length(v.evidence), 0) + coalesce(r.bytes, 0)
    FROM sona.adapter_version v
    JOIN sona.learner l USING (space_id)
    LEFT JOIN (SELECT w.version, sum(pg_column_size(w.down) + coalesce(pg_column_size(w.up), 0))::bigint AS bytes
               FROM sona.version_row w WHERE w.space_id = key GROUP BY w.version) r ON r.version = v.version
    WHERE v.space_id = key ORDER BY v.version;
END $$;
COMMENT ON FUNCTION sona.versions IS
    'The published versions of a space: what each was learned from and why, what answered, and which is in force.';

CREATE OR REPLACE FUNCTION sona.prune_versions(space text, keep integer) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    key bigint := (SELECT s.space_id FROM sona.space s WHERE s.name = prune_versions.space);
    oldest timestamptz;
    gone bigint[];
BEGIN
    IF key IS NULL THEN PERFORM sona._unknown_space(prune_versions.space); END IF;
    IF keep IS NULL OR keep < 1 THEN
        PERFORM sona._refuse('SN003', format('keep is %s, expected at least 1', coalesce(keep::text, 'NULL')),
                             'say how many of the newest versions are to stay');
    END IF;
    PERFORM sona._lock_learner(key);
    oldest := (SELECT min(t.created_at) FROM sona.trajectory t WHERE t.space_id = key);
    -- What is left of the trajectories may have been answered by it: sona.why needs it then. Those that were followed
    -- by another one before the oldest of them are few, and only for these are the trajectories looked through.
    gone := ARRAY(
        SELECT v.version FROM (
            SELECT x.version, lead(x.created_at) OVER (ORDER BY x.version) AS followed,
                   row_number() OVER (ORDER BY x.version DESC) AS place
            FROM sona.adapter_version x WHERE x.space_id = key) v
        WHERE v.place > keep AND (oldest IS NULL OR v.followed < oldest)
          AND v.version NOT IN (SELECT l.version FROM sona.learner l WHERE l.space_id = key UNION ALL
                                SELECT g.restored FROM sona.strategist g
                                WHERE g.space_id = key AND g.restored IS NOT NULL UNION ALL
                                SELECT p.parent FROM sona.learner l JOIN sona.adapter_version p USING (space_id, version)
                                WHERE l.space_id = key AND p.parent IS NOT NULL UNION ALL
                                -- The strategist goes on with it, once it has come as far.
                                SELECT b.version FROM sona.base_state b JOIN sona.strategist g USING (space_id)
                                WHERE b.space_id = key AND b.version <> coalesce(g.base_version, 0)));
    gone := ARRAY(
        SELECT g FROM unnest(gone) g
        WHERE NOT EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = key AND t.version = g));
    DELETE FROM sona.version_row r WHERE r.space_id = key AND r.version = ANY (gone);
    DELETE FROM sona.adapter_version v WHERE v.space_id = key AND v.version = ANY (gone);
    RETURN cardinality(gone);
END $$;
COMMENT ON FUNCTION sona.prune_versions IS
    'Deletes old versions; of those to which a trajectory, and so sona.why, still refers none, nor the newest, nor the one '
    'in force and its parent, nor a base that the strategies are yet to be weighed with. Returns how many.';

CREATE OR REPLACE VIEW sona.deployments WITH (security_invoker = true) AS
SELECT s.name AS space, d.created_at, d.actor, d.action, d.before, d.after, d.reason
FROM sona.deployment d
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.deployments IS 'The audit trail: who changed what answers, when, from what to what, and why.';
