-- Remembered queries: indexed by size. The fresh tail is searched exactly; what was admitted, through HNSW.

CREATE OR REPLACE FUNCTION sona._indexed_type(dim integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- HNSW takes vectors of up to 2000 components, and 4000 of half precision.
RETURN CASE WHEN dim <= 2000 THEN '@vector@.vector(' || dim::text || ')'
            WHEN dim <= 4000 THEN '@vector@.halfvec(' || dim::text || ')' ELSE '@vector@.vector' END;
COMMENT ON FUNCTION sona._indexed_type IS 'Type under which vectors of a dimension are indexed.';

CREATE OR REPLACE FUNCTION sona._indexed_embedding(dim integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '(embedding::' || sona._indexed_type(dim) || ')';
COMMENT ON FUNCTION sona._indexed_embedding IS 'Expression under which remembered queries of a dimension are indexed.';

CREATE OR REPLACE FUNCTION sona._queries_index(space_id bigint) RETURNS regclass
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_regclass('sona.remembered_query_hnsw_' || space_id);
COMMENT ON FUNCTION sona._queries_index IS 'The HNSW index of the remembered queries of a space; NULL where it has none.';

CREATE OR REPLACE FUNCTION sona._near_admitted(space_id bigint, dim integer, columns text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- Literals: a partial index on an expression serves only the very same expression and predicate.
RETURN format(
    'SELECT %s OPERATOR(@vector@.<=>) $1::%s AS away, %s FROM sona.remembered_query r'
    ' WHERE r.space_id = %s AND r.admitted ORDER BY 1 LIMIT $2',
    sona._indexed_embedding(dim), sona._indexed_type(dim), columns, coalesce(space_id, 0));
COMMENT ON FUNCTION sona._near_admitted IS
    'A statement that finds, through the index of a space, the $2 admitted queries nearest to $1; as sona._near_queries.';

CREATE OR REPLACE FUNCTION sona._near_queries(space_id bigint, dim integer, columns text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    fresh text := format(
        'SELECT r.embedding OPERATOR(@vector@.<=>) $1 AS away, %s FROM sona.remembered_query r'
        ' WHERE r.space_id = %s AND NOT r.admitted ORDER BY 1, r.ordinal LIMIT $2', columns, coalesce(space_id, 0));
    admitted text := sona._near_admitted(space_id, dim, columns);
BEGIN
    -- Most have only one of them, and what is not there need not be planned.
    RETURN CASE
        WHEN sona._queries_index(space_id) IS NULL THEN
            format('SELECT r.embedding OPERATOR(@vector@.<=>) $1 AS away, %s FROM sona.remembered_query r'
                   ' WHERE r.space_id = %s ORDER BY 1, r.ordinal LIMIT $2', columns, coalesce(space_id, 0))
        -- Ordered, so that an index must serve it: where there is none of a space, a scan would read those of all.
        WHEN (SELECT true FROM sona.remembered_query r WHERE r.space_id = _near_queries.space_id AND NOT r.admitted
              ORDER BY r.ordinal LIMIT 1) IS NULL THEN admitted
        ELSE format('SELECT * FROM ((%s) UNION ALL (%s)) b ORDER BY b.away LIMIT $2', fresh, admitted) END;
END $$;
COMMENT ON FUNCTION sona._near_queries IS
    'A statement that finds the $2 remembered queries nearest to $1, as "away" and other columns of remembered_query r.';

CREATE OR REPLACE FUNCTION sona._searched_space(space text, query @vector@.vector, k integer) RETURNS sona.space
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(space); END IF;
    IF query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    IF @vector@.vector_dims(query) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(query), s.dim);
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        PERFORM sona._refuse('SN003', format('k is %s, expected 1 to 10000', coalesce(k::text, 'NULL')), 'ask for fewer');
    END IF;
    RETURN s;
END $$;
COMMENT ON FUNCTION sona._searched_space IS
    'The space in which the k nearest to a query are asked for. Raises SN001, SN002 or SN003 if that cannot be answered.';

CREATE OR REPLACE FUNCTION sona.nearest_queries(space text, query @vector@.vector, k integer DEFAULT 10)
RETURNS TABLE (trajectory_id uuid, similarity real)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp
SET hnsw.iterative_scan = 'relaxed_order' AS $$
DECLARE
    s sona.space%ROWTYPE := sona._searched_space(nearest_queries.space, query, k);
BEGIN
    -- Adding zero, so that it is sorted: an index that goes on after its first rows returns almost in order.
    RETURN QUERY EXECUTE format('SELECT n.trajectory_id, coalesce(1 - nullif(n.away, ''NaN''), 0)::real FROM (%s) n'
                                ' ORDER BY n.away + 0', sona._near_queries(s.space_id, s.dim, 'r.trajectory_id'))
    USING query, k;
END $$;
COMMENT ON FUNCTION sona.nearest_queries IS 'The k remembered queries nearest to a query, by cosine.';

DROP FUNCTION IF EXISTS sona._index_queries(integer);

CREATE OR REPLACE FUNCTION sona._check_may_index(space_id bigint, caller name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- What a definer may do would else be done to the spaces of others.
    IF NOT coalesce(sona._may_grant(space_id, caller), false) THEN
        PERFORM sona._refuse('42501', format('permission denied for the space of id %s', coalesce(space_id::text, 'NULL')),
                             'only who may write a space may index it');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_may_index IS 'Raises 42501 unless a role may write a space.';

CREATE OR REPLACE FUNCTION sona._index_queries(space_id bigint, dim integer, caller name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    PERFORM sona._check_may_index(space_id, caller);
    IF dim IS NULL OR dim NOT BETWEEN 1 AND 4000 THEN
        PERFORM sona._refuse('SN003', format('the dimension is %s, expected 1 to 4000', coalesce(dim::text, 'NULL')),
                             'spaces of more dimensions are searched exactly');
    END IF;
    -- Two that find it missing would both make it, and one of them fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.index_queries', space_id));
    -- One for each space: in an index of many, the few rows of a space would be looked for among those of all.
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS remembered_query_hnsw_%1$s ON sona.remembered_query'
        ' USING hnsw (%2$s @vector@.%3$s_cosine_ops) WHERE space_id = %1$s AND admitted',
        space_id, sona._indexed_embedding(dim), CASE WHEN dim <= 2000 THEN 'vector' ELSE 'halfvec' END);
END $$;
COMMENT ON FUNCTION sona._index_queries IS
    'Makes the HNSW index of a space, which only the owner of the table may, on behalf of who may learn.';

CREATE OR REPLACE FUNCTION sona._drop_queries_index(space_id bigint, caller name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    PERFORM sona._check_may_index(space_id, caller);
    EXECUTE format('DROP INDEX IF EXISTS sona.remembered_query_hnsw_%s', space_id);
END $$;
COMMENT ON FUNCTION sona._drop_queries_index IS
    'Drops the HNSW index of a space that goes, which only the owner of the table may, on behalf of who drops the space.';

DROP FUNCTION IF EXISTS sona._patterns_index(bigint), sona._index_patterns(bigint, integer, name),
    sona._drop_patterns_index(bigint, name);

CREATE OR REPLACE FUNCTION sona._vectors_index(of text, space_id bigint) RETURNS regclass
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_regclass('sona.' || quote_ident(of || '_hnsw_' || space_id));
COMMENT ON FUNCTION sona._vectors_index IS
    'The HNSW index of the patterns (pattern) or of the memory nodes (memory_node) of a space; NULL where it has none.';

CREATE OR REPLACE FUNCTION sona._indexed_column(of text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found text := CASE of WHEN 'pattern' THEN 'centroid' WHEN 'memory_node' THEN 'embedding' END;
BEGIN
    IF found IS NULL THEN
        PERFORM sona._refuse('SN003', format('vectors of %L are asked for', of), 'expected pattern or memory_node');
    END IF;
    RETURN found;
END $$;
COMMENT ON FUNCTION sona._indexed_column IS 'The column of vectors of a table that is indexed by size. Raises SN003 for others.';

CREATE OR REPLACE FUNCTION sona._index_vectors(of text, space_id bigint, dim integer, caller name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    vectors text := sona._indexed_column(of);
BEGIN
    PERFORM sona._check_may_index(space_id, caller);
    IF dim IS NULL OR dim NOT BETWEEN 1 AND 4000 THEN
        PERFORM sona._refuse('SN003', format('the dimension is %s, expected 1 to 4000', coalesce(dim::text, 'NULL')),
                             'spaces of more dimensions are searched exactly');
    END IF;
    -- Two that find it missing would both make it, and one of them fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.index_' || of, space_id));
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS %1$s_hnsw_%2$s ON sona.%1$s'
        ' USING hnsw ((%3$s::%4$s) @vector@.%5$s_cosine_ops) WHERE space_id = %2$s',
        of, space_id, vectors, sona._indexed_type(dim), CASE WHEN dim <= 2000 THEN 'vector' ELSE 'halfvec' END);
END $$;
COMMENT ON FUNCTION sona._index_vectors IS
    'Makes the HNSW index of the patterns or memory nodes of a space, which only the owner of the table may, on behalf of '
    'who may learn.';

CREATE OR REPLACE FUNCTION sona._drop_vectors_index(of text, space_id bigint, caller name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    PERFORM sona._indexed_column(of);
    PERFORM sona._check_may_index(space_id, caller);
    EXECUTE format('DROP INDEX IF EXISTS sona.%s_hnsw_%s', of, space_id);
END $$;
COMMENT ON FUNCTION sona._drop_vectors_index IS
    'Drops the HNSW index of the patterns or memory nodes of a space, which only the owner of the table may, on behalf of '
    'who may learn.';

CREATE OR REPLACE FUNCTION sona._index_by_size(of text, space text, keep_exact integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    vectors text := sona._indexed_column(of);
    s sona.space%ROWTYPE;
    many bigint;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = _index_by_size.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(_index_by_size.space); END IF;
    IF keep_exact IS NULL OR keep_exact < 0 THEN
        PERFORM sona._refuse('SN003', format('keep_exact is %s, expected at least 0', coalesce(keep_exact::text, 'NULL')),
                             'leave it out');
    END IF;
    IF s.dim > 4000 OR sona._vectors_index(of, s.space_id) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM sona.%I WHERE space_id = $1 AND %I IS NOT NULL LIMIT $2) few', of, vectors)
    INTO many USING s.space_id, keep_exact::bigint + 1;
    IF many <= keep_exact THEN
        RETURN false;
    END IF;
    PERFORM sona._index_vectors(of, s.space_id, s.dim, current_user);
    RETURN true;
END $$;
COMMENT ON FUNCTION sona._index_by_size IS
    'Makes an HNSW index of the patterns or memory nodes of a space that has more than keep_exact of them and no index; '
    'whether it has.';

CREATE OR REPLACE FUNCTION sona.admit_queries(space text, keep_exact integer DEFAULT 4000) RETURNS bigint
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
    -- In bulk, where there is no index yet: that builds it from the rows. The strongest lock that it takes comes first:
    -- two that wrote, and then wanted to index, would wait for each other.
    IF sona._queries_index(s.space_id) IS NULL THEN
        LOCK TABLE sona.remembered_query IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    UPDATE sona.remembered_query r SET admitted = true WHERE r.space_id = s.space_id AND NOT r.admitted;
    GET DIAGNOSTICS admitted_now = ROW_COUNT;
    IF sona._queries_index(s.space_id) IS NULL THEN PERFORM sona._index_queries(s.space_id, s.dim, current_user); END IF;
    RETURN admitted_now;
END $$;
COMMENT ON FUNCTION sona.admit_queries IS
    'Moves the fresh tail of a space with more than keep_exact remembered queries into an HNSW index of its own; '
    'returns how many.';
