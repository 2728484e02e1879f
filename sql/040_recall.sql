-- Search with what was learned, over the application's own table.

DROP FUNCTION IF EXISTS sona.recall(text, @vector@.vector, integer);
DROP FUNCTION IF EXISTS sona._search_items(bigint, @vector@.vector, integer);

CREATE OR REPLACE FUNCTION sona._search_items(
    space_id bigint, query @vector@.vector, k integer, filter jsonb DEFAULT NULL
) RETURNS TABLE (item_id text, rank integer, score real)
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
    ids text[];
    distances double precision[];
BEGIN
    SELECT * INTO source FROM sona._items_of(space_id);
    IF source.items IS NULL THEN
        PERFORM sona._refuse('SN004', 'the space has no items table to search',
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
    FOR pass IN first_pass..1 LOOP
        -- An index gives up after hnsw.max_scan_tuples. Where it gave fewer than k, there may be more all the same: the
        -- second pass adds zero to the distance, an order that no index serves, so that every row is compared.
        ids := '{}';
        distances := '{}';
        -- One level, and nothing that could be done later: this is planned at every call.
        FOR id, away IN EXECUTE format(
            'SELECT t.%1$I::text, %2$s FROM %3$s t WHERE t.%4$I IS NOT NULL%5$s ORDER BY (%2$s)%6$s LIMIT %7$s',
            source.id_column, distance, source.items, source.embedding_column, condition,
            CASE pass WHEN 1 THEN ' + 0' END, CASE pass WHEN 1 THEN k ELSE wanted END)
        USING query
        LOOP
            ids := ids || id;
            distances := distances || away;
        END LOOP;
        EXIT WHEN cardinality(ids) >= k;
    END LOOP;
    -- An index returns almost in order; ties go by the id. A vector of zeros has no direction: its score is that of what is
    -- unrelated, and no NaN.
    RETURN QUERY SELECT f.id, row_number() OVER (ORDER BY f.away, f.id COLLATE "C")::integer,
                        coalesce(1 - nullif(f.away, 'NaN'), 0)::real
    FROM unnest(ids, distances) AS f (id, away) ORDER BY 2 LIMIT k;
END $$;
COMMENT ON FUNCTION sona._search_items IS
    'The k items nearest to a query by cosine, of those that pass the filter, with the rights of the caller. Never '
    'fewer than there are.';

CREATE OR REPLACE FUNCTION sona.recall(
    space text, query @vector@.vector, k integer DEFAULT 10, filter jsonb DEFAULT NULL
) RETURNS TABLE (
    trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text, propensity real
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found_space bigint;
    in_force bigint;
    learned boolean;
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        PERFORM sona._refuse('SN003', format('k is %s, expected 1 to 10000', coalesce(k::text, 'NULL')),
                             'ask for fewer items');
    END IF;
    IF query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    SELECT s.space_id, l.version, l.events > 0 INTO found_space, in_force, learned
    FROM sona.space s JOIN sona.learner l USING (space_id) WHERE s.name = recall.space;
    IF found_space IS NULL THEN PERFORM sona._unknown_space(recall.space); END IF;
    trajectory_id := sona.new_trajectory_id();
    RETURN QUERY
    SELECT recall.trajectory_id, f.item_id, f.rank, f.score, 'learned'::text, in_force,
           CASE WHEN learned THEN 'adapted' ELSE 'frozen' END::text, 1::real
    FROM sona._search_items(found_space, sona.adapt(recall.space, query), k, recall.filter) f;
END $$;
COMMENT ON FUNCTION sona.recall IS
    'The k best items for a query, by what the space has learned, of those that pass a filter on declared columns. '
    'Writes nothing; hand trajectory_id, arm, version, strategy and propensity back when the outcome is recorded.';

CREATE OR REPLACE FUNCTION sona.recall_batch(
    space text, queries @vector@.vector[], k integer DEFAULT 10, filter jsonb DEFAULT NULL
) RETURNS TABLE (
    query integer, trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text,
    propensity real
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF array_ndims(queries) > 1 OR array_lower(queries, 1) <> 1 THEN
        PERFORM sona._refuse('SN003', 'the queries are no list of vectors', 'pass ARRAY[query, ...]');
    END IF;
    FOR place IN 1..coalesce(cardinality(queries), 0) LOOP
        RETURN QUERY SELECT place, r.* FROM sona.recall(recall_batch.space, queries[place], k, filter) r;
    END LOOP;
END $$;
COMMENT ON FUNCTION sona.recall_batch IS
    'sona.recall for several queries; the first column says which, from 1. A query that finds nothing has no row.';
