-- Search with what was learned, over the application's own table.

DROP FUNCTION IF EXISTS sona.recall(text, @vector@.vector, integer);
DROP FUNCTION IF EXISTS sona._search_items(bigint, @vector@.vector, integer);

CREATE OR REPLACE FUNCTION sona._widen_search(k integer) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    before text := coalesce(current_setting('hnsw.ef_search', true), '40');
BEGIN
    -- An index scan that finds hnsw.ef_search rows goes on a second time for more: one that is wide enough is cheaper.
    IF before::integer < k THEN PERFORM set_config('hnsw.ef_search', least(k, 1000)::text, true); END IF;
    RETURN before;
END $$;
COMMENT ON FUNCTION sona._widen_search IS
    'Lets an HNSW index find k rows in one go; returns the setting before, for whoever sets it back.';

CREATE OR REPLACE FUNCTION sona._nearest_items(
    space_id bigint, query @vector@.vector, other @vector@.vector, k integer, filter jsonb,
    OUT items text[], OUT distances double precision[], OUT other_distances double precision[]
)
-- It writes nothing, but only a volatile function may ask the planner how many rows it expects.
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp
-- Without it an index gives at most hnsw.ef_search items, silently.
SET hnsw.iterative_scan = 'relaxed_order'
SET ivfflat.iterative_scan = 'relaxed_order' AS $$
DECLARE
    source sona.item_source%ROWTYPE;
    condition text := '';
    wanted integer := k;
    first_pass integer := 0;
    plan json;
    distance text;
    id text;
    away double precision;
    other_away double precision;
    ef_search text;
BEGIN
    SELECT * INTO source FROM sona._items_of(space_id);
    IF source.items IS NULL THEN
        PERFORM sona._refuse('SN009', 'the space has no items table to search',
                             'name it with sona.set_items(space, table, id_column, embedding_column)');
    END IF;
    IF filter IS NOT NULL AND filter <> '{}' THEN
        condition := ' AND ' || sona._condition(source.items, source.filter_columns, filter);
        -- An index on the embeddings finds few of few: where few rows are expected to pass, all of them are compared;
        -- 5000 vectors of 384 components take 4 ms. Where more pass, four times as many as asked for are fetched, since an
        -- index returns only almost in order: of 100,000 items, a tenth of which passed, that gave recall@10 of 0.99.
        EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s t WHERE true%s', source.items, condition) INTO plan;
        first_pass := ((plan -> 0 -> 'Plan' ->> 'Plan Rows')::double precision <= 5000)::integer;
        wanted := 4 * k;
    END IF;
    distance := format('t.%I OPERATOR(@vector@.<=>) $1', source.embedding_column);
    ef_search := sona._widen_search(wanted);
    FOR pass IN first_pass..1 LOOP
        -- An index gives up after hnsw.max_scan_tuples. Where it gave fewer than k, there may be more all the same: the
        -- second pass adds zero to the distance, an order that no index serves, so that every row is compared.
        items := '{}';
        distances := '{}';
        other_distances := '{}';
        -- One level, and nothing that could be done later: this is planned at every call.
        FOR id, away, other_away IN EXECUTE format(
            'SELECT t.%1$I::text, %2$s, %8$s FROM %3$s t WHERE t.%4$I IS NOT NULL%5$s ORDER BY (%2$s)%6$s LIMIT %7$s',
            source.id_column, distance, source.items, source.embedding_column, condition,
            CASE pass WHEN 1 THEN ' + 0' END, CASE pass WHEN 1 THEN k ELSE wanted END,
            CASE WHEN other IS NULL THEN 'NULL::float8'
                 ELSE format('t.%I OPERATOR(@vector@.<=>) $2', source.embedding_column) END)
        USING query, other
        LOOP
            items := array_append(items, id);
            -- To a vector of zeros, which has no direction, there is no distance.
            distances := array_append(distances, nullif(away, 'NaN'));
            other_distances := array_append(other_distances, nullif(other_away, 'NaN'));
        END LOOP;
        EXIT WHEN cardinality(items) >= k;
    END LOOP;
    PERFORM set_config('hnsw.ef_search', ef_search, true);
END $$;
COMMENT ON FUNCTION sona._nearest_items IS
    'Items near a query by cosine, of those that pass the filter, almost in order, with the rights of the caller; and how '
    'far they are from another query, if there is one. Never fewer than k where there are as many.';

CREATE OR REPLACE FUNCTION sona._search_items(
    space_id bigint, query @vector@.vector, k integer, filter jsonb DEFAULT NULL
) RETURNS TABLE (item_id text, rank integer, score real)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- Ties go by the id. A vector of zeros has the score of what is unrelated.
    RETURN QUERY
    SELECT f.id, row_number() OVER (ORDER BY f.away, f.id COLLATE "C")::integer,
           coalesce(1 - f.away, 0)::real
    FROM sona._nearest_items(_search_items.space_id, query, NULL, k, filter) n, unnest(n.items, n.distances) AS f (id, away)
    ORDER BY 2 LIMIT k;
END $$;
COMMENT ON FUNCTION sona._search_items IS
    'The k items nearest to a query by cosine, of those that pass the filter, with the rights of the caller. Never '
    'fewer than there are.';

CREATE OR REPLACE FUNCTION sona._near_events(
    space_id bigint, dim integer, query @vector@.vector, k integer
) RETURNS sona.neighbour[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp
SET hnsw.iterative_scan = 'relaxed_order' AS $$
DECLARE
    ef_search text;
    -- The admitted ones: distances, ordinals and what is asked for.
    aways double precision[];
    ordinals bigint[];
    events sona.neighbour[];
BEGIN
    -- Planned at every call is only what an index must serve, since it must name the space.
    IF sona._queries_index(space_id) IS NULL THEN
        SELECT array_agg(ROW(coalesce(1 - nullif(n.away, 'NaN'), 0), n.helped, n.rewards, n.unhelpful)::sona.neighbour
                         ORDER BY n.away, n.ordinal)
        INTO events FROM (
            SELECT r.embedding OPERATOR(@vector@.<=>) query AS away, r.ordinal, r.helped, r.rewards, r.unhelpful
            FROM sona.remembered_query r WHERE r.space_id = _near_events.space_id ORDER BY 1, 2 LIMIT k) n;
        RETURN coalesce(events, '{}');
    END IF;
    ef_search := sona._widen_search(k);
    EXECUTE format(
        'SELECT array_agg(n.away), array_agg(n.ordinal),'
        '       array_agg(ROW(coalesce(1 - nullif(n.away, ''NaN''), 0), n.helped, n.rewards, n.unhelpful)::sona.neighbour)'
        ' FROM (%s) n', sona._near_admitted(space_id, dim, 'r.helped, r.rewards, r.unhelpful, r.ordinal'))
    INTO aways, ordinals, events USING query, k;
    PERFORM set_config('hnsw.ef_search', ef_search, true);
    SELECT array_agg(ROW(n.similarity, n.helped, n.rewards, n.unhelpful)::sona.neighbour ORDER BY n.away, n.ordinal)
    INTO events FROM (
        SELECT * FROM (
            SELECT f.away, f.ordinal, coalesce(1 - nullif(f.away, 'NaN'), 0) AS similarity, f.helped, f.rewards, f.unhelpful
            FROM (SELECT r.embedding OPERATOR(@vector@.<=>) query AS away, r.ordinal, r.helped, r.rewards, r.unhelpful
                  FROM sona.remembered_query r WHERE r.space_id = _near_events.space_id AND NOT r.admitted
                  ORDER BY 1, 2 LIMIT k) f
            UNION ALL SELECT * FROM unnest(aways, ordinals, events)) e
        ORDER BY 1, 2 LIMIT k) n;
    RETURN coalesce(events, '{}');
END $$;
COMMENT ON FUNCTION sona._near_events IS
    'The k remembered events nearest to a query, nearest first; of equally near ones the older first.';

CREATE OR REPLACE FUNCTION sona._item_distances(
    space_id bigint, ids text[], filter jsonb, query @vector@.vector, other @vector@.vector,
    OUT items text[], OUT distances double precision[], OUT other_distances double precision[]
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    source sona.item_source%ROWTYPE;
    condition text := '';
BEGIN
    IF cardinality(ids) = 0 THEN RETURN; END IF;
    -- Whoever asks has just searched the table: that it and its columns are there need not be looked up again.
    SELECT * INTO source FROM sona.item_source i WHERE i.space_id = _item_distances.space_id;
    IF filter IS NOT NULL AND filter <> '{}' THEN
        condition := ' AND ' || sona._condition(source.items, source.filter_columns, filter);
    END IF;
    -- The ids are cast to the column's type, so that its index serves; one that is no value of it is no item any more.
    EXECUTE format(
        'SELECT array_agg(t.%1$I::text), array_agg(nullif(t.%2$I OPERATOR(@vector@.<=>) $2, ''NaN'')),'
        ' array_agg(nullif(t.%2$I OPERATOR(@vector@.<=>) $3, ''NaN''))'
        ' FROM %3$s t WHERE t.%1$I = ANY ($1::%4$s[]) AND t.%2$I IS NOT NULL%5$s',
        source.id_column, source.embedding_column, source.items, source.id_type, condition)
    INTO items, distances, other_distances
    USING CASE WHEN source.id_type = 'text' THEN ids
          ELSE ARRAY(SELECT i FROM unnest(ids) i WHERE pg_input_is_valid(i, source.id_type)) END, query, other;
END $$;
COMMENT ON FUNCTION sona._item_distances IS
    'How far those of the items that are there, and pass the filter, are from two queries.';

CREATE OR REPLACE FUNCTION sona._score_items(
    space_id bigint, strategy text, query @vector@.vector, k integer, filter jsonb
) RETURNS TABLE (item_id text, rank integer, score real)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    g record;
    base @vector@.vector := @vector@.l2_normalize(query);
    -- The query as the strategy's own adapter asks it.
    other @vector@.vector := @vector@.l2_normalize(sona._mapped(
        space_id, CASE strategy WHEN 'stake' THEN '{careful}'::text[] ELSE '{proven}' END, base));
    events sona.neighbour[];
    wanted integer;
    near record;
    helped record;
    familiarity double precision;
    gate double precision;
    -- What is served of the strategy: the rest is frozen.
    share double precision;
    -- Length of base + gate (other - base).
    length double precision;
BEGIN
    SELECT x.known, x.strange, x.unseen, x.weights AS w, (x.settings ->> 'candidates')::integer AS candidates,
           (x.settings ->> 'neighbours')::integer AS neighbours, (x.settings ->> 'misses_near')::integer AS misses_near,
           (x.settings ->> 'vote_kernel')::double precision AS kernel, x.settings
    INTO g FROM sona.strategist x WHERE x.space_id = _score_items.space_id;
    events := sona._near_events(space_id, @vector@.vector_dims(query), query, g.neighbours);
    wanted := greatest(k, g.candidates);
    LOOP
        SELECT * INTO near FROM sona._nearest_items(space_id, base, other, wanted, filter);
        -- A table of chunks has an id several times, and k items are asked for, not k rows.
        EXIT WHEN cardinality(near.items) < wanted OR wanted >= 100000
            OR (SELECT count(DISTINCT i) FROM unnest(near.items) i) >= k;
        wanted := 4 * wanted;
    END LOOP;
    SELECT * INTO helped FROM sona._item_distances(
        space_id,
        ARRAY(SELECT unnest(e.helped) FROM unnest(events) e EXCEPT SELECT unnest(near.items)),
        filter, base, other);
    familiarity := greatest((events[1]).similarity, 0);
    gate := sona._familiar(familiarity, g.settings);
    share := CASE strategy WHEN 'fusion' THEN gate + (1 - gate) * g.unseen
                           WHEN 'stake' THEN gate * g.known + (1 - gate) * g.strange ELSE 1 END;
    length := sqrt(greatest((1 - gate) ^ 2 + gate ^ 2 + 2 * gate * (1 - gate) * -(base OPERATOR(@vector@.<#>) other), 0));
    IF length < 1e-12 THEN length := 1; END IF;
    RETURN QUERY
    WITH help AS (
        SELECT unnest(e.helped) AS item, e.similarity, exp((e.similarity - 1) / g.kernel) * unnest(e.rewards) AS vote
        FROM unnest(events) e),
    -- What is known of an item, from wherever: grouped once, which is cheaper than a join for each.
    fact (item, away, help, vote, miss, times) AS (
        SELECT i.item, ARRAY[i.away, i.other_away], NULL::double precision, NULL::double precision,
               NULL::double precision, NULL::bigint
        FROM unnest(near.items || helped.items, near.distances || helped.distances,
                    near.other_distances || helped.other_distances) i (item, away, other_away)
        UNION ALL SELECT h.item, NULL, h.similarity, h.vote, NULL, NULL FROM help h
        UNION ALL SELECT unnest(e.unhelpful), NULL, NULL, NULL, e.similarity, NULL FROM unnest(events[:g.misses_near]) e
        UNION ALL SELECT o.item_id, NULL, NULL, NULL, NULL, o.helped FROM sona.item_outcome o
        WHERE o.space_id = _score_items.space_id AND o.item_id = ANY (near.items || helped.items)),
    -- A table of chunks has an id several times: its nearest row, the least pair of distances, stands for it.
    item AS (
        SELECT f.item, coalesce(1 - (min(f.away))[1], 0) AS frozen, coalesce(1 - (min(f.away))[2], 0) AS other,
               coalesce(max(f.help), 0) AS help, coalesce(sum(f.vote), 0) AS vote, coalesce(max(f.miss), 0) AS miss,
               coalesce(max(f.times), 0) AS times
        FROM fact f GROUP BY f.item HAVING min(f.away) IS NOT NULL),
    -- Worked out once: each of these is named several times below, and would else be computed as often.
    known AS MATERIALIZED (
        SELECT i.*, ((1 - gate) * i.frozen + gate * i.other) / length - i.frozen AS familiar,
               i.frozen - max(i.frozen) OVER () AS below
        FROM item i),
    scored AS (
        SELECT f.item, (1 - share) * f.frozen + share * CASE strategy
            WHEN 'familiar' THEN f.frozen + f.familiar
            WHEN 'boosted' THEN f.frozen + 0.5 * f.vote
            WHEN 'stake' THEN f.other
            -- In the order of sona_pg.learning.fusion.FEATURES; 20 is the scale of cosines as logits.
            ELSE (g.w[1] * 20 * f.frozen + g.w[2] * 20 * f.familiar + g.w[3] * 20 * (f.other - f.frozen)
                  + (g.w[4] + g.w[9] * f.below) * greatest(f.help - 0.5, 0)
                  + (g.w[5] + g.w[10] * f.below) * greatest(f.help - 0.7, 0)
                  + (g.w[6] + g.w[11] * f.below) * greatest(f.help - 0.85, 0)
                  + g.w[7] * 2 * ln(1 + f.vote) + g.w[8] * coalesce(f.vote / nullif((SELECT sum(v.vote) FROM help v), 0), f.vote)
                  + g.w[12] * greatest(f.miss - 0.5, 0) + g.w[13] * greatest(f.miss - 0.8, 0)
                  + g.w[14] * ln(1 + f.times)
                  + CASE WHEN f.times > 0 THEN g.w[15] + g.w[16] * greatest(familiarity - 0.5, 0)
                        + g.w[17] * greatest(familiarity - 0.7, 0) + g.w[18] * greatest(familiarity - 0.85, 0)
                    ELSE 0 END) / 20 END AS score
        FROM known f
        ORDER BY 2 DESC, f.item COLLATE "C" LIMIT k)
    SELECT s.item, row_number() OVER (ORDER BY s.score DESC, s.item COLLATE "C")::integer, s.score::real
    FROM scored s ORDER BY 2;
END $$;
COMMENT ON FUNCTION sona._score_items IS
    'The k best of the items near a query and of what helped near it, by a strategy that knows remembered outcomes.';

CREATE OR REPLACE FUNCTION sona._related_items(
    space_id bigint, query @vector@.vector, k integer, filter jsonb
) RETURNS TABLE (item_id text, rank integer, score real)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    settings jsonb := (SELECT x.settings FROM sona.strategist x WHERE x.space_id = _related_items.space_id);
    wanted integer := greatest(k, (settings ->> 'related_starts')::integer);
    near record;
    starts record;
    active_items text[];
    active_shares double precision[];
    further record;
BEGIN
    -- NULL where nobody has claimed the settings of the space.
    IF (settings ->> 'related_hops')::integer > 0
       AND EXISTS (SELECT FROM sona.memory_edge e WHERE e.space_id = _related_items.space_id) THEN
        LOOP
            SELECT * INTO near FROM sona._nearest_items(space_id, query, NULL, wanted, filter);
            -- A table of chunks has an id several times, and k items are asked for, not k rows.
            EXIT WHEN cardinality(near.items) < wanted OR wanted >= 100000
                OR (SELECT count(DISTINCT i) FROM unnest(near.items) i) >= k;
            wanted := 4 * wanted;
        END LOOP;
        WITH gone AS MATERIALIZED (
            SELECT m.key, m.into_key FROM sona._merged_nodes(_related_items.space_id) m WHERE m.kind = 'item')
        SELECT array_agg(s.item) AS items, array_agg(s.cosine) AS cosines, sum(s.cosine) AS total,
               -- What was merged starts at what it became part of, which has the edges of all its names.
               sum(s.cosine) FILTER (WHERE EXISTS (
                   SELECT FROM (SELECT coalesce((SELECT g.into_key FROM gone g WHERE g.key = s.item), s.item) AS item) i
                   WHERE sona._has_edge(space_id, 'item', i.item) OR EXISTS (
                       SELECT FROM gone g WHERE g.into_key = i.item AND sona._has_edge(space_id, 'item', g.key)))) AS known
        INTO starts FROM (
            SELECT n.item, 1 - min(n.away) AS cosine FROM unnest(near.items, near.distances) n (item, away)
            GROUP BY n.item ORDER BY 2 DESC NULLS LAST, n.item COLLATE "C"
            LIMIT (settings ->> 'related_starts')::integer) s
        WHERE s.cosine > 0;
        -- What starts counts by what comes back to it. A graph that knows little of what starts says little.
        SELECT array_agg(a.item), array_agg(starts.known / starts.total * a.mass / a.most)
        INTO active_items, active_shares FROM (
            SELECT f.key AS item, sum(f.mass) AS mass, max(sum(f.mass)) OVER () AS most
            FROM sona._spread(space_id, array_fill('item'::text, ARRAY[coalesce(cardinality(starts.items), 0)]), starts.items,
                              starts.cosines, (settings ->> 'related_hops')::integer,
                              (settings ->> 'related_factor')::double precision) f
            WHERE f.kind = 'item' GROUP BY f.key HAVING sum(f.mass) > 1e-9 * starts.known
            ORDER BY 2 DESC, f.key COLLATE "C" LIMIT (settings ->> 'candidates')::integer) a;
    END IF;
    IF active_items IS NULL THEN
        RETURN QUERY SELECT f.item_id, f.rank, f.score FROM sona._search_items(space_id, query, k, filter) f;
        RETURN;
    END IF;
    SELECT * INTO further FROM sona._item_distances(
        space_id, ARRAY(SELECT unnest(active_items) EXCEPT SELECT unnest(near.items)), filter, query, query);
    RETURN QUERY
    WITH scored AS (
        SELECT i.item, coalesce(1 - min(i.away), 0)
                       + (settings ->> 'related_weight')::double precision * coalesce(max(a.share), 0) AS score
        FROM unnest(near.items || further.items, near.distances || further.distances) i (item, away)
        LEFT JOIN unnest(active_items, active_shares) a (item, share) ON a.item = i.item
        GROUP BY i.item ORDER BY 2 DESC, i.item COLLATE "C" LIMIT k)
    SELECT s.item, row_number() OVER (ORDER BY s.score DESC, s.item COLLATE "C")::integer, s.score::real
    FROM scored s ORDER BY 2;
END $$;
COMMENT ON FUNCTION sona._related_items IS
    'The k best of the items nearest to a query and of those to which activation spreads from them over the memory graph, '
    'by cosine and activation. Where none spreads, the nearest.';

CREATE OR REPLACE FUNCTION sona._arm(
    s sona.space, suspected_share real, trajectory_id uuid, OUT arm text, OUT propensity real
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    share real := CASE WHEN s.control_share > 0 THEN greatest(s.control_share, suspected_share) ELSE 0 END;
BEGIN
    -- By a hash of the id: anybody can tell afterwards to which arm an answer belongs.
    IF s.strategy = 'shadow' THEN
        arm := 'shadow';
        propensity := 1;
    ELSIF ('x' || left(md5('control ' || trajectory_id), 8))::bit(32)::bigint < share * 4294967296::double precision THEN
        arm := 'control';
        propensity := share;
    ELSE
        arm := 'learned';
        propensity := 1 - share;
    END IF;
END $$;
COMMENT ON FUNCTION sona._arm IS
    'To which arm an answer belongs, and how probable that was; the control arm gets the frozen embedding.';

DROP FUNCTION IF EXISTS sona._answer(text, @vector@.vector, integer, jsonb);

CREATE OR REPLACE FUNCTION sona._answer(
    space text, query @vector@.vector, k integer, filter jsonb, trajectory_id uuid DEFAULT NULL
) RETURNS TABLE (
    item_id text, rank integer, score real, version bigint, strategy text, arm text, propensity real
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE;
    g sona.strategist%ROWTYPE;
    published bigint;
    served text;
    drawn record;
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        PERFORM sona._refuse('SN003', format('k is %s, expected 1 to 10000', coalesce(k::text, 'NULL')),
                             'ask for fewer items');
    END IF;
    IF query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    SELECT * INTO s FROM sona.space x WHERE x.name = _answer.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(_answer.space); END IF;
    IF @vector@.vector_dims(query) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(query), s.dim);
    END IF;
    SELECT l.version INTO published FROM sona.learner l WHERE l.space_id = s.space_id;
    -- Not the state: it is large, and only the learner reads it.
    SELECT x.space_id, x.ordinal, x.events, x.in_force, x.is_sane, x.known, x.strange, x.unseen, x.weights, x.settings
    INTO g FROM sona.strategist x WHERE x.space_id = s.space_id;
    IF trajectory_id IS NOT NULL THEN
        SELECT a.* INTO drawn FROM sona.strategist x, sona._arm(s, x.suspected_share, trajectory_id) a
        WHERE x.space_id = s.space_id;
    ELSE
        SELECT 'learned' AS arm, 1::real AS propensity INTO drawn;
    END IF;
    served := CASE drawn.arm WHEN 'control' THEN 'frozen' ELSE sona._strategy_for(s, g, query) END;
    IF served = 'related' THEN
        RETURN QUERY SELECT f.item_id, f.rank, f.score, published, served, drawn.arm, drawn.propensity
        FROM sona._related_items(s.space_id, query, k, filter) f;
    ELSIF served IN ('frozen', 'adapted') THEN
        RETURN QUERY SELECT f.item_id, f.rank, f.score, published, served, drawn.arm, drawn.propensity FROM sona._search_items(
            s.space_id,
            CASE served WHEN 'adapted' THEN sona._mapped(s.space_id, '{adapter,micro}', query) ELSE query END,
            k, filter) f;
    ELSE
        RETURN QUERY SELECT f.item_id, f.rank, f.score, published, served, drawn.arm, drawn.propensity
        FROM sona._score_items(s.space_id, served, query, k, filter) f;
    END IF;
END $$;
COMMENT ON FUNCTION sona._answer IS
    'The k best items for a query by the strategy that answers it, and which that is; in the arm of a trajectory, if one '
    'is given.';

CREATE OR REPLACE FUNCTION sona.recall(
    space text, query @vector@.vector, k integer DEFAULT 10, filter jsonb DEFAULT NULL
) RETURNS TABLE (
    trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text, propensity real
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    trajectory_id := sona.new_trajectory_id();
    RETURN QUERY
    SELECT recall.trajectory_id, a.item_id, a.rank, a.score, a.arm, a.version, a.strategy, a.propensity
    FROM sona._answer(recall.space, query, k, recall.filter, recall.trajectory_id) a;
END $$;
COMMENT ON FUNCTION sona.recall IS
    'The k best items for a query, by the strategy that is proven to be best, of those that pass a filter on declared '
    'columns. Writes nothing; hand trajectory_id, arm, version, strategy and propensity back when the outcome is recorded.';

CREATE OR REPLACE FUNCTION sona.recall_batch(
    space text, queries @vector@.vector[], k integer DEFAULT 10, filter jsonb DEFAULT NULL
) RETURNS TABLE (
    query integer, trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text,
    propensity real
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- No query is no answer of a space that there is.
    IF NOT EXISTS (SELECT FROM sona.space s WHERE s.name = recall_batch.space) THEN
        PERFORM sona._unknown_space(recall_batch.space);
    END IF;
    IF array_ndims(queries) > 1 OR array_lower(queries, 1) <> 1 THEN
        PERFORM sona._refuse('SN003', 'the queries are no list of vectors', 'pass ARRAY[query, ...]');
    END IF;
    FOR place IN 1..coalesce(cardinality(queries), 0) LOOP
        RETURN QUERY SELECT place, r.* FROM sona.recall(recall_batch.space, queries[place], k, filter) r;
    END LOOP;
END $$;
COMMENT ON FUNCTION sona.recall_batch IS
    'sona.recall for several queries; the first column says which, from 1. A query that finds nothing has no row.';
