-- Remembered queries: indexed by size. The fresh tail is searched exactly; what was admitted, through HNSW.

CREATE OR REPLACE FUNCTION sona._indexed_type(dim integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- HNSW takes vectors of up to 2000 components, and 4000 of half precision.
RETURN CASE WHEN dim <= 2000 THEN format('@vector@.vector(%s)', dim)
            WHEN dim <= 4000 THEN format('@vector@.halfvec(%s)', dim) ELSE '@vector@.vector' END;
COMMENT ON FUNCTION sona._indexed_type IS 'Type under which vectors of a dimension are indexed.';

CREATE OR REPLACE FUNCTION sona._indexed_embedding(dim integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '(embedding::' || sona._indexed_type(dim) || ')';
COMMENT ON FUNCTION sona._indexed_embedding IS 'Expression under which remembered queries of a dimension are indexed.';

CREATE OR REPLACE FUNCTION sona.nearest_queries(space text, query @vector@.vector, k integer DEFAULT 10)
RETURNS TABLE (trajectory_id uuid, similarity real)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp
SET hnsw.iterative_scan = 'relaxed_order' AS $$
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = nearest_queries.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(nearest_queries.space); END IF;
    IF query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    IF @vector@.vector_dims(query) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(query), s.dim);
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        PERFORM sona._refuse('SN003', format('k is %s, expected 1 to 10000', coalesce(k::text, 'NULL')),
                             'ask for fewer queries');
    END IF;
    -- The dimension is a literal: an index on an expression serves only the very same expression.
    RETURN QUERY EXECUTE format(
        'SELECT b.trajectory_id, coalesce(1 - nullif(b.distance, ''NaN''), 0)::real FROM ('
        ' (SELECT r.trajectory_id, r.embedding OPERATOR(@vector@.<=>) $1 AS distance FROM sona.remembered_query r'
        '  WHERE r.space_id = $2 AND NOT r.admitted ORDER BY 2 LIMIT $3)'
        ' UNION ALL'
        ' (SELECT r.trajectory_id, %1$s OPERATOR(@vector@.<=>) $1::%2$s AS distance FROM sona.remembered_query r'
        '  WHERE r.space_id = $2 AND r.admitted AND @vector@.vector_dims(r.embedding) = %3$s ORDER BY 2 LIMIT $3)'
        ') b ORDER BY b.distance LIMIT $3',
        sona._indexed_embedding(s.dim), sona._indexed_type(s.dim), s.dim)
    USING query, s.space_id, k;
END $$;
COMMENT ON FUNCTION sona.nearest_queries IS 'The k remembered queries nearest to a query, by cosine.';

CREATE OR REPLACE FUNCTION sona._index_queries(dim integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF dim IS NULL OR dim NOT BETWEEN 1 AND 4000 THEN
        PERFORM sona._refuse('SN003', format('the dimension is %s, expected 1 to 4000', coalesce(dim::text, 'NULL')),
                             'spaces of more dimensions are searched exactly');
    END IF;
    -- Two that find it missing would both make it, and one of them fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.index_queries', dim));
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS remembered_query_hnsw_%1$s ON sona.remembered_query'
        ' USING hnsw (%2$s @vector@.%3$s_cosine_ops) WHERE admitted AND @vector@.vector_dims(embedding) = %1$s',
        dim, sona._indexed_embedding(dim), CASE WHEN dim <= 2000 THEN 'vector' ELSE 'halfvec' END);
END $$;
COMMENT ON FUNCTION sona._index_queries IS
    'Makes the HNSW index of a dimension, which only the owner of the table may, on behalf of who may learn.';

CREATE OR REPLACE FUNCTION sona.admit_queries(space text, keep_exact integer DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    s sona.space%ROWTYPE;
    admitted_now bigint := 0;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = admit_queries.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(admit_queries.space); END IF;
    IF keep_exact IS NULL OR keep_exact < 0 THEN
        PERFORM sona._refuse('SN003', format('keep_exact is %s, expected at least 0', coalesce(keep_exact::text, 'NULL')),
                             'leave it out');
    END IF;
    IF s.dim > 4000 OR (SELECT count(*) FROM (
        SELECT FROM sona.remembered_query r WHERE r.space_id = s.space_id LIMIT keep_exact::bigint + 1) few) <= keep_exact THEN
        RETURN 0;
    END IF;
    IF to_regclass(format('sona.remembered_query_hnsw_%s', s.dim)) IS NULL THEN
        PERFORM sona._index_queries(s.dim);
    END IF;
    UPDATE sona.remembered_query r SET admitted = true WHERE r.space_id = s.space_id AND NOT r.admitted;
    GET DIAGNOSTICS admitted_now = ROW_COUNT;
    RETURN admitted_now;
END $$;
COMMENT ON FUNCTION sona.admit_queries IS
    'Moves the fresh tail of a space with more than keep_exact remembered queries into the HNSW index of its dimension; '
    'returns how many.';
