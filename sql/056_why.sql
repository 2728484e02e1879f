-- Why an answer was what it was: what answered and on which evidence, what it remembered, and what moved its items.

CREATE OR REPLACE FUNCTION sona._answered_at(trajectory_id uuid, recorded_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- RFC 9562, version 7: the first 48 bits are milliseconds. By a clock that is ahead, it would come after its record.
RETURN CASE get_byte(uuid_send(_answered_at.trajectory_id), 6) >> 4
            WHEN 7 THEN least(_answered_at.recorded_at, to_timestamp(
                ('x' || left(replace(_answered_at.trajectory_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0))
            ELSE _answered_at.recorded_at END;
COMMENT ON FUNCTION sona._answered_at IS
    'When an answer was given: the time in its id, where the id has one, else when it was recorded.';

CREATE OR REPLACE FUNCTION sona._find_trajectory(trajectory uuid, space text) RETURNS sona.trajectory
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    holders text[];
    found_trajectory sona.trajectory%ROWTYPE;
BEGIN
    IF trajectory IS NULL THEN
        PERFORM sona._refuse('SN003', 'the trajectory is NULL', 'pass the id that recall or record gave');
    END IF;
    IF space IS NOT NULL AND NOT EXISTS (SELECT FROM sona.space s WHERE s.name = space) THEN
        PERFORM sona._unknown_space(space);
    END IF;
    holders := ARRAY(
        SELECT s.name FROM sona.space s
        WHERE s.name = coalesce(space, s.name) AND (space IS NOT NULL OR s.standby_of IS NULL)
          AND EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = s.space_id AND t.trajectory_id = trajectory)
        ORDER BY s.name);
    IF cardinality(holders) > 1 THEN
        PERFORM sona._refuse('SN003', format('%s spaces have a trajectory %s', cardinality(holders), trajectory),
                             format('name the space, like space => %L', holders[1]));
    ELSIF cardinality(holders) = 0 THEN
        IF EXISTS (SELECT FROM sona.space s WHERE s.name = coalesce(space, s.name) AND EXISTS (
            SELECT FROM sona.learning_event e
            WHERE e.space_id = s.space_id AND e.loop = 'instant' AND e.trajectory_id = trajectory)) THEN
            PERFORM sona._refuse('SN007', format('trajectory %s is gone: it was deleted by retention', trajectory),
                                 'that it was learned still stands in sona.ledger; see sona.set_retention');
        END IF;
        PERFORM sona._refuse('SN007', format('there is no trajectory %s', trajectory),
                             'pass the id that recall or record gave, once its outcome is recorded and flushed');
    END IF;
    SELECT t.* INTO found_trajectory FROM sona.trajectory t JOIN sona.space s USING (space_id)
    WHERE s.name = holders[1] AND t.trajectory_id = trajectory;
    RETURN found_trajectory;
END $$;
COMMENT ON FUNCTION sona._find_trajectory IS
    'A trajectory of the space or, where none is named, of the only one that has it. Raises SN007 if it is not there, '
    'SN003 if several spaces have it.';

CREATE OR REPLACE FUNCTION sona._known_entries(t sona.trajectory, answered_at timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    own bigint := (SELECT min(e.ordinal) FROM sona.learning_event e
                   WHERE e.space_id = t.space_id AND e.loop = 'instant' AND e.trajectory_id = t.trajectory_id);
BEGIN
    -- Backwards from its own entry, in the order of the index: its outcome seldom came long after it.
    RETURN coalesce((
        SELECT e.ordinal + 1 FROM sona.learning_event e
        WHERE e.space_id = t.space_id AND e.loop = 'instant' AND e.ordinal < coalesce(own, 9223372036854775807)
          AND (SELECT c.finished_at FROM sona.learning_cycle c
               WHERE c.space_id = e.space_id AND c.cycle_id = e.cycle_id AND c.loop = e.loop)
              < _known_entries.answered_at
        ORDER BY e.ordinal DESC LIMIT 1), 0);
END $$;
COMMENT ON FUNCTION sona._known_entries IS 'How many entries the ledger had when an answer was given.';

CREATE OR REPLACE FUNCTION sona._events_before(
    space_id bigint, dim integer, query @vector@.vector, entries bigint, k integer,
    OUT ids uuid[], OUT events sona.neighbour[]
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp
SET hnsw.iterative_scan = 'relaxed_order' AS $$
DECLARE
    wide integer := 10 * k;
    ef_search text;
BEGIN
    -- In an index, only what is near is looked at: enough, unless most of that came later.
    IF sona._queries_index(space_id) IS NOT NULL THEN
        ef_search := sona._widen_search(wide);
        EXECUTE format(
            'SELECT array_agg(o.trajectory_id) FROM (SELECT n.trajectory_id FROM (%s) n WHERE n.ordinal < $3'
            '                                        ORDER BY n.away + 0, n.ordinal LIMIT $4) o',
            sona._near_queries(space_id, dim, 'r.trajectory_id, r.ordinal'))
        INTO ids USING query, wide, entries, k;
        PERFORM set_config('hnsw.ef_search', ef_search, true);
    END IF;
    IF coalesce(cardinality(ids), 0) < k THEN
        ids := ARRAY(
            SELECT r.trajectory_id FROM sona.remembered_query r
            WHERE r.space_id = _events_before.space_id AND r.ordinal < entries
            ORDER BY r.embedding OPERATOR(@vector@.<=>) query, r.ordinal LIMIT k);
    END IF;
    SELECT coalesce(array_agg(n.trajectory_id ORDER BY n.away, n.ordinal), '{}'),
           coalesce(array_agg(ROW(coalesce(1 - nullif(n.away, 'NaN'), 0), n.helped, n.rewards, n.unhelpful)::sona.neighbour
                              ORDER BY n.away, n.ordinal), '{}')
    INTO ids, events
    FROM (SELECT r.*, r.embedding OPERATOR(@vector@.<=>) query AS away FROM sona.remembered_query r
          WHERE r.space_id = _events_before.space_id AND r.trajectory_id = ANY (ids)) n;
END $$;
COMMENT ON FUNCTION sona._events_before IS
    'The k remembered events nearest to a query, of those by the first entries of the ledger: nearest first, of equally '
    'near ones the older.';

CREATE OR REPLACE FUNCTION sona._mapped_by(
    space_id bigint, version bigint, tiers text[], query @vector@.vector
) RETURNS @vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF _mapped_by.version IS NULL THEN RETURN sona._mapped(_mapped_by.space_id, tiers, query); END IF;
    -- As sona._mapped does it.
    RETURN coalesce((
        SELECT _mapped_by.query OPERATOR(@vector@.+) @vector@.sum(sona._times(r.up, r.factor))
        FROM (SELECT w.up, (- (query OPERATOR(@vector@.<#>) w.down))::real AS factor FROM sona.version_row w
              WHERE w.space_id = _mapped_by.space_id AND w.version = _mapped_by.version AND w.tier = ANY (tiers)
              OFFSET 0) r
        WHERE abs(r.factor) > 1e-15), _mapped_by.query);
END $$;
COMMENT ON FUNCTION sona._mapped_by IS 'sona._mapped by the maps of a version; NULL is what is served at present.';

CREATE OR REPLACE FUNCTION sona._parts(
    strategy text, share double precision, w double precision[], frozen double precision, other double precision,
    familiar double precision, below double precision, help double precision, vote double precision,
    votes double precision, miss double precision, times double precision, familiarity double precision,
    OUT adapter double precision, OUT memory double precision, OUT cosine double precision
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- The score of sona._score_items, by where it comes from.
RETURN (
    _parts.share * CASE
        WHEN _parts.strategy IN ('adapted', 'stake') THEN _parts.other - _parts.frozen
        WHEN _parts.strategy = 'familiar' THEN _parts.familiar
        WHEN _parts.strategy = 'fusion' THEN w[2] * _parts.familiar + w[3] * (_parts.other - _parts.frozen)
        WHEN _parts.strategy IN ('frozen', 'boosted', 'related') THEN 0 END,
    _parts.share * CASE
        WHEN _parts.strategy = 'boosted' THEN 0.5 * vote
        WHEN _parts.strategy = 'fusion' THEN (
            (w[4] + w[9] * below) * greatest(help - 0.5, 0) + (w[5] + w[10] * below) * greatest(help - 0.7, 0)
            + (w[6] + w[11] * below) * greatest(help - 0.85, 0)
            + w[7] * 2 * ln(1 + vote) + w[8] * coalesce(vote / nullif(votes, 0), vote)
            + w[12] * greatest(miss - 0.5, 0) + w[13] * greatest(miss - 0.8, 0) + w[14] * ln(1 + times)
            + (times > 0)::integer * (w[15] + w[16] * greatest(familiarity - 0.5, 0)
                                      + w[17] * greatest(familiarity - 0.7, 0)
                                      + w[18] * greatest(familiarity - 0.85, 0))) / 20
        WHEN _parts.strategy IN ('frozen', 'adapted', 'familiar', 'stake') THEN 0 END,
    _parts.frozen * CASE
        WHEN _parts.strategy = 'fusion' THEN 1 - _parts.share + _parts.share * w[1]
        WHEN _parts.strategy IN ('frozen', 'adapted', 'familiar', 'stake', 'boosted', 'related') THEN 1 END);
COMMENT ON FUNCTION sona._parts IS
    'What the score of an item is made of under a strategy: what the adapter, what remembered outcomes and what its '
    'frozen cosine give, this one by a factor that is the same for every item. NULL of any other strategy, and of what '
    'the memory graph has given.';

CREATE OR REPLACE FUNCTION sona._in_force_because(
    t sona.trajectory, answered_at timestamptz, OUT setting text, OUT reason text, OUT trajectory_id uuid, OUT detail jsonb
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    change sona.deployment%ROWTYPE;
    turn sona.strategy_turn%ROWTYPE;
    latest bigint;
    asked timestamptz := answered_at;
BEGIN
    SELECT d.* INTO change FROM sona.deployment d
    WHERE d.space_id = t.space_id AND d.action IN ('strategy', 'freeze', 'deploy') AND d.created_at <= asked
    ORDER BY d.deployment_id DESC LIMIT 1;
    setting := coalesce(
        CASE change.action WHEN 'deploy' THEN (SELECT v.setting FROM sona.adapter_version v
                                               WHERE v.space_id = t.space_id AND v.version::text = change.after)
                           ELSE change.after END,
        -- What a space was created with, the first change says.
        (SELECT d.before FROM sona.deployment d
         WHERE d.space_id = t.space_id AND d.action IN ('strategy', 'freeze') AND d.created_at > asked
         ORDER BY d.deployment_id LIMIT 1),
        (SELECT s.strategy FROM sona.space s WHERE s.space_id = t.space_id));
    IF t.arm = 'control' THEN
        reason := 'drawn for the control arm: the frozen embedding answers, to compare with';
        detail := jsonb_build_object('kind', 'arm', 'propensity', t.propensity);
    ELSIF setting <> 'learned' THEN
        reason := format(CASE
            WHEN setting = 'shadow' THEN 'the space was set to %s: the frozen embedding answers while learning goes on'
            WHEN setting = t.strategy THEN 'the space was set to %s'
            WHEN t.strategy = 'frozen' THEN 'the space was set to %s, which had learned nothing yet'
            ELSE 'the space was set to %s' END, setting);
        detail := jsonb_build_object('kind', 'setting', 'setting', setting, 'at', change.created_at, 'actor', change.actor,
                                     'action', change.action, 'given', change.reason);
    ELSE
        SELECT x.turn_id INTO latest FROM sona.strategy_turn x
        WHERE x.space_id = t.space_id AND x.created_at <= asked AND x.region IS NULL
        ORDER BY x.turn_id DESC LIMIT 1;
        -- That of the space, if it turned to this strategy last; else its region is an exception.
        SELECT x.* INTO turn FROM sona.strategy_turn x
        WHERE x.space_id = t.space_id AND x.created_at <= asked AND x.after = t.strategy
          AND (x.region IS NULL OR x.region = (
              SELECT r.region FROM sona.strategy_region r WHERE r.space_id = t.space_id
              ORDER BY r.centroid OPERATOR(@vector@.<=>) t.query, r.region LIMIT 1))
        ORDER BY coalesce(x.turn_id = latest, false) DESC, x.turn_id DESC LIMIT 1;
        reason := coalesce(turn.reason, CASE t.strategy WHEN 'frozen' THEN 'nothing was proven to beat frozen' END);
        trajectory_id := turn.trajectory_id;
        detail := jsonb_build_object('kind', 'turn', 'before', turn.before, 'after', turn.after, 'region', turn.region,
                                     'at', turn.created_at, 'ordinal', turn.ordinal);
    END IF;
END $$;
COMMENT ON FUNCTION sona._in_force_because IS
    'What a space was set to when an answer was given, and why the strategy that answered did; reason is NULL where '
    'nothing says it.';

CREATE OR REPLACE FUNCTION sona.why(trajectory uuid, space text DEFAULT NULL) RETURNS TABLE (
    part text, place integer, item_id text, trajectory_id uuid, amount double precision, reason text, detail jsonb
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t sona.trajectory%ROWTYPE := sona._find_trajectory(trajectory, space);
    answered timestamptz := sona._answered_at(t.trajectory_id, t.created_at);
    entries bigint := sona._known_entries(t, answered);
    because record;
    g record;
    -- The version that answered, and what is known of what had been learned when it did.
    v record;
    state record;
    tiers text[] := CASE WHEN t.strategy = 'adapted' THEN '{adapter,micro}'
                         WHEN t.strategy = 'stake' THEN '{careful}'
                         WHEN t.strategy IN ('familiar', 'fusion') THEN '{proven}' END;
    base @vector@.vector := @vector@.l2_normalize(t.query);
    other @vector@.vector := base;
    near record;
    own record;
    remembered record;
    shown text[];
    familiarity double precision;
    gate double precision;
    share double precision;
    length double precision;
    -- A search by a vector alone gives rows, and an id several times where it has several.
    by_rows boolean := t.strategy IN ('frozen', 'adapted');
    looked_at constant integer := 100;
    items jsonb[];
    notes text[] := '{}';
BEGIN
    SELECT * INTO because FROM sona._in_force_because(t, answered);
    SELECT x.version, x.created_at, x.cause, x.events, x.gains, x.known, x.strange, x.unseen, x.weights
    INTO v FROM sona.adapter_version x WHERE x.space_id = t.space_id AND x.version = t.version;
    SELECT x.settings, (x.settings ->> 'neighbours')::integer AS neighbours,
           (x.settings ->> 'misses_near')::integer AS misses_near, (x.settings ->> 'vote_kernel')::double precision AS kernel
    INTO g FROM sona.strategist x WHERE x.space_id = t.space_id;

    IF v.version IS NULL AND t.version > 0 THEN
        notes := array_append(
            notes, format('version %s is gone, and with it its cause and what was proven by then', t.version));
    END IF;
    -- A version may be hundreds of events older than the answer: the next one, or what is learned at present where there
    -- is none, may be nearer to what answered. What was deployed meanwhile is not.
    SELECT c.* INTO state FROM (
        SELECT x.version, x.known, x.strange, x.unseen, x.weights,
               abs(CASE t.strategy WHEN 'adapted' THEN x.ordinal ELSE x.weighed END - entries) AS away
        FROM sona.adapter_version x
        WHERE x.space_id = t.space_id
          AND (x.version = t.version
               OR (x.parent IS NOT DISTINCT FROM nullif(t.version, 0) AND x.ordinal >= entries))
          AND (tiers IS NULL OR t.strategy = 'adapted' OR EXISTS (
              SELECT FROM sona.version_row w
              WHERE w.space_id = x.space_id AND w.version = x.version AND w.tier = ANY (tiers)))
          AND (t.strategy <> 'fusion' OR x.weights IS NOT NULL)
        UNION ALL
        SELECT NULL, x.known, x.strange, x.unseen, x.weights,
               CASE WHEN l.version = t.version
                    THEN abs(CASE t.strategy WHEN 'adapted' THEN l.ordinal ELSE x.ordinal END - entries) END
        FROM sona.strategist x JOIN sona.learner l USING (space_id) WHERE x.space_id = t.space_id) c
    ORDER BY c.away NULLS LAST, c.version NULLS LAST LIMIT 1;
    IF tiers IS NOT NULL AND state.version IS DISTINCT FROM t.version THEN
        notes := array_append(notes, format('what moved the items is worked out by %s: %s', CASE
            WHEN state.version IS NULL THEN 'what is learned at present' ELSE 'version ' || state.version END, CASE
            WHEN t.version = 0 THEN 'no version had been published'
            WHEN v.version IS NULL THEN format('version %s is gone', t.version)
            ELSE format('version %s is further from the answer, or does not hold the strategy', t.version) END));
    END IF;

    RETURN QUERY
    SELECT 'answer', 1, NULL::text, t.trajectory_id, o.value, v.cause, jsonb_build_object(
        'space', s.name, 'strategy', t.strategy, 'version', t.version, 'arm', t.arm, 'propensity', t.propensity,
        'setting', because.setting, 'answered_at', answered, 'recorded_at', t.created_at, 'published_at', v.created_at,
        'events', v.events, 'gain', o.gain, 'quality', t.quality,
        'explained_by', CASE WHEN tiers IS NOT NULL THEN state.version END)
    FROM sona.space s LEFT JOIN sona.answer_outcome o ON o.space_id = t.space_id AND o.trajectory_id = t.trajectory_id
    WHERE s.space_id = t.space_id;

    RETURN QUERY
    SELECT 'evidence', 1, NULL::text, because.trajectory_id, NULL::float8,
           coalesce(because.reason, 'no turn to this strategy is on record'), because.detail
    UNION ALL
    (SELECT 'evidence', 1 + row_number() OVER (ORDER BY e.gain DESC, e.strategy)::integer, NULL, NULL, e.gain, NULL,
            jsonb_build_object('kind', 'gain', 'strategy', e.strategy, 'events', e.events, 'gain', e.gain,
                               'recent_gain', e.recent_gain, 'state', e.state)
     FROM (SELECT x.key AS strategy, (x.value ->> 0)::bigint AS events, (x.value ->> 1)::float8 AS gain,
                  (x.value ->> 2)::float8 AS recent_gain, 'version' AS state FROM jsonb_each(v.gains) x
           UNION ALL
           SELECT x.strategy, x.events, x.gain, x.recent_gain, 'present' FROM sona.strategy_evidence x
           WHERE v.version IS NULL AND x.space_id = t.space_id) e
     ORDER BY 2);

    SELECT * INTO remembered
    FROM sona._events_before(t.space_id, @vector@.vector_dims(t.query), t.query, entries, coalesce(g.neighbours, 10));
    RETURN QUERY
    SELECT 'neighbour', e.n::integer, NULL::text, e.id, e.similarity, NULL::text, jsonb_build_object(
        'similarity', e.similarity, 'unhelpful', e.unhelpful, 'at', sona._answered_at(e.id, x.created_at),
        'helped', coalesce((SELECT jsonb_object_agg(h.item, h.reward)
                            FROM unnest(e.helped, e.rewards) h (item, reward)), '{}'))
    FROM unnest(remembered.ids, remembered.events) WITH ORDINALITY e (id, similarity, helped, rewards, unhelpful, n)
    LEFT JOIN sona.trajectory x ON x.space_id = t.space_id AND x.trajectory_id = e.id
    WHERE e.n <= 10 ORDER BY e.n;

    shown := ARRAY(SELECT DISTINCT x.item_id FROM sona.trajectory_step x
                   WHERE x.space_id = t.space_id AND x.trajectory_id = t.trajectory_id AND x.position IS NOT NULL
                     AND x.item_id IS NOT NULL);
    IF cardinality(shown) = 0 THEN
        notes := array_append(notes, CASE
            WHEN EXISTS (SELECT FROM sona.trajectory_step x
                         WHERE x.space_id = t.space_id AND x.trajectory_id = t.trajectory_id)
                THEN 'none of its steps is an item that was shown'
            WHEN t.created_at < (SELECT s.steps_lost_before FROM sona.space s WHERE s.space_id = t.space_id)
                THEN 'what was shown is not known any more: retention has deleted the steps'
            ELSE 'nothing is kept of what was shown' END);
    ELSE
        IF tiers IS NOT NULL THEN
            other := @vector@.l2_normalize(sona._mapped_by(t.space_id, state.version, tiers, base));
        END IF;
        BEGIN
            SELECT * INTO near FROM sona._nearest_items(t.space_id, base, other, looked_at, NULL);
            SELECT * INTO own FROM sona._item_distances(
                t.space_id, ARRAY(SELECT i FROM unnest(shown) i WHERE i <> ALL (near.items)), NULL, base, other);
        EXCEPTION WHEN SQLSTATE 'SN004' OR insufficient_privilege OR data_exception THEN
            -- The table is the application's: without it, what else is known is said all the same.
            notes := array_append(notes, 'the items cannot be compared: ' || SQLERRM);
            SELECT NULL::text[] AS items, NULL::float8[] AS distances, NULL::float8[] AS other_distances INTO near;
            own := near;
        END;
        familiarity := greatest((remembered.events[1]).similarity, 0);
        gate := sona._familiar(familiarity, g.settings);
        share := CASE t.strategy WHEN 'fusion' THEN gate + (1 - gate) * state.unseen
                                 WHEN 'stake' THEN gate * state.known + (1 - gate) * state.strange ELSE 1 END;
        length := sqrt(greatest(
            (1 - gate) ^ 2 + gate ^ 2 + 2 * gate * (1 - gate) * -(base OPERATOR(@vector@.<#>) other), 0));
        IF length < 1e-12 THEN length := 1; END IF;
        WITH events AS (
            SELECT e.* FROM unnest(remembered.ids, remembered.events) WITH ORDINALITY
                AS e (id, similarity, helped, rewards, unhelpful, n)),
        help AS (
            SELECT h.item, max(e.similarity) AS nearest, sum(exp((e.similarity - 1) / g.kernel) * h.reward) AS vote,
                   array_agg(e.id ORDER BY e.n) AS ids
            FROM events e, unnest(e.helped, e.rewards) h (item, reward) GROUP BY h.item),
        miss AS (
            SELECT m.item, max(e.similarity) AS nearest, array_agg(e.id ORDER BY e.n) AS ids
            FROM events e, unnest(e.unhelpful) m (item) WHERE e.n <= g.misses_near GROUP BY m.item),
        -- What helped since does not count.
        later AS (
            SELECT h.item, count(*) AS helped FROM sona.remembered_query r, unnest(r.helped) h (item)
            WHERE t.strategy = 'fusion' AND r.space_id = t.space_id AND r.ordinal >= entries
            GROUP BY h.item),
        steps AS (
            SELECT x.item_id AS item, x.position AS at, x.attention[1]::float8 AS score,
                   row_number() OVER (PARTITION BY x.item_id ORDER BY x.position, x.ordinal) AS nth
            FROM sona.trajectory_step x
            WHERE x.space_id = t.space_id AND x.trajectory_id = t.trajectory_id AND x.position IS NOT NULL
              AND x.item_id IS NOT NULL),
        -- A table of chunks has an id several times: its nearest row stands for it, unless rows were shown.
        ranked AS (
            SELECT r.item, r.nth, row_number() OVER (ORDER BY r.away, r.item COLLATE "C", r.nth)::integer AS at
            FROM (SELECT i.item, i.away, row_number() OVER (PARTITION BY i.item ORDER BY i.away) AS nth
                  FROM unnest(near.items, near.distances) i (item, away)) r
            WHERE by_rows OR r.nth = 1),
        there AS (
            SELECT i.item, coalesce(1 - i.away, 0) AS frozen, coalesce(1 - i.other_away, 0) AS other,
                   row_number() OVER (PARTITION BY i.item
                                      ORDER BY CASE WHEN by_rows THEN i.other_away ELSE i.away END) AS nth
            FROM unnest(near.items || own.items, near.distances || own.distances,
                        near.other_distances || own.other_distances) i (item, away, other_away)),
        candidates AS (
            SELECT 'item' AS part, x.at AS place, x.* FROM steps x
            UNION ALL
            -- What the frozen ranking would have shown instead.
            SELECT 'dropped', r.at, r.item, NULL, NULL, r.nth FROM ranked r
            WHERE r.at <= (SELECT count(*) FROM steps)
              AND NOT EXISTS (SELECT FROM steps x WHERE x.item = r.item AND x.nth = r.nth)),
        parts AS (
            SELECT x.part, x.place, x.at, x.item, x.score, i.frozen, r.at AS frozen_place, p.adapter, p.cosine,
                   -- The memory graph has other edges by now: what it gave is what was shown above the cosine.
                   CASE t.strategy WHEN 'related' THEN x.score - p.cosine ELSE p.memory END AS memory,
                   h.ids AS helped_in, m.ids AS missed_in
            FROM candidates x
            LEFT JOIN there i ON i.item = x.item AND i.nth = x.nth
            LEFT JOIN ranked r ON r.item = x.item AND r.nth = x.nth
            LEFT JOIN help h ON h.item = x.item
            LEFT JOIN miss m ON m.item = x.item
            LEFT JOIN later l ON l.item = x.item
            CROSS JOIN LATERAL sona._parts(
                t.strategy, share, state.weights, i.frozen, i.other,
                ((1 - gate) * i.frozen + gate * i.other) / length - i.frozen,
                i.frozen - (SELECT 1 - min(a) FROM unnest(near.distances) a), coalesce(h.nearest, 0), coalesce(h.vote, 0),
                (SELECT sum(a.vote) FROM help a), coalesce(m.nearest, 0),
                greatest(coalesce((SELECT o.helped FROM sona.item_outcome o
                                   WHERE o.space_id = t.space_id AND o.item_id = x.item), 0) - coalesce(l.helped, 0), 0),
                familiarity) p)
        SELECT array_agg(jsonb_build_object(
            'part', x.part, 'place', x.place, 'item', x.item, 'by', coalesce(x.score - x.cosine, x.adapter + x.memory),
            'detail', jsonb_build_object(
                'score', x.score, 'frozen', x.frozen, 'frozen_place', x.frozen_place, 'moved', x.frozen_place - x.at,
                'beyond', CASE WHEN x.frozen_place IS NULL AND x.frozen IS NOT NULL THEN looked_at END,
                'cosine', x.cosine, 'adapter', x.adapter, 'memory', x.memory,
                'rest', x.score - (x.cosine + x.adapter + x.memory),
                'helped_in', to_jsonb(coalesce(x.helped_in[:10], '{}')),
                'missed_in', to_jsonb(coalesce(x.missed_in[:10], '{}')))) ORDER BY x.part DESC, x.place)
        INTO items FROM parts x;
        RETURN QUERY
        SELECT x.i ->> 'part', (x.i ->> 'place')::integer, x.i ->> 'item', (x.i #>> '{detail,helped_in,0}')::uuid,
               (x.i ->> 'by')::float8, NULL::text, x.i -> 'detail'
        FROM unnest(items) WITH ORDINALITY x (i, n) ORDER BY x.n;
        notes := notes || ARRAY(
            WITH known AS (
                SELECT x.i ->> 'part' AS part, x.i ->> 'item' AS item, d.*
                FROM unnest(items) x (i), jsonb_to_record(x.i -> 'detail') AS d (
                    score float8, frozen float8, cosine float8, adapter float8, memory float8, rest float8)),
            shown AS (
                SELECT string_agg(k.item, ', ') FILTER (WHERE k.frozen IS NULL) AS gone, count(k.score) = 0 AS is_unscored,
                       max(abs(k.rest)) AS rest, min(k.score) AS lowest
                FROM known k WHERE k.part = 'item'),
            missing AS (
                SELECT string_agg(k.item, ', ') AS items FROM known k, shown x
                WHERE k.part = 'dropped' AND k.cosine + k.adapter + k.memory > x.lowest + 0.005)
            SELECT n.note FROM shown x, missing m, LATERAL (VALUES
                (near.items IS NOT NULL AND x.gone IS NOT NULL, format('not in the items table any more: %s', x.gone)),
                (x.is_unscored, 'it was recorded without scores, as what sona.recall did not answer is'),
                (x.rest > 0.005, format(
                    'up to %s of a score is not explained: its item has changed, or what answered had learned more or '
                    'less than %s', round(x.rest::numeric, 3),
                    CASE WHEN state.version IS NULL THEN 'is learned at present' ELSE 'version ' || state.version END)),
                (m.items IS NOT NULL, format(
                    'by what is worked out here these would have been shown: %s; the answer was filtered, or they '
                    'came later', m.items))) n (holds, note)
            WHERE n.holds);
    END IF;
    RETURN QUERY SELECT 'note', x.n::integer, NULL::text, NULL::uuid, NULL::float8, x.note, NULL::jsonb
    FROM unnest(notes) WITH ORDINALITY x (note, n) ORDER BY x.n;
END $$;
COMMENT ON FUNCTION sona.why IS
    'Why an answer that was recorded was what it was, as rows by part. answer: what answered; amount is what it was '
    'worth. evidence: why that strategy was in force, then what every strategy had brought by the version; amount is '
    'nDCG@10 above frozen. neighbour: the nearest events remembered by then; amount is the cosine. item: what was shown '
    'at a place, and from where in the frozen ranking it was moved; amount is by how much what was learned moved its '
    'score, that is adapter + memory + rest in detail. dropped: what the frozen ranking would have shown at a place, and '
    'was not shown. note: what is not known any more. trajectory_id is the answer, the event by which it was found, the '
    'neighbour, or the nearest that helped the item. Writes nothing. Raises SN007 if the trajectory is not there.';
