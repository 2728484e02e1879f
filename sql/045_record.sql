-- Recording and scoring for any client that speaks SQL. What is recorded here is learned by 'sona worker instant',
-- through the same code that learns in an application's process.

CREATE OR REPLACE FUNCTION sona._check_reward(value double precision, low real, high real, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- NaN compares above everything, so the range refuses it as well.
    IF value IS NOT NULL AND NOT (value >= low AND value <= high) THEN
        PERFORM sona._refuse('SN003', format('%s is %s, expected %s to %s', what, value, low, high),
                             'the space declares this range; NULL means that nobody judged');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_reward IS 'Raises SN003 unless a reward is NULL or within the range that the space declares.';

CREATE OR REPLACE FUNCTION sona._check_id(id text, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF id IS NULL OR octet_length(id) NOT BETWEEN 1 AND 500 THEN
        PERFORM sona._refuse('SN003', format('%s has %s bytes, expected 1 to 500', what, coalesce(octet_length(id), 0)),
                             'hash longer ones');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_id IS 'Raises SN003 unless an id can be indexed.';

CREATE OR REPLACE FUNCTION sona.record(
    space text, query @vector@.vector, item_ids text[] DEFAULT NULL, rewards double precision[] DEFAULT NULL,
    quality double precision DEFAULT NULL, trajectory_id uuid DEFAULT NULL, user_id text DEFAULT NULL,
    session_id text DEFAULT NULL, metadata jsonb DEFAULT '{}', latency_us bigint DEFAULT 0,
    positions integer[] DEFAULT NULL, scores double precision[] DEFAULT NULL,
    activations @vector@.vector[] DEFAULT NULL, arm text DEFAULT 'learned', version bigint DEFAULT 0,
    strategy text DEFAULT 'unknown', propensity double precision DEFAULT 1
) RETURNS uuid
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE;
    id uuid := coalesce(record.trajectory_id, sona.new_trajectory_id());
    n integer := coalesce(cardinality(record.item_ids), cardinality(record.activations), 0);
    part text;
    reward double precision;
    activation @vector@.vector;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = record.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(record.space); END IF;
    IF record.query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    IF @vector@.vector_dims(record.query) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(record.query), s.dim);
    END IF;
    IF n > 10000 THEN
        PERFORM sona._refuse('SN003', format('%s items, expected at most 10000', n), 'split the trajectory');
    END IF;
    IF array_ndims(record.item_ids) > 1 OR array_ndims(record.rewards) > 1 OR array_ndims(record.positions) > 1
        OR array_ndims(record.scores) > 1 OR array_ndims(record.activations) > 1 THEN
        PERFORM sona._refuse('SN003', 'an array has several dimensions, expected one', 'pass a list of values');
    END IF;
    IF n <> coalesce(cardinality(record.rewards), n) OR n <> coalesce(cardinality(record.positions), n)
        OR n <> coalesce(cardinality(record.scores), n) OR n <> coalesce(cardinality(record.activations), n) THEN
        PERFORM sona._refuse('SN003', format(
            '%s items with %s rewards, %s positions, %s scores and %s activations', n, cardinality(record.rewards),
            cardinality(record.positions), cardinality(record.scores), cardinality(record.activations)),
            'give one of each for every item, NULL where there is none, or leave the whole array out');
    END IF;
    IF EXISTS (SELECT FROM unnest(ARRAY[
            array_lower(record.item_ids, 1), array_lower(record.rewards, 1), array_lower(record.positions, 1),
            array_lower(record.scores, 1), array_lower(record.activations, 1)]) low WHERE low <> 1) THEN
        PERFORM sona._refuse('SN003', 'an array does not begin at 1', 'pass a list of values');
    END IF;
    IF 1 > ANY (record.positions) THEN
        PERFORM sona._refuse('SN003', 'a position is below 1', 'count places from 1; NULL was not shown');
    END IF;
    IF record.item_ids IS NULL AND array_position(record.activations, NULL) IS NOT NULL THEN
        PERFORM sona._refuse('SN003', 'a step has neither an activation nor an item', 'give it one of them');
    END IF;
    FOREACH part IN ARRAY coalesce(record.item_ids, '{}') LOOP
        PERFORM sona._check_id(part, 'an item id');
    END LOOP;
    FOREACH reward IN ARRAY coalesce(record.rewards, '{}') LOOP
        PERFORM sona._check_reward(reward, s.reward_min, s.reward_max, 'a reward');
    END LOOP;
    IF EXISTS (SELECT FROM unnest(record.scores) x WHERE NOT abs(x) < 3.4e38) THEN
        PERFORM sona._refuse('SN003', 'a score of an item is not a finite number', 'NULL where there is none');
    END IF;
    FOREACH activation IN ARRAY coalesce(record.activations, '{}') LOOP
        IF @vector@.vector_dims(activation) <> s.dim THEN
            PERFORM sona._wrong_dimension(@vector@.vector_dims(activation), s.dim);
        END IF;
    END LOOP;
    PERFORM sona._check_reward(record.quality, s.reward_min, s.reward_max, 'the quality');
    IF record.user_id IS NOT NULL THEN PERFORM sona._check_id(record.user_id, 'the user id'); END IF;
    IF record.session_id IS NOT NULL THEN PERFORM sona._check_id(record.session_id, 'the session id'); END IF;
    IF record.arm IS NOT NULL THEN PERFORM sona._check_id(record.arm, 'the arm'); END IF;
    IF record.strategy IS NOT NULL THEN PERFORM sona._check_id(record.strategy, 'the strategy'); END IF;
    IF coalesce(record.latency_us, -1) < 0 OR coalesce(record.version, -1) < 0
        OR NOT coalesce(record.propensity > 0 AND record.propensity <= 1, false) THEN
        PERFORM sona._refuse('SN003', format('latency_us is %s, version %s, propensity %s', record.latency_us,
                             record.version, record.propensity), 'expected at least 0, at least 0, and a probability');
    END IF;
    IF jsonb_typeof(coalesce(record.metadata, '{}')) <> 'object' THEN
        PERFORM sona._refuse('SN003', 'metadata is no JSON object', 'pass an object, like {"model": "small"}');
    END IF;
    IF octet_length(record.metadata::text) > 1048576 THEN
        PERFORM sona._refuse('SN003', 'metadata has more than 1048576 bytes as JSON', 'shorten it');
    END IF;

    INSERT INTO sona.trajectory (space_id, trajectory_id, query, quality, latency_us, user_id, session_id, metadata,
                                 arm, version, strategy, propensity)
    SELECT s.space_id, id, record.query, record.quality, record.latency_us, record.user_id, record.session_id,
           coalesce(record.metadata, '{}'), coalesce(record.arm, 'learned'), record.version,
           coalesce(record.strategy, 'unknown'), record.propensity
    -- One that retention has deleted is still in the ledger, and stays deleted.
    WHERE NOT EXISTS (SELECT FROM sona.learning_event e
                      WHERE e.space_id = s.space_id AND e.loop = 'instant' AND e.trajectory_id = id)
    ON CONFLICT DO NOTHING;
    -- The same id again is the same trajectory: recorded once, learned once.
    IF NOT FOUND THEN RETURN id; END IF;
    INSERT INTO sona.trajectory_step (space_id, trajectory_id, ordinal, item_id, position, reward, attention, activation)
    SELECT s.space_id, id, i - 1, record.item_ids[i],
           CASE WHEN record.positions IS NULL THEN i ELSE record.positions[i] END, record.rewards[i],
           CASE WHEN record.scores[i] IS NULL THEN NULL ELSE ARRAY[record.scores[i]]::real[] END, record.activations[i]
    FROM generate_series(1, n) i;
    INSERT INTO sona.pending_trajectory (space_id, trajectory_id) VALUES (s.space_id, id);
    RETURN id;
END $$;
COMMENT ON FUNCTION sona.record IS
    'Records what was answered and, as far as it is known, what it was worth; returns the trajectory''s id. The same id '
    'again is nothing. Learned by sona worker instant.';

CREATE OR REPLACE FUNCTION sona.score(
    trajectory uuid, value double precision, item_id text DEFAULT NULL, name text DEFAULT 'reward',
    score_id text DEFAULT NULL, space text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE;
    holders text[];
BEGIN
    IF score.trajectory IS NULL OR score.value IS NULL THEN
        PERFORM sona._refuse('SN003', 'the trajectory or the value is NULL',
                             'a score says what something was worth: leave out what nobody judged');
    END IF;
    IF score.space IS NULL THEN
        holders := ARRAY(
            SELECT x.name FROM sona.space x
            -- One that is kept beside a space, while that changes its embedder, has the same trajectories.
            WHERE x.standby_of IS NULL
              AND EXISTS (SELECT FROM sona.trajectory t
                          WHERE t.space_id = x.space_id AND t.trajectory_id = score.trajectory)
            ORDER BY x.name);
        IF cardinality(holders) = 0 THEN
            PERFORM sona._refuse('SN003', format('there is no trajectory %s yet', score.trajectory),
                                 'name the space, and the score waits for its trajectory');
        ELSIF cardinality(holders) > 1 THEN
            PERFORM sona._refuse('SN003', format('%s spaces have a trajectory %s', cardinality(holders), score.trajectory),
                                 format('name the space, like space => %L', holders[1]));
        END IF;
    END IF;
    SELECT * INTO s FROM sona.space x WHERE x.name = coalesce(score.space, holders[1]);
    IF NOT FOUND THEN PERFORM sona._unknown_space(score.space); END IF;
    PERFORM sona._check_reward(score.value, s.reward_min, s.reward_max, 'the score');
    IF score.item_id IS NOT NULL THEN PERFORM sona._check_id(score.item_id, 'the item id'); END IF;
    PERFORM sona._check_id(coalesce(score.score_id, 'new'), 'the score id');
    PERFORM sona._check_id(score.name, 'the name');
    INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value)
    VALUES (s.space_id, coalesce(score.score_id, gen_random_uuid()::text), score.trajectory, score.item_id, score.name,
            score.value)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN false; END IF;
    INSERT INTO sona.pending_trajectory (space_id, trajectory_id) VALUES (s.space_id, score.trajectory);
    RETURN true;
END $$;
COMMENT ON FUNCTION sona.score IS
    'Says later what an answer, or one of its items, was worth; false if the score id is known already. With the space '
    'named it may come before its trajectory; where several spaces have the trajectory''s id, it must be.';

CREATE OR REPLACE FUNCTION sona._check_keys(entry jsonb, known text[], lists text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    key text;
BEGIN
    IF jsonb_typeof(entry) IS DISTINCT FROM 'object' THEN
        PERFORM sona._refuse('SN003', format('an entry is a JSON %s, expected an object', jsonb_typeof(entry)),
                             'pass an array of objects');
    END IF;
    -- What is not known would be ignored, and an outcome with it.
    FOR key IN SELECT k FROM jsonb_object_keys(entry) k LOOP
        IF key <> ALL (known) THEN
            PERFORM sona._refuse('SN003', format('an entry has the key %L', left(key, 100)),
                                 format('expected %s', array_to_string(known, ', ')));
        ELSIF key = ANY (lists) AND jsonb_typeof(entry -> key) NOT IN ('array', 'null') THEN
            PERFORM sona._refuse('SN003', format('%s is a JSON %s, expected an array', key, jsonb_typeof(entry -> key)),
                                 'pass a list of values, or leave it out');
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION sona._check_keys IS
    'Raises SN003 unless an entry of a batch is an object of known keys, those of lists holding arrays.';

CREATE OR REPLACE FUNCTION sona.record_batch(space text, records jsonb) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    r jsonb;
BEGIN
    IF jsonb_typeof(records) IS DISTINCT FROM 'array' THEN
        PERFORM sona._refuse('SN003', 'the records are no JSON array', 'pass [{"query": [...], "item_ids": [...]}, ...]');
    END IF;
    FOR r IN SELECT e FROM jsonb_array_elements(records) e LOOP
        PERFORM sona._check_keys(r, '{query,item_ids,rewards,quality,trajectory_id,user_id,session_id,metadata,latency_us,'
                                    'positions,scores,arm,version,strategy,propensity}',
                                 '{item_ids,rewards,positions,scores}');
        RETURN NEXT sona.record(
            record_batch.space, (r ->> 'query')::@vector@.vector, sona._texts(r -> 'item_ids'),
            sona._numbers(r -> 'rewards'), (r ->> 'quality')::double precision, (r ->> 'trajectory_id')::uuid,
            r ->> 'user_id', r ->> 'session_id', coalesce(r -> 'metadata', '{}'),
            coalesce((r ->> 'latency_us')::bigint, 0), sona._numbers(r -> 'positions')::integer[],
            sona._numbers(r -> 'scores'), NULL, coalesce(r ->> 'arm', 'learned'), coalesce((r ->> 'version')::bigint, 0),
            coalesce(r ->> 'strategy', 'unknown'), coalesce((r ->> 'propensity')::double precision, 1));
    END LOOP;
END $$;
COMMENT ON FUNCTION sona.record_batch IS
    'Records many trajectories, a JSON object each with the parameters of sona.record; all of them or none.';

CREATE OR REPLACE FUNCTION sona.score_batch(space text, scores jsonb) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    r jsonb;
    fresh integer := 0;
BEGIN
    IF jsonb_typeof(scores) IS DISTINCT FROM 'array' THEN
        PERFORM sona._refuse('SN003', 'the scores are no JSON array', 'pass [{"trajectory": ..., "value": ...}, ...]');
    END IF;
    FOR r IN SELECT e FROM jsonb_array_elements(scores) e LOOP
        PERFORM sona._check_keys(r, '{trajectory,value,item_id,name,score_id}', '{}');
        fresh := fresh + sona.score((r ->> 'trajectory')::uuid, (r ->> 'value')::double precision, r ->> 'item_id',
                                    coalesce(r ->> 'name', 'reward'), r ->> 'score_id', score_batch.space)::integer;
    END LOOP;
    RETURN fresh;
END $$;
COMMENT ON FUNCTION sona.score_batch IS
    'Records many scores, a JSON object each with the parameters of sona.score; returns how many were new.';

CREATE OR REPLACE FUNCTION sona._texts(list jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(list) = 'array'
            THEN ARRAY(SELECT e FROM jsonb_array_elements_text(list) WITH ORDINALITY AS x (e, n) ORDER BY n) END;
COMMENT ON FUNCTION sona._texts IS 'A JSON array as text[]; NULL for anything else.';

CREATE OR REPLACE FUNCTION sona._numbers(list jsonb) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sona._texts(list)::double precision[];
COMMENT ON FUNCTION sona._numbers IS 'A JSON array as double precision[]; NULL for anything else.';
